"""`wandb.gym`: the films that gymnasium's RecordVideo makes are logged, once `monitor()` was called."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any

from torchtrack import guard
from torchtrack.active import active
from torchtrack.compat.media import Video
from torchtrack.errors import MissingDependencyError


def monitor() -> None:
    """Log, from now on, every film that an environment in `gymnasium.wrappers.RecordVideo` makes, as `videos`.

    Raises:
        MissingDependencyError: gymnasium is not installed, or is older than 1.0.
    """
    try:
        recorder: Any = importlib.import_module("gymnasium.wrappers").RecordVideo
        stop = recorder.stop_recording
    except (ImportError, AttributeError):
        raise MissingDependencyError("wandb.gym.monitor() needs gymnasium: pip install 'gymnasium>=1.0'") from None
    if hasattr(stop, "__wrapped__"):
        return  # it does so already

    @functools.wraps(stop)
    def stop_recording(self: Any) -> None:
        name = self._video_name
        stop(self)
        path, run = Path(self.video_folder) / f"{name}.mp4", active()
        if run is not None and path.is_file():
            guard.attempt("a film of gymnasium", run.log, {"videos": Video(str(path), caption=name)}, commit=False)

    recorder.stop_recording = stop_recording
