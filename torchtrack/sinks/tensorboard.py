"""Event files of TensorBoard.

Histograms have our buckets and our counts; NaN and infinities, which its form has no place for, are a number beside.
Tables are texts in markdown, which it draws as tables. It has no place for videos, HTML and other files.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from torchtrack.errors import MissingDependencyError
from torchtrack.histogram import Histogram
from torchtrack.sinks.feed import Forwarded, Medium
from torchtrack.sinks.sink import About, Sink, file_name, table_of

_MOST_ROWS: Final = 200
"""Of a table: it is drawn whole."""


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
            values += [self._text(name, text) for name, text in step.texts.items()]
            for name, media in step.media.items():
                tags = [name] if len(media) == 1 else [f"{name}/{number}" for number in range(len(media))]
                values += filter(None, map(self._medium, tags, media))
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

    def _text(self, name: str, text: str) -> Any:
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.plugins.text.metadata import create_summary_metadata

        shape = {"dim": [{"size": 1}]}
        tensor = TensorProto(dtype="DT_STRING", string_val=[text.encode()], tensor_shape=shape)
        described = create_summary_metadata(display_name=name, description="")
        return self._summaries.Summary.Value(tag=f"{name}/text_summary", metadata=described, tensor=tensor)

    def _medium(self, tag: str, medium: Medium) -> Any:
        """A summary of it; None where TensorBoard has no place for it, or its file is not there."""
        table = table_of(medium)
        if table is not None:
            return self._text(tag, _markdown(*table))
        kind = medium.mime.partition("/")[0]
        if kind not in ("image", "audio") or not medium.path.is_file():
            return None
        data = medium.path.read_bytes()
        if kind == "image":
            image = self._summaries.Summary.Image(**_size(data), colorspace=4, encoded_image_string=data)
            return self._summaries.Summary.Value(tag=tag, image=image)
        sound = {"encoded_audio_string": data, "content_type": medium.mime, **_length(data)}
        return self._summaries.Summary.Value(tag=tag, audio=self._summaries.Summary.Audio(**sound))

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


def _markdown(columns: list[str], rows: list[list[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows[:_MOST_ROWS]]
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    drawn = [f"| {' | '.join(line)} |" for line in cells]
    left = [f"\n{len(rows) - _MOST_ROWS} more rows"] if len(rows) > _MOST_ROWS else []
    return "\n".join([*drawn, *left])


def _size(data: bytes) -> dict[str, int]:
    """Of a PNG, which images of arrays are; TensorBoard reads that of others from the file."""
    if data[12:16] != b"IHDR":
        return {}
    return {"width": int.from_bytes(data[16:20], "big"), "height": int.from_bytes(data[20:24], "big")}


def _length(data: bytes) -> dict[str, Any]:
    try:
        with wave.open(io.BytesIO(data)) as sound:
            rate, channels, frames = sound.getframerate(), sound.getnchannels(), sound.getnframes()
    except (wave.Error, EOFError):
        return {}
    return {"sample_rate": float(rate), "num_channels": channels, "length_frames": frames}
