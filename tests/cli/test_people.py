"""`torchtrack keys`, `users` and `audit` against a server on loopback, and what their keys are good for."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from tests.api.journals import RankJournal
from tests.server.running import Running
from torchtrack.cli import main


def call(line: str, text: str | None = None, code: int = 0) -> str:
    done = CliRunner(env={"COLUMNS": "200"}).invoke(main, line.split(), input=text)
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.output


def test_a_team_is_set_up_without_the_page(server: Running, tmp_path: Path) -> None:
    assert "editor in llm" in call("users add ann --role editor --project llm")
    assert "there is a user 'ann' already" in call("users add ann", code=1)
    key = call("keys create laptop --user ann --scope write").strip()
    call("keys create cluster --scope write --project llm --expires 90")
    assert key not in call("keys list")
    by_name = {each["name"]: each for each in json.loads(call("keys list --json"))}
    assert (by_name["laptop"]["person"], by_name["cluster"]["project"]) == ("ann", "llm")

    assert "ann (laptop) (editor of llm)" in call(f"login {server.url}", text=key)
    with RankJournal(tmp_path / "runs", project="llm") as rank:
        rank.log(0, {"loss": 1.0})
    assert "checksums agree" in call("sync")
    with RankJournal(tmp_path / "runs", "b" * 16, project="vision") as rank:
        rank.log(0, {"loss": 1.0})
    assert "the run is of project 'vision', and this key may write 'llm'" in call("sync", code=1)
    assert "ask an admin for a role or key" in call("users list", code=1)

    assert "logged in" in call(f"login {server.url}", text=server.key)
    assert "ann: editor in llm" in call("users list")
    call("users role ann viewer")
    assert "viewer in all projects" in call("users list")
    call("users role ann none")
    call("users disable ann")
    assert "ann (disabled)" in call("users list")
    assert "nothing was kept" in call(f"login {server.url}", text=key, code=1)
    call("users enable ann")
    assert "is 0 keys" in call("keys revoke nothing", code=1)
    assert "revoked" in call("keys revoke laptop")
    assert "revoked" in call("keys list --all")
    call("users remove ann")
    assert "no user 'ann'; there are none yet" in call("users role ann viewer", code=1)
    told = [line["action"] for line in json.loads(call("audit --json"))]
    assert told[:3] == ["user.remove", "key.revoke", "user.enable"]
    assert "user.add  ann in llm" in call("audit")


def test_without_a_server_each_says_what_to_do(tmp_path: Path) -> None:
    assert "torchtrack login" in call("keys list", code=1)
    assert "--project needs a --role" in call("users add ann --project llm", code=2)
