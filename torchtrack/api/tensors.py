"""Tensor statistics of many ranks as one row each, with every element counted once.

Rows that tell of the same tensor at the same sample are combined by what they say they counted: a row that counted the
whole tensor wins; else rows are added while the parts they counted are disjoint, the larger ones first.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from torchtrack import records
from torchtrack.api.history import Window
from torchtrack.api.streams import Ints, Span
from torchtrack.histogram import NUM_BUCKETS, Histogram

STAGES: Final = ("pre_clip", "step", "skipped")
_ADDED: Final = ("ranks", "count", "sum", "sum_sq", "zeros", "nans", "pos_infs", "neg_infs")
_EXTRA: Final = [("norm", pa.float64()), ("coverage", pa.float64()), ("attempt", pa.int64())]
SCHEMA: Final = pa.schema([*records.TENSORS, *(pa.field(name, kind) for name, kind in _EXTRA)])


@dataclass(frozen=True)
class TensorPart:
    """The rows of one stream."""

    attempt: int
    rank: int
    rows: pa.Table

    def of(self, kind: str | None, name: str | None) -> TensorPart:
        """Those of a kind whose name is, or matches, `name`."""
        return replace(self, rows=select(self.rows, kind, name))


def select(rows: pa.Table, kind: str | None, name: str | None) -> pa.Table:
    """Rows of a kind whose name is, or matches, `name`."""
    for column, wanted in (("kind", kind), ("name", name)):
        if wanted is not None and rows.num_rows:
            values = rows.column(column).combine_chunks()
            matches = _matcher(wanted)
            known = np.array([*(matches(value) for value in values.dictionary.to_pylist()), False], np.bool_)
            rows = rows.filter(pa.array(known[values.indices.fill_null(-1).to_numpy(zero_copy_only=False)]))
    return rows


def _matcher(pattern: str) -> Callable[[str], bool]:
    return lambda value: value == pattern or fnmatch.fnmatchcase(value, pattern)


def combined(parts: Iterable[TensorPart], kind: str | None, name: str | None, window: Window) -> pa.Table:
    """The rows of some tensors, one a (attempt, kind, name, stage, sample), ordered by step, kind, name and stage.

    Args:
        parts: all rows of all streams.
        kind: of this kind only.
        name: of this name only, or of those that match it.
        window: which steps; the step of a sample is the same for all its rows.
    """
    tables = []
    wanted = [part.of(kind, name) for part in aligned([part for part in parts if part.rows.num_rows])]
    shown = [None] * len(wanted) if window.hides is None else window.hides.tensors(wanted)
    for part, of_part in zip(wanted, shown, strict=True):
        keep = window.inside(part.rows.column("step").to_numpy())
        keep = keep if of_part is None else keep & of_part
        rows = part.rows if keep.all() else part.rows.filter(pa.array(keep))
        for column, number in (("attempt", part.attempt), ("rank", part.rank)):
            rows = rows.append_column(column, pa.array(np.full(rows.num_rows, number, np.int64)))
        if rows.num_rows:
            tables.append(rows)
    if not tables:
        return SCHEMA.empty_table()
    rows = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    chosen, group = _choose(rows)
    return _ordered(_merged(rows.take(pa.array(chosen)), group))


def aligned(parts: Sequence[TensorPart]) -> Iterator[TensorPart]:
    """The same by attempt and rank, each row with step and time of the lowest rank that recorded its sample.

    Ranks are matched by the sample alone: one that never logs has no steps of its own, another may log more often.
    """
    attempts: dict[int, list[TensorPart]] = {}
    for part in sorted(parts, key=lambda part: (part.attempt, part.rank)):
        attempts.setdefault(part.attempt, []).append(part)
    for group in attempts.values():
        if group[0].rank == group[-1].rank:
            yield from group
            continue
        source = _lowest(group)
        columns = {name: pa.chunked_array([c for p in group for c in p.rows[name].chunks]) for name in ("step", "time")}
        columns = {name: column.take(pa.array(source)) for name, column in columns.items()}
        start = 0
        for part in group:
            rows = part.rows
            for name, column in columns.items():
                field = rows.schema.get_field_index(name)
                rows = rows.set_column(field, rows.schema.field(field), column.slice(start, rows.num_rows))
            start += rows.num_rows
            yield TensorPart(part.attempt, part.rank, rows)


def _lowest(parts: Sequence[TensorPart]) -> Ints:
    """For each row of an attempt the one whose step it takes: itself, or the first of the sample on the lowest rank.

    Each watch counts samples of its own; its prefix tells whose they are, as names do not.
    """
    codes: dict[str, int] = {}
    watches = []
    for part in parts:
        names = part.rows.column("name").chunk(0).dictionary.to_pylist()
        prefixes = [codes.setdefault(name.rpartition("/")[0], len(codes)) for name in names]
        watches.append(np.array([*prefixes, -1], np.int64)[_code(part.rows, "name")])
    rank = np.repeat([part.rank for part in parts], [part.rows.num_rows for part in parts])
    sample = np.concatenate([part.rows.column("sample").to_numpy() for part in parts])
    logged = np.concatenate([_is_logged(part.rows) for part in parts])
    group = _numbered((sample, np.concatenate(watches), logged))
    own = np.arange(len(group))
    first = np.empty_like(own)
    first[group[::-1]] = own[::-1]  # numpy leaves the last of repeated assignments
    lowest = first[group]
    return np.where(logged | (rank == rank[lowest]), own, lowest)


def _is_logged(rows: pa.Table) -> npt.NDArray[np.bool_]:
    """Whether a row is a histogram the user logged: these have no sample, their step is their own."""
    kinds = rows.column("kind").chunk(0).dictionary.to_pylist()
    logged: npt.NDArray[np.bool_] = np.array([*(kind == "logged" for kind in kinds), False])[_code(rows, "kind")]
    return logged


def _code(rows: pa.Table, name: str) -> Ints:
    codes: Ints = rows.column(name).chunk(0).indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes


def _choose(rows: pa.Table) -> tuple[Ints, Ints]:
    """Which rows count, grouped, and the group of each.

    A histogram the user logged has no sample of its own, and the last of a step counts; a model that is watched again
    counts its samples from the start: the step tells these apart.
    """
    column = {
        name: rows.column(name).to_numpy() for name in ("attempt", "sample", "step", "rank", "count", "numel", "ranks")
    }
    logged = _is_logged(rows)
    sample, size = (np.where(logged, 0, column[name]) for name in ("sample", "count"))
    codes = (_code(rows, name) for name in ("stage", "name", "kind"))
    group = _numbered((sample, column["step"], *codes, column["attempt"]))
    whole = column["count"] == column["numel"]
    # best first within a group: whole, merged from most ranks, largest, lowest rank, written last
    order = np.lexsort((-np.arange(len(group)), column["rank"], -size, -column["ranks"] * whole, ~whole, group))
    sorted_group = group[order]
    leads = np.ones(len(order), np.bool_)
    leads[1:] = sorted_group[1:] != sorted_group[:-1]
    sizes = np.bincount(group)
    keep = leads.copy()
    starts = np.flatnonzero(leads)
    partial = starts[~whole[order[starts]] & (sizes[sorted_group[starts]] > 1)]
    covers = rows.column("covers").fill_null("").to_numpy()
    for start in partial.tolist():
        members = order[start : start + sizes[sorted_group[start]]]
        picks = _disjoint(
            tuple(covers[members].tolist()), tuple(column["count"][members].tolist()), int(column["numel"][members[0]])
        )
        keep[start : start + len(members)] = picks
    return order[keep], sorted_group[keep]


def _numbered(keys: tuple[npt.NDArray[Any], ...]) -> Ints:
    """Equal rows of several columns get equal numbers."""
    order = np.lexsort(keys)
    moved = np.zeros(len(order), np.bool_)
    for key in keys:
        values = key[order]
        moved[1:] |= values[1:] != values[:-1]
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.cumsum(moved)
    return numbers


@functools.lru_cache(maxsize=4096)
def _disjoint(covers: tuple[str, ...], counts: tuple[int, ...], numel: int) -> tuple[bool, ...]:
    """Which rows to add: in the order given, each that overlaps none taken before; never more elements than exist."""
    taken: dict[str, list[Span]] = {}
    total, picks = 0, []
    for cover, count in zip(covers, counts, strict=True):
        regions = parse_covers(cover)
        fits = total + count <= numel and not _overlaps(regions, taken)
        if fits:
            total += count
            for key, spans in regions.items():
                taken.setdefault(key, []).extend(spans)
        picks.append(fits)
    return tuple(picks)


def _overlaps(regions: dict[str, list[Span]], taken: dict[str, list[Span]]) -> bool:
    if not taken:
        return False
    if "" in taken or "" in regions:  # one of them is the tensor as a whole
        return True
    return any(lo < b and a < hi for key, spans in regions.items() for lo, hi in spans for a, b in taken.get(key, ()))


def parse_covers(text: str) -> dict[str, list[Span]]:
    """`key:lo-hi,lo-hi`, several joined by `;`, as spans by key. What cannot be read counts as the whole tensor."""
    regions: dict[str, list[Span]] = {}
    for region in text.split(";"):
        key, _, spans = region.rpartition(":")
        try:
            pairs = [span.split("-") for span in spans.split(",")]
            regions.setdefault(f"{key}:", []).extend((int(lo), int(hi)) for lo, hi in pairs)
        except ValueError:
            return {"": []}
    return regions


def _merged(rows: pa.Table, group: Ints) -> pa.Table:
    """Add the rows of each group; the group's columns are those of its lowest rank."""
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    if len(starts) == len(group):
        return _with_derived(rows)
    lowest = np.lexsort((rows.column("rank").to_numpy(), group))[starts]
    result = rows.take(pa.array(lowest))
    fields = result.schema.names
    columns: dict[str, Any] = {}
    with np.errstate(all="ignore"):
        for name in _ADDED:
            values = rows.column(name).to_numpy()
            columns[name] = np.add.reduceat(values, starts)
        columns["min"] = np.fmin.reduceat(rows.column("min").to_numpy(), starts)
        columns["max"] = np.fmax.reduceat(rows.column("max").to_numpy(), starts)
    for name, values in columns.items():
        result = result.set_column(
            fields.index(name), result.schema.field(name), pa.array(values, result.schema.field(name).type)
        )
    result = result.set_column(fields.index("covers"), "covers", _joined_covers(rows, starts, columns["count"]))
    buckets, counts = _added_buckets(
        rows, np.repeat(np.arange(len(starts)), np.diff([*starts, len(group)])), len(starts)
    )
    result = result.set_column(fields.index("buckets"), result.schema.field("buckets"), buckets)
    result = result.set_column(fields.index("counts"), result.schema.field("counts"), counts)
    return _with_derived(result)


def _joined_covers(rows: pa.Table, starts: Ints, counts: Ints) -> pa.Array:
    covers = rows.column("covers").fill_null("").to_pylist()
    numel = rows.column("numel").to_numpy()[starts]
    stops = [*starts[1:].tolist(), len(covers)]
    spans = zip(starts.tolist(), stops, (counts == numel).tolist(), strict=True)
    return pa.array(["" if full and hi - lo > 1 else ";".join(covers[lo:hi]) for lo, hi, full in spans], pa.string())


def flat_buckets(rows: pa.Table) -> tuple[Ints, Ints, npt.NDArray[np.uint64]]:
    """Row number, bucket and count of every bucket of every row."""
    buckets, counts = (rows.column(name).combine_chunks() for name in ("buckets", "counts"))
    sizes = pc.list_value_length(buckets).fill_null(0).to_numpy(zero_copy_only=False)
    row = np.repeat(np.arange(rows.num_rows), sizes)
    return row, buckets.flatten().to_numpy().astype(np.int64), counts.flatten().to_numpy()


def _added_buckets(rows: pa.Table, group: Ints, groups: int) -> tuple[pa.Array, pa.Array]:
    row, bucket, count = flat_buckets(rows)
    cell = group[row] * NUM_BUCKETS + bucket
    order = np.argsort(cell, kind="stable")
    first = np.flatnonzero(np.diff(cell[order], prepend=-1))
    sums = np.add.reduceat(count[order], first) if len(first) else count[:0]
    owner, number = np.divmod(cell[order][first], NUM_BUCKETS)
    offsets = pa.array(np.searchsorted(owner, np.arange(groups + 1)), pa.int32())
    lists = pa.ListArray.from_arrays(offsets, pa.array(number.astype(np.uint16)))
    return lists, pa.ListArray.from_arrays(offsets, pa.array(sums))


def _with_derived(rows: pa.Table) -> pa.Table:
    count, numel = (rows.column(name).to_numpy() for name in ("count", "numel"))
    coverage = np.where(numel > 0, count / np.maximum(numel, 1), 1.0)
    norm = np.sqrt(rows.column("sum_sq").to_numpy())
    attempt = rows.column("attempt")
    rows = rows.select(records.TENSORS.names)
    return pa.table([*rows.columns, pa.array(norm), pa.array(coverage), attempt], schema=SCHEMA)


def _ordered(rows: pa.Table) -> pa.Table:
    text = {name: rows.column(name).cast(pa.string()) for name in ("kind", "name", "stage")}
    keys = pa.table({"step": rows.column("step"), "sample": rows.column("sample"), **text})
    order = pc.sort_indices(
        keys, sort_keys=[(name, "ascending") for name in ("step", "kind", "name", "stage", "sample")]
    )
    return rows.take(order).combine_chunks()


def one_stage(rows: pa.Table, stage: str | None) -> pa.Table:
    """The rows of one stage; without one, the earliest of each (step, name): pre_clip, else step, else skipped."""
    stages = rows.column("stage").cast(pa.string())
    if stage is not None:
        return rows.filter(pc.equal(stages, stage))
    place = np.array([STAGES.index(s) if s in STAGES else len(STAGES) for s in stages.to_pylist()], np.int64)
    if rows.num_rows < 2:
        return rows
    keys = (_code(rows.combine_chunks(), "name"), rows.column("step").to_numpy(), rows.column("attempt").to_numpy())
    group = _numbered(keys)
    best = np.full(int(group.max()) + 1, len(STAGES) + 1)
    np.minimum.at(best, group, place)
    return rows.filter(pa.array(place == best[group]))


def newest_sample(rows: pa.Table) -> pa.Table:
    """Of each name the rows of its last sample: several optimizer steps may fall on one step of the run."""
    newest = rows.group_by("name").aggregate([("sample", "max")])
    last = dict(zip(newest["name"].to_pylist(), newest["sample_max"].to_pylist(), strict=True))
    keep = [
        last[name] == sample for name, sample in zip(rows["name"].to_pylist(), rows["sample"].to_pylist(), strict=True)
    ]
    return rows.filter(pa.array(keep, pa.bool_()))


def histogram(rows: pa.Table) -> Histogram:
    """The exact sum of the histograms of some rows."""
    _, bucket, count = flat_buckets(rows)
    counts = np.zeros(NUM_BUCKETS, np.uint64)
    np.add.at(counts, bucket, count)
    totals = {name: rows.column(name).to_numpy() for name in ("sum", "sum_sq", "min", "max")}
    with np.errstate(all="ignore"):
        return Histogram(
            counts=counts,
            sum=float(totals["sum"].sum()),
            sum_sq=float(totals["sum_sq"].sum()),
            min=float(np.fmin.reduce(totals["min"], initial=np.inf)),
            max=float(np.fmax.reduce(totals["max"], initial=-np.inf)),
        )
