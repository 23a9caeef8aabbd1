"""Event files of TensorBoard.

Histograms have our buckets and our counts; NaN and infinities, which its form has no place for, are a number beside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchtrack.errors import MissingDependencyError
from torchtrack.histogram import Histogram
from torchtrack.sinks.feed import Forwarded
from torchtrack.sinks.sink import About, Sink, file_name


class TensorBoardSink(Sink):
    """A folder with event files, for `tensorboard --logdir`.

    Args:
        about: the run.
        where: the folder that the run gets its own in; `sinks/tensorboard` in the folder of runs by default.
    """

    def __init__(self, about: About, where: str | None) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError:
            raise MissingDependencyError(
                "the sink tensorboard needs tensorboard: pip install 'torchtrack[tensorboard]'"
            ) from None
        root = Path(where) if where else about.folder / "tensorboard"
        folder = root / file_name(about.project) / f"{file_name(about.name)}-{about.uid[:6]}"
        self._events, self._summaries = event_pb2, summary_pb2
        self._writer: Any = EventFileWriter(str(folder))

    def write(self, steps: Sequence[Forwarded]) -> None:
        """Numbers as they are, histograms in the older form, which keeps their moments."""
        for step in steps:
            values = [self._summaries.Summary.Value(tag=n, simple_value=v) for n, v in step.scalars.items()]
            for name, histogram in step.histograms.items():
                values.append(self._summaries.Summary.Value(tag=name, histo=self._form(histogram)))
                others = histogram.count - histogram.finite
                if others:
                    values.append(self._summaries.Summary.Value(tag=f"nonfinite/{name}", simple_value=others))
            summary = self._summaries.Summary(value=values)
            self._writer.add_event(self._events.Event(wall_time=step.time_s, step=step.step, summary=summary))
        self._writer.flush()

    def rewind(self, step: int) -> None:
        """TensorBoard then leaves out what was written from this step on."""
        log = self._events.SessionLog(status=self._events.SessionLog.START)
        self._writer.add_event(self._events.Event(step=step, session_log=log))

    def close(self, state: str, summary: Mapping[str, Any]) -> None:  # noqa: ARG002  # it has no place for them
        """Write what waits."""
        self._writer.close()

    def _form(self, histogram: Histogram) -> Any:
        counts, ends = histogram.to_edges()
        some = np.flatnonzero(counts)
        first, last = (int(some[0]), int(some[-1]) + 1) if len(some) else (0, 0)
        # A bin begins where the one before ends: an empty one says where the first begins.
        return self._summaries.HistogramProto(
            min=histogram.min if len(some) else 0.0,
            max=histogram.max if len(some) else 0.0,
            num=histogram.finite,
            sum=histogram.sum,
            sum_squares=histogram.sum_sq,
            bucket_limit=ends[first : last + 1].tolist(),
            bucket=[0.0, *counts[first:last].astype(np.float64).tolist()],
        )
