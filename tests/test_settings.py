"""Arguments of init() and environment variables: which wins, what is refused, and what the message says."""

from __future__ import annotations

import os
from collections import UserDict
from pathlib import Path
from typing import Any

import pytest

from torchtrack import credentials
from torchtrack.settings import ENVIRONMENT, Settings, environment_config


def test_nothing_given_is_the_documented_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ENVIRONMENT.values():
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    settings = Settings.resolve()

    assert (settings.project, settings.mode, settings.resume) == ("uncategorized", "offline", "auto")
    assert settings.dir == tmp_path / "torchtrack-runs"
    assert (settings.strict, settings.console, settings.sidecar, settings.live_findings) == (False, False, True, True)
    assert (settings.finish_timeout, settings.system_interval) == (10.0, 10.0)


VARIABLES: dict[str, tuple[str, Any, Any, Any]] = {
    # setting: text of the variable, what it means, an argument, what that means
    "project": ("env", "env", "arg", "arg"),
    "name": ("env name", "env name", "arg name", "arg name"),
    "id": ("env-id", "env-id", "arg-id", "arg-id"),
    "config": ('{"a": 1}', {"a": 1}, {"b": 2}, {"b": 2}),
    "group": ("env", "env", "arg", "arg"),
    "tags": ("a, b,,a", ("a", "b"), ["c"], ("c",)),
    "dir": ("/env", Path("/env"), "/arg", Path("/arg")),
    "mode": ("disabled", "disabled", "offline", "offline"),
    "url": ("http://[::1]:1/", "http://[::1]:1", "https://a.example", "https://a.example"),
    "api_key": ("tt_env", "tt_env", "tt_arg", "tt_arg"),
    "sidecar": ("off", False, True, True),
    "live_findings": ("0", False, True, True),
    "sinks": ("tensorboard, mlflow", ("tensorboard", "mlflow"), "wandb", ("wandb",)),
    "alert_urls": ("json://a, /b.yml", ("json://a", "/b.yml"), "json://c", ("json://c",)),
}


def test_every_environment_variable_is_tested_here() -> None:
    assert VARIABLES.keys() == ENVIRONMENT.keys()


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_an_argument_wins_over_its_variable_which_wins_over_the_default(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, meaning, argument, wanted = VARIABLES[name]
    monkeypatch.setenv(ENVIRONMENT[name], text)

    assert getattr(Settings.resolve(), name) == meaning
    assert getattr(Settings.resolve(**{name: argument}), name) == wanted
    monkeypatch.setenv(ENVIRONMENT[name], "")
    assert getattr(Settings.resolve(), name) != meaning


def test_addresses_of_alerts_are_in_no_text_of_the_settings_nor_in_an_error() -> None:
    assert "json://" not in repr(Settings.resolve(alert_urls="json://token"))
    with pytest.raises(ValueError, match="characters") as raised:
        Settings.resolve(alert_urls=["json://token", ""])
    assert "token" not in str(raised.value)


def test_runs_are_sent_where_a_server_is_known_unless_offline_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.resolve().mode == "offline"
    credentials.keep("http://127.0.0.1:1", "tt_kept")
    logged_in = Settings.resolve()
    monkeypatch.setenv("TORCHTRACK_URL", "https://other.example")

    assert (logged_in.mode, logged_in.url, logged_in.api_key) == ("online", "http://127.0.0.1:1", "tt_kept")
    assert (Settings.resolve().url, Settings.resolve().api_key) == ("https://other.example", None)
    assert Settings.resolve(mode="offline").mode == "offline"
    assert "tt_kept" not in repr(logged_in)


@pytest.mark.parametrize(("text", "on"), [("0", False), ("False", False), ("no", False), ("1", True), ("true", True)])
def test_the_sidecar_variable_is_read_as_people_write_it(text: str, on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHTRACK_SIDECAR", text)

    assert Settings.resolve().sidecar is on


TYPES = [
    ("project", 3, "project= takes a string, got int 3"),
    ("name", ["a"], "name= takes a string, got list"),
    ("id", b"x", "id= takes a string, got bytes"),
    ("group", 1.5, "group= takes a string, got float 1.5"),
    ("job_type", {}, "job_type= takes a string, got dict"),
    ("notes", 1, "notes= takes a string, got int 1"),
    ("tags", 5, "tags= takes a list of strings, got 5"),
    ("tags", ["a", 1], "tags= takes a list of strings, got"),
    ("dir", 7, "dir= takes a path, got int 7"),
    ("alert_urls", ["json://a", 7], "alert_urls= takes a list of URLs"),
    ("url", 7, "url= takes the address of a server, got int 7"),
    ("api_key", 7, "api_key= takes a string"),
    ("strict", 1, "strict= takes True or False, got int 1"),
    ("console", "yes", "console= takes True or False, got str 'yes'"),
    ("sidecar", "yes", "sidecar= takes True or False, got str 'yes'"),
    ("finish_timeout", "10", "finish_timeout= takes seconds, got str '10'"),
    ("finish_timeout", True, "finish_timeout= takes seconds, got bool True"),
    ("system_interval", [], "system_interval= takes seconds, got list"),
    ("mesh", ["dp"], "mesh= takes coordinates like"),
    ("mesh", {"dp": "0"}, "mesh= takes coordinates like"),
    ("mesh", {0: 0}, "mesh= takes coordinates like"),
    ("colour", "red", "init() got the unknown argument 'colour'; it takes alert_findings, alert_urls, api_key"),
]
VALUES = [
    ("project", "", "project= takes a string of 1 to 256 characters, got ''"),
    ("project", " ", "1 to 256 characters"),
    ("project", "x" * 257, "(257 characters)"),
    ("project", "a/b", "project= must not hold '/', since runs are named project/id; got 'a/b'"),
    ("id", "a/b", "id= must not hold '/'"),
    ("name", "", "name= takes a string of 1 to 256"),
    ("dir", "", "dir= takes the path of a folder, got ''"),
    ("dir", "a\0b", "dir= takes the path of a folder"),
    ("mode", "of", "mode= takes one of 'offline', 'online', 'disabled'; got 'of'"),
    ("mode", "online", "mode= got 'online', but no server is known: give url=, set TORCHTRACK_URL, or use torchtrack"),
    ("url", "host", "a server is given as https://host"),
    ("url", "ftp://host", "a server is given as https://host"),
    ("url", "https://user:word@host", "holds no user, password"),
    ("url", "http://a.example", "http://a.example is not encrypted"),
    ("api_key", " ", "api_key= takes a key as the server gave it"),
    ("mode", 3, "mode= takes one of"),
    ("alert_urls", ["json://" + "x" * 3000], "together at most 2500 characters"),
    ("alert_findings", "bad", "alert_findings= takes one of 'info', 'warning', 'critical', 'none'; got 'bad'"),
    ("resume", "yes", "resume= takes one of 'auto', 'must', 'allow', 'never'; got 'yes'"),
    ("finish_timeout", -1, "finish_timeout= takes seconds, zero or more, got -1"),
    ("finish_timeout", float("nan"), "zero or more, got nan"),
    ("system_interval", float("inf"), "zero or more, got inf"),
]


@pytest.mark.parametrize(("name", "value", "message"), TYPES)
def test_a_wrong_type_says_what_was_passed_and_what_is_taken(name: str, value: Any, message: str) -> None:
    with pytest.raises(TypeError) as raised:
        Settings.resolve(**{name: value})

    assert message in str(raised.value)


@pytest.mark.parametrize(("name", "value", "message"), VALUES)
def test_a_wrong_value_says_what_was_passed_and_what_is_taken(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError) as raised:
        Settings.resolve(**{name: value})

    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("TORCHTRACK_MODE", "on", "TORCHTRACK_MODE takes one of"),
        ("TORCHTRACK_PROJECT", "a/b", "TORCHTRACK_PROJECT must not hold"),
        ("TORCHTRACK_RUN_ID", "x" * 300, "TORCHTRACK_RUN_ID takes a string of 1 to 256"),
        ("TORCHTRACK_CONFIG", "{lr: 1}", "TORCHTRACK_CONFIG is not JSON"),
        ("TORCHTRACK_CONFIG", "[1]", "TORCHTRACK_CONFIG is the JSON value '[1]'; it has to be an object"),
    ],
)
def test_a_wrong_variable_is_named_in_the_message(
    variable: str, text: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(ValueError) as raised:
        Settings.resolve()

    assert message in str(raised.value)


def test_a_wrong_config_variable_is_found_beside_an_argument_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHTRACK_CONFIG", "{")
    with pytest.raises(ValueError, match="TORCHTRACK_CONFIG is not JSON"):
        Settings.resolve(config={"a": 1})


def test_the_config_variable_is_a_dict(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment_config() == {}
    monkeypatch.setenv("TORCHTRACK_CONFIG", '{"lr": 0.1, "nested": {"a": [1]}}')
    assert environment_config() == {"lr": 0.1, "nested": {"a": [1]}}


def test_one_tag_is_a_list_of_one_and_repeats_are_dropped() -> None:
    assert Settings.resolve(tags="one").tags == ("one",)
    assert Settings.resolve(tags=("a", "b", "a")).tags == ("a", "b")


def test_any_mapping_is_a_mesh() -> None:
    assert Settings.resolve(mesh=UserDict({"dp": 3})).mesh == {"dp": 3}


def test_the_home_folder_is_understood_and_a_path_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    assert Settings.resolve(dir="~/runs").dir == tmp_path / "runs"
    assert Settings.resolve(dir="runs").dir == tmp_path / "runs"
    assert Settings.resolve(dir="~nobody-of-this-name/runs").dir.parts[-1] == "runs"


def test_a_working_folder_that_is_gone_raises_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TORCHTRACK_DIR")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    try:
        assert Settings.resolve().dir == Path("torchtrack-runs")
    finally:
        os.chdir(tmp_path)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Settings.resolve().project = "other"  # type: ignore[misc]
