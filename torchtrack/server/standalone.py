"""A report, or the page of a run, as one HTML file: the page's own code, and the answers to what it asks.

The file needs no network and no server. Its policy lets it load nothing, and run nothing but the script in it.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import html
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from torchtrack.errors import TorchtrackError
from torchtrack.server import panels
from torchtrack.server.media import MediaStore
from torchtrack.server.page import BUILT
from torchtrack.server.panels import Question
from torchtrack.server.tables import iso, now
from torchtrack.version import __version__

Ask = Callable[[str, Any], Awaitable[tuple[int, bytes]]]
"""Puts a question to the server: status and body."""
MAX_PANELS: Final = 100
"""Of a report that becomes a file."""
MAX_METRICS: Final = 300
"""Of a run that becomes a file: its own first, then those of the machine."""
MAX_TENSORS: Final = 8
"""Tensors whose distribution goes into the file of a run: those that findings name."""
MAX_LINES: Final = 10_000
MAX_NAMES: Final = 100
"""Names of what is no number, in the file of a run."""
MAX_FILE: Final = 1 << 20
"""Bytes of a logged file that goes into the file of a run,"""
MAX_FILES: Final = 16 << 20
"""and of all of them together."""
PICTURES: Final = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
_TABLE: Final = "application/vnd.torchtrack.table+json"
OPEN: Final = {"from": None, "to": None}
_ENDINGS: Final = re.compile(r"<(?=/script|/style|script|!--)", re.IGNORECASE)


class StandaloneError(TorchtrackError):
    """There can be no such file: the page is not built, the run is not there, or it would be too large.

    Args:
        message: what is wrong, and what to do.
        status: of the server's answer that it comes from.
    """

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


class Contents:
    """Questions and answers that go into a file."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._known: set[str] = set()
        self.answers: list[dict[str, Any]] = []
        self.pictures: dict[str, str] = {}
        """By SHA-256, as `data:` URLs."""

    async def add(self, question: Question, *, wanted: Callable[[bytes], bool] = lambda _: True) -> bytes | None:
        """Ask, and keep the answer, a refusal too.

        Args:
            question: path and body.
            wanted: says of a success whether it is worth a place.

        Returns:
            The answer if it is a success.

        Raises:
            StandaloneError: the server cannot answer now.
        """
        path, body = question
        status, answer = await self._ask(path, body)
        if status == 503:
            raise StandaloneError("the index is being opened; ask again in a moment", 503)
        if status == 200 and not wanted(answer):
            return None
        self.keep(path, body, answer, status)
        return answer if status == 200 else None

    def keep(self, path: str, body: Any, answer: bytes, status: int = 200) -> None:
        """Keep an answer."""
        known = json.dumps([path, body], sort_keys=True)
        if known not in self._known:
            self._known.add(known)
            data = base64.b64encode(gzip.compress(answer, 6, mtime=0)).decode()
            self.answers.append({"path": path, "body": body, "status": status, "data": data})

    def keep_file(self, uid: str, sha256: str, mime: str, content: bytes) -> None:
        """Keep a logged picture or table."""
        if mime == _TABLE:
            self.keep(f"runs/{uid}/media/{sha256}", None, content)
        else:
            self.pictures[sha256] = f"data:{mime};base64,{base64.b64encode(content).decode()}"


async def report_file(report: Mapping[str, Any], ask: Ask) -> bytes:
    """A report as HTML, with what its panels show now.

    Args:
        report: as `Reports.find` gives it.
        ask: answers as whoever wants the file would be answered.

    Raises:
        StandaloneError: there can be none.
    """
    contents = Contents(ask)
    contents.keep(f"reports/{report['id']}", None, json.dumps(report).encode())
    found = list(panels.panels(report["text"]))
    if len(found) > MAX_PANELS:
        raise StandaloneError(f"a report in a file has at most {MAX_PANELS} panels, this one has {len(found)}")
    for panel in found:
        runs: list[dict[str, Any]] = []
        for question in panels.about_runs(panel):
            answer = await contents.add(question)
            runs += _rows(answer) if answer else []
        wanted = {uid: place for place, uid in enumerate(panels.runs_of(panel))}
        runs.sort(key=lambda run: wanted.get(run["uid"], len(wanted)))
        for question in panels.of_panel(panel, runs):
            await contents.add(question)
    return document(report["title"], ["p", report["project"], "reports", report["id"]], contents)


async def run_file(uid: str, ask: Ask, media: MediaStore) -> bytes:
    """The page of a run as HTML, as it is now.

    Args:
        uid: of the run.
        ask: as for a report.
        media: the files of runs.

    Raises:
        StandaloneError: there is no such run, or the server cannot answer.
    """
    status, answer = await ask(f"runs/{uid}", None)
    run: dict[str, Any] = json.loads(answer)
    if status != 200:
        raise StandaloneError(run["error"]["message"], status)
    contents, uid = Contents(ask), run["uid"]
    every = sorted(
        (name for name in run["keys"] if not name.startswith("_tt/") and not _hidden(run, name)),
        key=lambda name: name.startswith("system/"),
    )
    run["keys"] = every[:MAX_METRICS]
    contents.keep(f"runs/{uid}", None, json.dumps(run).encode())
    findings = json.loads(await contents.add((f"runs/{uid}/findings", None)) or b"[]")
    await contents.add((f"runs/{uid}/logs?limit={MAX_LINES}", None))
    for question in panels.of_run(run, run["keys"]):
        await contents.add(question)
    await _tensors(contents, uid, findings)
    notes = await add_logged(contents, uid, media)
    if len(run["keys"]) < len(every):
        notes.append(f"{len(run['keys'])} of its {len(every):,} metrics are in this file.")
    return document(run["name"], ["p", run["project"], "r", uid, "stability"], contents, " ".join(notes))


async def add_logged(contents: Contents, uid: str, media: MediaStore) -> list[str]:
    """Put in what was logged last under each name that is no number; of files, small pictures and tables.

    Args:
        contents: what is put into.
        uid: of the run.
        media: the files of runs.

    Returns:
        What the reader has to know of what is not there.
    """
    found = await contents.add(("logged/names", {"runs": [uid]}), wanted=lambda answer: answer != b"[]")
    names = json.loads(found or b"[]")
    left_out, room = 0, MAX_FILES
    for each in names[:MAX_NAMES]:
        body = {"runs": [uid], "name": each["name"], "source": each["source"]}
        (shown,) = json.loads(await contents.add(("logged", {**body, "at": None})) or b"[null]")
        if shown is None:
            continue
        contents.keep("logged/steps", body, json.dumps([shown["step"]]).encode())
        for row in shown["rows"] if each["source"] == "media" else ():
            content = None
            if row["mime"] in PICTURES or row["mime"] == _TABLE:
                content = await asyncio.to_thread(media.whole, uid, row["sha256"], min(MAX_FILE, room))
            if content is None:
                left_out += 1
                continue
            room -= len(content)
            contents.keep_file(uid, row["sha256"], row["mime"], content)
    notes = ["Of pictures, tables and texts it has the last of each name."] if names else []
    if left_out:
        most = f"{MAX_FILE >> 20} MiB each, {MAX_FILES >> 20} MiB together"
        notes.append(f"{left_out:,} logged files are not in it: it takes pictures and tables up to {most}.")
    return notes


def _hidden(run: Mapping[str, Any], metric: str) -> bool:
    return bool(run["definitions"].get(metric, {}).get("hidden"))


async def _tensors(contents: Contents, uid: str, findings: list[dict[str, Any]]) -> None:
    """Layers of every kind that was recorded, and the distributions of all tensors and of those in findings."""
    for kind in panels.KINDS:
        has = await contents.add(panels.heatmap(uid, kind, "norm", OPEN), wanted=_has_rows)
        if has is None and kind != panels.KINDS[0]:
            continue
        await contents.add(panels.histogram(uid, kind, "*", OPEN))
    named = dict.fromkeys((each["kind"], each["names"][0]) for each in findings if each["kind"] and each["names"])
    for kind, name in list(named)[:MAX_TENSORS]:
        await contents.add(panels.histogram(uid, kind, name, OPEN))


def _has_rows(answer: bytes) -> bool:
    from torchtrack.server.answers import read_frame  # with numpy and pyarrow, which no start of a server waits for

    return bool(read_frame(answer)[0]["rows"])


def _rows(answer: bytes) -> list[dict[str, Any]]:
    columns = json.loads(answer)["columns"]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def document(title: str, place: list[str], contents: Contents, note: str = "", built: Path = BUILT) -> bytes:
    """The file.

    Args:
        title: for the window.
        place: the path of what it shows.
        contents: what the page is going to ask, with the answers.
        note: what the reader has to know of it.
        built: the page's files.

    Raises:
        StandaloneError: the page is not built.
    """
    try:
        script, style = ((built / "file" / name).read_text(encoding="utf-8") for name in ("file.js", "file.css"))
    except FileNotFoundError:
        raise StandaloneError(
            "the page is not built, so there is nothing to put into a file: pip install --force-reinstall --no-deps "
            "torchtrack brings it, in a checkout pip install -e .",
            503,
        ) from None
    script = _ENDINGS.sub(r"\\x3c", script)
    told = {"title": title, "place": place, "note": note, "made": iso(now()), "version": __version__}
    data = json.dumps({**told, "answers": contents.answers, "pictures": contents.pictures}).replace("<", "\\u003c")
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f'<meta name="generator" content="torchtrack {__version__}">',
        f"<title>{html.escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>",
        '<div id="app"></div>\n<noscript>This file draws itself with JavaScript, which is off here.</noscript>',
        f'<script type="application/json" id="contents">{data}</script>',
        f'<script type="module">{script}</script>\n</body>\n</html>\n',
    ]
    return "\n".join(parts).encode()


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
