"""The Accelerate tracker: what the main process logs and any process watches goes into the one run of the job."""

from __future__ import annotations

from typing import Any

from accelerate import tracking

import torchtrack
from torchtrack_huggingface.beginning import Beginning


class TorchtrackTracker(tracking.GeneralTracker):  # type: ignore[misc]  # Accelerate has no annotations
    """Records into one run, on each process that uses it.

    `Accelerator.log` and `init_trackers` reach the trackers of the main process alone; `tracker.log` and
    `tracker.tracker` are there on all. The run begins when it is first needed and ends with `finish` or the process.
    A run that the script has begun with `torchtrack.init` is used if no arguments are given, and is left open.

    Args:
        project: runs are listed by project.
        init: further arguments of `torchtrack.init`: name, id, config, tags, dir, mode, resume, ...

    Raises:
        TypeError: an argument that `torchtrack.init` does not have.
    """

    name = "torchtrack"
    requires_logging_directory = False
    main_process_only = False

    def __init__(self, project: str | None = None, **init: Any) -> None:
        super().__init__()
        self._beginning = Beginning("TorchtrackTracker", ({} if project is None else {"project": project}) | init)

    @property
    def tracker(self) -> torchtrack.Run:
        """The run, on every process: Accelerate's `get_tracker` gives it to the main process alone."""
        return self._beginning.run()

    def start(self) -> None:
        """Begin the run."""
        self._beginning.run()

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Add to the run's config."""
        self.tracker.config.update(values)

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Record values of this process; readers see the mean over processes, or each.

        Args:
            values: as `Run.log` takes them.
            step: the x axis; the run's own counter if not given.
            kwargs: of `Run.log`: commit, reduce.
        """
        self.tracker.log(values, step=step, **kwargs)

    def finish(self) -> None:
        """End the run, unless the script has begun it."""
        if self._beginning.is_own:
            torchtrack.finish()


def register() -> None:
    """Make "torchtrack" a name for `Accelerator(log_with=)`; Accelerate before 1.13 takes a tracker itself only."""
    if hasattr(tracking, "register_tracker_class") and "torchtrack" not in tracking.LOGGER_TYPE_TO_CLASS:
        tracking.register_tracker_class(TorchtrackTracker)
