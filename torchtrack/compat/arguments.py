"""Calls in wandb's words, put into ours."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torchtrack import credentials
from torchtrack.active import active, begin
from torchtrack.compat import runs
from torchtrack.compat import settings as wandb_settings
from torchtrack.compat.said import ignored, once
from torchtrack.environment import config_dict
from torchtrack.errors import MissingDependencyError
from torchtrack.run import Run

IGNORED: Final = ("entity", "anonymous", "force")
TAKEN: Final = (
    *IGNORED,
    "allow_val_change",
    "config_exclude_keys",
    "config_include_keys",
    "fork_from",
    "magic",
    "monitor_gym",
    "reinit",
    "resume_from",
    "save_code",
    "settings",
    "sync_tensorboard",
    "tensorboard",
)
"""Arguments of `wandb.init` that `torchtrack.init` does not have itself."""
_EMPTY_IS_NONE: Final = ("project", "name", "id", "group", "job_type", "notes", "dir", "mode", "resume", "tags")
_MODES: Final = {"online": None, "run": None, "shared": None, "dryrun": "offline"}
_REINITS: Final = {True: "finish_previous", False: "return_previous", None: "default"}
_WAYS: Final = ("default", "finish_previous", "return_previous", "create_new")
_MOMENT: Final = re.compile(r"(?P<id>[^?]+)\?_step=(?P<step>\d+)")
_SUMMARIES: Final = {"copy": "last", "last": "last", "min": "min", "max": "max", "mean": "mean", "best": "best"}


def start(given: Mapping[str, Any], others: Mapping[str, Any]) -> Run:
    """`init` for a script written for wandb.

    Args:
        given: all arguments of `torchtrack.init`, None where not given.
        others: further ones.

    Raises:
        TypeError: neither has such an argument.
        ValueError: a value that is not allowed.
    """
    unknown = sorted(set(others) - set(TAKEN))
    if unknown:
        raise TypeError(f"init() got an unexpected keyword argument {unknown[0]!r}")
    others = {**dict.fromkeys(TAKEN), **others}
    mine = dict(given)
    if others["settings"] is not None:
        for name, value in wandb_settings.arguments(others["settings"]).items():
            target = mine if name in mine else others
            target[name] = value if target[name] is None else target[name]
    for name in IGNORED:
        if others[name]:
            ignored("init()", name)
    way, step = _reinit(others["reinit"]), _translate(mine, others)  # wrong ones are found before anything is done
    previous = active()
    if previous is not None and way in ("default", "return_previous"):
        once("init() while a run is active gives that run again; reinit='finish_previous' ends it first")
        return previous
    if previous is not None and way == "finish_previous":
        previous.finish()
    run = begin(mine, beside=way == "create_new", from_step=step)
    _equip(run, others, step)
    return run


def metric(
    summary: str | None, goal: str | None, others: Mapping[str, Any]
) -> tuple[str | None, str | None, dict[str, Any]]:
    """Arguments of `define_metric`: the summary, the goal, and what is recorded beside them.

    Raises:
        TypeError: neither has such an argument.
    """
    unknown = sorted(set(others) - {"step_sync", "hidden", "overwrite"})
    if unknown:
        raise TypeError(f"define_metric() got an unexpected keyword argument {unknown[0]!r}")
    asked = [part.strip() for part in summary.split(",")] if summary else []
    if asked and all(part in _SUMMARIES or part == "none" for part in asked):
        kept = [_SUMMARIES[part] for part in asked if part in _SUMMARIES] or ["none"]
        if len(set(kept)) > 1:
            once(f"define_metric(summary={summary!r}) keeps one value a metric: the {kept[0]}")
        summary = kept[0]
    told = {name: True for name in ("hidden", "overwrite") if others.get(name)}
    synced = others.get("step_sync")
    return summary, goal, told if synced is None else {**told, "step_sync": bool(synced)}


def _translate(mine: dict[str, Any], others: Mapping[str, Any]) -> int | None:
    """Change arguments to what we take for them; the step at which the run goes on, if one was given."""
    for name in _EMPTY_IS_NONE:
        if isinstance(mine[name], str) and not mine[name].strip():
            mine[name] = None
    if mine["mode"] in _MODES:
        if mine["mode"] == "online" and not (mine["url"] or credentials.default_url()):
            once('mode="online", but no server is known: the run is recorded here; torchtrack sync can send it later')
        mine["mode"] = _MODES[mine["mode"]]
    if mine["resume"] is False:  # there: do not go on with an earlier run, which is no error either
        mine["resume"] = "never" if mine["id"] is None else "allow"
    if isinstance(mine["tags"], (list, tuple)):
        mine["tags"] = [str(tag) for tag in mine["tags"] if tag is not None]
    step = None
    if others["resume_from"]:
        mine["id"], step = _moment("resume_from", others["resume_from"])
        mine["resume"] = "must"
    mine["config"] = _config(mine["config"], others)
    if others["fork_from"]:
        parent, at = _moment("fork_from", others["fork_from"])
        mine["config"] = {**(mine["config"] or {}), "forked_from": {"id": parent, "step": at}}
    return None if step is None else step + 1


def _reinit(value: Any) -> str:
    way = _REINITS.get(value, value) if isinstance(value, bool) or value is None else value
    if way not in _WAYS:
        raise ValueError(f"init(reinit=) takes True, False or one of {', '.join(map(repr, _WAYS))}; got {value!r}")
    return str(way)


def _moment(name: str, text: Any) -> tuple[str, int]:
    found = _MOMENT.fullmatch(text) if isinstance(text, str) else None
    if not found:
        raise ValueError(f"init({name}=) takes a text like 'run-id?_step=200', got {text!r}")
    return found["id"], int(found["step"])


def _config(config: Any, others: Mapping[str, Any]) -> Any:
    include, exclude = others["config_include_keys"], others["config_exclude_keys"]
    if isinstance(config, str):
        config = _config_file(Path(config))
    if config is None or (include is None and exclude is None):
        return config
    values = config_dict(config)
    left = set(values) if include is None else set(include)
    return {key: value for key, value in values.items() if key in left - set(exclude or ())}


def _config_file(path: Path) -> Any:
    """A configuration in a file: JSON, or YAML where pyyaml is installed; `{key: {"value": ...}}` is `{key: ...}`."""
    text = path.read_text()
    try:
        values = json.loads(text)
    except ValueError:
        try:
            values = importlib.import_module("yaml").safe_load(text)
        except ImportError:
            raise ValueError(f"init(config={str(path)!r}) is no JSON, and YAML needs pip install pyyaml") from None
    if not isinstance(values, dict):
        raise ValueError(f"init(config={str(path)!r}): the file holds no mapping")
    return {k: v["value"] if isinstance(v, dict) and "value" in v else v for k, v in values.items()}


def _equip(run: Run, others: Mapping[str, Any], step: int | None) -> None:
    runs.note(run, others["entity"], step or 0)
    if run.disabled:
        return
    tensorboard = sys.modules.get("torchtrack.compat.tensorboard")
    if (
        others["sync_tensorboard"]
        or others["tensorboard"]
        or others["magic"]
        or (tensorboard and tensorboard.is_patched())
    ):
        importlib.import_module("torchtrack.compat.tensorboard").capture(run)
    if others["monitor_gym"]:
        try:
            importlib.import_module("torchtrack.compat.frameworks.gym").monitor()
        except MissingDependencyError as error:
            once(f"init(monitor_gym=True) records no films: {error}")
    if others["allow_val_change"] is False:
        run.config.fix()
    if others["save_code"]:
        from torchtrack.compat import files

        files.save_script(run)
