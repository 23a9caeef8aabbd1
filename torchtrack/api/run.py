"""One run as it is on disk now: what it is, what it logged, what became of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from torchtrack.api import blackbox, charts, facts, findings, hints, history, parts, snapshot, summary, tensors
from torchtrack.api.blackbox import Left
from torchtrack.api.facts import Attempt, Event
from torchtrack.api.held import HeldRows
from torchtrack.api.hiding import Hides, last_step, told
from torchtrack.api.hints import did_you_mean
from torchtrack.api.history import Part, Window
from torchtrack.api.streams import OWN_PREFIXES, Rows, merged
from torchtrack.histogram import Histogram
from torchtrack.records import LOCAL_NORM, OF_LAYERS, SCHEMAS, Table
from torchtrack.stability import Finding, Rule, Step, default_rules
from torchtrack.stability.difference import TOLERANCE, Difference, difference
from torchtrack.stability.headroom import Headroom, headroom
from torchtrack.stability.noise_scale import NoiseScale

if TYPE_CHECKING:
    from torchtrack.api.source import Source
    from torchtrack.journal.reader import Damage

Ranks = Literal["mean", "all"] | int
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class Run:
    """A run. Every access looks for what was written since the last one."""

    def __init__(self, source: Source, uid: str) -> None:
        self._source = source
        self._uid = uid
        self._cache: dict[Any, Any] = {}
        self._version: tuple[int, ...] = ()

    def __repr__(self) -> str:
        return f"<Run {self.project}/{self.id} {self.name!r} {self.state}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: a snapshot, which loads nothing."""
        return snapshot.html(self)

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def uid(self) -> str:
        """The 16 hex digits that name the run everywhere."""
        self._sync()
        return self._uid

    @property
    def aliases(self) -> tuple[str, ...]:
        """Provisional uids that ranks used before they agreed; they find the run too."""
        return tuple(sorted({uid for stream in self._streams() for uid in stream.uids} - {self._uid}))

    @property
    def id(self) -> str:
        """The user's id, else the uid."""
        return str(self._about().get("id") or self._uid)

    @property
    def name(self) -> str:
        """The run's name for people: the user's, else the one that follows from the uid."""
        return str(self._about().get("name") or hints.name_of(self._uid))

    @property
    def project(self) -> str:
        """The project, `uncategorized` by default."""
        return str(self._about().get("project") or "uncategorized")

    @property
    def group(self) -> str | None:
        """The group, if the user gave one."""
        return self._about().get("group")

    @property
    def job_type(self) -> str | None:
        """The job type, if the user gave one."""
        return self._about().get("job_type")

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags."""
        return tuple(self._about().get("tags") or ())

    @property
    def notes(self) -> str | None:
        """The notes."""
        return self._about().get("notes")

    def _about(self) -> dict[str, Any]:
        return self._newest("run")

    @property
    def config(self) -> dict[str, Any]:
        """Rank 0's configuration, all attempts merged.

        What other ranks had otherwise is in the events of type config_difference.
        """
        events = self._by_authority("config")
        lowest = min((event.rank for event in events), default=0)
        return {key: value for event in events if event.rank == lowest for key, value in event.data.items()}

    @property
    def environment(self) -> dict[str, Any]:
        """Machine, versions, git, packages, command: rank 0's, the parts merged."""
        return {key: value for event in self._by_authority("environment") for key, value in event.data.items()}

    # -- what became of it --------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """running, finished, failed, killed, crashed or lost: that of the newest attempt."""
        attempts = self.attempts
        return attempts[-1].state if attempts else "lost"

    @property
    def lost_at_ns(self) -> int | None:
        """When the run will be `lost` unless there is a sign of life, by wall time; None: it runs no more."""
        attempts = parts.attempts(self._streams())
        return self._source.lost_at_ns(attempts[max(attempts)]) if attempts else None

    @property
    def attempts(self) -> list[Attempt]:
        """Every launch of the run, oldest first."""
        attempts = parts.attempts(self._streams())
        return [facts.attempt(number, streams, self._source.state(streams)) for number, streams in attempts.items()]

    @property
    def world_size(self) -> int:
        """Ranks of the newest attempt."""
        attempts = self.attempts
        return attempts[-1].world_size if attempts else 0

    @property
    def last_step(self) -> int | None:
        """How far the run has come: the last step that has a metric of the user's or of `watch`.

        That of the newest attempt, but one at a single step, as an evaluation, takes nothing back.
        """
        spans = {
            number: merged(span for stream in streams if (span := stream.load_scalars().told) is not None)
            for number, streams in parts.attempts(self._streams()).items()
        }
        known = {number: span for number, span in spans.items() if span is not None}
        return last_step(known, told(self._streams()))

    @property
    def created(self) -> datetime:
        """When the first rank started."""
        return facts.when(min((stream.start_ns for stream in self._streams()), default=0))

    @property
    def duration(self) -> timedelta:
        """How long the attempts ran, together."""
        return sum((attempt.duration for attempt in self.attempts), timedelta())

    @property
    def dropped(self) -> int:
        """Rows the run could not record: by the gaps in its journals, or a rank's own counter if that says more."""
        return sum(max(stream.dropped_rows, int(stream.last_value("_tt/dropped_rows"))) for stream in self._streams())

    @property
    def damages(self) -> list[Damage]:
        """Parts of the journals that cannot be read."""
        streams = self._streams()
        for stream in streams:
            for table in Table:
                stream.load_scalars() if table is Table.SCALARS else stream.table(table)
        return [damage for stream in streams for damage in stream.damages]

    # -- what it logged -----------------------------------------------------------------------------------------------

    def keys(self, prefix: str = "") -> list[str]:
        """Names of all metrics, sorted: the user's, and those under watch/, system/ and _tt/."""
        names = self._source.names.names
        codes = {code for stream in self._streams() for code in stream.load_scalars().by_code()}
        return sorted(names[code] for code in codes if names[code].startswith(prefix))

    def history(
        self,
        keys: str | Sequence[str] | None = None,
        ranks: Ranks = "mean",
        start: int | None = None,
        stop: int | None = None,
        attempts: Literal["latest", "all"] = "latest",
        raw: bool = False,
    ) -> pa.Table:
        """Scalars as a table: one row a step, a float64 column a metric.

        What was not logged is null; NaN is NaN. Of a metric logged twice at a step the value written last counts,
        whatever the clock said; a number on a device is written once it has arrived.

        Args:
            keys: metrics, by default all the user's (not those under watch/, system/ and _tt/).
            ranks: "mean" combines ranks as `reduce` of `log` said, and is null where the parts of a DTensor are not
                all there; "all" gives a row a step and rank, with a column `rank`; a number gives that rank alone.
            start: the first step.
            stop: the step after the last.
            attempts: "latest" hides of each metric what a later attempt logged again: from the first step on at which
                it did, or that step alone if it is the only one; "all" gives the rows of each attempt, with a column
                `attempt`.
            raw: everything as it was written, nothing combined or hidden: step, time, rank, attempt, then the metrics.
                A row holds what one rank logged at one step and moment; a metric logged twice makes a second row.

        Returns:
            Columns `step`, `time` (UTC; of the lowest rank), `rank` and `attempt` where asked for, then the metrics. A
            metric with one of these four names is in the column `logged/step`, say.

        Raises:
            ValueError: a metric or rank is not there, or an argument is none of the allowed ones.
        """
        if keys is not None and not raw and attempts == "latest" and ranks in ("mean", "all"):
            wanted = [keys] if isinstance(keys, str) else list(keys)
            there = self._history_there(list(dict.fromkeys(wanted)), str(ranks), start, stop)
            if there is not None:
                return there
        names = self._known_keys([keys] if isinstance(keys, str) else keys)
        if attempts not in ("latest", "all"):
            raise ValueError(f'attempts={attempts!r}: it is "latest" or "all"')
        if isinstance(ranks, str) and ranks not in ("mean", "all"):
            raise ValueError(f'ranks={ranks!r}: it is "mean", "all" or a rank')
        rows = self._parts() if isinstance(ranks, str) else _of_rank(self._parts(), ranks)
        coded = [(name, self._source.names.codes[name]) for name in names]
        if raw:
            return history.raw(rows, coded, Window(start, stop))
        make = history.combined if ranks == "mean" else history.by_rank if ranks == "all" else history.alone
        if attempts == "latest":
            return make(rows, coded, Window(start, stop, self._hides()))
        numbers = sorted({part.attempt for part in rows})
        each = [(n, make([p for p in rows if p.attempt == n], coded, Window(start, stop))) for n in numbers]
        return history.by_attempt(each or [(0, make([], coded, Window()))])

    def _history_there(self, keys: list[str], ranks: str, start: int | None, stop: int | None) -> pa.Table | None:
        """The history from a server that has the rows; None: they are here already, or must come."""
        ask = self._source.history
        streams = [stream for stream in self._streams() if isinstance(stream, HeldRows)]
        if ask is None or not keys or any(stream.has(Table.SCALARS) for stream in streams):
            return None
        return ask(self.uid, keys, ranks, start, stop)

    def series(self, key: str, max_points: int = 1000, ranks: Ranks = "mean") -> pa.Table:
        """A metric in at most `max_points` buckets of steps, each with min, max and mean, so that spikes survive.

        Columns: step (the first), last_step, min, max, mean (over finite values), count (of them), nonfinite.
        """
        return charts.series(self.history([key], ranks=ranks), _positive("max_points", max_points))

    @property
    def summary(self) -> dict[str, Any]:
        """One value a metric (none under _tt/, none of layers): the last, or what `define_metric` or the user said."""
        return dict(self._cached("summary", self._summary))

    @property
    def definitions(self) -> dict[str, dict[str, Any]]:
        """What `define_metric` said of metrics there are, by name: step_metric, summary, goal, hidden, step_sync."""
        if not self._by_authority("metric"):
            return {}
        found = {name: self.definition(name) for name in self.keys()}
        return {name: {**defined, "name": name} for name, defined in found.items() if defined}

    def definition(self, name: str) -> dict[str, Any]:
        """The same of one metric; empty if nothing was said of it."""
        return dict(summary.definition(name, [event.data for event in self._by_authority("metric")]))

    @property
    def saved(self) -> dict[str, dict[str, Any]]:
        """Files that were saved with the run, by path in its folder: size, sha256, `contents` (a list), time."""
        told = [(event.time, event.data) for event in self.events("saved")]
        return {
            str(path): {**about, "contents": data.get("contents"), "time": time}
            for time, data in told
            for path, about in data.get("files", {}).items()
        }

    @property
    def pinned(self) -> list[str]:
        """Keys of the configuration that the user wants to see first."""
        return list(self._newest("pinned").get("config", ()))

    def summary_of(self, last: Mapping[str, float]) -> dict[str, Any] | None:
        """The summary where it is known already which metrics have which last value.

        None if `define_metric` said that something else than the last value counts.
        """
        if self._by_authority("metric"):
            return None
        said = (event.data for event in self._by_authority("summary"))
        return {key: value for values in (last, *said) for key, value in values.items()}

    def _summary(self) -> dict[str, Any]:
        codes = self._source.names.codes
        wanted = {name: codes[name] for name in self.keys() if not name.startswith(("_tt/", *OF_LAYERS))}
        defined = [event.data for event in self._by_authority("metric")]
        values: dict[str, Any] = dict(summary.values(self._parts(), wanted, self._hides(), defined))
        for event in self._by_authority("summary"):
            values.update(event.data)
        return values

    def tensors(
        self, kind: str | None = None, name: str | None = None, start: int | None = None, stop: int | None = None
    ) -> pa.Table:
        """Statistics of tensors, a row each (kind, name, stage, sample), every element counted once over all ranks.

        `step` and `time` are those of the lowest rank that recorded the sample.

        Args:
            kind: gradient, parameter, update, activation, optimizer, logged; may be a pattern such as `*`.
            name: a parameter's name; may be a pattern such as `layers.*.weight`.
            start: the first step.
            stop: the step after the last.

        Returns:
            The columns of `records.TENSORS`, then `norm`, `coverage` (share of the elements that was counted) and
            `attempt`. What a later attempt recorded again of a tensor hides the earlier, as in `history`.
        """
        rows = [tensors.TensorPart(s.attempt, s.rank, s.table(Table.TENSORS)) for s in self._streams()]
        return tensors.combined(rows, kind, name, Window(start, stop, self._hides()))

    def histogram(self, kind: str, name: str, step: int, stage: str | None = None) -> Histogram:
        """The histogram of a tensor at a step; of all tensors that match, added exactly, if `name` is a pattern.

        Where several samples fall on the step, it is the last of them.

        Args:
            kind: gradient, parameter, update, activation, optimizer, logged.
            name: the parameter's name.
            step: a step that was sampled.
            stage: pre_clip, step or skipped; by default the earliest of these that was recorded.

        Raises:
            ValueError: nothing was recorded at that step; the message names the nearest steps that were.
        """
        rows = tensors.newest_sample(tensors.one_stage(self.tensors(kind, name, step, step + 1), stage))
        if not rows.num_rows:
            raise ValueError(self._no_histogram(kind, name, step, stage))
        return tensors.histogram(rows)

    def _no_histogram(self, kind: str, name: str, step: int, stage: str | None) -> str:
        rows = tensors.one_stage(self.tensors(kind, name), stage)
        if rows.num_rows:
            steps = np.unique(rows.column("step").to_numpy())
            near = sorted(steps[np.argsort(np.abs(steps - step), kind="stable")[:4]].tolist())
            listed = ", ".join(map(str, near))
            return f"{kind} {name!r} was not sampled at step {step}; the nearest sampled steps are {listed}"
        known = sorted(set(self.tensors(kind).column("name").to_pylist()))
        return f"no {kind} {name!r} was recorded{did_you_mean(name, known)}"

    def heatmap(self, kind: str, name: str, max_columns: int = 500, stage: str | None = None) -> charts.Heatmap:
        """Histograms over steps in at most `max_columns` columns; adjacent samples are added exactly."""
        rows = tensors.one_stage(self.tensors(kind, name), stage)
        return charts.heatmap(rows, _positive("max_columns", max_columns))

    def rows(self, table: Table) -> pa.Table:
        """Every row of a table as it was recorded, with rank and attempt, in the order of time."""
        if table is Table.SCALARS:
            return history.long(self._parts(), self._source.names.names)
        tables = []
        for stream in self._streams():
            rows = stream.table(table)
            for name, number in (("rank", stream.rank), ("attempt", stream.attempt)):
                rows = rows.append_column(name, pa.array(np.full(rows.num_rows, number, np.int64)))
            tables.append(rows)
        schema = pa.schema([*SCHEMAS[table], ("rank", pa.int64()), ("attempt", pa.int64())])
        rows = pa.concat_tables([schema.empty_table(), *tables]).unify_dictionaries().combine_chunks()
        return rows.take(pc.sort_indices(rows, sort_keys=[("time", "ascending")]))

    def texts(self) -> pa.Table:
        """Logged strings, with rank and attempt."""
        return self.rows(Table.TEXTS)

    def logs(self) -> pa.Table:
        """Lines the ranks printed, with rank and attempt."""
        return self.rows(Table.LOGS)

    def media(self) -> pa.Table:
        """Logged media, with rank and attempt; `media_file` gives what a row names."""
        return self.rows(Table.MEDIA)

    def media_file(self, sha256: str) -> Path:
        """The file that a row of `media` names, on this machine: it is fetched once where the run lies on a server.

        Args:
            sha256: of the row.

        Raises:
            ValueError: this is no SHA-256 in hex digits.
            FileNotFoundError: the run has no such file, or not yet.
        """
        if not _SHA256.fullmatch(sha256):
            raise ValueError(f"a file is named by 64 hex digits, as in the column sha256 of media(); got {sha256!r}")
        folders = sorted({stream.path.parent.parent for stream in self._sync()})
        found = next((path for each in folders if (path := self._source.carrier.media(each, sha256))), None)
        if found is None:
            raise FileNotFoundError(f"run {self.uid} has no file {sha256}; it may still be on its way")
        return found

    def events(self, type: str | None = None) -> list[Event]:  # noqa: A002
        """What ranks said about the run, in the order of time; of one type if given."""
        events = [event for event in self._events() if type is None or event.type == type]
        return sorted(events, key=lambda event: (event.time, event.attempt, event.rank))

    def findings(self, rules: Iterable[Rule] | None = None) -> list[Finding]:
        """What the stability rules conclude of the rows, and what was recorded as a finding while the run ran.

        Consequences are folded into the finding they follow from. Ordered by the step at which they began.

        Args:
            rules: fresh rules of your own to replay, instead of all that are installed; nothing recorded is added.
        """
        if rules is not None:
            return findings.replay(rules, self.steps())
        rules = default_rules()
        replayed = self._cached("findings", lambda: findings.replay(rules, self.steps()))
        return findings.together(self.events("finding"), replayed, {rule.name for rule in rules})

    def steps(self) -> Iterator[Step]:
        """Everything of the run step by step, as rules see it."""
        streams = self._streams()
        known = findings.facts_of(streams)
        window = Window(hides=self._hides())
        return findings.steps(streams, self._source.names, window, findings.events_of(streams), known)

    def diff(self, other: Run, tolerance: float = TOLERANCE) -> Difference:
        """Where this run and another part: first step, kind and tensor, whatever the parallel layout of each.

        Args:
            other: a run of the same model.
            tolerance: octaves of distance, and relative difference of norms, up to which tensors count as the same.

        Raises:
            ValueError: the runs have no sample or tensor in common.
        """
        first, second = (findings.samples_of(run.tensors()) for run in (self, other))
        return difference(first, second, tolerance)

    def headroom(
        self,
        narrow: str,
        kind: str = "gradient",
        name: str | None = None,
        scale: float = 1.0,
        step: int | None = None,
    ) -> list[Headroom]:
        """What each tensor would lose in a narrow format, and the power of two that loses least; from the buckets.

        Args:
            narrow: "fp16", "bf16", "e4m3" or "e5m2".
            kind: kind of the tensors.
            name: of this name only, or of those that match it.
            scale: what the values are multiplied by first.
            step: one that was sampled; by default the newest of each tensor.

        Returns:
            One a tensor, with bounds; none for a step that was not sampled.

        Raises:
            ValueError: no such format, or the scale is not finite and > 0.
        """
        stop = None if step is None else step + 1
        newest = tensors.newest_sample(tensors.one_stage(self.tensors(kind, name, step, stop), None))
        return headroom(findings.block(newest), narrow, scale)

    @overload
    def noise_scale(self, start: int | None = None, stop: int | None = None, by: None = None) -> NoiseScale | None: ...

    @overload
    def noise_scale(
        self, start: int | None = None, stop: int | None = None, *, by: Literal["layer"]
    ) -> dict[str, NoiseScale]: ...

    def noise_scale(
        self, start: int | None = None, stop: int | None = None, by: Literal["layer"] | None = None
    ) -> NoiseScale | dict[str, NoiseScale] | None:
        """The gradient noise scale over sampled steps: from which batch size on more samples a step stop paying.

        From `watch/local_grad_norm` of every rank and `watch/grad_norm`; in samples too where `batch_size` (of a step,
        on all ranks) was logged. Ranks are taken to have batches of one size.

        Args:
            start: the first step.
            stop: the step after the last.
            by: "layer" for one of each layer: a name up to its first number, else the module, at most two deep.

        Returns:
            None without several ranks that recorded their own norms at enough common steps; by layer, without those of
            which that holds.

        Raises:
            ValueError: no such `by`.
        """
        if by not in (None, "layer"):
            raise ValueError(f'noise_scale(by=) takes "layer" or None, got {by!r}')
        known = set(self.keys())
        if not {LOCAL_NORM, "watch/grad_norm"} <= known:
            return {} if by else None
        own = [key for key in self.keys() if key.startswith(f"{LOCAL_NORM}/")] if by else [LOCAL_NORM]
        local = self.history(own, "all", start, stop)
        averaged = self.history(sorted({"watch/grad_norm", "batch_size"} & known), "mean", start, stop)
        if not by:
            return findings.noise_scale_of(local, LOCAL_NORM, averaged, self.world_size)
        rows = tensors.one_stage(self.tensors("gradient", None, start, stop), None)
        return findings.noise_scale_by_layer(local, averaged, rows, self.world_size)

    def blackbox(self) -> pa.Table:
        """The last steps of every rank that did not end well: a row a step and gradient that lay on the rank.

        Those before a spike, a non-finite value or a stall are there too, and on the node of a rank that still runs
        its own. Which steps there are is what `watch(blackbox=)` says.

        Columns: step, time, rank, attempt, name, norm, absmax, nonfinite (on an accelerator 1 for any), and skipped:
        whether a gradient scaler left the step out.
        """
        return blackbox.table(self._streams(), self._source.carrier.left)

    def blackbox_files(self) -> list[Left]:
        """The files behind `blackbox`, with Python stacks and the dumps of PyTorch's flight recorder."""
        return blackbox.left(self._streams(), self._source.carrier.left)

    @property
    def version(self) -> tuple[int, ...]:
        """Another one whenever something new was recorded."""
        self._sync()
        return self._version

    def release(self) -> None:
        """Forget rows that lie in a store; they are fetched again when asked for."""
        for stream in self._streams():
            stream.release()
        self._cache.clear()

    def streams(self) -> list[Rows]:
        """The ranks' streams by attempt and rank; where two tell of the same thing, the later in this order wins."""
        return self._streams()

    def every_stream(self) -> list[Rows]:
        """The streams of its ranks and nodes."""
        return self._sync()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _sync(self) -> list[Rows]:
        self._uid, streams = self._source.refresh(self._uid)
        version = tuple(stream.version for stream in streams)
        if version != self._version:
            self._version = version
            self._cache.clear()
        return streams

    def _streams(self) -> list[Rows]:
        """The ranks' streams: by attempt and rank, forked children after their rank, then as they were opened."""
        streams = self._sync()
        if "streams" not in self._cache:  # sorting those of 10,000 ranks takes longer than most questions
            self._cache["streams"] = parts.ranked(streams)
        ranked: list[Rows] = self._cache["streams"]
        return ranked

    def _cached(self, key: Any, make: Callable[[], Any]) -> Any:
        self._sync()
        if key in self._cache:
            return self._cache[key]
        version, value = self._version, make()
        if version == self._version:  # else more was written meanwhile, and the value may hold part of it
            self._cache[key] = value
        return value

    def _parts(self) -> list[Part]:
        return parts.scalars(self._streams())

    def _hides(self) -> Hides | None:
        """What later attempts hide of earlier ones."""
        found: Hides | None = self._cached("hides", lambda: parts.hides(self._streams(), self._source.names))
        return found

    def _known_keys(self, keys: Sequence[str] | None) -> list[str]:
        known = self.keys()
        if keys is None:
            return [key for key in known if not key.startswith(OWN_PREFIXES)]
        for key in keys:
            if key not in known:
                raise ValueError(f"no metric {key!r} in run {self.name}{did_you_mean(key, known)}")
        return list(dict.fromkeys(keys))

    def _newest(self, type_: str) -> dict[str, Any]:
        events = self._by_authority(type_)
        return dict(events[-1].data) if events else {}

    def _by_authority(self, type_: str) -> list[Event]:
        """Events of a type, those that win last: newest attempt, lowest rank, written last."""
        return [event for event in self._events() if event.type == type_]

    def _events(self) -> list[Event]:
        """All events, those that win last; a forked child does not speak for its rank, nor a node for any."""
        streams = self._sync()

        def found() -> list[Event]:
            return list(facts.events(sorted(streams, key=lambda s: (s.attempt, -s.rank, not s.parent))))

        return list(self._cached("events", found))


def _of_rank(every: list[Part], rank: int) -> list[Part]:
    chosen = [part for part in every if part.rank == rank]
    if not chosen:
        ranks = sorted({part.rank for part in every})
        raise ValueError(f"no rank {rank}: the run has {', '.join(map(str, ranks)) or 'none'}")
    return chosen


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name}={value}: it is at least 1")
    return value
