"""What a run is set up with: an argument of init() wins over its environment variable, which wins over the default."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal

from torchtrack import credentials

Mode = Literal["offline", "online", "disabled"]
Resume = Literal["auto", "must", "allow", "never"]

MODES: Final = ("offline", "online", "disabled")
RESUMES: Final = ("auto", "must", "allow", "never")
SINKS: Final = ("tensorboard", "wandb", "mlflow")
_MAX_SINKS: Final = 600
SEVERITIES: Final = ("info", "warning", "critical", "none")
_MAX_URLS: Final = 2500
"""Characters of all addresses together: they go to the sidecar in one datagram."""
_MAX_KEY: Final = 400
ENVIRONMENT: Final = {
    "project": "TORCHTRACK_PROJECT",
    "name": "TORCHTRACK_NAME",
    "id": "TORCHTRACK_RUN_ID",
    "config": "TORCHTRACK_CONFIG",
    "group": "TORCHTRACK_GROUP",
    "tags": "TORCHTRACK_TAGS",
    "dir": "TORCHTRACK_DIR",
    "mode": "TORCHTRACK_MODE",
    "url": "TORCHTRACK_URL",
    "api_key": "TORCHTRACK_API_KEY",
    "sidecar": "TORCHTRACK_SIDECAR",
    "live_findings": "TORCHTRACK_LIVE_FINDINGS",
    "alert_urls": "TORCHTRACK_ALERT_URLS",
    "sinks": "TORCHTRACK_SINKS",
}
"""The environment variable of each setting that has one."""
TRIAL: Final = "TORCHTRACK_TRIAL"
"""What an agent of a sweep tells the program it starts; for nobody else to set."""
OF_WANDB: Final = {
    "project": "WANDB_PROJECT",
    "name": "WANDB_NAME",
    "id": "WANDB_RUN_ID",
    "group": "WANDB_RUN_GROUP",
    "job_type": "WANDB_JOB_TYPE",
    "tags": "WANDB_TAGS",
    "notes": "WANDB_NOTES",
    "dir": "WANDB_DIR",
    "mode": "WANDB_MODE",
    "resume": "WANDB_RESUME",
}
"""Read where neither an argument nor our own variable says otherwise. Never a key or an address: those are not ours."""
_MODES_OF_WANDB: Final = {"dryrun": "offline", "offline": "offline", "disabled": "disabled"}
_TRUE: Final = {"1", "true", "yes", "on"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The settings of one run, checked."""

    project: str = "uncategorized"
    """Runs are listed by project."""
    name: str | None = None
    """For people; two words and a number if not given."""
    id: str | None = None
    """Unique in its project; the run's uid if not given. The same id again continues the run."""
    config: Any = field(default_factory=dict)
    """Hyper-parameters: a dict, argparse.Namespace, dataclass or any mapping."""
    group: str | None = None
    """A label that runs of one experiment share."""
    job_type: str | None = None
    """What the run does in its group: train, eval."""
    tags: tuple[str, ...] = ()
    """Labels to filter by."""
    notes: str | None = None
    """Free text."""
    dir: Path = Path("torchtrack-runs")
    """The folder runs are written to."""
    mode: Mode = "offline"
    """offline: to the folder; online: to the folder, and from there to a server; disabled: every call is accepted and
    nothing happens. If not given: online where a server is known, else offline."""
    url: str | None = None
    """The server that runs are sent to."""
    api_key: str | None = field(default=None, repr=False)
    """The key for it. A secret: never written to the journal."""
    resume: Resume = "auto"
    """auto: continue the run of this id, or of this launch after a restart; must: it has to exist; allow: continue it
    if the id exists; never: it must not exist."""
    mesh: Mapping[str, int] | None = None
    """Coordinates of this rank in the device mesh, such as {"dp": 3, "tp": 0}."""
    strict: bool = False
    """Raise what log() would otherwise skip, count and warn of."""
    console: bool = False
    """Record the lines written to stdout and stderr."""
    sidecar: bool = True
    """Start the helper process of the node that learns how ranks end."""
    live_findings: bool = True
    """Run the stability rules beside the training, in a process that the sidecar starts on the node of rank 0."""
    alert_urls: tuple[str, ...] = field(default=(), repr=False)
    """Where alerts go: URLs as apprise takes them, or configuration files of it. Secrets: never written anywhere."""
    alert_findings: Literal["info", "warning", "critical", "none"] = "critical"
    """The severity from which on a finding is an alert."""
    sinks: tuple[str, ...] = ()
    """Other trackers that runs are forwarded to, beside the training: tensorboard, wandb, mlflow, or module:Class, each
    perhaps with =WHERE."""
    finish_timeout: float = 10.0
    """The most seconds finish() takes."""
    system_interval: float = 10.0
    """Seconds between two samples of system metrics; 0 turns them off."""

    @classmethod
    def resolve(cls, **arguments: Any) -> Settings:
        """Settings from arguments (None: not given), then the environment, then the defaults.

        Raises:
            TypeError: an argument of the wrong type or with an unknown name.
            ValueError: a value that is not allowed. Either says what was passed, where, and what is allowed.
        """
        names = {f.name for f in fields(cls)}
        unknown = sorted(set(arguments) - names)
        if unknown:
            raise TypeError(f"init() got the unknown argument {unknown[0]!r}; it takes {', '.join(sorted(names))}")
        given = {name: value for name, value in arguments.items() if value is not None}
        chosen: dict[str, Any] = {"dir": _path("torchtrack-runs")}
        for name in names:
            variable = ENVIRONMENT.get(name)
            if name in given:
                chosen[name] = check(name, given[name], f"{name}=")
            elif variable and os.environ.get(variable):
                chosen[name] = check(name, _parse(name, os.environ[variable], variable), variable)
            elif (theirs := OF_WANDB.get(name)) and (value := _of_wandb(name, theirs)) is not None:
                with contextlib.suppress(TypeError, ValueError):  # it was not written for us
                    chosen[name] = check(name, value, theirs)
        if "config" in given and os.environ.get(ENVIRONMENT["config"]):
            check("config", _parse("config", os.environ[ENVIRONMENT["config"]], ENVIRONMENT["config"]), "config")
        _choose_server(chosen)
        return cls(**chosen)


def _of_wandb(name: str, variable: str) -> Any:
    """What a variable of wandb's says in our words; None if it says nothing."""
    text = os.environ.get(variable, "").strip()
    if name == "mode":
        if os.environ.get("WANDB_DISABLED", "").lower() in _TRUE:
            return "disabled"
        return _MODES_OF_WANDB.get(text.lower())  # online is the default where a server is known
    if not text:
        return None
    if name == "resume":
        return "auto" if text.lower() in _TRUE else text.lower() if text.lower() in RESUMES else None
    if name == "dir":
        return Path(text) / "torchtrack-runs"  # there it is the folder around the folder of runs
    if name == "tags":
        return _parse(name, text, variable)
    return text if name not in {"project", "id"} or "/" not in text else None


def _choose_server(chosen: dict[str, Any]) -> None:
    """Where runs are sent: what was given, else the server that was logged in to, if any."""
    if chosen.get("mode") in ("offline", "disabled"):
        return
    url = chosen.get("url") or credentials.default_url()
    if url is None:
        if chosen.get("mode") == "online":
            raise ValueError(
                "mode= got 'online', but no server is known: give url=, set TORCHTRACK_URL, or use torchtrack login"
            )
        return
    chosen.update(mode="online", url=url)
    key = chosen.get("api_key") or credentials.key_for(url)
    if key:
        chosen["api_key"] = key


def environment_config() -> dict[str, Any]:
    """The mapping in TORCHTRACK_CONFIG, which lies under the config argument key by key."""
    text = os.environ.get(ENVIRONMENT["config"])
    return dict(_parse("config", text, ENVIRONMENT["config"])) if text else {}


def environment_trial() -> dict[str, Any] | None:
    """The trial of a sweep that the run of this process is: sweep, number, project, id, dir, parameters; None if none.

    What it says wins over the arguments of `init`, else a sweep would compare what it has not asked for.
    """
    text = os.environ.get(TRIAL)
    return dict(_parse("trial", text, TRIAL)) if text else None


def _parse(name: str, text: str, variable: str) -> Any:
    if name in {"tags", "alert_urls", "sinks"}:
        return [tag.strip() for tag in text.split(",") if tag.strip()]
    if name in {"sidecar", "live_findings"}:
        return text.strip().lower() not in {"0", "false", "off", "no"}
    if name in {"config", "trial"}:
        try:
            value = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{variable} is not JSON ({error}); write it like '{{\"lr\": 0.001}}'") from None
        if not isinstance(value, dict):
            raise ValueError(f"{variable} is the JSON value {text!r}; it has to be an object like '{{\"lr\": 0.001}}'")
        return value
    return text


def check(name: str, value: Any, source: str) -> Any:
    """The value of a setting as it is kept.

    Args:
        name: of the setting.
        value: what was given.
        source: where, for the message.

    Raises:
        TypeError: it is of the wrong type.
        ValueError: it is not allowed.
    """
    if name in {"project", "name", "id", "group", "job_type", "notes"}:
        if not isinstance(value, str):
            raise TypeError(f"{source} takes a string, got {type(value).__name__} {value!r}")
        if name != "notes" and (not value.strip() or len(value) > 256):
            raise ValueError(
                f"{source} takes a string of 1 to 256 characters, got {value[:40]!r} ({len(value)} characters)"
            )
        if name in {"project", "id"} and "/" in value:
            raise ValueError(f"{source} must not hold '/', since runs are named project/id; got {value!r}")
        return value
    if name == "tags":
        tags = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [value]
        if not all(isinstance(tag, str) for tag in tags):
            raise TypeError(f"{source} takes a list of strings, got {value!r}")
        return tuple(dict.fromkeys(tags))
    if name == "alert_urls":
        return _addresses(value, source)
    if name == "sinks":
        return _sinks(value, source)
    if name == "api_key":
        return _secret(value, source)
    if name == "url":
        if not isinstance(value, str):
            raise TypeError(f"{source} takes the address of a server, got {type(value).__name__} {value!r}")
        return credentials.check_url(value)
    if name == "dir":
        if not isinstance(value, (str, os.PathLike)):
            raise TypeError(f"{source} takes a path, got {type(value).__name__} {value!r}")
        if not os.fspath(value) or "\0" in os.fspath(value):
            raise ValueError(f"{source} takes the path of a folder, got {value!r}")
        return _path(value)
    choices = {"mode": MODES, "resume": RESUMES, "alert_findings": SEVERITIES}
    if name in choices:
        return _choice(value, choices[name], source)
    if name in {"finish_timeout", "system_interval"}:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{source} takes seconds, got {type(value).__name__} {value!r}")
        if not 0 <= value < float("inf"):
            raise ValueError(f"{source} takes seconds, zero or more, got {value!r}")
        return float(value)
    if name in {"strict", "console", "sidecar", "live_findings"} and not isinstance(value, bool):
        raise TypeError(f"{source} takes True or False, got {type(value).__name__} {value!r}")
    if name == "mesh" and not (
        isinstance(value, Mapping) and all(isinstance(k, str) and isinstance(v, int) for k, v in value.items())
    ):
        raise TypeError(f'{source} takes coordinates like {{"dp": 3, "tp": 0}}, got {value!r}')
    return value


def _path(value: str | os.PathLike[str]) -> Path:
    path = Path(value)
    try:
        return path.expanduser().absolute()
    except (OSError, RuntimeError):  # the working directory has been removed, or "~" is nobody's home
        return path


def _addresses(value: Any, source: str) -> tuple[str, ...]:
    """What is given is a secret, so no message repeats it."""
    given = [value] if isinstance(value, (str, os.PathLike)) else value
    each_given: list[Any] = list(given) if isinstance(given, Iterable) else [None]
    if not all(isinstance(each, (str, os.PathLike)) for each in each_given):
        raise TypeError(f"{source} takes a list of URLs as apprise takes them, or of paths of its configuration files")
    texts = [os.fspath(each).strip() for each in each_given]
    if not all(texts) or len(json.dumps(texts)) > _MAX_URLS:
        raise ValueError(
            f"{source} takes URLs of together at most {_MAX_URLS} characters, none empty; more of them go in a "
            "configuration file of apprise, whose path is given here"
        )
    return tuple(text if "://" in text else str(_path(text)) for text in texts)


def _sinks(value: Any, source: str) -> tuple[str, ...]:
    given = value.split(",") if isinstance(value, str) else value
    given = list(given) if isinstance(given, Iterable) else [given]
    if not all(isinstance(each, str) for each in given):
        raise TypeError(f'{source} takes sinks such as "tensorboard,mlflow" or a list of them, got {value!r}')
    kept = []
    for each in filter(None, map(str.strip, given)):
        name, sign, where = each.partition("=")
        module, colon, attribute = name.partition(":")
        own = bool(colon) and all(part.isidentifier() for part in (*module.split("."), attribute))
        if name not in SINKS and not own:
            raise ValueError(
                f"{source} takes {', '.join(SINKS)} or module:Class, each perhaps with =WHERE; got {each!r}"
            )
        place = str(_path(where)) if name == "tensorboard" and where else where
        kept.append(f"{name}{sign}{place}")
    if len(json.dumps(kept)) > _MAX_SINKS:
        raise ValueError(f"{source} takes at most {_MAX_SINKS} characters")
    return tuple(dict.fromkeys(kept))


def _choice(value: Any, allowed: tuple[str, ...], source: str) -> Any:
    if value not in allowed:
        raise ValueError(f"{source} takes one of {', '.join(map(repr, allowed))}; got {value!r}")
    return value


def _secret(value: Any, source: str) -> str:
    """No message repeats it."""
    if not isinstance(value, str):
        raise TypeError(f"{source} takes a string")
    if not value.strip() or len(value) > _MAX_KEY or not value.isascii() or not value.strip().isprintable():
        raise ValueError(f"{source} takes a key as the server gave it: at most {_MAX_KEY} printable characters")
    return value.strip()
