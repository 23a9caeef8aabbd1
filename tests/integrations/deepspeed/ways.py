"""Ways to train under DeepSpeed: each name ends with the stage of ZeRO."""

from __future__ import annotations

from typing import Final

import torch

from tests.integrations.plain import Way

WAYS: Final = {
    way.name: way
    for way in (
        Way("zero0", accumulate=2),
        Way("zero1", accumulate=2),
        Way("zero2", accumulate=2, every_batch=True),
        Way("clipped-1", accumulate=2),
        Way("bf16-2", dtype=torch.bfloat16),
    )
}
EXACT: Final = [name for name in WAYS if name.startswith("zero")]
CLIPPED: Final = [name for name in WAYS if name not in EXACT]
