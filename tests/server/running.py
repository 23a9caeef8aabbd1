"""A real server on loopback, in a thread of this process."""

from __future__ import annotations

import threading
import time

import uvicorn

from torchtrack.server.app import Config, create_app
from torchtrack.server.journals import _SYNCS, _TAKERS
from torchtrack.server.serve import listener
from torchtrack.sidecar.upload.transport import Http


class Running:
    """A server that serves."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.app = create_app(config)
        self._socket = listener("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.key: str = self.app.state.keys.token
        self._server = uvicorn.Server(uvicorn.Config(self.app, log_level="error", access_log=False))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})
        store = self.app.state.store
        for threads, count in ((store._syncers, _SYNCS), (store.takers, _TAKERS)):
            together = threading.Barrier(count)  # all of them are there before a test
            list(threads.map(lambda _, together=together: together.wait(), range(count)))
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)

    def client(self, key: str | None = None) -> Http:
        """A client with a key; the server's own if none is given."""
        return Http(self.url, lambda: self.key if key is None else key)

    def stop(self) -> None:
        """End it."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()
