"""A server's socket and its end: who is told its address can connect to it, and an open page does not hold it up."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import urllib3

from tests.runs import begin, finished
from torchtrack.server.serve import listener


def test_an_address_takes_connections_before_the_application_is_there() -> None:
    with listener("127.0.0.1", 0) as bound:
        socket.create_connection(bound.getsockname(), 10).close()


def test_ctrl_c_ends_it_without_a_word_though_a_page_listens_to_what_is_new(tmp_path: Path) -> None:
    finished(begin())
    command = [sys.executable, "-m", "torchtrack.cli", "ui", str(tmp_path / "runs"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        found = next(found for line in process.stdout if (found := re.search(r"(http://\S+)#token=(\S+)", line)))
        headers = {"Authorization": f"Bearer {found[2]}"}
        with urllib3.PoolManager(retries=urllib3.Retry(9, backoff_factor=0.1, status_forcelist=[503])) as pool:
            news = pool.request("GET", f"{found[1]}api/v1/live", headers=headers, preload_content=False)
            assert news.status == 200
            process.send_signal(signal.SIGINT)
            assert b"retry" in news.read()
            news.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
