"""Runs the application on a socket."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

import uvicorn

from torchtrack.server.app import Config, create_app

KEEP_ALIVE_S: Final = 75
"""How long a connection stays on which nothing comes: a node has something to say every five seconds."""


def serve(config: Config, port: int, say: Callable[[str, str | None], None]) -> None:
    """Listen until SIGTERM or Ctrl-C.

    Args:
        config: of the server.
        port: 0 for a free one.
        say: told the address, and the key if one is needed.

    Raises:
        OSError: the address is taken, or the data folder cannot be written.
    """
    app = create_app(config)
    with listener(config.host, port) as bound:
        address = f"http://{_shown(config.host)}:{bound.getsockname()[1]}"
        keys = app.state.keys
        say(address, keys.token if keys.required else None)
        settings = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=10,
            timeout_keep_alive=KEEP_ALIVE_S,
            lifespan="on",
        )
        uvicorn.Server(settings).run(sockets=[bound])


def listener(host: str, port: int) -> socket.socket:
    """A bound socket.

    Raises:
        OSError: the address is taken or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host.strip("[]"), port))
    except OSError as error:
        bound.close()
        raise OSError(error.errno, f"{host}:{port}: {error.strerror}; give another --port or --host") from error
    return bound


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
