"""A run as the training script holds it: log, watch, config, summary, finish."""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import shutil
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import quote

from torchtrack import alerts, environment, guard
from torchtrack.background import Background
from torchtrack.batches import Batches
from torchtrack.console import ConsoleCapture
from torchtrack.fields import Fields
from torchtrack.job import Identity, Job, is_dataloader_worker
from torchtrack.journal import ring
from torchtrack.journal.frame import rank_path
from torchtrack.journal.origin import origin
from torchtrack.journal.writer import Writer
from torchtrack.logbook import Logbook
from torchtrack.naming import name_of
from torchtrack.phases import Phases
from torchtrack.recorder import Recorder
from torchtrack.redact import Redactor
from torchtrack.settings import Settings, check
from torchtrack.sidecar.client import Sidecar, supported
from torchtrack.system import SystemSampler
from torchtrack.version import __version__

if TYPE_CHECKING:
    from types import TracebackType

    from torchtrack.watch import Order, Watcher

Reduce = Literal["mean", "sum", "min", "max"]
Watchable = Literal["gradients", "parameters", "updates", "activations", "optimizer"]

logger = logging.getLogger("torchtrack")

SUMMARIES: Final = ("last", "min", "max", "mean", "best", "none")
_JOIN_BEFORE_OPEN_S: Final = 0.2
_JOIN_BEFORE_END_S: Final = 3.0
"""A run of a few steps may end before rank 0 has said which it is: its rows would be a run of their own."""
_SIDECAR_INTERVAL_S: Final = 10.0
_SIDECAR_TRIES: Final = 4
"""How often one that does not answer is asked in a row."""
_MERGE_SHARE: Final = 0.4
_WATCH_SHARE: Final = 0.7
"""Of finish_timeout: how long samples may still be merged, and how long until what was not is handed over too."""
_UNWATCH_S: Final = 0.3
_PATIENCE_S: Final = {"finish": 3.0, "exit": 1.0}
"""How long the last samples wait for other ranks to merge with, by how the run ends."""
_PATIENCE_OF_FAILURES_S: Final = 0.2
_MAX_ERROR: Final = 4000
_LOOK_S: Final = 0.05
_LAST_LOOK_S: Final = 0.2
"""How often a run that ends looks whether the server has its rows, and how long before its time is up it stops."""
_NOBODY: Final = Identity("0" * 16, "disabled", "", None, 1, 0, 0, 0, 1, provisional=False)


class Run:
    """One rank's handle of the run; made by `torchtrack.init`.

    **Threads:** every method may be called from any thread. None waits for a network, a disk, a device or another rank,
    except `finish` (bounded by `finish_timeout`) and reading `id`, `name`, `uid` or `dir` on a rank that has not yet
    heard from rank 0 (at most five seconds, once).
    """

    def __init__(
        self, settings: Settings, config: Mapping[str, Any], job: Job | None, from_step: int | None = None
    ) -> None:
        self.settings = settings
        self.disabled = job is None
        """Whether every call is accepted and nothing recorded."""
        secrets_given = [url for url in settings.alert_urls if "://" in url]
        self._redactor = Redactor(secrets=[*secrets_given, *([settings.api_key] if settings.api_key else [])])
        self._job = job
        self._from_step = from_step
        self._lock = threading.Lock()
        self._finished = False
        self._forked = False
        self._is_child = False
        self._began_ns = time.time_ns()
        self._pause = threading.Event()
        self._renamed: str | None = None
        self._parent: str | None = None
        """The stream of the process this one was forked from."""
        self._watchers: list[Watcher] = []
        self._unwatched: list[Watcher] = []
        """Watchers whose last samples are still being written."""
        self._prefixes: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
        self._watches = 0
        self._scratch: str | None = None
        self._sweep: str | None = None
        self._endings: list[Callable[[], object]] = []
        """What others want done when the run ends, before its last rows are written."""
        self._labels: dict[str, Any] = {
            "name": self._who().name or settings.name,
            "group": settings.group,
            "job_type": settings.job_type,
            "tags": list(settings.tags),
            "notes": settings.notes,
        }
        self._equip()
        if from_step is not None:
            self._recorder.step = from_step
        self.config = Fields(config, lambda fresh: self._event("config", fresh))
        """Hyper-parameters; reading and writing as a mapping or by attribute."""
        self.summary = Fields({}, lambda fresh: self._event("summary", fresh))
        """Values that describe the run as a whole; one set here wins over the one derived from the history."""
        self._console: ConsoleCapture | None = None
        self._sidecar: Sidecar | None = None
        if job is not None:
            self._begin(job)

    def _equip(self) -> None:
        """A stream of this process's own, with the threads that serve it; not started."""
        self._stream = secrets.randbits(64)
        self._background = Background()
        self._phases = Phases()
        self._batches = Batches()
        self._recorder = recorder = Recorder(self._open)
        self._logbook = logbook = Logbook(
            recorder, self._background, self._redactor, lambda: Path(self.dir), strict=self.settings.strict
        )
        recorder.report("_tt/dropped_rows", lambda: recorder.dropped_rows)
        recorder.report("_tt/bad_values", lambda: sum(logbook.bad_values.values()))
        recorder.report("_tt/errors", lambda: sum(guard.failures.values()))

    def _who(self, *, wait: bool = False) -> Identity:
        if self._job is None:
            return _NOBODY
        return self._job.wait() if wait else self._job.identity

    def _begin(self, job: Job) -> None:
        self._background.start()
        self._recorder.start()
        job.on_joined(self._joined)
        self._tell("run", self._about())
        self._tell("config", self.config.as_dict())
        self._tell("environment", environment.quick())
        if self.settings.mesh is not None:
            self._tell("mesh", {"rank": job.identity.rank, "coordinates": dict(self.settings.mesh)})
        background, settings = self._background, self.settings
        background.submit("environment", lambda: self._tell("environment", environment.slow()))
        if settings.sidecar:
            self._sidecar = Sidecar(
                settings.dir,
                alerts=self._delivery(),
                lookout=settings.live_findings,
                upload=self._destination(),
                sinks=settings.sinks,
            )
            background.every(_SIDECAR_INTERVAL_S, "sidecar", self._register)
            background.every(_SIDECAR_INTERVAL_S, "the black box", self._look_at_steps)
        if settings.system_interval > 0:
            local_rank = job.identity.local_rank
            self._sampler = SystemSampler(local_rank, node_leader=local_rank == 0, folder=settings.dir)
            background.every(settings.system_interval, "system metrics", self._sample_system)
        if settings.console:
            self._console = ConsoleCapture(self._logbook.line)
            self._console.start()

    # -- who this is ------------------------------------------------------------------------------------------------

    @property
    def uid(self) -> str:
        """Sixteen hexadecimal digits, the same on all ranks and attempts."""
        return self._who(wait=True).uid

    @property
    def id(self) -> str:
        """The id given to init, else the uid."""
        return self._who(wait=True).id

    @property
    def name(self) -> str:
        """For people."""
        known = self._who(wait=True).name or self.settings.name
        return self._renamed or known or name_of(self.uid)

    @name.setter
    def name(self, value: str) -> None:
        self._relabel("name", value)
        self._renamed = self._labels["name"]

    @property
    def project(self) -> str:
        """The project the run is listed in."""
        return self.settings.project if self._job is None else self._who().project

    @property
    def group(self) -> str | None:
        """The label that runs of one experiment share."""
        return self._labels["group"]  # type: ignore[no-any-return]

    @property
    def job_type(self) -> str | None:
        """What the run does in its group."""
        return self._labels["job_type"]  # type: ignore[no-any-return]

    @property
    def tags(self) -> tuple[str, ...]:
        """Labels to filter by; assign a sequence to change them."""
        return tuple(self._labels["tags"])

    @tags.setter
    def tags(self, value: Sequence[str]) -> None:
        self._relabel("tags", value)

    @property
    def notes(self) -> str | None:
        """Free text."""
        return self._labels["notes"]  # type: ignore[no-any-return]

    @notes.setter
    def notes(self, value: str | None) -> None:
        self._relabel("notes", value)

    @property
    def url(self) -> str | None:
        """Where to look at it in a browser; None if it is only on this machine."""
        server = self.settings.url if self.settings.mode == "online" else None
        if not server or self.disabled:
            return None
        return f"{server}/#/p/{quote(self.project, safe='')}/r/{self.uid}"

    @property
    def dir(self) -> str:
        """The folder of the run, made if need be; of a run that records nothing, one that goes with the process."""
        if self.disabled:
            with self._lock:
                if self._scratch is None:
                    self._scratch = tempfile.mkdtemp(prefix="torchtrack-")
                    weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
            return self._scratch
        folder = self.settings.dir / self.uid
        guard.outcome(os.makedirs, folder, 0o700, True)  # noqa: FBT003  # a full disk is found out elsewhere
        return str(folder)

    @property
    def sweep(self) -> str | None:
        """The sweep that the run is a trial of, if any."""
        return self._sweep

    @property
    def step(self) -> int:
        """The step the next row gets."""
        return self._recorder.step

    @property
    def rank(self) -> int:
        """This process's rank in the job."""
        return self._who().rank

    @property
    def world_size(self) -> int:
        """How many ranks the job has."""
        return self._who().world_size

    @property
    def attempt(self) -> int:
        """1 for the first launch, one more for every restart or resume."""
        return self._who(wait=True).attempt

    @property
    def resumed(self) -> bool:
        """Whether this continues an earlier attempt."""
        return self.attempt > 1

    # -- logging ----------------------------------------------------------------------------------------------------

    def log(
        self,
        metrics: Mapping[str, Any] | None = None,
        step: int | None = None,
        commit: bool | None = True,
        reduce: Reduce = "mean",
        *,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Record values at a step. Never waits, never talks to other ranks and never raises (unless strict=True).

        Args:
            metrics: numbers, strings, 0-dim tensors on any device, nested dicts, Histogram, Image, Audio, Table,
                figures. What cannot be recorded is left out, counted and warned of once a name; the rest of the row
                is kept.
            step: the x axis; the run's own counter if not given. Repeated and decreasing steps are kept.
            commit: True (or None) closes the step: the counter moves past it. False leaves it open for further values.
            reduce: how readers combine the values of several ranks: "mean", "sum", "min" or "max".
            data: the metrics by the name that scripts written for wandb use.
        """
        if data is not None:
            metrics = data
        if commit is None:
            commit = True
        if self.settings.strict:
            self._log(metrics, step, commit, reduce)
        else:
            self._log_guarded(metrics, step, commit, reduce)

    @guard.never_raise("log()")
    def _log_guarded(self, metrics: Any, step: Any, commit: bool, reduce: Any) -> None:
        self._log(metrics, step, commit, reduce)

    def _log(self, metrics: Any, step: Any, commit: bool, reduce: Any) -> None:
        if self._forked:
            self._reopen_after_fork()
        if not self.disabled:
            self._logbook.log(metrics, step, commit, reduce)

    def phase(self, name: str) -> None:
        """Say what this process does from now on: until the next call its time counts to this phase.

        Each row that closes a step records the seconds since the one before it as `phase/<name>_s`, on every rank that
        calls this; readers see the mean over ranks, or each rank. Time is that of the host: on an accelerator, where
        kernels are launched and run later, a phase is how long launching them took.

        To be called by the thread that trains and logs. Never waits.

        Args:
            name: "data", "forward", "backward" and "optimizer" by convention; any other without "/" is allowed.

        Raises:
            TypeError: the name is no string.
            ValueError: it cannot be part of a metric's name.
        """
        if self._forked:
            guard.attempt("phase()", self._reopen_after_fork)
        self._phases.enter(name)
        self._recorder.log_beside(self._phases.take)

    # -- watching ---------------------------------------------------------------------------------------------------

    def watch(
        self,
        models: Any,
        criterion: Any = None,
        log: Literal["all", "gradients", "parameters"] | Sequence[Watchable] | None = "all",
        log_freq: int = 100,
        idx: int | None = None,
        log_graph: bool = False,
        *,
        name: str | None = None,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        budget: float | None = None,
        reduce: Literal["host", "device"] = "host",
        checksum_every: int = 10,
        blackbox: bool | None = None,
        on_nonfinite: Literal["record", "skip", "raise"] = "record",
    ) -> Watcher | None:
        """Record histograms and norms of parameters and gradients over all ranks, every `log_freq` optimizer steps.

        Gradients are those the optimizer step uses: accumulated, averaged over ranks, unscaled, before clipping.

        Args:
            models: a torch.nn.Module or a list of them, before or after it is wrapped in DistributedDataParallel,
                `fully_shard`, FSDP1, tensor parallelism or torch.compile; the stages of a pipeline are a list.
            criterion: the loss function; its name goes into the config as `criterion`, if that is not there yet.
            log: what to record: "all" is gradients and parameters, a tuple may name more; None records the model's
                structure only.
            log_freq: optimizer steps from one sample to the next; the first step is always sampled. (Other trackers
                count backward passes.)
            idx: another way to say a prefix, from scripts written for other trackers: above 0 it is `graph_<idx>/`.
            log_graph: accepted for scripts written for other trackers; the structure is recorded in any case.
            name: prefix of the parameters' names; a second watched model gets "model1/" by itself.
            include: patterns, as in fnmatch, of parameters to watch.
            exclude: patterns of parameters to leave out.
            budget: sample as often as this share of the training time allows, such as 0.01, instead of every
                `log_freq` steps. What it came to is in `_tt/watch0/interval` and `_tt/watch0/share`.
            reduce: "host" merges ranks over a private gloo group beside training. "device" uses the backend that
                training uses: only if all ranks call watch and take every sample; it may wait for them.
            checksum_every: at every so many samples ranks compare checksums of the parameters and buffers that they
                hold alike; 0 never. See `watch/replicas_differ`.
            blackbox: keep norm, absmax and non-finite count of every gradient in a file of this node, which the
                sidecar puts into the run if the process ends other than well. None does so as often as 0.3 % of the
                training time allow, True at every step, False never. Needs the sidecar.
            on_nonfinite: what to do at a step whose gradients are not finite. "skip" leaves it out, for optimizers made
                with `fused=True`; "raise" raises `NonFiniteError` from `optimizer.step`, before it changes a weight.
                Both wait for the device once a step and decide alike on all ranks, which all have to call watch so.

        Returns:
            What to tell of tensors that no torch optimizer steps, with `Watcher.observe`; None if nothing is recorded.

        Raises:
            TypeError: something that is no module, or an argument of the wrong type.
            ValueError: a value that is not allowed.
        """
        del log_graph
        name = f"graph_{idx}" if name is None and idx else name
        if criterion is not None:
            self.config.setdefaults({"criterion": getattr(criterion, "__name__", type(criterion).__name__)})
        if self._forked:
            self._reopen_after_fork()
        if self.disabled:
            return None
        if self._finished:
            self._logbook.refuse(
                "watch", RuntimeError("watch() after finish() records nothing; call it before, or start a new run")
            )
            return None
        if blackbox is not None and not isinstance(blackbox, bool):
            raise TypeError(
                f"watch(blackbox=) takes True, False or None, got {type(blackbox).__name__} {blackbox!r:.60}"
            )
        from torchtrack.watch import describe, start

        watcher = start(
            models,
            log=log,
            log_freq=log_freq,
            name=name,
            include=include,
            exclude=exclude,
            budget=budget,
            reduce=reduce,
            checksum_every=checksum_every,
            recorder=self._recorder,
            job=self._job,
            ordinal=self._watches,
            prefixes=self._prefixes,
            phases=self._phases,
            blackbox=None if blackbox is False else self._order(every=blackbox is True),
            on_nonfinite=on_nonfinite,
        )
        self._watches += 1
        self._watchers.append(watcher)
        own = f"_tt/watch{self._watches - 1}"
        self._recorder.report(f"{own}/dropped_samples", lambda: watcher.merger.dropped_samples)
        if (judge := watcher.on_nonfinite) is not None:
            self._recorder.report(f"{own}/skipped_steps", lambda: judge.skipped_steps)
        if budget is not None:
            self._recorder.report(f"{own}/interval", lambda: watcher.schedule.interval)
            self._recorder.report(f"{own}/share", lambda: watcher.schedule.share)
        guard.attempt("watch()", lambda: self._tell("model", describe(watcher.models)))
        return watcher

    def unwatch(self, models: Any = None) -> None:
        """Stop watching these models, or all. What was sampled is kept; hooks and shims are gone when it returns.

        Args:
            models: a module or several; None for all that are watched.
        """
        chosen = None if models is None else [models] if not isinstance(models, (list, tuple)) else list(models)
        for watcher in list(self._watchers):
            held = [model for _, model in watcher.models]
            if chosen is None or any(model is mine for model in chosen for mine in held):
                self._watchers.remove(watcher)
                if watcher.blackbox is not None:
                    guard.attempt("the black box", watcher.blackbox.stop)
                guard.attempt("unwatch()", watcher.stop, self.settings.finish_timeout, _PATIENCE_S["finish"])
                if not watcher.join(_UNWATCH_S):
                    self._unwatched.append(watcher)

    # -- describing the run -----------------------------------------------------------------------------------------

    def define_metric(
        self,
        name: str,
        step_metric: str | None = None,
        summary: str | None = None,
        goal: str | None = None,
        **others: Any,
    ) -> None:
        """Say how a metric is summarised and what its x axis is.

        Args:
            name: the metric; may hold `*` and `?`.
            step_metric: the metric to draw it against.
            summary: "last" (the default), "min", "max", "mean", "best" (by `goal`) or "none".
            goal: "minimize" or "maximize", for "best".
            others: what scripts written for wandb pass (docs/wandb-names.md).

        Raises:
            TypeError: name or step_metric is no string.
            ValueError: another summary or goal.
        """
        if others or (isinstance(summary, str) and summary not in SUMMARIES):
            translate = importlib.import_module("torchtrack.compat.arguments").metric
            summary, goal, others = translate(summary, goal, others)
        names: tuple[Any, Any] = (name, step_metric or "")
        if not name or not all(isinstance(given, str) for given in names):
            raise TypeError(f"define_metric() takes names as strings, got {name!r} and step_metric={step_metric!r}")
        if summary is not None and summary not in SUMMARIES:
            raise ValueError(f"define_metric(summary=) takes one of {', '.join(SUMMARIES)}; got {summary!r}")
        if goal not in (None, "minimize", "maximize"):
            raise ValueError(f"define_metric(goal=) takes 'minimize' or 'maximize'; got {goal!r}")
        if summary == "best" and goal is None:
            raise ValueError("define_metric(summary='best') needs goal='minimize' or goal='maximize'")
        self._event("metric", {"name": name, "step_metric": step_metric, "summary": summary, "goal": goal, **others})

    def alert(
        self, title: str, text: str = "", level: str = "info", wait_duration: float | timedelta | None = None
    ) -> None:
        """Record something people should see, and have it delivered to `alert_urls`. Never waits for that.

        Args:
            title: one line.
            text: details.
            level: "info", "warning" or "error".
            wait_duration: seconds, or a timedelta, for which another alert with this title is recorded but not
                delivered (a minute by default).
        """
        named, wait_s = guard.outcome(alerts.level_of, level), guard.outcome(alerts.seconds_of, wait_duration)
        for wrong in (named, wait_s):
            if isinstance(wrong, Exception) and not self.disabled:
                self._logbook.amend("alert", wrong)
        named = named if isinstance(named, str) else "info"
        wait_s = wait_s if isinstance(wait_s, float) else alerts.DEFAULT_WAIT_S
        self._event("alert", {"title": title, "text": text, "level": named, "wait_s": wait_s})

    def mark(self, title: str = "", text: str = "", *, batch: Any = None) -> None:
        """Mark the current step, such as "warm-up ends", so that charts can show it; or say which samples it is of.

        Args:
            title: one line.
            text: details.
            batch: ids of the samples this rank trains on in the step under way, as whole numbers or strings: one, a
                sequence, an array or a tensor on the CPU. A digest of them is recorded on each rank with the row that
                closes the step; a rank that trains on the batches of another is then found. To be called by the thread
                that trains and logs. Never waits.
        """
        if batch is not None:
            self._mark_batch(batch)
        if title or text or batch is None:
            self._event("mark", {"title": title, "text": text})

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until all rows logged so far are in the journal. False if that took longer than `timeout_s` seconds.

        Images, audio, tables and figures are written in a thread of their own and may follow.
        """
        return self._recorder.flush(timeout_s)

    # -- the end ----------------------------------------------------------------------------------------------------

    def finish(self, exit_code: int | None = None, quiet: bool | None = None) -> None:
        """End the run: write what is left, within `finish_timeout` seconds. Further calls do nothing.

        Args:
            exit_code: not 0 marks the run as failed.
            quiet: True prints nothing.
        """
        error = f"finish(exit_code={exit_code})" if exit_code else None
        self._end("exception" if error else "finish", error, quiet=bool(quiet))

    @guard.never_raise("finish()")
    def _end(self, reason: str, error: str | None, *, quiet: bool = False) -> None:
        if not (self._finished or self._forked):
            endings, self._endings = self._endings, []
            for end in endings:
                guard.attempt("the end of the run", end)
        with self._lock:
            if self._finished or self._forked:
                return
            self._finished = True
        if self.disabled:
            return
        self._logbook.close("log() after finish() records nothing; call it before, or start a new run")
        deadline, now = time.monotonic() + self.settings.finish_timeout, time.time_ns()
        if self._console is not None:
            self._console.stop()
        if self._job is not None and reason in _PATIENCE_S:
            self._job.wait(min(_JOIN_BEFORE_END_S, self.settings.finish_timeout / 2), last=True)
        self._end_watching(reason)
        self._background.submit("sidecar", lambda: self._tell_end(reason))
        settled = self._background.close(max(0.1, (deadline - time.monotonic()) / 2))
        if reason == "exit" and self._sidecar is not None and not self._sidecar.is_there:
            guard.attempt("the black box", ring.discard, f"{self._stream:016x}")  # nobody sees with what code it exits
        ended = {
            "type": "ended",
            "reason": reason,
            "error": error and self._redactor.text(error),
            "time_ns": now,
        }

        sealed: list[bool] = []
        writers: list[Writer] = []

        def close(writer: Writer) -> None:
            writer.meta(ended)
            sealed.append(writer.seal(reason))
            writer.close()
            writers.append(writer)

        written = self._recorder.stop(max(0.1, deadline - time.monotonic()), close) and all(sealed)
        unsent = 0
        if writers and reason in _PATIENCE_S:
            unsent = self._await_upload(writers[0], deadline)
        if self._sidecar is not None:
            self._sidecar.close()
        if self._job is not None:
            self._job.close(min(1.0, max(0.1, deadline - time.monotonic())))
        if not quiet and not self._is_child and self._who().rank == 0:
            self._say_goodbye(written=written, settled=settled, unsent=unsent)

    def _end_watching(self, reason: str) -> None:
        within = self.settings.finish_timeout * _MERGE_SHARE
        until = time.monotonic() + self.settings.finish_timeout * _WATCH_SHARE
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            if watcher.blackbox is not None:
                guard.attempt("the black box", watcher.blackbox.stop, reason)
            guard.attempt("unwatch()", watcher.stop, within, _PATIENCE_S.get(reason, _PATIENCE_OF_FAILURES_S))
        for watcher in [*watchers, *self._unwatched]:
            guard.attempt("unwatch()", watcher.join, max(0.1, until - time.monotonic()))
        self._unwatched = []

    def _await_upload(self, writer: Writer, deadline: float) -> int:
        """Wait until the server has this rank's rows, if it is there at all; how many it has not when this returns."""
        url = self.settings.url
        if url is None or self.settings.mode != "online":
            return 0
        from torchtrack.sidecar.upload import progress, tail

        if not self._is_sent:
            return tail.rows_from(writer.path, 0, deadline)
        while True:
            known = progress.of_this_node(self.settings.dir, url, self._began_ns)
            position = known.position(f"{self._stream:016x}")
            if position >= writer.seq:
                return 0
            if known.stuck or time.monotonic() + _LAST_LOOK_S > deadline:
                return tail.rows_from(writer.path, position, deadline)
            self._pause.wait(_LOOK_S)

    @property
    def _is_sent(self) -> bool:
        """Whether there is a sidecar that sends what this rank writes."""
        return self._sidecar is not None and supported()

    def _say_goodbye(self, *, written: bool, settled: bool, unsent: int = 0) -> None:
        identity = self._who()
        dropped = self._recorder.dropped_rows
        trouble = "" if written else "; the disk did not take everything in time"
        trouble += "" if settled else "; some images or other media were not written in time"
        trouble += f"; {dropped} rows were dropped" if dropped else ""
        where = _shown(self.settings.dir)
        if unsent:
            how = "are being sent, or will be" if self._is_sent else "are sent"
            trouble += f"; {unsent:,} rows of this rank are not on the server yet; they lie in {where} and {how} by "
            trouble += f"torchtrack sync {identity.uid} --dir {where}"
        look = self.url if self.url and not unsent else f"torchtrack show {identity.uid} --dir {where}"
        say(f"run {self.name} ended{trouble}; look: {look}")

    def __deepcopy__(self, memo: object) -> Run:
        return self  # a model or data set that holds the run may be copied; the run is still one

    def __reduce__(self) -> tuple[Callable[[], Run], tuple[()]]:
        return _elsewhere, ()  # in another process it is a run that records nothing

    if not TYPE_CHECKING:  # what is unknown stays an error to a type checker

        def __getattr__(self, name: str) -> Any:
            return importlib.import_module("torchtrack.compat.runs").find(self, name)  # or AttributeError

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or (kind is SystemExit and getattr(error, "code", None) in (None, 0)):
            self._end("finish", None)
        else:
            self._end("exception", in_words(error) if error is not None else kind.__name__)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _mark_batch(self, ids: Any) -> None:
        if self._forked:
            guard.attempt("mark()", self._reopen_after_fork)
        if self.disabled or self._finished:
            return
        wrong = guard.outcome(self._batches.add, ids)
        if isinstance(wrong, Exception):
            self._refuse("mark", wrong)
        self._recorder.log_beside(self._batches.take)

    def _event(self, kind: str, data: Mapping[str, Any]) -> None:
        """What the user says about the run."""
        if self._forked:
            self._reopen_after_fork()
        if self._finished:
            self._refuse(kind, RuntimeError(f"{kind} after finish() is not recorded; set it before"))
        else:
            self._tell(kind, data)

    def _as_trial(self, sweep: str, number: int) -> None:
        """It is a trial of a sweep."""
        self._sweep = sweep
        self._tell("sweep", {"id": sweep, "trial": number})

    def _tell(self, kind: str, data: Mapping[str, Any]) -> None:
        if not self.disabled:
            guard.attempt(kind, self._logbook.event, kind, data)

    def _refuse(self, name: str, error: Exception) -> None:
        if not self.disabled:
            self._logbook.refuse(name, error)

    def _relabel(self, label: str, value: Any) -> None:
        try:
            checked = None if value is None else check(label, value, f"run.{label} =")
        except (TypeError, ValueError) as error:
            self._refuse(label, error)
            return
        self._labels[label] = list(checked or ()) if label == "tags" else checked
        self._event("run", self._about())

    def _about(self) -> dict[str, Any]:
        identity = self._who()
        return {"id": identity.id, **self._labels, "project": identity.project}

    def _destination(self) -> dict[str, object] | None:
        """Where the sidecar is to send what this rank writes, if anywhere."""
        if self.settings.mode != "online":
            return None
        return {"url": self.settings.url, "key": self.settings.api_key}

    def _delivery(self) -> dict[str, object] | None:
        """Where the sidecar is to take alerts, if anywhere; says so where it cannot."""
        if not self.settings.alert_urls:
            return None
        why = alerts.missing()
        if why is None:
            return {"urls": list(self.settings.alert_urls), "findings": self.settings.alert_findings}
        if self._who().local_rank == 0:
            logger.warning("torchtrack: %s", why)
        return None

    def _joined(self, identity: Identity) -> None:
        place = {
            "type": "joined",
            "uid": identity.uid,
            "project": identity.project,
            "attempt": identity.attempt,
            "rank": identity.rank,
            "local_rank": identity.local_rank,
            "node": identity.node,
            "world_size": identity.world_size,
        }
        self._recorder.command(lambda writer: writer.meta(place))
        self._labels["name"] = self._renamed or identity.name or self._labels["name"]
        self._tell("run", self._about())
        if self._sidecar is not None:
            sidecar, stream = self._sidecar, f"{self._stream:016x}"
            self._background.submit("sidecar", lambda: sidecar.joined(stream, identity.uid))

    def _register(self, tries: int = _SIDECAR_TRIES) -> None:
        """Have this process watched. A sidecar that is slow to start is asked again at once, behind what waits."""
        if self._sidecar is not None:
            who = self._who()
            place = {"rank": who.rank, "world_size": who.world_size}
            is_there = self._sidecar.register(f"{self._stream:016x}", who.uid, os.getpid(), **place)
            if not is_there and tries > 1:
                self._background.submit("sidecar", lambda: self._register(tries - 1))

    def _tell_end(self, reason: str) -> None:
        """Have it noted that the run has ended here, by a sidecar that has never heard of it too."""
        if self._sidecar is not None:
            if not self._sidecar.is_there:
                self._register()
            self._sidecar.ended(f"{self._stream:016x}", reason)

    def _order(self, *, every: bool) -> Order | None:
        """How a black box of this process is kept; None where nobody would see to what is left."""
        from torchtrack.watch import Order
        from torchtrack.watch.flight import places

        sidecar, stream, who = self._sidecar, self._stream, self._who()
        if sidecar is None or not supported():
            return None
        about = {
            "directory": str(self.settings.dir.absolute()),
            "uid": who.uid,
            "process": ring.process(os.getpid()),
            "flight_recorder": places(who.rank),
            "start_ns": time.time_ns(),
        }
        background = self._background

        def keep(why: str) -> None:
            background.submit("sidecar", lambda: sidecar.keep(f"{stream:016x}", why))

        return Order(stream, every, about, keep, self._redactor.text)

    def _look_at_steps(self) -> None:
        for watcher in list(self._watchers):
            if watcher.blackbox is not None:
                watcher.blackbox.look()

    def _sample_system(self) -> None:
        for name, value in self._sampler.sample().items():
            self._recorder.number(name, value, None)

    def _open(self) -> Writer:
        """The journal of this process, on the recorder's thread; in the folder of the run if that is known by now."""
        identity = self._job.wait(_JOIN_BEFORE_OPEN_S) if self._job else _NOBODY
        opening = {
            "role": "rank",
            "uid": identity.uid,
            "project": None if identity.provisional else identity.project,
            "attempt": identity.attempt,
            "rank": identity.rank,
            "local_rank": identity.local_rank,
            "node": identity.node,
            "world_size": identity.world_size,
            **origin(),
            "parent": self._parent,
            "from_step": self._from_step,
            "writer": f"torchtrack {__version__}",
        }
        path = rank_path(self.settings.dir, identity.uid, identity.rank, self._stream)
        return Writer(path.parent, path.stem, self._stream, opening)

    def after_fork_in_child(self) -> None:
        """In a forked child: let go of the parent's threads and rows; the first log() starts a stream of its own."""
        self._is_child = True
        self._forked = not self._finished
        self._recorder.abandon()
        self._watchers = []
        self._unwatched = []
        self._console = None
        self._sidecar = None
        self._lock = threading.Lock()
        if self._job is not None:
            self._job.after_fork_in_child()

    def _reopen_after_fork(self) -> None:
        """A stream of this child's own in the same run; a DataLoader worker gets none."""
        with self._lock:
            if not self._forked:
                return
            step = self._recorder.step
            self._parent = f"{self._stream:016x}"
            self._equip()
            if is_dataloader_worker():
                self._logbook.close("log() in a DataLoader worker records nothing; log in the training process")
                self._finished = True
            else:
                self._recorder.step = step
                self._background.start()
                self._recorder.start()
            self._forked = False


def _elsewhere() -> Run:
    return Run(Settings.resolve(mode="disabled"), {}, None)


def in_words(error: BaseException) -> str:
    """An exception in one line, or as many as its text has; at most a few thousand characters."""
    text = guard.outcome(str, error)
    return f"{type(error).__name__}: {text if isinstance(text, str) else 'no text'}"[:_MAX_ERROR]


def say(message: str) -> None:
    """One line to the person at the terminal, on stderr: stdout is the script's own."""
    guard.attempt("a message", lambda: (sys.stderr.write(f"torchtrack: {message}\n"), sys.stderr.flush()))


def _shown(folder: Path) -> str:
    try:
        return str(folder.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(folder)
