"""Stored rows as the steps that the stability rules look at, and what the rules concluded."""

from __future__ import annotations

import itertools
import math
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pyarrow as pa

from torchtrack.api import facts, history, parts, tensors
from torchtrack.api.facts import Event
from torchtrack.api.history import Part, Window
from torchtrack.api.streams import BACKGROUND, Names, Rows
from torchtrack.batches import DIGEST, MIDDLE
from torchtrack.records import LOCAL_NORM, OF_LAYERS, Table
from torchtrack.stability import Facts, Finding, Monitor, Rule, Step, Tensors
from torchtrack.stability.metrics import MEMORY
from torchtrack.stability.noise_scale import NoiseScale, noise_scale
from torchtrack.stability.step import Seen, from_flat

KINDS: Final = ("gradient", "parameter", "update", "activation", "optimizer")
SEEN: Final = frozenset(("nonfinite", "nonfinite_held", "nonfinite_boxed", "nonfinite_step", "replica_divergence"))
"""Events that rules look at."""
DESCRIBE: Final = ("model", "mesh")
"""Events that say what a run trains, and how it is spread."""
_DATA_PARALLEL: Final = re.compile(r"d?dp|data|fsdp|hsdp|.*(replicate|shard)")
WITHDRAWN: Final = "withdrawn"
"""Key of a recorded finding that rows which came late did away with."""
_FORMATS: Final = {
    "torch.float16": "fp16",
    "torch.bfloat16": "bf16",
    "torch.float8_e4m3fn": "e4m3",
    "torch.float8_e5m2": "e5m2",
}


def is_looked_at(name: str) -> bool:
    """Whether rules are given this metric."""
    return name in (DIGEST, MIDDLE) or not name.startswith((*BACKGROUND, *OF_LAYERS))


def replay(rules: Iterable[Rule], steps: Iterable[Step]) -> list[Finding]:
    """What these rules find in a run."""
    monitor = Monitor(rules)
    for step in steps:
        monitor.update(step)
    return monitor.findings


def recorded(events: Iterable[Event]) -> list[Finding]:
    """What was concluded while the run ran: of each finding the last that was said, without consequences of others."""
    newest = {}
    for event in events:
        finding = Finding.from_dict(event.data, event.step)
        newest[finding.id] = finding if not event.data.get(WITHDRAWN) else replace(finding, cause=WITHDRAWN)
    return [finding for finding in newest.values() if not finding.cause]


def together(events: Sequence[Event], replayed: Sequence[Finding], rules: Collection[str]) -> list[Finding]:
    """What was recorded as a finding and what the replay found, in the order they began.

    A rule that was replayed has seen all rows: what the lookout said of it is left out, since more rows may have come.
    What a rank said may be all there is of something that rows do not hold, so it stays where the replay has nothing.

    Args:
        events: of type "finding".
        replayed: what the replay found.
        rules: which rules were replayed.
    """
    known = {finding.rule for finding in replayed}
    known |= {str(part["rule"]) for finding in replayed for part in finding.consequences}
    kept = [one for one in recorded(event for event in events if event.rank >= 0) if one.rule not in known]
    kept += [one for one in recorded(event for event in events if event.rank < 0) if one.rule not in rules]
    return sorted([*replayed, *kept], key=lambda finding: (finding.first_step, finding.rule))


def noise_scale_of(own: pa.Table, key: str, averaged: pa.Table, ranks: int) -> NoiseScale | None:
    """The gradient noise scale of a run.

    Args:
        own: `rank`, `step` and a norm of each rank's own gradients, a row a step and rank.
        key: the column of that norm.
        averaged: `step`, `watch/grad_norm` and maybe `batch_size`, a row a step.
        ranks: how many there are: a step counts that all of them have.
    """
    rows = own.select(["step", "rank", key]).drop_null()
    means = averaged.filter(averaged["watch/grad_norm"].is_valid())
    by_step: dict[int, dict[int, float]] = {}
    for step, rank, norm in zip(*(column.to_pylist() for column in rows.columns), strict=True):
        by_step.setdefault(step, {})[rank] = norm
    steps = means["step"].to_pylist()
    common = [i for i, step in enumerate(steps) if len(by_step.get(step, ())) == ranks]
    if not common:
        return None
    local = [[by_step[steps[i]][rank] for rank in sorted(by_step[steps[i]])] for i in common]
    mean = means["watch/grad_norm"].to_numpy()[common]
    sizes = means["batch_size"].drop_null().to_numpy() if "batch_size" in means.column_names else np.empty(0)
    return noise_scale(local, mean, float(sizes.mean()) / ranks if len(sizes) else None)


def noise_scale_by_layer(own: pa.Table, averaged: pa.Table, rows: pa.Table, ranks: int) -> dict[str, NoiseScale]:
    """The same of every layer.

    Args:
        own: `rank`, `step` and the norm of each rank's own gradients of each layer, in columns named for it.
        averaged: `step`, `watch/grad_norm` and maybe `batch_size`, a row a step.
        rows: of the averaged gradients, as `Run.tensors` has them, of one stage.
        ranks: how many there are.
    """
    columns = {name.removeprefix(f"{LOCAL_NORM}/"): name for name in own.column_names if name.startswith(LOCAL_NORM)}
    newest: dict[tuple[str, int], tuple[int, float]] = {}
    wanted = ("name", "step", "sample", "norm", "coverage")
    for name, step, sample, norm, coverage in zip(*(rows[column].to_pylist() for column in wanted), strict=True):
        square = norm * norm if coverage == 1.0 else math.nan  # a part of it tells nothing of the whole
        newest[name, step] = max(newest.get((name, step), (-1, 0.0)), (sample, square))
    layer_of = {name: max(_layers_with(name, columns), key=len, default="") for name, _ in newest}
    squares: dict[str, dict[int, float]] = {layer: {} for layer in ("", *columns)}
    for (name, step), (_, square) in newest.items():
        of_layer = squares[layer_of[name]]
        of_layer[step] = of_layer.get(step, 0.0) + square
    found: dict[str, NoiseScale] = {}
    for layer, key in columns.items():
        norms = [math.sqrt(squares[layer].get(step, math.nan)) for step in averaged["step"].to_pylist()]
        place = averaged.column_names.index("watch/grad_norm")
        scale = noise_scale_of(own, key, averaged.set_column(place, "watch/grad_norm", pa.array(norms)), ranks)
        if scale is not None:
            found[layer] = scale
    return found


def _layers_with(name: str, layers: Iterable[str]) -> list[str]:
    return [layer for layer in layers if name == layer or name.startswith(f"{layer}.")]


def facts_of(streams: Sequence[Rows]) -> Facts:
    """Order, formats and peers, from the events that describe the watched models and the mesh."""
    order: dict[str, None] = {}
    formats = {}
    own: dict[int, list[str]] = {}
    places: dict[int, str] = {}
    data_parallel = False
    for event in in_order(facts.events(streams, DESCRIBE)):
        data_parallel = data_parallel or event.data.get("data_parallel") is True
        if event.type == "mesh":
            places[event.rank] = _place(event.data.get("coordinates"))
        for module in event.data.get("modules", ()):
            for parameter in module.get("parameters", ()):
                name = f"{module.get('name')}.{parameter.get('name')}".lstrip(".")
                order[name] = None
                own.setdefault(event.rank, []).append(name)
                if parameter.get("dtype") in _FORMATS:
                    formats[name] = _FORMATS[parameter["dtype"]]
    held = {
        rank: f"{len(set(names))}-{zlib.crc32(' '.join(sorted(set(names))).encode())}" for rank, names in own.items()
    }
    peers = {rank: f"{held.get(rank, '')} {places.get(rank, '')}" for rank in sorted({*held, *places})}
    return Facts(tuple(order), formats, peers, data_parallel)


def _place(coordinates: Any) -> str:
    """Where a rank is in the mesh, but for what only tells whose data it has."""
    if not isinstance(coordinates, dict):
        return ""
    return ",".join(f"{name}={at}" for name, at in sorted(coordinates.items()) if not _DATA_PARALLEL.match(str(name)))


def events_of(streams: Sequence[Rows]) -> list[Event]:
    """Marks, which may explain something, and what `watch` saw on the ranks."""
    return in_order(facts.events(streams, ["mark", *SEEN]))


def in_order(events: Iterable[Event]) -> list[Event]:
    """Events in the order of time."""
    return sorted(events, key=lambda event: (event.time, event.attempt, event.rank))


def counted(streams: Sequence[Rows]) -> list[Part]:
    """The scalars that rules look at: without ranks that log nothing while others do.

    What `watch` adds on such a rank has no step: it carries that of a counter which never moves.
    """
    found = []
    for _, group in itertools.groupby(parts.scalars(streams), key=lambda part: part.attempt):
        every = list(group)
        logging = [part for part in every if any(own.first_step is not None for own in part.streams)]
        found += logging or every
    return found


def steps(
    streams: Sequence[Rows], names: Names, window: Window, events: Iterable[Event], known: Facts
) -> Iterator[Step]:
    """Everything of a run step by step, as rules see it.

    Args:
        streams: those of all ranks, in order.
        names: of their metrics.
        window: which steps.
        events: those of `events_of` that lie in it.
        known: what is known of the model.
    """
    rows = counted(streams)
    codes = {code for part in rows for own in part.streams for code in own.by_code()}
    every = sorted((names.names[code], code) for code in codes)
    keys = [(name, code) for name, code in every if is_looked_at(name)]
    memory = [(name, code) for name, code in every if name in MEMORY]
    metrics = _metrics(history.combined(rows, keys, window))
    ranks = _ranks(history.by_rank(rows, [*keys, *memory], window))
    samples: dict[int, list[dict[str, Tensors]]] = {}
    held = [tensors.TensorPart(s.attempt, s.rank, s.table(Table.TENSORS)) for s in streams]
    for (at, _), sample in samples_of(tensors.combined(held, None, None, window)).items():
        samples.setdefault(at, []).append(sample)
    marked: dict[int, list[str]] = {}
    seen: dict[int, list[Seen]] = {}
    for event in events:
        if event.type == "mark":
            marked.setdefault(event.step or 0, []).append(str(event.data.get("title") or event.type))
        else:
            seen.setdefault(event.step or 0, []).append(Seen(event.rank, event.type, event.data))
    for step in sorted({*metrics, *ranks, *samples, *marked, *seen}):
        for number, sample in enumerate(samples.get(step, [{}])):
            first = number == 0  # several optimizer steps may fall on one step of the run
            yield Step(
                step,
                metrics.get(step, {}) if first else {},
                ranks.get(step, {}) if first else {},
                sample,
                marked.get(step, ()) if first else (),
                seen.get(step, ()) if first else (),
                known,
            )


def _metrics(rows: pa.Table) -> dict[int, dict[str, float]]:
    """The metrics of each step that has any."""
    steps = rows.column("step").to_numpy()
    found: dict[int, dict[str, float]] = {step: {} for step in steps.tolist()}
    for name in rows.column_names[2:]:
        column = rows.column(name)
        there = column.is_valid().to_numpy()
        for step, value in zip(steps[there].tolist(), column.drop_null().to_pylist(), strict=True):
            found[step][name] = value
    return found


def _ranks(rows: pa.Table) -> dict[int, dict[str, dict[int, float]]]:
    """By step, metric and rank: what more than one rank logged; memory also where one tells it alone."""
    steps, ranks = rows.column("step").to_numpy(), rows.column("rank").to_numpy()
    found: dict[int, dict[str, dict[int, float]]] = {}
    for name in rows.column_names[3:]:
        column = rows.column(name)
        there = column.is_valid().to_numpy()
        own = ranks[there]
        if not len(own) or (own == own[0]).all():
            continue
        for step, rank, value in zip(steps[there].tolist(), own.tolist(), column.drop_null().to_pylist(), strict=True):
            found.setdefault(step, {}).setdefault(name, {})[rank] = value
    return {
        step: {name: values for name, values in metrics.items() if len(values) > 1 or name in MEMORY}
        for step, metrics in found.items()
    }


def samples_of(rows: pa.Table) -> dict[tuple[int, int], dict[str, Tensors]]:
    """By step, and number of the sample on this step: the rows of each kind, in the order of steps."""
    rows = tensors.one_stage(rows, None)
    if not rows.num_rows:
        return {}
    kinds = rows.column("kind").cast(pa.string()).to_numpy(zero_copy_only=False)
    step, sample = rows.column("step").to_numpy(), rows.column("sample").to_numpy()
    kind = np.array([KINDS.index(k) if k in KINDS else -1 for k in kinds])
    order = np.lexsort((kind, sample, step))
    order = order[kind[order] >= 0]
    keys = np.stack([step[order], sample[order], kind[order]])
    starts = np.flatnonzero(np.append(True, (np.diff(keys, axis=1) != 0).any(axis=0))) if len(order) else order
    found: dict[int, dict[int, dict[str, Tensors]]] = {}
    for lo, hi in zip(starts.tolist(), [*starts[1:].tolist(), len(order)], strict=True):
        at, number, which = keys[:, lo].tolist()
        found.setdefault(at, {}).setdefault(number, {})[KINDS[which]] = block(rows.take(pa.array(order[lo:hi])))
    return {
        (at, place): samples[number] for at, samples in found.items() for place, number in enumerate(sorted(samples))
    }


def block(rows: pa.Table) -> Tensors:
    """Rows of one kind and sample."""
    numbers = ("count", "sum_sq", "min", "max", "zeros", "nans", "pos_infs", "neg_infs")
    columns = {name: rows.column(name).to_numpy() for name in numbers}
    words = {name: rows.column(name).to_pylist() for name in ("name", "stage")}
    return from_flat({**columns, **words}, *tensors.flat_buckets(rows))
