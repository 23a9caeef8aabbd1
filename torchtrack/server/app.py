"""The server as an ASGI application: what its parts share, its routes under /api/v1, its doors.

app = create_app(Config(data=Path("data")))
mount(app, router, scope="read")        # further routes, under /api/v1, behind a key
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fastapi import APIRouter, Depends, FastAPI

from torchtrack import wire
from torchtrack.credentials import is_loopback
from torchtrack.server import access, auth, curation, front, giving, ingest, kept, left, page, problems, publishing
from torchtrack.server.budget import Budget, Limits
from torchtrack.server.catalog import Catalog
from torchtrack.server.engine import Engine, catalog_in, take_hold
from torchtrack.server.front import Worker
from torchtrack.server.journals import Committer, JournalStore
from torchtrack.server.layout import Layout
from torchtrack.server.media import MediaStore
from torchtrack.server.rights import Scope
from torchtrack.version import __version__

if TYPE_CHECKING:
    from torchtrack.server.oidc import Provider


@dataclass(frozen=True, kw_only=True)
class Config:
    """How a server is set up.

    Attributes:
        data: the folder of everything it keeps: `runs` is laid out as a local folder of runs.
        host: where it listens.
        hosts: further names under which it may be asked.
        token: whether a key is needed. Without one only this machine may reach it.
        limits: what it takes.
        shown: a folder of runs to show; then nothing is taken.
        queries: whether it shows the page and answers questions, beside taking uploads.
        metrics: DSN of a ClickHouse server for the tables; by default they lie in `data`.
        layout: of those tables: on which machines, and how long rows are kept.
        catalog: URL of a database for what people type; by default a file in `data`.
        blobs: URL of an object store for media; by default they lie in `runs`.
        provider: by whom people can log in on the page.
        alert_urls: who is told what alert rules fire on, as apprise takes it. Secrets.
        public_url: where people see the page, for what they are told.
    """

    data: Path
    host: str = "127.0.0.1"
    hosts: Sequence[str] = ()
    token: bool = True
    limits: Limits = field(default_factory=Limits)
    shown: Path | None = None
    queries: bool = True
    metrics: str | None = None
    layout: Layout = field(default_factory=Layout)
    catalog: str | None = None
    blobs: str | None = None
    provider: Provider | None = None
    alert_urls: Sequence[str] = field(default=(), repr=False)
    public_url: str | None = None

    def __post_init__(self) -> None:
        """Refuse to stand open.

        Raises:
            ValueError: it would be open to everyone.
        """
        if not self.token and not is_loopback(self.host):
            raise ValueError(
                f"without a token everyone who reaches {self.host} could read and write all runs; listen on 127.0.0.1, "
                "or leave --no-token away"
            )

    @property
    def runs(self) -> Path:
        """The folder of the journals."""
        return self.shown or self.data / "runs"

    @property
    def catalog_url(self) -> str:
        """Where what people type is kept."""
        return self.catalog or catalog_in(self.data)

    def engine(self) -> Engine:
        """The process that answers questions, not started."""
        telling: dict[str, Any] = {"alert_urls": list(self.alert_urls), "page": self.public_url}
        about = self.runs, self.data / "index", self.metrics, self.catalog_url, self.layout
        return Engine(*about, **telling)


def create_app(config: Config, begun: tuple[IO[str], Engine] | None = None) -> FastAPI:
    """The application: the page, what it asks, and the routes of uploading. Makes its folders and takes hold of them.

    Args:
        config: how it is set up.
        begun: the hold on the data folder and the engine, where these were first.

    Raises:
        BlockingIOError: another server has this data folder.
        OSError: it cannot be written.
        ValueError: the URL of the blobs cannot be used.
    """
    lock = begun[0] if begun else take_hold(config.data)
    try:
        media = _media(config)
    except ValueError:
        lock.close()
        raise
    catalog = Catalog(config.catalog_url)
    worker = Worker(begun[1] if begun else config.engine()) if config.queries else None
    store = None if config.shown else JournalStore(config.runs)
    committer = Committer(store) if store else None

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if committer:
            committer.start()
        try:
            async with worker or contextlib.nullcontext():
                yield
        finally:
            if committer and store:
                committer.stop()
                store.close()
            catalog.close()
            lock.close()

    app = FastAPI(
        title="torchtrack", version=__version__, docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan
    )
    app.state.config = config
    app.state.store = store
    app.state.committer = committer
    app.state.worker = worker
    app.state.keys = auth.Keys(config.data, catalog.people, required=config.token)
    app.state.budget = Budget(config.limits, time.monotonic)
    app.add_middleware(auth.Doorkeeper, hosts=_hosts(config))
    problems.install(app)
    if store and committer:
        _take_in(app, config, store, committer, media, catalog)
    mount(app, _about(app), scope="read")
    login = config.provider.issuer if config.provider else None
    mount(app, access.about_me(login), scope=None)
    mount(app, access.router(catalog, app.state.keys), scope="read")
    mount(app, access.admin_router(catalog, app.state.keys), scope="admin")
    mount(app, left.showing(left.LeftStore(config.runs), worker.where if worker else None), scope="read")
    files = kept.KeptFiles(config.runs, media)
    mount(app, kept.router(files, worker.where if worker else None), scope="read")
    mount(app, giving.media_router(media, worker.where if worker else None), scope="read")
    if worker:
        page.mount(app, issuer=login)
        if config.provider:
            from torchtrack.server import oidc  # an extra

            oidc.mount(app, config.provider)
        mount(app, curation.router(catalog, worker.where), scope="write")
        mount(app, curation.readers_router(catalog), scope="read")
        mount(app, publishing.router(catalog, worker, media), scope="read")
        mount(app, publishing.writing_router(catalog), scope="write")
        mount(app, front.router(worker), scope="read")
    return app


def _media(config: Config) -> MediaStore:
    if config.blobs is None:
        return MediaStore(config.runs)
    try:
        from torchtrack.server.blobs import BlobStore  # few need it
    except ImportError as error:
        raise ValueError(f"{error}; install what the server needs: pip install 'torchtrack[server]'") from None
    return BlobStore(config.runs, config.data / "waiting", config.blobs)


def _take_in(
    app: FastAPI, config: Config, store: JournalStore, committer: Committer, media: MediaStore, catalog: Catalog
) -> None:
    """Add the routes of uploading."""
    budget = app.state.budget
    taking = ingest.Ingest(store, config.limits, catalog.homes)
    mount(app, ingest.frames_router(taking, committer, budget), scope="write")
    mount(app, ingest.media_router(media, budget, store, catalog.homes), scope="write")
    mount(app, left.taking(left.LeftStore(config.runs), budget, store, catalog.homes), scope="write")


def mount(app: FastAPI, router: APIRouter, *, scope: Scope | None) -> None:
    """Add routes under /api/v1. All of them need a key with this scope; None: any key."""
    needs = [Depends(auth.requires(scope))]
    app.include_router(router, prefix=wire.API, dependencies=needs, responses=problems.RESPONSES)


def _about(app: FastAPI) -> APIRouter:
    routes = APIRouter(tags=["about"])

    @routes.get("/openapi.json", include_in_schema=False)
    async def openapi() -> dict[str, Any]:
        """What there is, for programs: what is answered here, and by the worker."""
        here, worker = app.openapi(), app.state.worker
        behind = await worker.schema() if worker else {"paths": {}}
        schemas = [each.get("components", {}).get("schemas", {}) for each in (behind, here)]
        return {
            **here,
            "paths": {**behind["paths"], **here["paths"]},
            "components": {"schemas": {**schemas[0], **schemas[1]}},
        }

    return routes


def _hosts(config: Config) -> Sequence[str]:
    """The names under which a server may be asked. One that all may reach behind its own names is not limited."""
    if is_loopback(config.host):
        return ["localhost", "127.0.0.1", "::1", config.host, *config.hosts]
    return [*config.hosts, config.host, "localhost", "127.0.0.1", "::1"] if config.hosts else []
