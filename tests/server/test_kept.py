"""What lies in the folder of a run, listed and given out."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from tests.server.running import Running
from torchtrack.server import kept
from torchtrack.server.kept import KeptFiles
from torchtrack.server.media import MediaStore
from torchtrack.sidecar.upload.transport import Reply

UID, LEFT = "ef" * 8, f"{'cd' * 8}-0.ttb"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write(top: Path, path: str, content: bytes) -> None:
    (top / UID / path).parent.mkdir(parents=True, exist_ok=True)
    (top / UID / path).write_bytes(content)


def files(top: Path) -> KeptFiles:
    return KeptFiles(top, MediaStore(top))


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A folder with a run of every kind of file, and of what is none of its."""
    write(tmp_path, f"media/{sha256(b'picture')}", b"picture")
    write(tmp_path, "media/.part.0123456789abcdef", b"a part")
    write(tmp_path, "files/code/train.py", b"import torch")
    write(tmp_path, "files/a & <b>.txt", b"saved")
    write(tmp_path, f"nodes/{LEFT}", b"the last steps")
    write(tmp_path, "nodes/other.alerts", b"not for others")
    write(tmp_path, "000/0-cdcdcdcdcdcdcdcd.ttj", b"a journal")
    return tmp_path


def test_every_file_of_a_run_is_listed_with_its_size_and_digest(top: Path) -> None:
    found, more = files(top).every(UID)

    assert [(each["path"], each["kind"], each["size"], each["sha256"]) for each in found] == [
        (f"media/{sha256(b'picture')}", "media", 7, sha256(b"picture")),
        ("files/a & <b>.txt", "saved", 5, sha256(b"saved")),
        ("files/code/train.py", "saved", 12, sha256(b"import torch")),
        ("000/0-cdcdcdcdcdcdcdcd.ttj", "journal", 9, None),
        (f"nodes/{LEFT}", "left", 14, sha256(b"the last steps")),
    ]
    assert not more


def test_one_answer_reads_so_much_for_digests_and_the_next_goes_on(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "HASHED_BYTES", 15)

    def digests() -> list[bool]:
        found, _ = files(top).every(UID)
        return [each["sha256"] is not None for each in found if each["kind"] in ("saved", "left")]

    assert [digests(), digests(), digests()] == [[True, False, False], [True, True, False], [True, True, True]]


def test_a_file_that_was_written_again_has_another_digest(top: Path) -> None:
    files(top).every(UID)
    write(top, "files/code/train.py", b"import numpy")
    os.utime(top / UID / "files/code/train.py", ns=(0, 1))
    found, _ = files(top).every(UID)

    assert sha256(b"import numpy") in [each["sha256"] for each in found]


def test_of_too_many_files_the_first_are_listed(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MOST_FILES", 2)
    found, more = files(top).every(UID)

    assert (len(found), more) == (2, True)


def test_a_link_is_neither_listed_nor_followed(top: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "secret").write_text("mine")
    (top / UID / "files" / "link").symlink_to(elsewhere / "secret")
    (top / UID / "files" / "folder").symlink_to(elsewhere)
    listed = [each["path"] for each in files(top).every(UID)[0]]

    assert not [path for path in listed if "link" in path or "folder" in path]
    assert files(top).saved(UID, "link") is None
    assert files(top).saved(UID, "folder/secret") is None
    assert files(top).saved(UID, "code/train.py") == top / UID / "files" / "code" / "train.py"


@pytest.mark.parametrize("path", ["..", "../media/x", "code/../../x", "/etc/passwd", "a//b", "a\0b", ""])
def test_a_path_that_leads_elsewhere_is_refused(top: Path, path: str) -> None:
    with pytest.raises(ValueError, match="leads nowhere else"):
        files(top).saved(UID, path)


def get(server: Running, place: str, **headers: str) -> Reply:
    return server.client().ask("GET", f"/api/v1/runs/{UID}/{place}", headers=headers)


def test_a_saved_file_is_given_out_whole_or_in_part_and_never_as_a_page(server: Running) -> None:
    write(server.config.runs, "files/a/page.html", b"<script>alert(1)</script>")
    whole, part = get(server, "saved/a/page.html"), get(server, "saved/a/page.html", Range="bytes=0-6")

    assert (whole.status, whole.body) == (200, b"<script>alert(1)</script>")
    assert (part.status, part.body) == (206, b"<script")
    assert whole.headers["content-type"] == "application/octet-stream"
    assert whole.headers["content-disposition"].startswith("attachment")
    assert (whole.headers["x-content-type-options"], whole.headers["content-security-policy"]) == ("nosniff", "sandbox")
    assert get(server, "saved/none").status == 404
    assert get(server, "saved/%2e%2e/x").status in (400, 404)
    assert "files/a/page.html" in [each["path"] for each in get(server, "kept").json()["files"]]


def test_a_medium_is_shown_as_what_it_is_said_to_be_and_html_runs_nothing(server: Running) -> None:
    write(server.config.runs, f"media/{sha256(b'<p>')}", b"<p>")
    path = f"media/{sha256(b'<p>')}"
    plain, picture, page, busy = (
        get(server, path + query)
        for query in ("", "?type=image/png", "?type=text/html", "?type=text/html&scripts=true")
    )

    assert [each.headers["content-type"].partition(";")[0] for each in (plain, picture, page)] == [
        "application/octet-stream",
        "image/png",
        "text/html",
    ]
    assert [each.headers["content-security-policy"] for each in (plain, picture)] == ["sandbox", "sandbox"]
    assert [each.headers["content-disposition"].partition(";")[0] for each in (plain, picture, page)] == [
        "attachment",
        "attachment",
        "inline",
    ]
    strict = set(page.headers["content-security-policy"].split("; "))
    assert {"sandbox", "default-src 'none'", "form-action 'none'", "frame-ancestors 'self'"} <= strict
    assert not [rule for rule in strict if rule.startswith("script-src")]
    assert {"sandbox allow-scripts", "default-src 'none'"} <= set(busy.headers["content-security-policy"].split("; "))
    assert get(server, f"{path}?type=application/xhtml%2Bxml").status == 422
