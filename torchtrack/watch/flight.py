"""PyTorch's flight recorder: the collectives that a rank has started, as far as it was told to remember them.

It remembers with TORCH_FR_BUFFER_SIZE (TORCH_NCCL_TRACE_BUFFER_SIZE in older versions) above 0. What its own watchdog
writes before it aborts is found by the sidecar; where there is time, as at a stall, it is asked here.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Final

from torchtrack import guard
from torchtrack.journal import ring

_ASKED: Final = ("_dump_fr_trace_json", "_dump_nccl_trace_json")
"""What there is of them depends on torch's version and build."""
_SIZES: Final = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")
_FILES: Final = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")


def places(rank: int) -> list[str]:
    """Where torch may write its dump of a rank: as it is told to, else where its versions do."""
    told = [os.environ[name] for name in _FILES if os.environ.get(name)]
    cache = Path(os.environ.get("HOME") or "/tmp") / ".cache" / "torch"  # noqa: S108  # as torch has it
    usual = [str(cache / "comm_lib_trace_rank_"), str(cache / "nccl_trace_rank_"), "/tmp/nccl_trace_rank_"]  # noqa: S108
    return [f"{place}{rank}" for place in told or usual]


def dump(stream: int) -> bool:
    """Write what it remembers, if it does, beside the ring. It takes a lock of torch's for a moment, and no device."""
    remembers = any(os.environ.get(name, "0").isdigit() and int(os.environ.get(name, "0")) > 0 for name in _SIZES)
    module = sys.modules.get("torch._C._distributed_c10d")
    ask = next((getattr(module, name) for name in _ASKED if hasattr(module, name)), None)
    if not remembers or ask is None:
        return False
    said: Any = guard.outcome(ask)
    if not isinstance(said, bytes):
        return False
    path = ring.place(len(said)) / f"{ring.prefix(stream)}-process.flight.json"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "wb") as file:  # noqa: PTH123
        file.write(said)
    return True
