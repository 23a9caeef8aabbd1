"""Calls of wandb about the process: login, setup, attach, lines in the terminal."""

from __future__ import annotations

import enum
import getpass
import importlib
import os
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from torchtrack import credentials
from torchtrack.active import active, finish
from torchtrack.compat.said import ignored, once
from torchtrack.compat.settings import Settings
from torchtrack.errors import TorchtrackError
from torchtrack.run import Run, say
from torchtrack.settings import Settings as Resolved

REQUIREMENTS: Final = ("require", "service", "core")
"""What `require` may be asked for."""


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
    """Keep the key of a torchtrack server; nothing is asked, unless `relogin` or `prompt` want it.

    A key without `host` is one of wandb's: it is not kept and not used.

    Args:
        key: the server's key.
        relogin: ask for the key at a terminal though one is kept.
        host: the address of a torchtrack server.
        force: ignored.
        timeout: seconds that the server may take for an answer, with `verify`.
        verify: ask the server of `host` whether it knows the key, before it is kept.
        referrer: where the script came from: a part of the address of the page where keys are made, which is said
            when a key is asked for.
        prompt: ask for the key at a terminal if none is kept.
        anonymous: ignored.

    Returns:
        True: a run can be recorded.

    Raises:
        ValueError: the host is no address of a server.
        ServerError: with `verify`, the server does not answer, or does not know the key (`wandb.errors.CommError`).
    """
    for name, value in (("force", force), ("anonymous", anonymous)):
        if value:
            ignored("login()", name)
    if host and not str(urlsplit(host).hostname).endswith("wandb.ai"):
        address = credentials.check_url(host)
        if key is None and (relogin or (prompt and not credentials.key_for(address))) and sys.stdin.isatty():
            told = f"?{urlencode({'ref': referrer})}" if referrer else ""
            say(f"keys are made at {address}/{told}#/settings")
            key = getpass.getpass(f"API key of {address}: ") or None
        if verify:
            patience = {} if timeout is None else {"timeout_s": float(timeout)}
            importlib.import_module("torchtrack.api.remote").Server(address, key, **patience).me()
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


def require(requirement: str | Iterable[str] | None = None, experiment: str | Iterable[str] | None = None) -> None:
    """Check that what a script needs is there: "service" and "core" need nothing, as there.

    Args:
        requirement: a name, or several.
        experiment: the same.

    Raises:
        TorchtrackError: another name (`wandb.errors.UnsupportedError`).
    """
    asked = requirement or experiment or ()
    for name in [asked] if isinstance(asked, str) else asked:
        if re.split("[@:]", name, maxsplit=1)[0] not in REQUIREMENTS:
            raise TorchtrackError(f"require({name!r}): there is no such requirement; {', '.join(REQUIREMENTS)} are met")


def ensure_configured() -> None:
    """Read the settings, of files and of the environment, without starting a run.

    Raises:
        TypeError, ValueError: one of them is not as it should be.
    """
    Resolved.resolve()


def sagemaker_auth(overrides: Mapping[str, Any] | None = None, path: str = ".", api_key: str | None = None) -> None:
    """Write `secrets.env` for a job: address and key of the server that one is logged in to.

    Args:
        overrides: further variables for the file.
        path: the folder to write it to.
        api_key: of the server; by default the one that is kept.

    Raises:
        ValueError: no server is known, or no key for it.
    """
    url = str((overrides or {}).get("TORCHTRACK_URL") or credentials.default_url() or "")
    key = api_key or (credentials.key_for(url) if url else None)
    if not url or not key:
        raise ValueError("sagemaker_auth(): no server is known, or no key for it; type torchtrack login URL")
    told = {"TORCHTRACK_URL": url, "TORCHTRACK_API_KEY": key, **(overrides or {})}
    file = os.open(os.path.join(path, "secrets.env"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)  # noqa: PTH118
    with os.fdopen(file, "w") as text:
        text.writelines(f"{name}={value}\n" for name, value in told.items())


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
    """Text on stderr.

    Args:
        string: which.
        newline: end the line.
        repeat: False: not if it was said before.
        prefix: begin with "torchtrack: ".
    """
    once(string, newline=newline, prefix=prefix, again=repeat)


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
