"""What goes into the file of a run of what was logged that is no number, and what the file says of the rest."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

from torchtrack.server import standalone
from torchtrack.server.media import MediaStore
from torchtrack.server.standalone import Contents, add_logged

UID = "0123456789abcdef"
TABLE = "application/vnd.torchtrack.table+json"
PNG = b"\x89PNG\r\n\x1a\n"


class Logged:
    """A folder of files of a run, and the answers of a server about them."""

    def __init__(self, folder: Path) -> None:
        self.media = MediaStore(folder)
        self._folder = folder / UID / "media"
        self._folder.mkdir(parents=True)
        self.rows: dict[str, list[dict[str, Any]]] = {}

    def add(self, name: str, mime: str, content: bytes, *, there: bool = True) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        if there:
            (self._folder / sha256).write_bytes(content)
        self.rows.setdefault(name, []).append({"sha256": sha256, "mime": mime, "size": len(content)})
        return sha256

    async def ask(self, path: str, body: Any) -> tuple[int, bytes]:
        if path == "logged/names":
            return 200, json.dumps([{"name": name, "source": "media"} for name in self.rows]).encode()
        assert path == "logged"
        answer = [{"run": UID, "step": 40, "n": 1, "rows": self.rows[body["name"]]}]
        return 200, json.dumps(answer).encode()

    def put_in(self) -> tuple[Contents, list[str]]:
        contents = Contents(self.ask)
        return contents, asyncio.run(add_logged(contents, UID, self.media))


def answer(contents: Contents, path: str) -> Any:
    (found,) = [each for each in contents.answers if each["path"] == path]
    return json.loads(gzip.decompress(base64.b64decode(found["data"])))


def test_pictures_are_data_urls_and_tables_answers(tmp_path: Path) -> None:
    logged = Logged(tmp_path)
    picture = logged.add("samples", "image/png", PNG)
    table = logged.add("rows", TABLE, b'{"columns": ["a"], "data": [[1]]}')
    contents, notes = logged.put_in()
    assert contents.pictures == {picture: "data:image/png;base64," + base64.b64encode(PNG).decode()}
    assert answer(contents, f"runs/{UID}/media/{table}")["data"] == [[1]]
    assert notes == ["Of pictures, tables and texts it has the last of each name."]


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    logged = Logged(tmp_path)
    logged.add("speech", "audio/wav", b"RIFF")
    logged.add("page", "text/html", b"<script>alert(1)</script>")
    logged.add("drawing", "image/svg+xml", b"<svg/>")
    logged.add("on its way", "image/png", PNG + b"2", there=False)
    logged.add("large", "image/png", PNG + bytes(standalone.MAX_FILE))
    contents, notes = logged.put_in()
    assert contents.pictures == {}
    assert notes[1:] == [
        "5 logged files are not in it: it takes pictures and tables up to 1 MiB each, 16 MiB together."
    ]


def test_all_files_together_are_bounded(tmp_path: Path) -> None:
    logged = Logged(tmp_path)
    for number in range(20):
        logged.add(f"sheet {number}", "image/png", PNG + bytes([number]) * (standalone.MAX_FILE - 100))
    contents, notes = logged.put_in()
    assert len(contents.pictures) == 16
    assert sum(map(len, contents.pictures.values())) < 1.4 * standalone.MAX_FILES
    assert "4 logged files" in notes[1]


def test_a_run_that_logged_numbers_alone_says_nothing_of_files(tmp_path: Path) -> None:
    contents, notes = Logged(tmp_path).put_in()
    assert (contents.answers, notes) == ([], [])
