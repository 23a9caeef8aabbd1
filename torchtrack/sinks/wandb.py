"""A run of wandb, live or offline as its own environment variables say; without a key it is offline."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchtrack.errors import MissingDependencyError
from torchtrack.mime import ending_of
from torchtrack.sinks.feed import Forwarded, Medium
from torchtrack.sinks.sink import About, Sink, table_of


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
        self._files = Path(tempfile.mkdtemp(prefix=f"{about.uid}-", dir=about.folder))
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
            shown = {name: [*filter(None, map(self._medium, media))] for name, media in step.media.items()}
            files = {name: media if len(media) > 1 else media[0] for name, media in shown.items() if media}
            self._run.log({**step.scalars, **made, **step.texts, **files}, step=step.step)

    def _medium(self, medium: Medium) -> Any:
        """It as wandb has it; None where wandb has no place for it, or its file is not there."""
        import wandb

        table = table_of(medium)
        if table is not None:
            return wandb.Table(columns=table[0], data=table[1], allow_mixed_types=True)
        kind = medium.mime.partition("/")[0]
        if not medium.path.is_file():
            return None
        if medium.mime == "text/html":
            return wandb.Html(medium.path.read_text(errors="replace"), inject=False)
        if kind not in ("image", "audio", "video"):
            return None
        named = self._files / f"{medium.path.name}{ending_of(medium.mime)}"  # wandb knows a file by its ending
        if not named.exists():
            shutil.copyfile(medium.path, named)
        if kind == "image" and medium.mime != "image/gif":
            return wandb.Image(str(named), caption=medium.caption)
        return (wandb.Audio if kind == "audio" else wandb.Video)(str(named), caption=medium.caption)

    def close(self, state: str, summary: Mapping[str, Any]) -> None:  # noqa: ARG002  # it makes one of its own
        """End the run as it ended."""
        self._run.finish(exit_code=0 if state == "finished" else 1)
        shutil.rmtree(self._files, ignore_errors=True)


def _has_key() -> bool:
    import netrc

    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(Path.home() / ".netrc").authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
