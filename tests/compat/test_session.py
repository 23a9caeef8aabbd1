"""Calls about the process: lines in the terminal, keys of servers, settings of their own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import torchtrack
from tests.runs import begin, finished
from torchtrack import credentials

wandb: Any = torchtrack


def test_a_line_may_go_without_its_end_its_beginning_and_its_repetition(capsys: pytest.CaptureFixture[str]) -> None:
    wandb.termlog("one", newline=False)
    wandb.termwarn(" two", prefix=False)
    wandb.termlog("one", repeat=False)
    wandb.termlog("three", repeat=False)
    wandb.termlog("three", repeat=False)

    assert capsys.readouterr().err == "torchtrack: one two\ntorchtrack: three\n"


def test_a_key_that_a_server_does_not_answer_for_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[str] = []
    monkeypatch.setattr("torchtrack.credentials.keep", lambda _, key: kept.append(key))
    monkeypatch.setattr("torchtrack.api.remote._TRIES", 0)
    with pytest.raises(wandb.CommError, match="does not answer"):
        wandb.login(key="tt_key", host="http://127.0.0.1:1", verify=True)

    assert kept == []


def test_a_config_of_its_own_is_no_runs() -> None:
    config = wandb.Config()
    config.update({"lr": 0.1})
    config.epochs = 3

    assert dict(config) == {"lr": 0.1, "epochs": 3}


def test_what_an_artifact_is_used_as_is_recorded() -> None:
    run: Any = begin()
    for use_as, own in (("teacher", "ignored"), (None, "student")):
        artifact = wandb.Artifact(f"model-{own}", "model", use_as=own)
        with artifact.new_file("w") as file:
            file.write(own)
        run.log_artifact(artifact)
        run.use_artifact(f"model-{own}:latest", use_as=use_as)
    used = [event.data["use_as"] for event in finished(run).events("artifact") if event.data["action"] == "used"]

    assert used == ["teacher", "student"]


def test_what_a_script_requires_is_checked() -> None:
    torchtrack.require("core")
    torchtrack.require(experiment=["service", "core@1"])
    with pytest.raises(torchtrack.TorchtrackError, match="no such requirement; require, service, core are met"):
        torchtrack.require("teleport")


def test_settings_that_are_wrong_are_said_without_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    torchtrack.ensure_configured()
    monkeypatch.setenv("TORCHTRACK_MODE", "sometimes")
    with pytest.raises(ValueError, match="TORCHTRACK_MODE takes one of"):
        torchtrack.ensure_configured()


@pytest.mark.parametrize(
    ("kept", "arguments", "asked"),
    [
        (None, {}, False),
        (None, {"prompt": True}, True),
        ("old", {"prompt": True}, False),
        ("old", {"relogin": True}, True),
        ("old", {"relogin": True, "key": "given"}, False),
    ],
)
def test_a_key_is_asked_for_only_if_that_is_wanted_at_a_terminal(
    kept: str | None, arguments: dict[str, Any], asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, prompts = "http://127.0.0.1:9", list[str]()
    monkeypatch.setenv("TORCHTRACK_URL", url)

    def typed(text: str) -> str:
        prompts.append(text)
        return "typed"

    monkeypatch.setattr("getpass.getpass", typed)
    if kept:
        credentials.keep(url, kept)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False))
    torchtrack.login(host=url, **arguments)
    assert prompts == []
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    torchtrack.login(host=url, **arguments)

    assert prompts == ([f"API key of {url}: "] if asked else [])
    assert credentials.key_for(url) == ("typed" if asked else arguments.get("key", kept))


def test_where_a_script_came_from_is_in_the_address_where_keys_are_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHTRACK_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("getpass.getpass", lambda _: "typed")
    torchtrack.login(host="http://127.0.0.1:9", relogin=True, referrer="a blog & more")
    torchtrack.login(host="http://127.0.0.1:9", relogin=True)

    assert capsys.readouterr().err.splitlines() == [
        "torchtrack: keys are made at http://127.0.0.1:9/?ref=a+blog+%26+more#/settings",
        "torchtrack: keys are made at http://127.0.0.1:9/#/settings",
    ]


def test_a_job_elsewhere_is_given_address_and_key_in_a_file_for_its_user_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="torchtrack login"):
        torchtrack.sagemaker_auth(path=str(tmp_path))
    credentials.keep("https://tracks.example", "tt_key")
    torchtrack.sagemaker_auth({"A": "b", "TORCHTRACK_URL": "https://tracks.example"}, str(tmp_path))
    file = tmp_path / "secrets.env"

    assert file.read_text() == "TORCHTRACK_URL=https://tracks.example\nTORCHTRACK_API_KEY=tt_key\nA=b\n"
    assert file.stat().st_mode & 0o777 == 0o600
