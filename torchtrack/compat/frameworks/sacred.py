"""`wandb.sacred`: an observer. The class is made when it is asked for, since it derives from one of sacred."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from torchtrack.active import init
from torchtrack.compat.artifact import Artifact
from torchtrack.compat.helpers import make_artifact_name_safe
from torchtrack.compat.media import Image
from torchtrack.errors import MissingDependencyError


def __getattr__(name: str) -> Any:
    if name != "WandbObserver":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _made()


@functools.cache
def _made() -> Any:
    try:
        from sacred.observers import RunObserver
    except ImportError:
        raise MissingDependencyError("wandb.sacred.WandbObserver needs sacred: pip install sacred") from None

    class WandbObserver(RunObserver):  # type: ignore[misc]  # a base that is imported at run time
        """Records what an experiment of sacred does in a run.

        Args:
            arguments: those of `init`, which starts the run.
        """

        def __init__(self, **arguments: Any) -> None:
            self.run: Any = init(**arguments)

        def started_event(self, config: Any, **_: Any) -> None:
            """Take the configuration."""
            self.run.config.update(dict(config))

        def completed_event(self, result: Any, **_: Any) -> None:
            """Log what the experiment returned, and end the run."""
            for number, value in enumerate(result if isinstance(result, tuple) else (result,)):
                if value is not None:
                    self.run.log(value if isinstance(value, dict) else {f"result_{number}": _shown(value)})
            self.run.finish()

        def interrupted_event(self, **_: Any) -> None:
            """End the run as one that did not come to its end."""
            self.run.finish(exit_code=1)

        def failed_event(self, **_: Any) -> None:
            """As above."""
            self.run.finish(exit_code=1)

        def artifact_event(self, name: str, filename: str, metadata: Any = None, content_type: Any = None) -> None:
            """Keep a file as an artifact."""
            artifact = Artifact(make_artifact_name_safe(name), content_type or "file", metadata=metadata)
            artifact.add_file(filename)
            self.run.log_artifact(artifact)

        def resource_event(self, filename: str) -> None:
            """Note which file was read."""
            known = self.run.config.get("resources", [])
            self.run.config["resources"] = [*known, str(Path(filename))]

        def log_metrics(self, metrics_by_name: Any, **_: Any) -> None:
            """Log metrics at the steps that they were measured at."""
            for name, told in metrics_by_name.items():
                for step, value in zip(told["steps"], told["values"], strict=True):
                    self.run.log({name: _shown(value)}, step=step)

    return WandbObserver


def _shown(value: Any) -> Any:
    return Image(value) if getattr(value, "ndim", 0) in (2, 3) else value
