"""A receiver of messages, on loopback."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hook:
    """A webhook on loopback. With `gate` closed it takes a request and never answers; another `status` refuses it."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.asked = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.status = 200
        self.asks = 0
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                hook.asks += 1
                hook.asked.set()
                hook.gate.wait(60)
                if hook.status == 200:
                    hook.got.append(body)
                self.send_response(hook.status)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"json://user:very-secret-word@127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
