"""What `wandb.Run` has and `torchtrack.Run` has not; looked up when it is asked for."""

from __future__ import annotations

import importlib
import os
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from torchtrack.compat import artifacts, files
from torchtrack.compat.artifact import Artifact
from torchtrack.compat.said import no_effect
from torchtrack.compat.status import status
from torchtrack.run import Run

_entities: weakref.WeakKeyDictionary[Run, str] = weakref.WeakKeyDictionary()
_starts: weakref.WeakKeyDictionary[Run, int] = weakref.WeakKeyDictionary()


def find(run: Run, name: str) -> Any:
    """An attribute of a run that the core has not.

    Raises:
        AttributeError: neither has wandb.
    """
    if name in PROPERTIES:
        return PROPERTIES[name](run)
    if name in METHODS:
        return partial(METHODS[name], run)
    raise AttributeError(f"{type(run).__name__!r} object has no attribute {name!r}")


def note(run: Run, entity: str | None, starting_step: int) -> None:
    """Keep what `init` was told and the run does not keep."""
    _entities[run], _starts[run] = entity or "", starting_step


def _nothing(run: Run, *_: Any, **__: Any) -> None:
    """There is nothing to do here."""


def _log_model(run: Run, path: Any, name: str | None = None, aliases: Iterable[str] | None = None) -> Artifact:
    named = name or f"run-{run.id}-{os.path.basename(os.fspath(path))}"  # noqa: PTH119
    return artifacts.log_artifact(run, path, named, "model", aliases)


def _log_part(
    run: Run,
    artifact_or_path: Artifact | str | os.PathLike[str],
    name: str | None = None,
    type: str | None = None,  # noqa: A002
    aliases: Iterable[str] | None = None,
    distributed_id: str | None = None,
) -> Artifact:
    no_effect("upsert_artifact", distributed_id=distributed_id)
    return artifacts.log_artifact(run, artifact_or_path, name, type, aliases)


def _use_model(run: Run, name: str) -> str:
    artifact = artifacts.use_artifact(run, name)
    found = artifact.files()
    top = artifact.download()
    return os.path.join(top, found[0].path) if len(found) == 1 else top  # noqa: PTH118


def _link_model(
    run: Run, path: Any, registered_model_name: str, name: str | None = None, aliases: Iterable[str] | None = None
) -> Artifact:
    return artifacts.link_artifact(run, _log_model(run, path, name), registered_model_name, aliases)


def _mark_preempting(run: Run) -> None:
    run.mark("preempting", "the scheduler is about to end this job")


def _write_logs(run: Run, text: str) -> None:
    for line in str(text).splitlines():
        run._logbook.line("stdout", line)


def _display(run: Run, height: int = 420, hidden: bool = False) -> bool:
    return not hidden and importlib.import_module("torchtrack.compat.jupyter").show(run, height)


def _to_html(run: Run, height: int = 420, hidden: bool = False) -> str:
    del height, hidden
    return f'<a href="{run.url}">{run.name}</a>' if run.url else f"<code>torchtrack show {run.uid}</code>"


def _label(run: Run, code: str | None = None, **more: Any) -> None:
    run._event("label", {"code": code, **more})


def _pin_config_keys(run: Run, keys: Iterable[str] = ()) -> None:
    run._event("pinned", {"config": list(keys)})


PROPERTIES: Final[dict[str, Callable[[Run], Any]]] = {
    "_attach_id": lambda run: run.id,
    "config_static": lambda run: run.config,
    "entity": lambda run: _entities.get(run, ""),
    "offline": lambda run: run.settings.mode != "online",
    "path": lambda run: f"{run.project}/{run.id}",
    "project_url": lambda run: run.url and run.url.rpartition("/runs/")[0],
    "start_time": lambda run: run._began_ns / 1e9,
    "starting_step": lambda run: _starts.get(run, 0),
    "sweep_id": lambda run: run.sweep,
    "sweep_url": lambda _: None,
    "sync_dir": lambda run: run.dir,
}
METHODS: Final[dict[str, Callable[..., Any]]] = {
    "_label": _label,
    "display": _display,
    "finish_artifact": _log_part,
    "get_project_url": PROPERTIES["project_url"],
    "get_sweep_url": PROPERTIES["sweep_url"],
    "get_url": lambda run: run.url,
    "join": lambda run, exit_code=None: run.finish(exit_code),
    "link_artifact": artifacts.link_artifact,
    "link_model": _link_model,
    "log_artifact": artifacts.log_artifact,
    "log_code": files.log_code,
    "log_model": _log_model,
    "mark_preempting": _mark_preempting,
    "pin_config_keys": _pin_config_keys,
    "project_name": lambda run: run.project,
    "restore": files.restore,
    "save": files.save,
    "status": status,
    "to_html": _to_html,
    "upsert_artifact": _log_part,
    "use_artifact": artifacts.use_artifact,
    "use_model": _use_model,
    "write_logs": _write_logs,
}
