"""The run of this process: init() starts it, module-level calls such as torchtrack.log go to it, its end is seen to."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import inspect
import logging
import os
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from multiprocessing import parent_process
from multiprocessing.util import Finalize, register_after_fork
from typing import Any, Literal

from torchtrack import forks, guard
from torchtrack.environment import config_dict
from torchtrack.errors import NoActiveRunError
from torchtrack.fields import Fields
from torchtrack.job import Job, is_dataloader_worker
from torchtrack.naming import name_of
from torchtrack.run import Reduce, Run, in_words, say
from torchtrack.settings import Resume, Settings, environment_config, environment_trial

logger = logging.getLogger("torchtrack")


class _Process:
    """What this process has: its runs (the last is the active one) and the handlers installed with the first."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.ended: Run | None = None
        self.hooked = False
        self.error_before: BaseException | None = None


_process = _Process()


def init(
    project: str | None = None,
    *,
    name: str | None = None,
    id: str | None = None,  # noqa: A002  # the word users know
    config: Any = None,
    group: str | None = None,
    job_type: str | None = None,
    tags: Sequence[str] | None = None,
    notes: str | None = None,
    dir: str | os.PathLike[str] | None = None,  # noqa: A002
    mode: Literal["offline", "online", "disabled"] | None = None,
    url: str | None = None,
    api_key: str | None = None,
    resume: Resume | bool | None = None,
    mesh: Mapping[str, int] | None = None,
    strict: bool | None = None,
    console: bool | None = None,
    sidecar: bool | None = None,
    live_findings: bool | None = None,
    alert_urls: Sequence[str | os.PathLike[str]] | str | None = None,
    alert_findings: Literal["info", "warning", "critical", "none"] | None = None,
    sinks: Sequence[str] | str | None = None,
    finish_timeout: float | None = None,
    system_interval: float | None = None,
    **others: Any,
) -> Run:
    """Start a run, or join the one that the other ranks of this job start. Never waits for them.

    Call it on every rank or on rank 0 only, before or after `init_process_group`. Each argument but the last few has an
    environment variable (see docs/settings.md); an argument wins over it.

    Args:
        project: runs are listed by project (default "uncategorized").
        name: for people (default two words and a number).
        id: unique in its project; the same id again continues the run (default the run's uid).
        config: hyper-parameters: a dict, argparse.Namespace, dataclass or any mapping.
        group: a label that runs of one experiment share.
        job_type: what the run does in its group.
        tags: labels to filter by.
        notes: free text.
        dir: the folder runs are written to (default ./torchtrack-runs).
        mode: "offline" writes to the folder; "online" sends it to a server from there; "disabled" accepts every call
            and does nothing. Online is the default where a server is known, by `url`, TORCHTRACK_URL or a login.
        url: the server.
        api_key: the key for it; better in TORCHTRACK_API_KEY or kept by `torchtrack login`.
        resume: "auto" continues the run of this id, or of this launch after a restart; "must" insists that it exists;
            "allow" continues it if the id exists; "never" refuses an existing one. True is "auto", False is "never".
        mesh: this rank's coordinates in the device mesh, such as {"dp": 3, "tp": 0}.
        strict: raise what log() would otherwise skip, count and warn of.
        console: record the lines written to stdout and stderr.
        sidecar: start the node's helper process, which learns how ranks end (default True).
        live_findings: run the stability rules beside the training, in a process of the sidecar (default True).
        alert_urls: where the sidecar delivers alerts: URLs of apprise (mail, Slack, webhooks) or its
            configuration files.
        alert_findings: the severity from which on findings are delivered: "info", "warning", "critical" or "none".
        sinks: other trackers that the run is forwarded to by processes beside the sidecar: "tensorboard", "wandb",
            "mlflow" or "module:Class", each perhaps with "=WHERE".
        finish_timeout: the most seconds finish() takes (default 10).
        system_interval: seconds between samples of system metrics (default 10; 0 turns them off).
        others: what scripts written for wandb pass (docs/wandb-names.md).

    Returns:
        The run; torchtrack.log and the other module-level calls go to it.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a value that is not allowed, mode="online" where no server is known,
            resume="must" without such a run, resume="never" with one.
    """
    given = {
        "project": project,
        "name": name,
        "id": id,
        "config": config,
        "group": group,
        "job_type": job_type,
        "tags": tags,
        "notes": notes,
        "dir": dir,
        "mode": mode,
        "url": url,
        "api_key": api_key,
        "resume": resume,
        "mesh": mesh,
        "strict": strict,
        "console": console,
        "sidecar": sidecar,
        "live_findings": live_findings,
        "alert_urls": alert_urls,
        "alert_findings": alert_findings,
        "sinks": sinks,
        "finish_timeout": finish_timeout,
        "system_interval": system_interval,
    }
    if others or _knows_us_as_wandb(sys._getframe(1)):
        return importlib.import_module("torchtrack.compat.arguments").start(given, others)  # type: ignore[no-any-return]
    return begin(given)


def _without_others(function: Callable[..., Any]) -> inspect.Signature:
    signature = inspect.signature(function)
    own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    return signature.replace(parameters=own)


# What `init` says that it takes, to people and to adapters of frameworks: not the words of scripts written for wandb.
init.__signature__ = _without_others(init)  # type: ignore[attr-defined]


def _knows_us_as_wandb(caller: types.FrameType) -> bool:
    """Whether the calling code has `import torchtrack as wandb`."""
    return any(names.get("wandb") is sys.modules["torchtrack"] for names in (caller.f_globals, caller.f_locals))


def begin(given: Mapping[str, Any], *, beside: bool = False, from_step: int | None = None) -> Run:
    """What `init` does once its arguments are in our words.

    Args:
        given: the arguments of `init`, all of them.
        beside: do not end the runs that are active.
        from_step: the first step of this attempt: what earlier ones recorded from there on is taken back.
    """
    resume, config, trial = given["resume"], given["config"], environment_trial()
    if isinstance(resume, bool):
        resume = "auto" if resume else "never"
    given = {**given, "resume": resume}
    values = {**environment_config(), **(config_dict(config) if config is not None else {})}
    if trial is not None:
        given.update({name: trial[name] for name in ("project", "id", "dir")}, group=given["group"] or trial["sweep"])
        values = _over(values, trial["parameters"])
    settings = Settings.resolve(**given)
    if settings.mode == "disabled" or is_dataloader_worker():
        _end_previous(none=beside)
        run = Run(settings, values, None)
    else:
        run = _open(settings, values, beside=beside, from_step=from_step)
    if trial is not None:
        run._as_trial(trial["sweep"], trial["number"])
    _process.runs.append(run)
    _hook()
    return run


def _over(values: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the values of another over it, mappings in it likewise."""
    found = dict(values)
    for name, value in others.items():
        below = found.get(name)
        found[name] = _over(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return found


def _open(settings: Settings, values: dict[str, Any], *, beside: bool, from_step: int | None) -> Run:
    job = Job.start(
        dir=settings.dir, project=settings.project, id=settings.id, resume=settings.resume, name=settings.name
    )
    _end_previous(none=beside)  # not before: a wrong argument leaves the run before as it is
    opened: list[Run] = []
    guard.attempt("init()", lambda: opened.append(Run(settings, values, job, from_step)))
    if not opened:
        job.close()
        return Run(settings, values, None)
    run, identity = opened[0], job.identity
    if _can_write(settings) and identity.rank == 0 and not identity.provisional:
        again = f", attempt {identity.attempt}" if identity.attempt > 1 else ""
        name = identity.name or settings.name or name_of(identity.uid)
        sent = f" and sent to {settings.url}" if settings.mode == "online" else ""
        say(f"run {name} ({identity.project}/{identity.id}{again}) is recorded in {settings.dir}{sent}")
    return run


def _can_write(settings: Settings) -> bool:
    """Whether runs can be written to the folder now; says so if not."""
    try:
        settings.dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(settings.dir, os.W_OK | os.X_OK):
            return True
        why = "no permission to write there"
    except OSError as error:
        why = str(error)
    logger.warning(
        "torchtrack cannot write to %s: %s. Training goes on; nothing is recorded until it can. Set dir= or "
        "TORCHTRACK_DIR to a folder that can be written.",
        settings.dir,
        why,
    )
    return False


def _end_previous(*, none: bool = False) -> None:
    if none:
        return
    for run in list(_process.runs):
        if not run._finished and not run._forked and not run.disabled:  # a forked child's is its parent's
            logger.warning(
                "torchtrack: init() was called while run %s was active; it has been finished. Call run.finish() first "
                "to say where it ends.",
                run._who().uid,
            )
        run._end("finish", None, quiet=True)
    _process.runs.clear()


def active() -> Run | None:
    """The run that init() started last, None before it and after finish()."""
    while _process.runs and _process.runs[-1]._finished:
        _process.ended = _process.runs.pop()
    return _process.runs[-1] if _process.runs else None


def current(what: str) -> Run:
    """The active run, else the one that ended last.

    Raises:
        NoActiveRunError: there was none.
    """
    run = active() or _process.ended
    if run is None:
        raise NoActiveRunError(f"torchtrack.{what} needs a run: call torchtrack.init(project=...) first")
    return run


def log(
    metrics: Mapping[str, Any] | None = None,
    step: int | None = None,
    commit: bool | None = True,
    reduce: Reduce = "mean",
    *,
    data: Mapping[str, Any] | None = None,
) -> None:
    """`Run.log` of the active run."""
    current("log()").log(metrics, step, commit, reduce, data=data)


def watch(models: Any, *args: Any, **kwargs: Any) -> Any:
    """`Run.watch` of the active run."""
    return current("watch()").watch(models, *args, **kwargs)


def unwatch(models: Any = None) -> None:
    """`Run.unwatch` of the active run."""
    current("unwatch()").unwatch(models)


def define_metric(name: str, *args: Any, **kwargs: Any) -> None:
    """`Run.define_metric` of the active run."""
    current("define_metric()").define_metric(name, *args, **kwargs)


def alert(title: str, text: str = "", level: str = "info", wait_duration: float | timedelta | None = None) -> None:
    """`Run.alert` of the active run."""
    current("alert()").alert(title, text, level, wait_duration)


def mark(title: str = "", text: str = "", *, batch: Any = None) -> None:
    """`Run.mark` of the active run."""
    current("mark()").mark(title, text, batch=batch)


def finish(exit_code: int | None = None, quiet: bool | None = None) -> None:
    """`Run.finish` of the active run; nothing if there is none."""
    run = active()
    if run is not None:
        run.finish(exit_code, quiet)


def config() -> Fields:
    """The active run's config."""
    return current("config").config


def summary() -> Fields:
    """The active run's summary."""
    return current("summary").summary


# -- the end of the process -------------------------------------------------------------------------------------------


def _hook() -> None:
    if _process.hooked:
        return
    _process.hooked = True
    _process.error_before = getattr(sys, "last_value", None)
    atexit.register(_at_exit)
    os.register_at_fork(before=forks.before, after_in_parent=forks.after_in_parent, after_in_child=_after_fork)
    if parent_process() is not None:
        _finish_in_child(None)
    register_after_fork(_process, _finish_in_child)


def _finish_in_child(_: object) -> None:
    """A multiprocessing child leaves by os._exit, without atexit; its own finalizers do run."""
    Finalize(None, _at_exit, exitpriority=100)


def _at_exit() -> None:
    error = getattr(sys, "last_value", None)
    uncaught = error is not _process.error_before and not hasattr(sys, "ps1")
    sys.meta_path.insert(0, _NoLatePandas)
    for run in list(_process.runs):
        if error is not None and uncaught:
            run._end("exception", in_words(error))
        else:
            run._end("exit", None)
    sys.meta_path.remove(_NoLatePandas)
    _process.runs.clear()
    if uncaught and type(error) is KeyboardInterrupt:
        _stay_interrupted(error)


def _stay_interrupted(error: KeyboardInterrupt) -> None:
    """Let the process end as Ctrl-C ends it, by SIGINT.

    Python does so if the last text that it ran ended by an uncaught KeyboardInterrupt. It forgets the script's when a
    module runs text meanwhile, as `namedtuple` and `dataclass` do while one is imported.
    """
    trace = error.__traceback__
    if trace is not None and trace.tb_frame.f_back is None:  # the script's, not that of a cell in a notebook
        with contextlib.suppress(KeyboardInterrupt):
            exec("raise KeyboardInterrupt")  # noqa: S102


class _NoLatePandas:
    """A finder that refuses pandas, which Arrow loads with the first column it makes.

    While a process ends that can fail, and costs time.
    """

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        """Whoever asks for pandas is told that it is not installed."""
        del path, target
        if name == "pandas":
            raise ModuleNotFoundError("pandas is not loaded while the process ends", name=name)


def _after_fork() -> None:
    forks.after_in_child()
    guard.after_fork_in_child()
    for run in _process.runs:
        if not run.disabled:
            guard.attempt("fork", run.after_fork_in_child)
