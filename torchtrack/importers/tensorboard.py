"""TensorBoard's event files: scalars, histograms, images, sounds, texts, hyper-parameters. A folder of files is a run.

Messages are parsed by tensorboard's own classes, in the forms of old and new writers (`SummaryWriter` of PyTorch, of
TensorFlow 1 and 2). A file that says that the steps from one on are void, as a restarted training writes it, begins a
new attempt of the run: readers then see what TensorBoard shows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from torchtrack.bins import MOMENTS, SPREAD, from_bins, from_limits
from torchtrack.errors import MissingDependencyError
from torchtrack.importers import tfrecord
from torchtrack.importers.source import About, Chunk, End, Losses, SourceRun
from torchtrack.importers.sources import Found
from torchtrack.mime import mime_of

PATTERN: Final = "*tfevents*"
_NO_PLACE: Final = "values of the plugin {} have no place here"


def recognises(path: Path) -> bool:
    """Whether there are event files at or below a path."""
    return "tfevents" in path.name if path.is_file() else next(path.rglob(PATTERN), None) is not None


def find(path: Path, project: str | None) -> Found:
    """A run for each folder with event files."""
    _Library()
    root = path.parent if path.is_file() else path
    files = [path] if path.is_file() else sorted(filter(Path.is_file, path.rglob(PATTERN)), key=_in_order)
    folders: dict[Path, list[Path]] = {}
    for file in files:
        folders.setdefault(file.parent, []).append(file)
    top = root.resolve().name or "tensorboard"
    found = Found()
    for folder, own in folders.items():
        place = folder.relative_to(root).as_posix()
        run = _first_record(own)
        if run is None:
            found.losses.damage("folders with event files of which nothing can be read")
            continue
        found.runs.append(Run(own, *run, name=top if place == "." else place, project=project, top=top))
    return found


def _in_order(file: Path) -> tuple[Path, list[str | int]]:
    """By folder, and then as they were begun: names have the time and, of one second and process, a running number."""
    return file.parent, [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", file.name)]


class _Library:
    """The parts of tensorboard that are used, imported when first needed."""

    def __init__(self) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
            from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
            from tensorboard.util.tensor_util import make_ndarray
        except ImportError:
            raise MissingDependencyError(
                "event files need tensorboard to be read: pip install 'torchtrack[tensorboard]'"
            ) from None
        self.event, self.hparams, self.array = Event, HParamsPluginData, make_ndarray
        self.checksum: Any = masked_crc32c


def _first_record(files: list[Path]) -> tuple[str, int] | None:
    """What tells a run from others, and when it began: the name and first record of its first file that has one."""
    library = _Library()
    for file in files:
        for _, data in tfrecord.records(file, 0, library.checksum, Losses()):
            event = library.event()
            event.ParseFromString(data)
            return f"{file.name} {hashlib.sha256(data).hexdigest()}", int(event.wall_time * 1e9)
    return None


class Run(SourceRun):
    """A folder with event files.

    Args:
        files: those of the folder, in the order of their names, which begin with the time.
        key: what tells the run from others.
        start_ns: when it began.
        name: for people.
        project: to list it in, if that was said.
        top: the folder that was given, which is the project otherwise.
    """

    kind = "tensorboard"

    def __init__(self, files: list[Path], key: str, start_ns: int, *, name: str, project: str | None, top: str) -> None:
        super().__init__()
        self.key = key
        run_id = hashlib.blake2s(key.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
        parts = files[0].name.split(".")  # events.out.tfevents.<seconds>.<host>...
        host = parts[4] if len(parts) > 4 else ""
        self.about = About((project or top).replace("/", "-"), run_id, name, start_ns, host=host)
        self.size = sum(file.stat().st_size for file in files)
        self._files = files
        self._given = project
        self._library = _Library()
        self._attempt = 1
        self._last_step = -1

    def read(self, cursor: Any) -> Iterator[Chunk]:
        """Go through the files, each from where it was left."""
        cursor = cursor or {"offsets": {}, "attempt": 1, "last_step": -1, "end": list(self.end)}
        self.end = End(*cursor["end"])
        if "name" in cursor:  # a folder that was moved is still called as it was
            project = self._given or cursor["project"]
            self.about = dataclasses.replace(self.about, name=cursor["name"], project=project)
        offsets: dict[str, int] = dict(cursor["offsets"])
        self._attempt, self._last_step = cursor["attempt"], cursor["last_step"]
        done = 0
        for file in self._files:
            begun = offsets.get(file.name, 0)
            chunk = Chunk(attempt=self._attempt)
            for end, data in tfrecord.records(file, begun, self._library.checksum, self.losses):
                event = self._parsed(data)
                if event is None:
                    continue
                if self._restarts(event) and self._last_step >= event.step:
                    if chunk.rows:
                        yield self._closed(chunk, offsets, done + offsets.get(file.name, 0))
                    self._attempt += 1
                    chunk = Chunk(attempt=self._attempt, from_step=event.step)
                self._take(chunk, event)
                offsets[file.name] = end
                if chunk.full:
                    yield self._closed(chunk, offsets, done + end)
                    chunk = Chunk(attempt=self._attempt)
            done += file.stat().st_size
            if chunk.rows:
                yield self._closed(chunk, offsets, done)

    def _closed(self, chunk: Chunk, offsets: dict[str, int], position: int) -> Chunk:
        called = {"name": self.about.name, "project": self.about.project}
        state = {"attempt": self._attempt, "last_step": self._last_step, "end": list(self.end), **called}
        chunk.cursor, chunk.position = {"offsets": dict(offsets), **state}, position
        return chunk

    def _parsed(self, data: bytes) -> Any:
        from google.protobuf.message import DecodeError

        event = self._library.event()
        try:
            event.ParseFromString(data)
        except DecodeError:
            self.losses.damage("records that are no events")
            return None
        return event

    def _restarts(self, event: Any) -> bool:
        what = event.WhichOneof("what")
        return bool(what == "session_log" and event.session_log.status == event.session_log.START)

    def _take(self, chunk: Chunk, event: Any) -> None:
        what, at = event.WhichOneof("what"), int(event.wall_time * 1e6)
        if what == "summary":
            self._last_step = max(self._last_step, event.step)
            for value in event.summary.value:
                self._value(chunk, event.step, at, value)
        elif what == "log_message":
            chunk.line(at, "stderr", event.log_message.message)
        elif what in ("graph_def", "meta_graph_def"):
            self.losses.note("graphs of the model have no place here")
        elif what == "tagged_run_metadata":
            self.losses.note("profiles of TensorFlow sessions have no place here")

    def _value(self, chunk: Chunk, step: int, at: int, value: Any) -> None:
        name, form = self.named(value.tag or value.node_name), value.WhichOneof("value")
        if value.tag.startswith("_hparams_/"):
            self._hparams(chunk, at, value)
        elif form == "simple_value":
            chunk.scalar(step, at, name, value.simple_value)
        elif form == "histo":
            self._histogram(chunk, step, at, name, value.histo)
        elif form == "image":
            data = value.image.encoded_image_string
            chunk.medium(step, at, name, data, mime_of(data))
        elif form == "audio":
            data = value.audio.encoded_audio_string
            chunk.medium(step, at, name, data, mime_of(data, value.audio.content_type))
        elif form == "tensor":
            self._tensor(chunk, step, at, name, value)
        else:
            self.losses.note("values in a form that tensorboard no longer reads")

    def _tensor(self, chunk: Chunk, step: int, at: int, name: str, value: Any) -> None:
        plugin = value.metadata.plugin_data.plugin_name
        try:
            array = self._library.array(value.tensor)
        except (ValueError, TypeError):
            self.losses.damage("tensors that do not decode")
            return
        if plugin == "text" or (not plugin and array.dtype.kind in "OSU"):
            chunk.text(step, at, name, _text_of(array))
        elif plugin == "histograms":
            self._triples(chunk, step, at, name, array)
        elif plugin in ("images", "audio"):
            for data in (each for each in array.reshape(-1).tolist()[2 if plugin == "images" else 0 :] if each):
                data = data if isinstance(data, bytes) else str(data).encode()
                if array.ndim > 1 and not mime_of(data, "").partition("/")[0]:
                    continue  # the label beside a sound
                chunk.medium(step, at, name, data, mime_of(data))
        elif array.size == 1 and array.dtype.kind in "fiub":
            chunk.scalar(step, at, name, float(array.reshape(-1)[0]))
        else:
            self.losses.note(_NO_PLACE.format(plugin or "(none)"))

    def _histogram(self, chunk: Chunk, step: int, at: int, name: str, histo: Any) -> None:
        """The older form: upper ends, and the exact moments."""
        try:
            made = from_limits(histo)
        except ValueError:
            self.losses.damage("histograms whose counts and ends do not go together")
            return
        self.losses.note(SPREAD)
        chunk.histogram(step, at, name, made)

    def _triples(self, chunk: Chunk, step: int, at: int, name: str, array: Any) -> None:
        """The newer form: lower end, upper end and count of each bin."""
        try:
            low, high, counts = np.asarray(array, np.float64).reshape(-1, 3).T
            made = from_bins(counts, low, high)
        except ValueError:
            self.losses.damage("histograms whose counts and ends do not go together")
            return
        self.losses.note(SPREAD)
        self.losses.note(MOMENTS)
        chunk.histogram(step, at, name, made)

    def _hparams(self, chunk: Chunk, at: int, value: Any) -> None:
        content = self._library.hparams()
        content.ParseFromString(value.metadata.plugin_data.content)
        which = content.WhichOneof("data")
        if which == "session_start_info":
            told = content.session_start_info.hparams.items()
            config = {key: getattr(each, kind) for key, each in told if (kind := each.WhichOneof("kind"))}
            chunk.event(at, "config", {key: config[key] for key in sorted(config)})
        elif which == "session_end_info":
            failed = content.session_end_info.status == 2
            self.end = End("exception", "the hparams plugin says that it failed") if failed else End("finish")


def _text_of(array: Any) -> str:
    """Strings as one text, a line each; a table's cells with tabs between them."""
    rows = np.asarray(array, object)
    rows = rows.reshape(-1, rows.shape[-1]) if rows.ndim > 1 else rows.reshape(-1, 1)
    return "\n".join("\t".join(_decoded(cell) for cell in row) for row in rows)


def _decoded(cell: Any) -> str:
    return cell.decode("utf-8", "replace") if isinstance(cell, bytes) else str(cell)
