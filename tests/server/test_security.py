"""The security list of the server, S1 to S20: a test for each, here or where `ELSEWHERE` says."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import http.client
import http.server
import ipaddress
import json
import os
import re
import socket
import ssl
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import pytest

from tests.api.journals import RankJournal
from tests.rules import source
from tests.runs import until
from tests.server.running import Running
from tests.server.team import MINE, THEIRS, Team
from tests.server.test_access import routes
from torchtrack import Api, wire
from torchtrack.errors import ServerError
from torchtrack.journal import frame
from torchtrack.server.app import Config
from torchtrack.sidecar.upload.transport import Http, UnreachableError

ELSEWHERE = {
    3: "server/test_access.py::test_no_route_answers_without_the_right_key",
    4: "server/test_access.py::test_a_server_does_not_stand_open_where_others_can_connect",
    6: "web/test_security.py::test_s06_text_that_people_and_runs_write_runs_nowhere",
    8: "rules/test_code.py::test_nothing_is_run_that_is_not_our_own",
    11: "test_records.py::test_a_payload_that_is_damaged_is_refused",
    17: "server/test_ingest.py::test_a_key_that_floods_is_told_to_wait_and_another_is_not",
    18: "server/test_openapi.py::test_s18_nothing_that_fits_the_schema_breaks_the_server",
}
"""Test by number. More of 3: test_access walks by role; of 11: journal/test_damage.py; of 14: test_redact.py."""
SERVER = source.PACKAGE / "server"
PATHS = [
    "../canary",
    "..\\canary",
    "..%2fcanary",
    "..%252fcanary",
    "%2e%2e%2f%2e%2e%2fcanary",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "C:/canary",
    "a%00b",
    "a%0d%0aX-Injected:%20yes",
    "a#b",
    "a;b",
    "a?b",
    "a" * 4096,
    "%e2%80%aetxt",
    ".",
    "..",
    "a.",
    "CON",
    "%ff%fe",
    "*",
]


def mentioned(pattern: str, folder: Path) -> set[str]:
    """The files of a folder that have this in them."""
    return {path.name for path in folder.rglob("*.py") if re.search(pattern, path.read_text())}


def test_every_number_of_the_list_has_its_test() -> None:
    here = {int(found) for found in re.findall(r"^def test_s(\d\d)_", Path(__file__).read_text(), re.MULTILINE)}
    for place in ELSEWHERE.values():
        file, name = place.split("::")
        assert f"def {name}(" in (source.ROOT / "tests" / file).read_text(), place

    assert here | set(ELSEWHERE) == set(range(1, 21))


def raw(team: Team, method: str, target: str, key: str | None = "owner", body: bytes = b"{}") -> tuple[int, bytes, str]:
    """A request whose path is sent as it is written: status, body, headers."""
    host, port = team.server.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    try:
        connection.putrequest(method, target, skip_accept_encoding=True)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        headers |= {} if key is None else {"Authorization": f"Bearer {team.keys[key]}"}
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read(), str(answer.headers)
    finally:
        connection.close()


def resident(name: str) -> int:
    """Bytes of this process in memory, now (VmRSS) or at most (VmHWM)."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def canaries(team: Team) -> dict[Path, bytes]:
    """Files round the server's folder, and what is in them."""
    around = [team.server.config.data.parent / "canary", team.server.config.data / "canary"]
    for path in around:
        path.write_text("canary-4711")
    every = [*around, team.server.app.state.keys.token_file, *team.server.config.runs.rglob("*.ttj")]
    return {path: hashlib.sha256(path.read_bytes()).digest() for path in every}


def test_s01_no_name_in_an_address_reads_or_changes_a_file_outside(team: Team) -> None:
    before = canaries(team)
    for method, path in sorted(routes(team.server.app.router)):
        if "{" not in path or path == "/api/v1/live":
            continue
        for bad in PATHS if method == "GET" else PATHS[:8]:
            target = re.sub(r"\{\w+(:path)?\}", lambda _, bad=bad: bad, path)  # type: ignore[misc]
            status, body, headers = raw(team, method, target.replace(" ", "%20").replace("#", "%23"))
            assert status < 500, (method, target)
            assert b"canary-4711" not in body
            assert b"root:" not in body
            assert "x-injected" not in headers.lower()
    for bad in ("../../canary", "/canary", "canary%00"):
        assert raw(team, "GET", f"/assets/{bad}")[0] in (400, 404, 422)
    assert canaries(team) == before


def test_s02_no_name_in_an_upload_leaves_the_folder_of_runs(team: Team, tmp_path: Path) -> None:
    before = canaries(team)
    for number, bad in enumerate(("../../../evil", "/absolute/evil", "a" * 16 + "/..", "..", "A" * 16, "")):
        folder = tmp_path / str(number)
        with RankJournal(folder, "e" * 16, project="../../evil", host="../evil") as rank:
            rank.about(project="../../evil", id="../../evil", name=bad)
            rank.log(0, {"../../evil": 1.0})
            rank.joined(bad)
        (path,) = folder.glob("*/*/*.ttj")
        data = path.read_bytes()
        opening = next(frame.scan(data, rank.stream, opening=True))
        record = {**opening.record(), "uid": bad, "rank": -5}
        pieces, _ = frame.encode(frame.Kind.META, frame.dump(record), stream=0, seq=0, mono_ns=1)
        whole = b"".join(bytes(piece) for piece in pieces) + data[opening.end :]
        body, _ = wire.pack([wire.Section(rank.stream, 0, whole)], zstd=False)
        reply = team.client("owner").ask("POST", "/api/v1/frames", body, {"Content-Type": wire.FRAMES_TYPE})
        assert reply.status == 200, reply.body

    runs = team.server.config.runs
    assert all(re.fullmatch("[0-9a-f]{16}", path.relative_to(runs).parts[0]) for path in runs.rglob("*.ttj"))
    after = canaries(team)
    assert {path: after[path] for path in before} == before
    assert not list(team.server.config.data.parent.glob("evil*"))


def test_s05_other_sites_get_no_say(team: Team) -> None:
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    preflight = team.client("owner").ask("OPTIONS", "/api/v1/views", None, headers)
    assert not [name for name in preflight.headers if name.startswith("access-control")]
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        body = json.dumps({"project": "llm", "name": "forged", "content": {}}).encode()
        reply = team.client("owner").ask("POST", "/api/v1/views", body, {"Content-Type": kind})
        assert reply.status in (400, 415, 422), kind
    assert team.json("GET", "/views?project=llm", "owner") == []


def test_s05_pages_run_nothing_but_the_servers_own_scripts(team: Team) -> None:
    policy = team.server.client().ask("GET", "/").headers["content-security-policy"]
    said = dict(part.strip().split(" ", 1) for part in policy.split(";"))

    assert said["default-src"] == said["style-src"] == "'self'"
    assert "script-src" not in said
    assert "unsafe" not in policy
    assert said["object-src"] == said["base-uri"] == said["form-action"] == said["frame-ancestors"] == "'none'"


@pytest.mark.parametrize(
    "ranges", ["bytes=0-", "bytes=-1", "bytes=9-1", "bytes=a-b", "bytes=" + ",".join(["0-8"] * 5000), "bytes=0-0," * 9]
)
def test_s07_a_file_that_was_uploaded_is_saved_never_shown_and_asked_for_in_pieces_harms_nobody(
    team: Team, ranges: str
) -> None:
    content = b"<script>1</script>" * 10
    place = f"/runs/{MINE}/files/{'cd' * 8}-0.ttb"
    digest = hashlib.sha256(content).hexdigest()
    sent = team.client("write").ask("PUT", f"/api/v1{place}?sha256={digest}", content)
    assert sent.status in (200, 201), sent.body
    reply = team.ask("GET", place, "read", None, Range=ranges)
    whole = team.ask("GET", place, "read")

    assert reply.status in (200, 206, 400, 416)
    assert len(reply.body) < 10_000
    assert whole.body == content
    assert whole.headers["content-disposition"].startswith("attachment")
    assert (whole.headers["x-content-type-options"], whole.headers["content-security-policy"]) == ("nosniff", "sandbox")


def test_s09_no_archive_is_ever_unpacked() -> None:
    assert mentioned(r"\b(tarfile|zipfile|unpack_archive)\b", source.PACKAGE) == set()


def test_s10_a_small_request_takes_no_large_memory(server: Running, team: Team) -> None:
    bomb = frame.zstd(bytes(64 << 20))
    assert len(bomb) < 100_000
    head = {"Content-Type": wire.FRAMES_TYPE, "Content-Encoding": "zstd"}
    reply = server.client().ask("POST", "/api/v1/frames", bomb, head)
    assert reply.status == 413, reply.body
    nested = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    for path in ("/views", "/projects/llm/runs/query", "/series"):
        kind = {"Content-Type": "application/json"}
        assert team.client("owner").ask("POST", f"/api/v1{path}", nested, kind).status in (400, 422)
        assert team.client("owner").ask("POST", f"/api/v1{path}", bytes(5 << 20), kind).status == 413


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of memory is read from /proc")
def test_s10_what_would_be_large_unpacked_is_not_unpacked(server: Running) -> None:
    bomb = frame.zstd(bytes(512 << 20))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    head = {"Content-Type": wire.FRAMES_TYPE, "Content-Encoding": "zstd"}

    assert server.client().ask("POST", "/api/v1/frames", bomb, head).status == 413

    assert resident("VmHWM") - before < 128 << 20


def test_s10_who_sends_a_request_byte_by_byte_holds_up_nobody(server: Running) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    begun = f"POST /api/v1/frames HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {server.key}\r\n"
    with contextlib.ExitStack() as held:
        for number in range(200):
            connection = held.enter_context(socket.create_connection((host, int(port)), timeout=30))
            in_the_body = f"{begun}Content-Length: 1000\r\n\r\nx"
            connection.sendall((begun if number % 2 else in_the_body).encode())

        assert server.client().ask("GET", "/api/v1/handshake", b"", {}).status == 200


def test_s10_a_body_that_is_shorter_or_longer_than_it_says_is_none(server: Running) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    for said, sent in ((10, b"x" * 5), (1 << 40, b"x")):
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            head = f"POST /api/v1/frames HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {server.key}\r\n"
            connection.sendall(f"{head}Content-Length: {said}\r\n\r\n".encode() + sent)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.makefile("rb").read()
        assert not answer or answer.split()[1] in (b"400", b"413"), answer[:100]


INJECTIONS = [
    "'; DROP TABLE streams; --",
    "' OR 1=1 --",
    "') UNION ALL SELECT * FROM file('/etc/passwd') --",
    "url('http://127.0.0.1/')",
    "{uid:String}",
    "\\'",
    "a\x00b",
    "`x`",
    "%' OR '%'='",
]


@pytest.mark.parametrize("text", INJECTIONS)
def test_s12_what_people_type_is_never_sql(team: Team, text: str) -> None:
    asked: list[tuple[str, str, Any]] = [
        ("POST", "/series", {"items": [{"run": MINE, "metric": text}]}),
        ("POST", "/series", {"items": [{"run": text, "metric": "llm/loss"}]}),
        ("POST", "/heatmap", {"run": MINE, "kind": text, "name": text}),
        ("POST", "/histogram", {"run": MINE, "kind": text, "name": text, "at": 1}),
        ("POST", "/projects/-/runs/query", {"filter": text}),
        ("POST", "/projects/-/runs/query", {"filter": f"name = {json.dumps(text)}", "sort": [text], "group": [text]}),
        ("GET", f"/runs/{MINE}/history?keys={quote(text)}", None),
        ("GET", f"/runs/{MINE}/tensors?kind={quote(text)}&name={quote(text)}", None),
        ("GET", f"/runs/{MINE}/logs?q={quote(text)}", None),
        ("GET", f"/projects/llm/keys?q={quote(text)}", None),
    ]
    for method, path, body in asked:
        reply = team.ask(method, path, "owner", body)
        assert reply.status in (200, 400, 404, 422), (method, path, reply.body)
        assert b"root:" not in reply.body
    assert len(team.json("GET", "/projects", "owner")) >= 2


class _Elsewhere(http.server.BaseHTTPRequestHandler):
    """Sends whoever asks to another place, and remembers who came there."""

    came: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        if self.path.startswith("/there"):
            self.came.append(self.headers.get("Authorization", ""))
        self.send_response(307)
        self.send_header("Location", f"http://localhost:{self.connection.getsockname()[1]}/there")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET  # noqa: N815

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def listening(
    handler: type[http.server.BaseHTTPRequestHandler], context: ssl.SSLContext | None = None
) -> Iterator[int]:
    server = http.server.HTTPServer(("127.0.0.1", 0), handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_s13_no_client_carries_its_key_to_where_it_is_sent_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHTRACK_API_KEY", "tt_canary")
    _Elsewhere.came.clear()
    with listening(_Elsewhere) as port:
        url = f"http://127.0.0.1:{port}"
        uploader = Http(url, lambda: "tt_canary")
        assert uploader.ask("POST", "/api/v1/frames", b"x").status == 307
        uploader.close()
        with pytest.raises(ServerError, match="307"):
            Api(url).runs()

    assert _Elsewhere.came == []


def test_s13_the_server_itself_calls_nobody_but_whom_its_operator_named() -> None:
    callers = mentioned(r"\b(urllib3|requests\.|aiohttp|urllib\.request|httpx|OAuth2Client|import apprise)\b", SERVER)

    inside = {"front.py", "offline.py"}  # a socket of its own; the routes themselves
    assert callers <= inside | {"oidc.py", "delivery.py"}


def test_s14_no_key_lies_in_what_the_server_keeps(team: Team) -> None:
    team.ask("GET", f"/runs/{MINE}?token={team.keys['owner']}", None)
    read = 0
    for path in team.server.config.data.rglob("*"):
        if path.is_file() and path.name != "token":
            with contextlib.suppress(FileNotFoundError):  # the engine at work merges its files
                data = path.read_bytes()
                read += 1
                assert [name for name, key in team.keys.items() if key.encode() in data] == [], path

    assert read > 10


def test_s14_addresses_with_passwords_stand_on_no_command_line(team: Team) -> None:
    process = team.server.app.state.worker.engine.process
    command = Path(f"/proc/{process.pid}/cmdline")
    if not command.exists():
        pytest.skip("not run: no /proc here")

    assert b"--runs" in command.read_bytes()
    assert b"sqlite:" not in command.read_bytes()


def test_s15_whatever_the_umask_only_the_user_of_the_server_reads_its_files(tmp_path: Path, team: Team) -> None:
    umask = os.umask(0)
    try:
        Running(Config(data=tmp_path / "data", queries=False)).stop()
    finally:
        os.umask(umask)
    open_ = {
        path: oct(stat.S_IMODE(path.stat().st_mode))
        for folder in (tmp_path / "data", team.server.config.data)
        for path in (folder, *folder.rglob("*"))
        if path.name != "canary" and not path.is_symlink() and path.stat().st_mode & 0o077
    }

    assert open_ == {}


class _Quiet(http.server.BaseHTTPRequestHandler):
    came: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.came.append(self.path)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *args: object) -> None:
        pass


def test_s16_a_certificate_that_nobody_vouches_for_gets_no_key(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_self_signed(tmp_path))
    _Quiet.came.clear()
    with listening(_Quiet, context) as port:
        client = Http(f"https://127.0.0.1:{port}", lambda: "tt_canary")
        with pytest.raises(UnreachableError, match="TLS"):
            client.ask("POST", "/api/v1/frames", b"x")
        client.close()

    assert _Quiet.came == []


def _self_signed(folder: Path) -> Path:
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = builder.add_extension(address, critical=False).sign(key, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "both.pem"
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


def test_s19_what_people_type_breaks_no_line_of_a_log_or_a_header(team: Team) -> None:
    for bad in ("a\r\nSet-Cookie: x=1", "\x1b[2J", "a\x00"):
        assert team.ask("POST", "/users", "owner", {"name": bad}).status == 422
        assert team.ask("POST", "/keys", "owner", {"name": bad, "scope": "read"}).status == 422
        reply = team.ask("GET", f"/runs/{quote(bad)}", "owner")
        assert reply.status in (404, 405)
        assert "set-cookie" not in reply.headers


def test_s20_a_run_of_another_project_is_as_one_that_is_not_there(team: Team) -> None:
    nobody = "cccc000011112222"
    stream = team.streams[THEIRS].stem[-16:]
    media = f"/media/{hashlib.sha256(b'theirs').hexdigest()}"
    assert team.client("other").ask("PUT", f"/api/v1/runs/{THEIRS}{media}", b"theirs").status == 201

    def answers(uid: str, stream: str) -> list[tuple[int, bytes]]:
        asked: list[tuple[str, str, Any]] = [
            *(("GET", f"/runs/{uid}{more}", None) for more in ("", "/findings", "/logs", "/history", "/files", media)),
            *(("GET", f"/runs/{uid}{more}", None) for more in ("/media", "/artifacts", "/kept", "/saved/train.py")),
            ("GET", f"/runs/{uid}/contents/{media[-64:]}/w", None),
            ("GET", f"/runs/{uid[:8]}", None),
            ("GET", f"/compare?runs={uid},{MINE}", None),
            ("GET", f"/streams/{stream}/scalars", None),
            ("POST", "/series", {"items": [{"run": uid, "metric": "secret/loss"}]}),
            ("POST", "/heatmap", {"run": uid}),
            ("POST", "/logged/names", {"runs": [MINE, uid]}),
            ("POST", "/logged/steps", {"runs": [MINE, uid], "name": "samples"}),
            ("POST", "/logged", {"runs": [MINE, uid], "name": "samples"}),
            ("POST", "/histogram", {"run": uid}),
            ("PATCH", f"/runs/{uid}", {"notes": "x"}),
            ("POST", "/runs/bulk", {"uids": [uid], "changes": {"notes": "x"}}),
            ("DELETE", f"/runs/{uid}", None),
            ("POST", f"/runs/{uid}/restore", None),
        ]
        found = []
        for method, path, body in asked:
            reply = team.ask(method, path, "write", body)
            text = reply.body.replace(uid.encode(), b"UID").replace(uid[:8].encode(), b"UID")
            found.append((reply.status, text.replace(stream.encode(), b"STREAM")))
        return found

    theirs = answers(THEIRS, stream)
    assert theirs == answers(nobody, "0" * 16)
    assert {status for status, _ in theirs} == {404}
    assert b"secret" not in b"".join(text for _, text in theirs)


def test_s20_nobody_has_files_of_another_project_given_to_a_run_of_theirs(team: Team) -> None:
    content = b"a secret that somebody knows the digest of"
    name = hashlib.sha256(content).hexdigest()
    assert team.client("other").ask("PUT", f"/api/v1/runs/{THEIRS}/media/{name}", content).status == 201
    asked = {"sha256": [name], "from": THEIRS}

    assert team.json("POST", f"/runs/{MINE}/media/missing", "write", asked) == {"missing": [name]}
    assert team.ask("GET", f"/runs/{MINE}/media/{name}", "write").status == 404
    assert team.ask("POST", f"/runs/{MINE}/media/missing", "write", {**asked, "from": "../x"}).status == 400


def test_s20_nobody_adds_to_the_artifacts_of_another_project(team: Team, tmp_path: Path) -> None:
    uid, name = "abcd000011112222", "a" * 64
    with RankJournal(tmp_path / "local", uid, project="llm") as rank:
        rank.about(name="forger", project="llm")
        for project in ("llm", "secret"):
            about = {"name": f"{project}/model:v0", "digest": project, "contents": name, "aliases": ["best"]}
            rank.event("artifact", {"action": "logged", **about})
    assert team.send(next((tmp_path / "local" / uid).glob("*/*.ttj")), "write").status == 200
    until(lambda: team.json("GET", "/artifacts?project=llm", "owner"), 60)

    assert [each["run"] for each in team.json("GET", "/artifacts?project=llm&name=model", "write")] == [uid]
    assert team.json("GET", "/artifacts?project=secret", "owner") == []
    assert team.ask("DELETE", f"/runs/{uid}", "owner").status in (200, 204)
    assert team.json("GET", "/artifacts?project=llm", "owner") == []


def test_s20_lists_and_news_leave_out_other_projects(team: Team) -> None:
    told = [
        team.ask("GET", path, "write").body
        for path in (
            *("/projects", "/projects/secret/keys", "/projects/-/keys", "/streams", "/live?poll=0", "/keys"),
            *("/projects/secret/alarms", "/projects/-/alarms", "/artifacts?project=secret", "/artifacts?project=llm"),
        )
    ]
    told.append(team.ask("POST", "/projects/-/runs/query", "write", {}).body)
    told.append(team.ask("POST", "/projects/secret/runs/query", "write", {}).body)
    everything = b"".join(told)

    assert MINE.encode() in everything
    assert THEIRS.encode() not in everything
    assert b"secret" not in everything
