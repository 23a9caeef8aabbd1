"""What neptune-exporter wrote: Parquet files in a long form, one run a file and its parts, and downloaded files.

The columns are those its README describes: a row is a value of an attribute, perhaps at a step. Neptune's steps are
decimals with six digits; torchtrack's are whole numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from torchtrack.bins import SPREAD, from_edges
from torchtrack.importers.source import About, Chunk, End, SourceRun, file_in
from torchtrack.importers.sources import Found
from torchtrack.mime import mime_of_file

_COLUMNS: Final = {"project_id", "run_id", "attribute_path", "attribute_type", "step", "timestamp"}
_VALUES: Final = {
    "float": "float_value",
    "int": "int_value",
    "string": "string_value",
    "bool": "bool_value",
    "datetime": "datetime_value",
    "string_set": "string_set_value",
}
_LARGEST: Final = 1 << 28
_BATCH: Final = 10_000


def recognises(path: Path) -> bool:
    """Whether there are Parquet files of the exporter at or below a path."""
    return next(_files(path), None) is not None


def _files(path: Path) -> Iterator[Path]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in [path] if path.suffix == ".parquet" else sorted(path.rglob("*.parquet")):
        try:
            names = set(pq.read_schema(file).names)
        except (pa.ArrowException, OSError):
            names = _COLUMNS if "_part_" in file.name else set()
        if names >= _COLUMNS:
            yield file


def find(path: Path, project: str | None) -> Found:
    """The runs; the parts of one are read together."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = Found()
    runs: dict[tuple[str, str], list[Path]] = {}
    for file in _files(path):
        try:
            first = next(pq.ParquetFile(file).iter_batches(1, columns=["project_id", "run_id"])).to_pylist()[0]
        except (pa.ArrowException, OSError, StopIteration, IndexError):
            found.losses.damage(f"Parquet files that cannot be read ({file.name})")
            continue
        runs.setdefault((first["project_id"], first["run_id"]), []).append(file)
    roots = [path.parent / "files", path / "files", path] if path.is_dir() else [path.parent.parent / "files"]
    for (owner, run_id), files in runs.items():
        found.runs.append(Run(owner, run_id, files, [root for root in roots if root.is_dir()], project))
    return found


class Run(SourceRun):
    """A run of Neptune.

    Args:
        owner: workspace and project.
        run_id: of the run in it.
        files: the parts.
        roots: where downloaded files may lie.
        project: to list it in; its own by default.
    """

    kind = "neptune"

    def __init__(self, owner: str, run_id: str, files: list[Path], roots: list[Path], project: str | None) -> None:
        super().__init__()
        self.key = f"{owner}/{run_id}"
        self._files, self._roots = files, roots
        self.size = sum(file.stat().st_size for file in files)
        self._set: dict[str, Any] = self._parameters()
        created: Any = self._set.get("sys/creation_time")
        self.about = About(
            project=project or owner.rpartition("/")[2] or "neptune",
            id=run_id.replace("/", "-"),
            name=str(self._set.get("sys/name") or run_id),
            start_ns=int(created.timestamp() * 1e9) if hasattr(created, "timestamp") else 0,
            tags=tuple(self._set.get("sys/tags") or ()),
            group=next(iter(self._set.get("sys/group_tags") or ()), None),
            notes=self._set.get("sys/description"),
            host=str(self._set.get("sys/hostname") or ""),
        )
        failed = self._set.get("sys/failed") is True
        self.end = End("exception", "Neptune says that it failed") if failed else End("finish")

    def _parameters(self) -> dict[str, Any]:
        """What was set once."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        values: dict[str, Any] = {}
        for file in self._files:
            try:
                rows = pq.read_table(file, filters=[("attribute_type", "in", list(_VALUES))]).to_pylist()
            except (pa.ArrowException, OSError):
                continue  # counted when it is read again
            values.update((row["attribute_path"], row[_VALUES[row["attribute_type"]]]) for row in rows)
        return {name: value for name, value in values.items() if value is not None}

    def read(self, cursor: Any) -> Iterator[Chunk]:
        """Each part from the row where it was left."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        cursor = cursor or {"rows": {}, "set": False}
        rows_of: dict[str, int] = dict(cursor["rows"])
        if not cursor["set"]:
            yield self._what_was_set(rows_of)
        done = 0
        for file in self._files:
            seen = 0
            try:
                for batch in pq.ParquetFile(file).iter_batches(_BATCH):
                    seen += batch.num_rows
                    left = seen - rows_of.get(file.name, 0)
                    if left <= 0:
                        continue
                    chunk = Chunk()
                    for row in batch.slice(max(0, batch.num_rows - left)).to_pylist():
                        self._take(chunk, row)
                    rows_of[file.name] = seen
                    chunk.cursor, chunk.position = {"rows": dict(rows_of), "set": True}, done
                    yield chunk
            except (pa.ArrowException, OSError) as error:
                self.losses.damage(f"parts that cannot be read to their end: {str(error).splitlines()[0][:120]}")
            done += file.stat().st_size

    def _what_was_set(self, rows_of: Mapping[str, int]) -> Chunk:
        at = self.about.start_ns // 1000
        chunk = Chunk(cursor={"rows": dict(rows_of), "set": True})
        told = {name: value for name, value in self._set.items() if not name.startswith("sys/")}
        if told:
            chunk.event(at, "config", {name: _plain(value) for name, value in told.items()})
        own = {name[4:]: _plain(value) for name, value in self._set.items() if name.startswith("sys/")}
        if own:
            chunk.event(at, "environment", {"neptune": own})
        return chunk

    def _take(self, chunk: Chunk, row: Mapping[str, Any]) -> None:
        kind, path = row["attribute_type"], row["attribute_path"]
        if kind in _VALUES:
            return
        name, step = self.named(path), self._step(row["step"])
        at = int(row["timestamp"].timestamp() * 1e6) if row["timestamp"] else self.about.start_ns // 1000
        if kind == "float_series" and row["float_value"] is not None:
            chunk.scalar(step, at, name, row["float_value"])
        elif kind == "string_series":
            chunk.text(step, at, name, row["string_value"])
        elif kind == "histogram_series" and row["histogram_value"] is not None:
            self._histogram(chunk, step, at, name, row["histogram_value"])
        elif kind in ("file", "file_series", "artifact", "file_set") and row.get("file_value"):
            self._file(chunk, step, at, name, row["file_value"]["path"])
        else:
            self.losses.note(f"values of the type {kind} have no place here")

    def _step(self, step: Any) -> int:
        if step is None:
            return 0
        if step != int(step):
            self.losses.note("steps that are no whole numbers: cut off at the point")
        return int(step)

    def _histogram(self, chunk: Chunk, step: int, at: int, name: str, value: Mapping[str, Any]) -> None:
        if str(value.get("type", "COUNTING")).upper() != "COUNTING":
            self.losses.note("histograms of densities have no counts: left out")
            return
        try:
            made = from_edges(value["values"], value["edges"])
        except (ValueError, KeyError, TypeError):
            self.losses.damage("histograms whose counts and edges do not go together")
            return
        self.losses.note(SPREAD)
        chunk.histogram(step, at, name, made)

    def _file(self, chunk: Chunk, step: int, at: int, name: str, path: str) -> None:
        for root in self._roots:
            file = file_in(root, path)
            if file is not None and file.stat().st_size <= _LARGEST:
                data = file.read_bytes()
                chunk.medium(step, at, name, data, mime_of_file(path, data))
                return
        self.losses.damage("files that are not there, or larger than 256 MiB")


def _plain(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else value
