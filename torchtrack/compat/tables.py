"""`wandb.Table` and `JoinedTable`: tables with types, if a script asks for them."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from torchtrack import guard, media
from torchtrack.media import Medium, Pending

BACKENDS: Final = ("weave", "ces")
"""Where an `EvalTable` may be kept there."""
OF_MEDIA: Final = ("stub", "raise")
"""What an `EvalTable` does with a cell that is a medium."""


class Table(media.Table):
    """A table for `log`: at most 100 000 cells. A cell that is an image or another medium holds what it is called.

    Args:
        columns: the names of the columns; by default the dataframe's, else Input, Output, Expected.
        data: the rows, an array, or a dataframe.
        rows: the rows, by an older name.
        dataframe: a pandas dataframe, in place of data.
        dtype: the type of all columns, or of each: a row with another is refused. By default cells are what they are.
        optional: whether a cell may be None, of all columns or of each.
        allow_mixed_types: False: the first cell says what is in its column, if `dtype` does not.
        log_mode: "IMMUTABLE": recorded the first time it is logged only. By default, and with "MUTABLE", it is recorded
            as it is whenever it is logged, and so is all of it with "INCREMENTAL".

    Raises:
        ValueError: another log_mode, or not a dtype or optional a column.
    """

    _log_modes: Sequence[str] = ("MUTABLE", "IMMUTABLE", "INCREMENTAL")
    """The first is that without `log_mode`."""
    _mixed = True
    """What `allow_mixed_types` is without."""
    _unnamed: Sequence[str] = ("Input", "Output", "Expected")
    """The columns without any."""

    def __init__(
        self,
        columns: Sequence[Any] | None = None,
        data: Any = None,
        rows: Any = None,
        dataframe: Any = None,
        dtype: Any = None,
        optional: Any = True,
        allow_mixed_types: bool | None = None,
        log_mode: str | None = None,
    ) -> None:
        called, modes = type(self).__name__, self._log_modes
        if log_mode not in (None, *modes):
            raise ValueError(f"{called}(log_mode=) takes {_choice(modes)}; got {log_mode!r}")
        given = rows if data is None else data
        if hasattr(given, "itertuples"):
            dataframe, given = given, None
        if columns is None:
            columns = list(getattr(dataframe, "columns", self._unnamed))
        super().__init__(list(columns))
        self._once, self._logged = (log_mode or modes[0]) == "IMMUTABLE", False
        mixed = self._mixed if allow_mixed_types is None else bool(allow_mixed_types)
        self._types = _Types(list(map(str, columns)), dtype, optional, mixed=mixed)
        made = guard.outcome(_rows, self.columns, given, dataframe)
        self._wrong = made if isinstance(made, Exception) else None
        if self._wrong is None:
            for row in made:
                self._check(row)
            self.data = made

    def add_data(self, *row: Any) -> None:
        """Add a row.

        Raises:
            TypeError: a cell is not what `dtype`, `optional` or `allow_mixed_types` allow.
        """
        self._check(row)
        super().add_data(*row)

    def add_row(self, *row: Any) -> None:
        """Add a row, by an older name."""
        self.add_data(*row)

    def add_column(self, name: str, data: Iterable[Any], optional: bool = False) -> None:
        """Add a column.

        Raises:
            ValueError: it has not as many cells as there are rows.
        """
        del optional
        cells = list(data)
        if self.data and len(cells) != len(self.data):
            raise ValueError(f"column {name!r} has {len(cells)} cells for {len(self.data)} rows")
        self.data = [[*row, cell] for row, cell in zip(self.data or [[]] * len(cells), cells, strict=True)]
        self.columns = [*(self.columns or ()), name]

    def add_computed_columns(self, function: Callable[[int, dict[str, Any]], Mapping[str, Any]]) -> None:
        """Add columns that a function makes of the index and the cells of each row."""
        made = [function(index, dict(zip(self._names(), row, strict=True))) for index, row in enumerate(self.data)]
        for name in dict.fromkeys(name for each in made for name in each):
            self.add_column(name, [each.get(name) for each in made])

    def get_column(self, name: str, convert_to: str | None = None) -> Any:
        """The cells of a column; as an array with convert_to="numpy"."""
        at = self._names().index(name)
        cells = [row[at] for row in self.data]
        if convert_to == "numpy":
            import numpy as np

            return np.asarray(cells)
        return cells

    def get_index(self) -> list[int]:
        """The numbers of the rows."""
        return list(range(len(self.data)))

    def get_dataframe(self) -> Any:
        """The table as a pandas dataframe."""
        pandas = importlib.import_module("pandas")
        return pandas.DataFrame.from_records(self.data, columns=self._names())

    def iterrows(self) -> Iterator[tuple[int, Sequence[Any]]]:
        """Number and cells of each row."""
        return enumerate(self.data)

    def snapshot(self) -> Pending:
        """Keep the table as it is now; see `torchtrack.media.Table`."""
        if self._wrong is not None:
            raise self._wrong
        if self._once and self._logged:
            raise ValueError('this table is IMMUTABLE and was logged before; log_mode="MUTABLE" records it again')
        self._logged = True
        before = self.data
        self.data = [[_cell(value) for value in row] for row in before]
        try:
            return super().snapshot()
        finally:
            self.data = before

    def _check(self, row: Sequence[Any]) -> None:
        """Raises a TypeError if a cell is none that its column may hold."""
        self._types.check(row)

    def _names(self) -> list[Any]:
        return list(self.columns or ())


class JoinedTable(Table):
    """The rows of two tables that have the same value in a column, beside each other.

    Args:
        table1: one table.
        table2: another.
        join_key: the column in both.

    Raises:
        ValueError: one of them has no such column.
    """

    def __init__(self, table1: Table, table2: Table, join_key: str) -> None:
        first, second = ([str(name) for name in table._names()] for table in (table1, table2))
        if join_key not in first or join_key not in second:
            raise ValueError(f"JoinedTable() joins by a column of both, got {join_key!r} for {first} and {second}")
        at, other = first.index(join_key), second.index(join_key)
        rest = [name for name in second if name != join_key]
        named = [*first, *(f"{name}_2" if name in first else name for name in rest)]
        rows = [
            [*row, *(cell for number, cell in enumerate(beside) if number != other)]
            for row in table1.data
            for beside in table2.data
            if row[at] == beside[other]
        ]
        super().__init__(columns=named, data=rows)


class EvalTable(Table):
    """A table of an evaluation: what goes in, what comes out, and scores. Its JSON says so as `evaluation`.

    Args:
        columns: the names of the columns; by default those of the three lists below, in their order.
        cells: what `Table` takes besides. `log_mode` is "IMMUTABLE", the only one: it is recorded the first time it is
            logged. Types are not mixed, unless `allow_mixed_types` is True.
        input_columns: what goes in. Without any, the number of the row is put first, as `row`.
        output_columns: what comes out.
        score_columns: scores; the mean of each that is a number goes into the summary of the table, `means()`.
        backend: "weave" or "ces", as there; it is recorded with the table, which lies here in any case.
        unsupported_media_mode: "stub": a cell that is a medium holds what it is called. "raise": it is refused.
        more: what `Table` takes, by name.

    Raises:
        ValueError: another log_mode, backend or unsupported_media_mode, or a column of the lists is not there.
        TypeError: a cell is a medium, with "raise".
    """

    _log_modes = ("IMMUTABLE",)
    _mixed = False

    def __init__(
        self,
        columns: Sequence[Any] | None = None,
        *cells: Any,
        input_columns: Sequence[str] | None = None,
        output_columns: Sequence[str] | None = None,
        score_columns: Sequence[str] | None = None,
        backend: str | None = None,
        unsupported_media_mode: str | None = None,
        **more: Any,
    ) -> None:
        for name, value, known in (
            ("backend", backend, BACKENDS),
            ("unsupported_media_mode", unsupported_media_mode, OF_MEDIA),
        ):
            if value not in (None, *known):
                raise ValueError(f"EvalTable({name}=) takes {_choice(known)}; got {value!r}")
        roles = {"input": input_columns, "output": output_columns, "score": score_columns}
        named = [name for each in roles.values() for name in each or ()]
        self._unnamed, self._refuses = named or self._unnamed, unsupported_media_mode == "raise"
        super().__init__(columns, *cells, **more)
        unknown = [name for name in named if name not in self._names()]
        if unknown:
            raise ValueError(f"EvalTable has no column {unknown[0]!r}; it has {', '.join(map(str, self._names()))}")
        self._numbered, self.score_columns = not input_columns, list(score_columns or ())
        told = {role: [str(name) for name in each or ()] for role, each in roles.items()}
        self.about = {"evaluation": {**told, "backend": backend or BACKENDS[0]}}

    def _check(self, row: Sequence[Any]) -> None:
        refused = [cell for cell in row if isinstance(cell, Medium)] if self._refuses else []
        if refused:
            raise TypeError(
                f'EvalTable(unsupported_media_mode="raise"): a cell is the medium {type(refused[0]).__name__}; '
                '"stub" keeps what it is called'
            )
        super()._check(row)

    def means(self) -> dict[str, float]:
        """The mean of each column of scores that holds numbers."""
        found = {name: [cell for cell in self.get_column(name) if cell is not None] for name in self.score_columns}
        return {name: float(sum(cells)) / len(cells) for name, cells in found.items() if cells}

    def snapshot(self) -> Pending:
        """Keep the table as it is now."""
        before = self.columns, self.data
        if self._numbered:
            self.columns = ["row", *self._names()]
            self.data = [[number, *row] for number, row in enumerate(self.data)]
        try:
            return super().snapshot()
        finally:
            self.columns, self.data = before


class Graph(Table):
    """A graph, such as the layers of a model: a table with a row a node, and where it leads.

    Args:
        format: how it is to be shown, as there: a word beside its rows, in the JSON of the table.
    """

    def __init__(self, format: str = "keras") -> None:  # noqa: A002
        super().__init__(columns=["name", "class", "output shape", "parameters", "leads to"])
        self.about = {"format": str(format)}
        self._nodes: dict[Any, dict[str, Any]] = {}
        self._edges: dict[Any, list[Any]] = {}

    def add_node(self, node: Any = None, **about: Any) -> Any:
        """Add a node: a name, or what has a name; or name=, class_name=, output_shape=, num_parameters=."""
        known = {name: getattr(node, name, None) for name in ("name", "class_name", "output_shape", "num_parameters")}
        told = {**known, **about}
        key = about.get("id") or told["name"] or (node if isinstance(node, str) else f"node {len(self._nodes)}")
        self._nodes[key] = {**told, "name": told["name"] or str(key)}
        return key

    def add_edge(self, from_node: Any, to_node: Any) -> None:
        """Add an edge between nodes, by what `add_node` gave."""
        self._edges.setdefault(from_node, []).append(to_node)

    def snapshot(self) -> Pending:
        """Keep the graph as it is now."""
        self.data = [
            [
                about["name"],
                about["class_name"],
                str(about["output_shape"] or ""),
                about["num_parameters"],
                ", ".join(str(self._nodes.get(to, {}).get("name", to)) for to in self._edges.get(key, ())),
            ]
            for key, about in self._nodes.items()
        ]
        return super().snapshot()


def _choice(words: Sequence[str]) -> str:
    return " or ".join(f'"{word}"' for word in words)


def _with_those_of(base: type, of: Callable[..., Any]) -> inspect.Signature:
    """The signature of a class that passes on what it does not know: the arguments of both."""
    theirs, own = (inspect.signature(each).parameters.values() for each in (base, of))
    further = [each for each in own if each.kind is inspect.Parameter.KEYWORD_ONLY]
    return inspect.Signature([*theirs, *further])


EvalTable.__signature__ = _with_those_of(Table, EvalTable.__init__)  # type: ignore[attr-defined]


class _Types:
    """What the cells of each column may be."""

    def __init__(self, columns: Sequence[str], dtype: Any, optional: Any, *, mixed: bool) -> None:
        self._columns, self._mixed = columns, mixed
        self._kinds = [None if each is None else _named(each) for each in _each("dtype", dtype, columns)]
        self._optional = [bool(each) for each in _each("optional", optional, columns)]

    def check(self, row: Sequence[Any]) -> None:
        """Raises a TypeError if a cell is none that its column may hold."""
        for number, cell in enumerate(row[: len(self._kinds)]):
            if cell is None:
                if not self._optional[number]:
                    raise TypeError(f"column {self._columns[number]!r} is not optional, got None")
                continue
            found, wanted = _named(type(cell)), self._kinds[number]
            if wanted is None and not self._mixed:
                self._kinds[number] = found
            elif wanted not in (None, found):
                raise TypeError(f"column {self._columns[number]!r} holds {wanted}, got the {found} {cell!r:.60}")


def _each(argument: str, given: Any, columns: Sequence[str]) -> list[Any]:
    if not isinstance(given, (list, tuple)):
        return [given] * len(columns)
    if len(given) != len(columns):
        raise ValueError(f"Table({argument}=) takes one or as many as columns, got {len(given)} for {len(columns)}")
    return list(given)


def _named(kind: Any) -> str:
    """What a type is called; all numbers are one."""
    import numbers

    if not isinstance(kind, type):
        return str(kind)
    if kind is bool or kind.__name__ in ("bool_", "bool"):
        return "boolean"
    if issubclass(kind, numbers.Number):
        return "number"
    return "string" if issubclass(kind, str) else kind.__name__


def _rows(columns: Sequence[Any], given: Any, dataframe: Any) -> list[list[Any]]:
    if dataframe is not None:
        if not hasattr(dataframe, "itertuples"):
            raise TypeError(f"dataframe must be a pandas dataframe, got {type(dataframe).__name__}")
        return [list(row) for row in dataframe[list(columns)].itertuples(index=False, name=None)]
    given = given.tolist() if hasattr(given, "tolist") else given
    return [] if given is None else [list(row) for row in given]


def _cell(value: Any) -> Any:
    """A medium in a table is not shown in it: its caption or the kind it is of stands there."""
    if isinstance(value, Medium):
        return value.caption or f"[{type(value).__name__}]"
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor) and value.device.type == "cpu":
        return value.detach().tolist()  # another would have to be waited for
    return value
