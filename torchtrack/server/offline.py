"""A folder of runs asked without a server: its index is opened here, brought up to date, and answers.

The index, and what people typed on the page, are those of `torchtrack ui` on the same folder.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
from fastapi import FastAPI

from torchtrack.server.catalog import Catalog
from torchtrack.server.engine import take_hold
from torchtrack.server.metrics import MetricsStore
from torchtrack.server.shown import catalog_url, index_folder
from torchtrack.server.standalone import Ask
from torchtrack.server.worker import UPDATE_S, create_app
from torchtrack.wire import API

_T = TypeVar("_T")


@contextlib.contextmanager
def catalog_of(folder: Path) -> Iterator[Catalog]:
    """What people typed about the runs of a folder, also while its page is up."""
    with contextlib.closing(Catalog(catalog_url(folder))) as catalog:
        yield catalog


def answered(folder: Path, work: Callable[[Ask], Awaitable[_T]]) -> _T:
    """What `work` makes of answers about all there is in a folder of runs.

    Args:
        folder: of the runs; only read.
        work: is given what it may ask.

    Raises:
        BlockingIOError: the page of the folder is up: ask that.
        OSError: the index cannot be written.
        StoreError: it cannot be opened.
    """
    data = index_folder(folder)
    with (
        take_hold(data),
        catalog_of(folder) as catalog,
        contextlib.closing(MetricsStore.in_folder(data / "index")) as store,
    ):
        app = create_app(store, folder, catalog)
        app.state.indexer.poll(everything=True)
        while not app.state.reader.update(UPDATE_S):
            pass
        return asyncio.run(_asking(app, work))


async def _asking(app: FastAPI, work: Callable[[Ask], Awaitable[_T]]) -> _T:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://index") as client:

        async def ask(path: str, body: Any) -> tuple[int, bytes]:
            answer = await client.request("GET" if body is None else "POST", f"{API}/{path}", json=body)
            return answer.status_code, answer.content

        return await work(ask)
