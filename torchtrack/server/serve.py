"""Runs the application on a socket."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import IO, Final

import uvicorn

from torchtrack.server.app import Config, create_app
from torchtrack.server.engine import Engine, beginning
from torchtrack.server.front import Worker

KEEP_ALIVE_S: Final = 75
"""How long a connection stays on which nothing comes: a node has something to say every five seconds."""


def serve(
    config: Config,
    port: int,
    say: Callable[[str, str | None], None],
    begun: tuple[IO[str], Engine] | None = None,
) -> None:
    """Listen until SIGTERM or Ctrl-C.

    Args:
        config: of the server.
        port: 0 for a free one.
        say: told the address, and the key if one is needed.
        begun: the hold on the data folder and the engine, where these were first.

    Raises:
        OSError: the address is taken, or the data folder cannot be written.
    """
    with beginning():
        app = create_app(config, begun)
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
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn has ended everything, and raises it again
            _Server(settings, app.state.worker).run(sockets=[bound])


class _Server(uvicorn.Server):
    """One that does not wait for pages to be closed before it ends."""

    def __init__(self, config: uvicorn.Config, worker: Worker | None) -> None:
        super().__init__(config)
        self._worker = worker

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End what has no end of its own, then wait for the rest."""
        if self._worker is not None:
            self._worker.end_streams()
        await super().shutdown(sockets)


def listener(host: str, port: int) -> socket.socket:
    """A socket that takes connections: whoever comes before the application is there waits for it.

    Raises:
        OSError: the address is taken or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host.strip("[]"), port))
        bound.listen()
    except OSError as error:
        bound.close()
        raise OSError(error.errno, f"{host}:{port}: {error.strerror}; give another --port or --host") from error
    return bound


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
