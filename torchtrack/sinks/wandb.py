"""A run of wandb, live or offline as its own environment variables say; without a key it is offline."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torchtrack.errors import MissingDependencyError
from torchtrack.sinks.feed import Forwarded
from torchtrack.sinks.sink import About, Sink


class WandbSink(Sink):
    """A run of wandb with the uid as its id.

    wandb takes steps in ascending order only: after a restart that goes back it leaves out the steps it has.

    Args:
        about: the run.
        where: `online` or `offline`; by default WANDB_MODE, else online where wandb finds a key.
    """

    def __init__(self, about: About, where: str | None) -> None:
        try:
            import wandb
        except ImportError:
            raise MissingDependencyError("the sink wandb needs wandb: pip install 'torchtrack[wandb]'") from None
        mode = (
            where or os.environ.get("WANDB_MODE") or ("online" if wandb.Api is not None and _has_key() else "offline")
        )
        about.folder.mkdir(parents=True, exist_ok=True)
        self._histogram = wandb.Histogram
        self._run: Any = wandb.init(
            project=about.project,
            id=about.uid,
            name=about.name,
            group=about.group,
            job_type=about.job_type,
            tags=list(about.tags),
            notes=about.notes,
            config=dict(about.config),
            dir=str(about.folder),
            mode=mode,  # type: ignore[arg-type,unused-ignore]  # wandb says which are allowed
            resume="allow",
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
        )

    def write(self, steps: Sequence[Forwarded]) -> None:
        """A row a step, histograms with our edges and counts."""
        for step in steps:
            made = {name: self._histogram(np_histogram=each.to_edges()) for name, each in step.histograms.items()}
            self._run.log({**step.scalars, **made}, step=step.step)

    def close(self, state: str, summary: Mapping[str, Any]) -> None:  # noqa: ARG002  # it makes one of its own
        """End the run as it ended."""
        self._run.finish(exit_code=0 if state == "finished" else 1)


def _has_key() -> bool:
    import netrc
    from pathlib import Path

    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(Path.home() / ".netrc").authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
