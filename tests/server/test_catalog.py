"""What people type: the same suite on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from torchtrack.server.catalog import Catalog, ConflictError, overlaid

BINARIES = [
    Path(p).parent for p in (shutil.which("initdb"), *map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb"))) if p
]


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """A PostgreSQL of our own, on a Unix socket, in a folder that goes away; it refuses to run as root."""
    if not BINARIES:
        pytest.skip("not run on PostgreSQL: there is no initdb (Debian: apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="tt-pg-"))  # short, and where another user may go
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        shutil.chown(folder, user)

    def run(*command: str) -> None:
        subprocess.run(command, check=True, user=user, cwd=folder, capture_output=True)

    data, tool = str(folder / "data"), str(BINARIES[0] / "pg_ctl")
    run(str(BINARIES[0] / "initdb"), "-D", data, "-U", "tt", "-A", "trust", "--no-sync")
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
    run(tool, "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield f"postgresql+pg8000://tt@/postgres?unix_sock={folder}/.s.PGSQL.5432"
    finally:
        run(tool, "-D", data, "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'catalog.db'}"
        return
    url = request.getfixturevalue("postgres")
    yield url
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
    engine.dispose()


@pytest.fixture
def catalog(url: str) -> Iterator[Catalog]:
    made = Catalog(url)
    yield made
    made.close()


def test_what_people_set_wins_until_they_take_it_back(catalog: Catalog, url: str) -> None:
    catalog.edit("a", {"name": "mine", "tags": ["x", "日本"], "archived": True}, by="ann")
    catalog.edit("a", {"name": "better"}, by="bob")
    catalog.edit("b", {"notes": "ok"}, by="ann")
    again = Catalog(url)
    assert again.edits(["a"]) == {"a": {"name": "better", "tags": ["x", "日本"], "archived": True}}
    assert overlaid({"name": "run's own", "state": "running"}, again.edits()["a"])["name"] == "better"
    again.edit("a", {"name": None}, by="ann")
    again.close()

    assert "name" not in catalog.edits(["a"])["a"]
    assert catalog.edits().keys() == {"a", "b"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"state": "finished"}, "no field 'state' to edit; there are archived, colour, group, name, notes, tags"),
        ({"name": 3}, "name is a str"),
        ({"tags": ["a", 3]}, "list of at most"),
        ({"notes": "a\x00b"}, "no NUL"),
    ],
)
def test_a_wrong_edit_changes_nothing(catalog: Catalog, changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        catalog.edit("a", {"colour": "red", **changes}, by="ann")

    assert catalog.edits() == {}


def test_a_deleted_run_stays_deleted_until_it_is_restored(catalog: Catalog, url: str) -> None:
    catalog.delete("a", by="ann")
    catalog.delete("a", by="bob")
    again = Catalog(url)
    assert again.deleted() == {"a"}
    again.close()
    catalog.restore("a")

    assert catalog.deleted() == set()


def test_two_who_change_a_view_at_once_do_not_overwrite_each_other(catalog: Catalog) -> None:
    view = catalog.save_view("llm", "mine", {"panels": [1]}, by="ann")
    assert catalog.change_view(view["id"], {"panels": [2]}, 1, by="ann") == 2
    with pytest.raises(ConflictError, match="load it again"):
        catalog.change_view(view["id"], {"panels": [3]}, 1, by="bob")
    with pytest.raises(ConflictError, match="choose another name"):
        catalog.save_view("llm", "mine", {}, by="bob")
    catalog.save_view("vision", "mine", {}, by="bob")

    assert [(v["name"], v["content"], v["version"]) for v in catalog.views("llm")] == [("mine", {"panels": [2]}, 2)]
    catalog.remove_view(view["id"])
    assert catalog.views("llm") == []


def test_many_who_open_and_edit_at_once_lose_nothing(url: str) -> None:
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            mine = Catalog(url)
            for i in range(10):
                mine.edit(f"run{number}-{i}", {"name": "x", "notes": "y"}, by="ann")
            mine.close()
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    catalog = Catalog(url)

    assert failed == []
    assert len(catalog.edits()) == 40
    catalog.close()


def test_tables_and_migrations_say_the_same(catalog: Catalog, url: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from torchtrack.server.tables import metadata

    engine = sa.create_engine(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()
