"""What the adapter imports, and what it says to whoever has no engine: DeepSpeed is not needed here."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from torch import nn

import torchtrack_deepspeed
from tests.integrations.deepspeed.test_ranks import PATHS


def test_importing_the_adapter_imports_no_deepspeed() -> None:
    code = "import sys, torchtrack_deepspeed\nassert 'deepspeed' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": PATHS}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_what_is_no_engine_is_refused_and_without_deepspeed_the_message_names_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run: Any = None
    with pytest.raises(TypeError, match=r"takes the engine that deepspeed.initialize\(\) returned, got Linear"):
        torchtrack_deepspeed.watch(run, nn.Linear(1, 1))
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(TypeError, match=r"got Linear \(DeepSpeed is not installed: pip install deepspeed\)"):
        torchtrack_deepspeed.watch(run, nn.Linear(1, 1))


def test_stage_3_is_refused() -> None:
    class Engine:
        def zero_optimization_stage(self) -> int:
            return 3

    run: Any = None
    with pytest.raises(ValueError, match="knows ZeRO stages 0, 1 and 2, and this is stage 3"):
        torchtrack_deepspeed.watch(run, Engine())
