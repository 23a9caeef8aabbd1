"""Calls of wandb about the process: login, setup, attach, lines in the terminal."""

from __future__ import annotations

import enum
import os
from typing import Any
from urllib.parse import urlsplit

from torchtrack import credentials
from torchtrack.active import active, finish
from torchtrack.compat.said import ignored, no_effect, once
from torchtrack.compat.settings import Settings
from torchtrack.errors import TorchtrackError
from torchtrack.run import Run, say


class AlertLevel(enum.Enum):
    """Levels of `alert`."""

    INFO = "INFO"
    WARN = "WARN"
    ERROR = "ERROR"


def login(
    key: str | None = None,
    relogin: bool | None = None,
    host: str | None = None,
    force: bool | None = None,
    timeout: int | None = None,
    verify: bool | None = None,
    referrer: str | None = None,
    prompt: bool | None = None,
    anonymous: Any = None,
) -> bool:
    """Keep the key of a torchtrack server; nothing is asked and nothing is sent.

    A key without `host` is one of wandb's: it is not kept and not used.

    Args:
        key: the server's key.
        relogin: no effect: nobody is asked for a key.
        host: the address of a torchtrack server.
        force: ignored.
        timeout: no effect: nobody is waited for.
        verify: no effect: a key is tried when a run is sent.
        referrer: no effect.
        prompt: no effect: as with False, nobody is asked.
        anonymous: ignored.

    Returns:
        True: a run can be recorded.

    Raises:
        ValueError: the host is no address of a server.
    """
    asked = {"relogin": relogin or None, "verify": verify or None, "prompt": prompt or None}
    no_effect("login", timeout=timeout, referrer=referrer, **asked)
    for name, value in (("force", force), ("anonymous", anonymous)):
        if value:
            ignored("login()", name)
    if host and not str(urlsplit(host).hostname).endswith("wandb.ai"):
        address = credentials.check_url(host)
        if key:
            credentials.keep(address, key)
        os.environ.setdefault("TORCHTRACK_URL", address)
    elif key:
        once("login() keeps a key only for the server in host=; torchtrack login does the same")
    return True


def setup(settings: Any = None) -> Settings:
    """Nothing has to be set up; the settings."""
    return settings if isinstance(settings, Settings) else Settings()


def teardown(exit_code: int | None = None) -> None:
    """End the active run."""
    finish(exit_code)


def join(exit_code: int | None = None) -> None:
    """End the active run, by an older name."""
    finish(exit_code)


def require(requirement: Any = None, experiment: Any = None) -> None:
    """No effect: there is nothing to be switched on."""
    if requirement is None and experiment is None:
        no_effect("require")
    no_effect("require", requirement=requirement, experiment=experiment)


def ensure_configured() -> None:
    """No effect: nothing has to be set up."""
    no_effect("ensure_configured")


def attach(attach_id: str | None = None, run_id: str | None = None, *, run: Run | None = None) -> Run:
    """The active run of this process, or of the one that forked it.

    Raises:
        TorchtrackError: none is active, or it has another id.
    """
    found, wanted = run or active(), attach_id or run_id
    if found is None or (wanted is not None and wanted not in (found.id, found.uid)):
        raise TorchtrackError(f"attach(): run {wanted!r} is not active in this process; call init(id=...) in it")
    return found


_attach = attach


def termlog(string: str = "", newline: bool = True, repeat: bool = True, prefix: bool = True) -> None:
    """A line on stderr; once if not `repeat`. `newline` and `prefix` have no effect: it is as if they were True."""
    no_effect("termlog", newline=None if newline else newline, prefix=None if prefix else prefix)
    say(string) if repeat else once(string)


termwarn = termerror = termlog


def api(name: str) -> Any:
    """An attribute of `wandb.api`: api_key, default_entity, settings.

    The key is a word that stands for one: a run can be recorded without any, and scripts ask for it to know that.
    """
    if name == "settings":
        return lambda key=None: {"entity": get_entity(), "project": get_project(), "base_url": None}.get(key)
    return "not-needed" if name == "api_key" else get_entity()


def get_project(default: str | None = None, env: Any = None) -> str | None:
    """The project in the environment."""
    del env
    return os.environ.get("TORCHTRACK_PROJECT") or os.environ.get("WANDB_PROJECT") or default


def get_entity(default: str | None = None, env: Any = None) -> str | None:
    """The entity in the environment."""
    del env
    return os.environ.get("WANDB_ENTITY") or default


def set_project(value: str, env: Any = None) -> None:
    """Set the project in the environment."""
    del env
    os.environ["WANDB_PROJECT"] = value


def set_entity(value: str, env: Any = None) -> None:
    """Set the entity in the environment."""
    del env
    os.environ["WANDB_ENTITY"] = value
