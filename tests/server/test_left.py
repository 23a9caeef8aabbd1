"""Black boxes and stacks that come in, and are read from a server."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import quote

import pytest
from click.testing import CliRunner

import torchtrack
from tests.cli.test_blackbox import UID as KILLED
from tests.cli.test_blackbox import killed  # noqa: F401  # the same fixture here
from tests.server.running import Running
from tests.server.serving import serving
from torchtrack.cli import main
from torchtrack.journal.frame import dump
from torchtrack.server.left import LeftStore, showing
from torchtrack.server.metrics import MetricsStore
from torchtrack.sidecar.upload.transport import Reply

UID, NAME, CONTENT = "ab" * 8, f"{'cd' * 8}-0.ttb", b"the last steps"


def put(server: Running, name: str, content: bytes, said: bytes | None = None, uid: str = UID) -> Reply:
    digest = hashlib.sha256(content if said is None else said).hexdigest()
    return server.client().ask("PUT", f"/api/v1/runs/{uid}/files/{quote(name, safe='')}?sha256={digest}", content)


def get(server: Running, place: str) -> Reply:
    return server.client().ask("GET", f"/api/v1/runs/{UID}/files{place}")


def missing(server: Running, name: str, content: bytes) -> Reply:
    body = dump({"files": {name: hashlib.sha256(content).hexdigest()}})
    return server.client().ask("POST", f"/api/v1/runs/{UID}/files/missing", body, {"Content-Type": "application/json"})


def test_a_file_is_kept_under_its_name_listed_and_given_back_to_be_saved(server: Running) -> None:
    before = missing(server, NAME, CONTENT).json()
    stored = put(server, NAME, CONTENT)
    (server.config.runs / UID / "nodes" / "other.alerts").write_text("not for others")
    back = get(server, f"/{NAME}")

    assert (before, stored.status, missing(server, NAME, CONTENT).json()) == ({"missing": [NAME]}, 201, {"missing": []})
    assert get(server, "").json() == {"files": [{"name": NAME, "size": len(CONTENT)}]}
    assert back.body == CONTENT
    assert back.headers["content-disposition"].startswith("attachment")
    assert back.headers["x-content-type-options"] == "nosniff"


def test_a_file_that_was_kept_again_takes_the_place_of_the_earlier_one(server: Running) -> None:
    name = f"{'ce' * 8}-0-spike-7.ttb"
    put(server, name, b"once")
    left = missing(server, name, b"twice").json()
    put(server, name, b"twice")

    assert left == {"missing": [name]}
    assert get(server, f"/{name}").body == b"twice"


def test_what_was_damaged_on_the_way_is_not_kept(server: Running) -> None:
    name = f"{'cf' * 8}-0.ttb"

    assert put(server, name, CONTENT, said=b"something else").status == 422
    assert get(server, f"/{name}").status == 404
    assert not [path for path in (server.config.runs / UID / "nodes").iterdir() if "cf" * 8 in path.name]


BAD = ["..", "x", "../0.ttb", f"../{NAME}", f"{'cd' * 8}-0.ttj", f"{NAME}\n", f"{'cd' * 8}-0-../../x.ttb", "\0", "a/b"]


@pytest.mark.parametrize("name", BAD)
def test_no_other_name_is_taken_or_read(server: Running, name: str) -> None:
    folder = server.config.data
    before = sorted(folder.rglob("*"))

    assert put(server, name, CONTENT).status in (400, 404, 405)
    assert missing(server, name, CONTENT).status == 400
    assert get(server, f"/{quote(name, safe='')}").status in (400, 404)
    assert put(server, NAME, CONTENT, uid="AB" * 8).status == 400
    assert sorted(folder.rglob("*")) == before


def test_a_link_is_not_followed(server: Running) -> None:
    name = f"{'c0' * 8}-process.stacks"
    put(server, name, CONTENT)
    path = server.config.runs / UID / "nodes" / name
    path.unlink()
    path.symlink_to(server.config.data / "token")

    assert get(server, f"/{name}").status == 404
    assert name not in str(get(server, "").body)


def test_black_boxes_are_read_through_a_server_as_from_the_folder(store: MetricsStore, killed: Path) -> None:  # noqa: F811
    here = torchtrack.Api(killed).run(KILLED)
    with serving(store, killed, more=showing(LeftStore(killed), None)) as client:
        there = torchtrack.Api(client.url).run(KILLED)
        files = [(file.path.name, file.rank, file.why) for file in there.blackbox_files()]
        steps = there.blackbox()
        shown = CliRunner().invoke(main, ["blackbox", f"{client.url}/#/p/uncategorized/r/{KILLED}"])
        plainly = CliRunner().invoke(main, ["blackbox", f"{client.url}/runs/{KILLED}"])

    assert files == [(file.path.name, file.rank, file.why) for file in here.blackbox_files()]
    assert len(files) == 3
    assert str(steps.to_pylist()) == str(here.blackbox().to_pylist())  # one value is NaN
    assert steps.num_rows > 0
    assert (shown.exit_code, "line 7 in step" in shown.output) == (0, True), shown.output
    assert (plainly.exit_code, "head.bias x40" in plainly.output) == (0, True), plainly.output
