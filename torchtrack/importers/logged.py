"""One logged value of wandb or trackio, which both keep as JSON: numbers, texts, histograms, media, tables."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from torchtrack.bins import MOMENTS, SPREAD, from_edges
from torchtrack.importers.source import Chunk, SourceRun
from torchtrack.mime import mime_of_file

TABLE: Final = "application/vnd.torchtrack.table+json"
MAX_CELLS: Final = 100_000
_WORDS: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

Files = Callable[[str], bytes | None]
"""The file a value names, None if it is not there."""


def flat(values: Mapping[str, Any], above: str = "", sign: str = ".") -> Iterator[tuple[str, Any]]:
    """Names and values, those of nested mappings joined; a mapping that stands for one value is one."""
    for key, value in values.items():
        name = f"{above}{sign}{key}" if above else str(key)
        if isinstance(value, dict) and "_type" not in value:
            yield from flat(value, name, sign)
        else:
            yield name, value


def put(run: SourceRun, chunk: Chunk, step: int, at: int, name: str, value: Any, files: Files) -> None:
    """Add a value to a chunk, or count it among the losses."""
    if isinstance(value, str) and value in _WORDS:
        value = _WORDS[value]
    if isinstance(value, (bool, int, float)):
        chunk.scalar(step, at, run.named(name), float(value))
    elif value is None or isinstance(value, str):
        chunk.text(step, at, run.named(name), value)
    elif isinstance(value, dict) and "_type" in value:
        _special(run, chunk, step, at, name, value, files)
    elif isinstance(value, (list, dict)):
        run.losses.note("lists: as text")
        chunk.text(step, at, run.named(name), json.dumps(value))
    else:
        run.losses.note(f"values of type {type(value).__name__} have no place here")


def _special(
    run: SourceRun, chunk: Chunk, step: int, at: int, name: str, value: Mapping[str, Any], files: Files
) -> None:
    kind = str(value["_type"]).removeprefix("trackio.").removesuffix("-file")
    if kind == "histogram":
        _histogram(run, chunk, step, at, name, value)
    elif kind == "images/separated":
        captions = value.get("captions") or []
        for number, path in enumerate(value.get("filenames", ())):
            caption = captions[number] if number < len(captions) else None
            _file(run, chunk, step, at, name, path, caption, files)
    elif kind == "table" and "_value" in value:
        _rows(run, chunk, step, at, name, value["_value"])
    elif path := value.get("path") or value.get("file_path"):
        _file(run, chunk, step, at, name, str(path), value.get("caption"), files)
    else:
        run.losses.note(f"values of the form {kind} have no place here")


def _histogram(run: SourceRun, chunk: Chunk, step: int, at: int, name: str, value: Mapping[str, Any]) -> None:
    try:
        made = from_edges(value["values"], value["bins"] if "bins" in value else _packed(value["packedBins"]))
    except (KeyError, ValueError, TypeError):
        run.losses.damage("histograms whose counts and edges do not go together")
        return
    run.losses.note(SPREAD)
    run.losses.note(MOMENTS)
    chunk.histogram(step, at, run.named(name), made)


def _packed(bins: Mapping[str, float]) -> list[float]:
    """Edges of equal bins, as wandb packs them: the first, how wide, how many."""
    count = int(bins["count"])
    return [bins["min"] + bins["size"] * number for number in range(count + 1)]


def _file(run: SourceRun, chunk: Chunk, step: int, at: int, name: str, path: str, caption: Any, files: Files) -> None:
    data = files(path)
    if data is None:
        run.losses.damage("media whose files are not there")
        return
    mime = mime_of_file(path, data)
    if path.endswith(".table.json"):
        table = _table(data)
        data, mime = (data, "application/json") if table is None else (table, TABLE)
    chunk.medium(step, at, run.named(name), data, mime, None if caption is None else str(caption))


def _table(data: bytes) -> bytes | None:
    """A table of wandb as one of ours; None if it is none, or has more cells than are shown."""
    try:
        table = json.loads(data)
        columns, rows = [str(each) for each in table["columns"]], table["data"]
    except (ValueError, KeyError, TypeError):
        return None
    return _encoded(columns, rows)


def _rows(run: SourceRun, chunk: Chunk, step: int, at: int, name: str, rows: Any) -> None:
    """A table of trackio: a mapping a row."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    data = _encoded(columns, [[row.get(column) for column in columns] for row in rows])
    if data is None:
        run.losses.note(f"tables of more than {MAX_CELLS} cells")
        return
    chunk.medium(step, at, run.named(name), data, TABLE)


def _encoded(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes | None:
    if len(columns) * len(rows) > MAX_CELLS:
        return None
    return json.dumps({"columns": columns, "data": [list(map(_cell, row)) for row in rows]}, allow_nan=False).encode()


def _cell(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return next(word for word, each in _WORDS.items() if each == value or (value != value and word == "NaN"))
    if isinstance(value, (dict, list)):
        return json.dumps(value)
    return value
