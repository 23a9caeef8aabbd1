"""wandb's run files (`run-<id>.wandb`), which it writes offline and online: history, config, summary, system, media.

The file is a log in the block format of LevelDB; wandb has no public reader for it. Its records are wandb's protocol
buffers, parsed by its own classes. The files of one run, as `resume` leaves them, are its attempts.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from torchtrack.errors import MissingDependencyError
from torchtrack.importers.logged import flat, put
from torchtrack.importers.source import About, Chunk, End, Losses, SourceRun, file_in
from torchtrack.importers.sources import Found

_MAGIC: Final = b":W&B\xe1\xbe"
_HEAD: Final = 7
_BLOCK: Final = 32768
_ENTRY: Final = struct.Struct("<IHB")
_FULL, _FIRST, _LAST = 1, 2, 4
_TO_KEEP: Final = 1 << 28


def recognises(path: Path) -> bool:
    """Whether there are run files at or below a path."""
    if path.is_file():
        return path.suffix == ".wandb"
    return next(path.rglob("*.wandb"), None) is not None


def find(path: Path, project: str | None) -> Found:
    """The runs whose files lie there; several files of one run are its attempts."""
    record = _record_class()
    files = [path] if path.is_file() else list(path.rglob("*.wandb"))
    found = Found()
    runs: dict[str, list[tuple[int, Path, Any]]] = {}
    for file in sorted({each.resolve() for each in files}):
        first = _first_run(file, record)
        if first is None:
            found.losses.damage(f"run files without a run in them ({file.name})")
            continue
        key = f"{first.entity}/{first.project}/{first.run_id}"
        runs.setdefault(key, []).append((first.start_time.ToNanoseconds(), file, first))
    found.runs += [Run(key, sorted(parts, key=lambda part: part[:2]), project, record) for key, parts in runs.items()]
    return found


def _record_class() -> Any:
    try:
        return importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    except ImportError:
        raise MissingDependencyError(
            "run files of wandb need wandb to be read: pip install 'torchtrack[wandb]'"
        ) from None


def _first_run(file: Path, record: Any) -> Any:
    for _, data in entries(file, 0, Losses()):
        parsed = _parsed(record, data)
        if parsed is not None and parsed.WhichOneof("record_type") == "run":
            return parsed.run
    return None


def _parsed(record: Any, data: bytes) -> Any:
    from google.protobuf.message import DecodeError

    parsed = record()
    try:
        parsed.ParseFromString(data)
    except DecodeError:
        return None
    return parsed


def entries(file: Path, offset: int, losses: Losses) -> Iterator[tuple[int, bytes]]:
    """Each whole entry of a run file with the offset behind it; what is damaged costs its block at most."""
    data = file.read_bytes()
    if data[: len(_MAGIC)] != _MAGIC:
        losses.damage("run files that do not begin as such")
    at, parts, broken = max(offset, _HEAD), list[bytes](), False
    while at < len(data):
        if _BLOCK - at % _BLOCK < _ENTRY.size:
            at += _BLOCK - at % _BLOCK
            continue
        if at + _ENTRY.size > len(data):
            break
        crc, length, form = _ENTRY.unpack_from(data, at)
        body = data[at + _ENTRY.size : at + _ENTRY.size + length]
        if form in (0, *range(5, 256)) or zlib.crc32(body, zlib.crc32(bytes([form]))) != crc:
            if at + _ENTRY.size + length > len(data) and len(data) // _BLOCK == at // _BLOCK:
                break
            losses.damage("blocks of 32 KiB in which something is damaged: what follows in them is lost")
            at, parts, broken = at + _BLOCK - at % _BLOCK, [], True
            continue
        at += _ENTRY.size + length
        starts = form in (_FULL, _FIRST)
        if starts:
            parts, broken = [], False
        if not broken:
            parts.append(body)
        if form in (_FULL, _LAST):
            if parts and not broken:
                yield at, b"".join(parts)
            parts, broken = [], False
    if at < len(data) or parts:
        losses.damage("files that end within a record: being written, or cut off")


class Run(SourceRun):
    """A run of wandb.

    Args:
        key: entity, project and id.
        parts: start, file and first record of each of its files, oldest first.
        project: to list it in; its own by default.
        record: wandb's class of records.
    """

    kind = "wandb"

    def __init__(self, key: str, parts: list[tuple[int, Path, Any]], project: str | None, record: Any) -> None:
        super().__init__()
        self.key = key
        self._record = record
        self._files = [file for _, file, _ in parts]
        self._project = project
        self._start_ns = parts[0][0]
        self.about = self._about(parts[-1][2])
        self.size = sum(file.stat().st_size for file in self._files)
        self._step = 0
        self._ends = False
        self._summary: dict[str, Any] = {}
        self._said: set[str] = set()
        """Names whose summary is in the journal, and does not follow the history any more."""
        self._last: dict[str, Any] = {}

    def _about(self, run: Any) -> About:
        return About(
            project=(self._project or run.project or "uncategorized").replace("/", "-"),
            id=run.run_id,
            name=run.display_name or run.run_id,
            start_ns=self._start_ns,
            group=run.run_group or None,
            job_type=run.job_type or None,
            tags=tuple(run.tags),
            notes=run.notes or None,
            host=run.host,
        )

    def read(self, cursor: Any) -> Iterator[Chunk]:
        """Go through the files, each from where it was left; each is an attempt."""
        offsets: dict[str, int] = dict(cursor["offsets"]) if cursor else {}
        if cursor:
            self._step, self.end, self._ends = cursor["step"], End(*cursor["end"]), cursor["ends"]
            self._said = set(cursor["said"])
            self.about = About(**{**cursor["about"], "tags": tuple(cursor["about"]["tags"])})
        done = 0
        for number, file in enumerate(self._files, 1):
            name = f"{file.parent.name}/{file.name}"
            if name not in offsets:
                self.end, self._ends = End("finish"), False
            chunk = Chunk(attempt=number)
            for end, data in entries(file, offsets.get(name, 0), self.losses):
                self._take(chunk, data, file.parent / "files")
                offsets[name] = end
                if chunk.full:
                    yield self._closed(chunk, offsets, done + end)
                    chunk = Chunk(attempt=number)
            self._summarise(chunk)
            done += file.stat().st_size
            if chunk.rows:
                yield self._closed(chunk, offsets, done)
        if not self._ends:
            self.losses.note("runs whose file does not say how they ended: shown as finished")

    def _closed(self, chunk: Chunk, offsets: dict[str, int], position: int) -> Chunk:
        for _, _, name, value in (*chunk.scalars, *chunk.texts):
            self._last[name] = value
        about = dataclasses.asdict(self.about)
        state = {
            "step": self._step,
            "end": list(self.end),
            "ends": self._ends,
            "said": sorted(self._said),
            "about": about,
        }
        chunk.cursor, chunk.position = {"offsets": dict(offsets), **state}, position
        return chunk

    def _summarise(self, chunk: Chunk) -> None:
        """What the user set: all of wandb's summary that the history does not say by itself."""
        last = {**self._last, **{name: value for _, _, name, value in (*chunk.scalars, *chunk.texts)}}
        told = {}
        for name, value in flat(self._summary):
            plain = isinstance(value, (int, float, str)) and not name.startswith("_")
            if plain and (name in self._said or not _same(last.get(self.named(name)), value)):
                told[name] = value
        self._said |= set(told)
        self._summary = {}
        if told:
            chunk.event(self._start_ns // 1000, "summary", told)

    def _ended(self, record: Any) -> None:
        code = record.exit.exit_code
        self.end, self._ends = (End("exception", f"exit code {code}") if code else End("finish")), True

    def _take(self, chunk: Chunk, data: bytes, folder: Path) -> None:
        record = _parsed(self._record, data)
        if record is None:
            self.losses.damage("records that are none of wandb's")
            return
        kind = record.WhichOneof("record_type")
        at = self._start_ns // 1000
        if kind == "run":
            self.about = self._about(record.run)
            self._config(chunk, at, record.run.config)
            self._update_summary(record.run.summary)
        elif kind == "config":
            self._config(chunk, at, record.config)
        elif kind == "history":
            self._history(chunk, record.history, folder)
        elif kind == "summary":
            self._update_summary(record.summary)
        elif kind == "stats":
            at = record.stats.timestamp.ToMicroseconds()
            for item in record.stats.item:
                value = _decoded(item.value_json)
                if isinstance(value, (int, float)):
                    chunk.scalar(self._step, at, f"system/{item.key}", float(value))
        elif kind in ("output", "output_raw"):
            self._output(chunk, getattr(record, kind))
        elif kind == "exit":
            self._ended(record)
        elif kind in ("metric", "environment", "alert"):
            self._event(chunk, at, kind, getattr(record, kind))
        elif kind in ("artifact", "use_artifact"):
            self.losses.note("artifacts stay with wandb")

    def _history(self, chunk: Chunk, history: Any, folder: Path) -> None:
        values: dict[str, Any] = {}
        for item in history.item:
            _place(values, item, _decoded(item.value_json))
        step = int(values.pop("_step", history.step.num))
        at = int(float(values.pop("_timestamp", self._start_ns / 1e9)) * 1e6)
        self._step = max(self._step, step)
        files = _Files(folder)
        for name, value in flat(values):
            if not name.startswith("_"):
                put(self, chunk, step, at, name, value, files)

    def _config(self, chunk: Chunk, at: int, config: Any) -> None:
        values: dict[str, Any] = {}
        for item in config.update:
            _place(values, item, _decoded(item.value_json))
        values.pop("_wandb", None)
        if values:
            chunk.event(at, "config", values)

    def _update_summary(self, summary: Any) -> None:
        for item in summary.update:
            _place(self._summary, item, _decoded(item.value_json))

    def _output(self, chunk: Chunk, output: Any) -> None:
        stream = "stderr" if output.output_type == 0 else "stdout"
        at = output.timestamp.ToMicroseconds() or self._start_ns // 1000
        for line in output.line.splitlines():
            chunk.line(at, stream, line)

    def _event(self, chunk: Chunk, at: int, kind: str, record: Any) -> None:
        if kind == "metric":
            how = next((n for n in ("min", "max", "mean", "best") if getattr(record.summary, n)), None)
            name = record.name or record.glob_name
            step_metric = record.step_metric or None
            chunk.event(at, "metric", {"name": name, "step_metric": step_metric, "summary": how, "goal": None})
        elif kind == "alert":
            said = {"title": record.title, "text": record.text, "level": record.level.lower(), "wait_s": 0.0}
            chunk.event(at, "alert", said)
        else:
            from google.protobuf.json_format import MessageToDict

            told = MessageToDict(record, preserving_proto_field_name=True)
            chunk.event(at, "environment", {key: value for key, value in told.items() if key != "writer_id"})


class _Files:
    """The media of a run, which lie beside its file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, path: str) -> bytes | None:
        file = file_in(self._folder, path)
        return file.read_bytes() if file is not None and file.stat().st_size <= _TO_KEEP else None


def _same(a: Any, b: Any) -> bool:
    return bool(a == b or (a != a and b != b))


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _place(values: dict[str, Any], item: Any, value: Any) -> None:
    """Put a value where its key, or the keys on the way to it, say."""
    keys = list(item.nested_key) or [item.key]
    for key in keys[:-1]:
        within = values.setdefault(key, {})
        if not isinstance(within, dict):
            within = values[key] = {}
        values = within
    values[keys[-1]] = value
