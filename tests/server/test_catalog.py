"""What people type: the same suite on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from torchtrack.server import migrations
from torchtrack.server.catalog import Catalog, ConflictError, newest
from torchtrack.server.homes import RefusedRunError
from torchtrack.server.people import TakenError, UnknownError, digest
from torchtrack.server.rights import OWNER, Who
from torchtrack.server.tables import now

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
    assert again.edits()["a"]["name"] == "better"
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


def test_views_are_everybodys_or_somebodys(catalog: Catalog) -> None:
    for owner in ("", "ann", "bob"):
        catalog.save_view("llm", "mine", {"of": owner}, by="x", owner=owner)
    with pytest.raises(ConflictError, match="choose another name"):
        catalog.save_view("llm", "mine", {}, by="x", owner="ann")

    assert [view["content"]["of"] for view in catalog.views("llm", "ann")] == ["", "ann"]
    assert [view["content"]["of"] for view in catalog.views("llm")] == [""]


def test_a_key_is_known_by_its_hash_alone_until_it_ends(catalog: Catalog, url: str) -> None:
    people = catalog.people
    key, about = people.add_key("cluster", "write", OWNER, project="llm")
    over, _ = people.add_key("over", "admin", OWNER, expires=now() - timedelta(seconds=1))
    again = Catalog(url)
    found = again.people.by_key(digest(key))
    assert found is not None
    assert (found.who.roles, found.who.user, found.expires) == ({"llm": "editor"}, None, None)
    (listed, _) = sorted(again.people.all_keys(), key=lambda each: str(each["name"]))
    assert listed["used"] is not None
    assert key not in str(again.people.all_keys())
    again.people.revoke_key(about["id"], OWNER)
    again.people.revoke_key(about["id"], OWNER)
    assert again.people.by_key(digest(key)) is people.by_key(digest(over)) is None
    assert [line["action"] for line in again.audit.lines()] == ["key.revoke", "key.create", "key.create"]
    with pytest.raises(UnknownError):
        people.revoke_key("nothing", OWNER)
    again.close()


def test_one_user_or_key_is_looked_up_by_its_id_and_is_as_in_the_list(url: str) -> None:
    catalog = Catalog(url)
    people = catalog.people
    ids = [people.add_user(name, {"llm": "editor"}, OWNER)["id"] for name in ("ann", "bob")]
    keys = [people.add_key("laptop", "write", OWNER, user=id_)[1]["id"] for id_ in ids]
    listed = {each["id"]: each for each in [*people.all_users(), *people.all_keys()]}
    asked: list[str] = []
    sa.event.listen(sa.Engine, "before_cursor_execute", note := lambda *about: asked.append(about[2]))
    try:
        found = [*map(people.user, ids), *map(people.key, keys), people.user("nobody"), people.key("none")]
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)

    catalog.close()
    assert found == [*(listed[each] for each in (*ids, *keys)), None, None]
    looked = [" ".join(statement.split()) for statement in asked if statement.startswith("SELECT")]
    assert looked
    assert [statement for statement in looked if " WHERE " not in statement] == []


def test_a_users_keys_and_sessions_may_what_the_user_may_now(catalog: Catalog) -> None:
    people = catalog.people
    ann = people.add_user("ann", {"llm": "editor", "*": "viewer"}, OWNER)["id"]
    with pytest.raises(TakenError):
        people.add_user("ann", {}, OWNER)
    key, _ = people.add_key("laptop", "admin", OWNER, user=ann)
    one, _ = people.add_key("one", "read", OWNER, user=ann, project="llm")
    session = people.begin_session(timedelta(hours=1), user=ann)

    def roles(of: str) -> dict[str, str] | None:
        found = people.by_key(digest(of))
        return None if found is None else dict(found.who.roles)

    assert (roles(key), roles(one)) == ({"llm": "editor", "*": "viewer"}, {"llm": "viewer"})
    people.set_role(ann, "llm", "viewer", OWNER)
    people.set_role(ann, "*", None, OWNER)
    assert (roles(key), roles(one)) == ({"llm": "viewer"}, {"llm": "viewer"})
    assert people.by_session(digest(session))[1] is not None
    people.change_user(ann, OWNER, disabled=True)
    assert (roles(key), people.by_session(digest(session))[1]) == (None, None)
    people.change_user(ann, OWNER, disabled=False)
    assert roles(key) == {"llm": "viewer"}
    people.remove_user(ann, OWNER)
    assert people.all_keys() == people.all_users() == []
    with pytest.raises(UnknownError):
        people.add_key("x", "read", OWNER, user=ann)


def test_whom_a_provider_knows_is_one_user_and_never_somebody_elses_name(catalog: Catalog) -> None:
    people = catalog.people
    people.add_user("ann", {"*": "admin"}, OWNER)
    first = people.known_to("https://idp", "1", "ann", "ann@example.org", "viewer")
    again = people.known_to("https://idp", "1", "renamed", None, "admin")
    other = people.known_to("https://idp", "2", "ann", None, None)

    assert (first.name, first.roles) == ("ann-2", {"*": "viewer"})
    assert again == first
    assert (other.name, other.roles) == ("ann-3", {})
    people.change_user(first.id, OWNER, disabled=True)
    with pytest.raises(UnknownError, match="disabled"):
        people.known_to("https://idp", "1", "ann", None, "viewer")


def test_a_run_is_at_home_where_its_first_key_says(catalog: Catalog) -> None:
    llm = Who("k1", "llm", "key", {"llm": "editor"})
    both = Who("k2", "both", "key", {"llm": "editor", "vision": "admin", "other": "viewer"})
    homes = catalog.homes
    homes.settle(both, "a" * 16, None, there=False)
    homes.settle(both, "a" * 16, "vision", there=True)
    homes.settle(both, "a" * 16, "vision", there=True)
    homes.settle(llm, "b" * 16, None, there=False)
    for who, uid, says, there in (
        (llm, "a" * 16, None, True),
        (llm, "a" * 16, "llm", True),
        (both, "a" * 16, "other", True),
        (both, "b" * 16, "vision", True),
        (llm, "c" * 16, "llm", True),
    ):
        with pytest.raises(RefusedRunError):
            homes.settle(who, uid, says, there=there)

    assert catalog.edits() == {"a" * 16: {"project": "vision"}, "b" * 16: {"project": "llm"}}


def test_the_audit_log_is_read_by_project_and_page(catalog: Catalog) -> None:
    for number in range(5):
        catalog.audit.note(OWNER, "run.edit", f"r{number}", "llm" if number % 2 else None, fields=["name"])
    newest = catalog.audit.lines(limit=2)

    assert [line["target"] for line in newest] == ["r4", "r3"]
    assert [line["target"] for line in catalog.audit.lines(before=newest[-1]["id"])] == ["r2", "r1", "r0"]
    assert [line["target"] for line in catalog.audit.lines(frozenset({"llm"}))] == ["r3", "r1"]
    assert newest[0]["at"].endswith("+00:00")


def test_a_catalog_of_the_version_before_keeps_its_views(url: str) -> None:
    first = Catalog(url, upto="0001")
    with first._engine.begin() as connection:
        columns = 'id, project, name, content, version, "by", at'
        values = "'v', 'llm', 'old', '{}', 3, 'ann', '2026-01-01 00:00:00'"
        connection.execute(sa.text(f"INSERT INTO views ({columns}) VALUES ({values})"))  # noqa: S608
    first.close()
    catalog = Catalog(url)

    assert [(each["name"], each["version"], each["owner"]) for each in catalog.views("llm")] == [("old", 3, "")]
    catalog.close()


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


def test_a_catalog_that_is_up_to_date_is_opened_without_alembic(tmp_path: Path) -> None:
    Catalog.in_folder(tmp_path).close()
    code = (
        "import pathlib, sys; from torchtrack.server.catalog import Catalog;"
        "Catalog.in_folder(pathlib.Path(sys.argv[1])).close(); print('alembic' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code, str(tmp_path)], text=True).strip() == "False"
    assert newest() == migrations.script()[1].get_current_head()
