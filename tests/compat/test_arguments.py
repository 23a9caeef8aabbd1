"""Arguments in wandb's words."""

from __future__ import annotations

import json
import logging
import types
from pathlib import Path
from typing import Any

import pytest

import torchtrack
from tests.runs import column, finished
from torchtrack.compat import said


def begin(**arguments: Any) -> Any:
    """A run begun by a script that imported torchtrack as wandb."""
    caller: dict[str, Any] = {"wandb": torchtrack, "arguments": {"system_interval": 0, **arguments}}
    code = types.FunctionType(compile("wandb.init(**arguments)", "script", "eval"), caller)
    return code()


def test_what_is_ignored_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    begin(entity="team", anonymous="allow", force=True, mode="disabled")
    begin(entity="team", mode="disabled", reinit=True)
    lines = capsys.readouterr().err.splitlines()

    assert [line for line in lines if "ignores" in line] == [
        f"torchtrack: init() ignores {name}=" for name in ("entity", "anonymous", "force")
    ]


def test_only_rank_0_says_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    said.ignored("init()", "entity")

    assert capsys.readouterr().err == ""


def test_an_argument_nobody_has_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'projct'"):
        torchtrack.init(projct="x")


def test_online_without_a_server_records_here_for_a_script_of_wandb_only() -> None:
    run = begin(mode="online")
    run.finish(quiet=True)

    assert run.settings.mode == "offline"
    with pytest.raises(ValueError, match="no server is known"):
        torchtrack.init(mode="online")


def test_empty_texts_are_not_given() -> None:
    run = begin(project="", name="", id="", group="", mode="disabled")

    assert (run.project, run.group) == ("uncategorized", None)


def test_a_second_init_gives_the_active_run_unless_it_is_told_to_begin_another() -> None:
    first = begin()
    again = begin()
    second = begin(reinit=True)
    beside = begin(reinit="create_new")
    states = (again is first, first._finished, second._finished, beside is second)
    for run in (second, beside):
        run.finish(quiet=True)

    assert states == (True, True, False, False)


def test_two_runs_beside_each_other_keep_their_values_apart() -> None:
    first = begin(id="one")
    second = begin(id="two", reinit="create_new")
    first.log({"x": 1.0})
    second.log({"x": 2.0})

    assert (column(finished(second), "x"), column(finished(first), "x")) == ([2.0], [1.0])


def test_config_keys_can_be_chosen() -> None:
    config = {"a": 1, "b": 2, "c": 3}
    only = begin(config=config, config_include_keys=["a", "b"], config_exclude_keys=["b"], mode="disabled")

    assert only.config.as_dict() == {"a": 1}


def test_a_config_can_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"lr": {"desc": "rate", "value": 0.1}, "n": 2}))

    assert begin(config=str(path), entity="me", mode="disabled").config.as_dict() == {"lr": 0.1, "n": 2}


def test_settings_become_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    settings = torchtrack.Settings(project="p", run_name="n", x_disable_stats=True, console="off", start_method="fork")
    run = torchtrack.init(settings=settings, mode="disabled")

    assert (run.project, run.name, run.settings.system_interval, run.settings.console) == ("p", "n", 0.0, False)
    assert "no meaning here: start_method" in capsys.readouterr().err


def test_an_argument_wins_over_settings() -> None:
    run = torchtrack.init(project="mine", settings=torchtrack.Settings(project="theirs"), mode="disabled")

    assert run.project == "mine"


def test_a_run_goes_on_from_a_step_and_hides_what_it_logs_again() -> None:
    first = begin(id="r")
    for step in range(6):
        first.log({"x": float(step)})
    first.finish(quiet=True)
    second = begin(resume_from="r?_step=2")
    second.log({"x": 10.0})
    second.log({"x": 11.0})

    assert (second.starting_step, second.attempt) == (3, 2)
    assert finished(second).history("x").to_pydict()["x"] == [0.0, 1.0, 2.0, 10.0, 11.0]


def test_a_run_that_goes_on_from_a_step_takes_back_what_it_does_not_log_again() -> None:
    first = begin(id="r")
    for step in range(6):
        first.log({"x": float(step), "val": float(step)})
    first.finish(quiet=True)
    second = begin(resume_from="r?_step=2")
    second.log({"x": 10.0})

    assert finished(second).history("val").to_pydict()["val"] == [0.0, 1.0, 2.0]


def test_a_fork_names_its_parent() -> None:
    run = begin(fork_from="parent?_step=7", config={"a": 1}, mode="disabled")

    assert run.config.as_dict() == {"a": 1, "forked_from": {"id": "parent", "step": 7}}


@pytest.mark.parametrize("argument", [{"resume_from": "r"}, {"fork_from": 3}, {"reinit": "maybe"}])
def test_a_malformed_argument_says_what_it_takes(argument: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="takes"):
        begin(**argument)


def test_no_resuming_is_a_new_run() -> None:
    first = begin(resume=False)
    first.finish(quiet=True)
    second = begin(resume=False)
    second.finish(quiet=True)

    assert first.uid != second.uid


def test_the_script_is_kept_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "train.py"
    script.write_text("pass")
    monkeypatch.setattr("__main__.__file__", str(script), raising=False)
    run = begin(save_code=True)
    run.finish(quiet=True)

    assert (Path(run.dir) / "files" / "code" / "train.py").read_text() == "pass"


def test_variables_of_wandb_are_read_where_ours_are_not_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    theirs = {
        "PROJECT": "p",
        "NAME": "n",
        "RUN_ID": "i",
        "RUN_GROUP": "g",
        "JOB_TYPE": "j",
        "NOTES": "t",
        "TAGS": "a,b",
    }
    for name, value in theirs.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_RESUME", "allow")
    monkeypatch.setenv("TORCHTRACK_PROJECT", "ours")
    monkeypatch.delenv("TORCHTRACK_DIR")
    settings = torchtrack.init(mode=None, system_interval=0)
    settings.finish(quiet=True)
    found = settings.settings

    assert (found.project, found.name, found.id, found.group) == ("ours", "n", "i", "g")
    assert (found.job_type, found.notes, found.tags, found.mode) == ("j", "t", ("a", "b"), "offline")
    assert (found.dir, found.resume) == (tmp_path / "torchtrack-runs", "allow")


def test_a_variable_of_wandb_that_is_not_allowed_here_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "team/p")
    monkeypatch.setenv("WANDB_NAME", "n" * 300)
    monkeypatch.setenv("WANDB_MODE", "online")
    run = torchtrack.init(mode="disabled")

    assert (run.project, run.settings.name) == ("uncategorized", None)


@pytest.mark.parametrize(("name", "value"), [("WANDB_MODE", "disabled"), ("WANDB_DISABLED", "true")])
def test_a_variable_of_wandb_turns_recording_off(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)

    assert torchtrack.init().disabled


def test_a_key_of_wandb_is_never_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "https://api.wandb.ai")

    assert torchtrack.login(key="k" * 40)
    assert torchtrack.login(key="k" * 40, host="https://api.wandb.ai")
    run = torchtrack.init(mode="disabled")
    assert (run.settings.api_key, run.settings.url) == (None, None)
    assert not (tmp_path / "config").exists()


def test_login_keeps_a_key_for_a_server_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHTRACK_URL", "http://127.0.0.1:1")
    torchtrack.login(key="tt_key", host="http://127.0.0.1:1")

    assert torchtrack.init(mode=None, sidecar=False, finish_timeout=0.2).settings.api_key == "tt_key"
    torchtrack.finish(quiet=True)


def test_define_metric_takes_wandbs_arguments() -> None:
    run = begin()
    run.define_metric("loss", step_metric="epoch", step_sync=False, hidden=True, summary="min,max", overwrite=True)
    run.define_metric("acc", summary="copy")
    for value in (3.0, 1.0, 2.0):
        run.log({"loss": value, "acc": value})
    recorded = finished(run)

    assert (recorded.summary["loss"], recorded.summary["acc"]) == (1.0, 2.0)
    assert recorded.events("metric")[0].data["hidden"] is True
    assert [recorded.definition(name).get("step_sync") for name in ("loss", "acc")] == [False, None]


def test_log_takes_data_by_name_and_commit_none() -> None:
    run = begin()
    torchtrack.log(data={"a": 1.0}, commit=False)
    run.log(data={"b": 2.0}, commit=None)
    run.log({"a": 3.0}, 7, False)

    assert finished(run).history(["a", "b"]).to_pylist()[0] | {"time": 0} == {"step": 0, "time": 0, "a": 1.0, "b": 2.0}


def test_defaults_of_the_config_yield(caplog: pytest.LogCaptureFixture) -> None:
    run = begin(config={"lr": 0.1}, mode="disabled")
    with caplog.at_level(logging.WARNING):
        run.config.setdefaults({"lr": 1.0, "epochs": 3})

    assert run.config.as_dict() == {"lr": 0.1, "epochs": 3}
    assert caplog.text == ""


def test_values_that_are_fixed_change_only_where_it_is_asked_for() -> None:
    from torchtrack.compat.sdk import ConfigError

    run = begin(config={"lr": 0.1}, allow_val_change=False)
    run.config.update({"lr": 0.1, "new": 1})
    for change in (lambda: run.config.update({"lr": 0.2}), lambda: setattr(run.config, "new", 2)):
        with pytest.raises(ConfigError, match="allow_val_change=True"):
            change()
    run.config.update({"lr": 0.3}, allow_val_change=True)

    assert finished(run).config == {"lr": 0.3, "new": 1}


def test_without_being_fixed_values_change() -> None:
    run = begin(config={"lr": 0.1})
    run.config.lr = 0.2

    assert finished(run).config == {"lr": 0.2}


def test_magic_records_what_is_written_for_tensorboard(tmp_path: Path) -> None:
    writers = pytest.importorskip("torch.utils.tensorboard")
    run = begin(magic=True)
    with writers.SummaryWriter(str(tmp_path / "tb")) as writer:
        writer.add_scalar("loss", 0.5, 3)

    assert finished(run).history(["loss"])["loss"].to_pylist() == [0.5]


def test_the_loss_that_is_watched_with_is_named_in_the_config() -> None:
    torch = pytest.importorskip("torch")
    run = begin()
    run.watch(torch.nn.Linear(2, 2), criterion=torch.nn.CrossEntropyLoss())

    assert finished(run).config["criterion"] == "CrossEntropyLoss"
