"""`wandb.profiler`: traces of torch's profiler in the files of the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchtrack.active import current
from torchtrack.compat.files import FOLDER


def torch_trace_handler() -> Callable[[Any], None]:
    """For `torch.profiler.profile(on_trace_ready=)`: each trace is a file of the run, for TensorBoard or Perfetto."""
    from torch.profiler import tensorboard_trace_handler

    return tensorboard_trace_handler(str(Path(current("profiler").dir) / FOLDER / "pytorch_traces"))  # type: ignore[no-any-return]
