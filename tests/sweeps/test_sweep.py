"""A sweep in a folder of runs, and the agents that work on it."""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import torchtrack as wandb
from tests.runs import until
from torchtrack import Api, TorchtrackError
from torchtrack.cli import main
from torchtrack.settings import Settings
from torchtrack.sweeps import Sweep, work
from torchtrack.sweeps.agent import command

GRID = {
    "method": "grid",
    "metric": {"name": "loss"},
    "parameters": {"lr": {"values": [0.1, 0.2]}, "seed": {"value": 7}},
}
EARLY = {
    "method": "grid",
    "metric": {"name": "loss"},
    "parameters": {"at": {"values": [3.0, 2.0, 1.0, 4.0]}},
    "early_terminate": {"type": "hyperband", "min_iter": 1},
}


def train() -> None:
    run = wandb.init(config={"lr": 5.0, "epochs": 2}, project="elsewhere", system_interval=0, sidecar=False)
    for _ in range(run.config.epochs):
        run.log({"loss": run.config.lr * 2})


def test_a_function_is_run_with_each_combination() -> None:
    sweep_id = wandb.sweep(GRID, project="p")
    wandb.agent(f"team/p/{sweep_id}", function=train)
    runs = sorted(Api().runs("p"), key=lambda run: run.id)

    assert [(run.id, run.group, run.state) for run in runs] == [
        (f"{sweep_id}-{number}", sweep_id, "finished") for number in (0, 1)
    ]
    assert [run.config for run in runs] == [{"lr": lr, "epochs": 2, "seed": 7} for lr in (0.1, 0.2)]
    assert "TORCHTRACK_TRIAL" not in os.environ
    assert wandb.run is None


def test_the_run_knows_its_sweep_and_the_api_shows_it() -> None:
    seen = []

    def train_and_see() -> None:
        train()
        run: Any = wandb.run
        seen.append(run.sweep_id)

    sweep_id = wandb.sweep(GRID, project="p")
    wandb.agent(sweep_id, function=train_and_see, count=1)
    found: Any = wandb.Api().sweep(f"team/p/{sweep_id}")
    state = found.state
    wandb.agent(sweep_id, function=train)

    assert seen == [sweep_id]
    assert (state, found.state, found.expected_run_count) == ("RUNNING", "FINISHED", 2)
    assert (found.best_run().config["lr"], found.order) == (0.1, "+summary_metrics.loss")
    assert len(wandb.Api().runs("team/p", filters={"sweep": sweep_id})) == 2


def test_a_trial_that_fails_is_a_failed_run_and_three_in_a_row_end_the_agent(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        train()
        raise RuntimeError("no memory")

    sweep = Sweep.make({"method": "random", "parameters": {"lr": {"min": 0.0, "max": 1.0}}}, project="p")
    done = work(sweep, fail)

    assert done == 3
    assert [run.state for run in Api().runs("p")] == ["failed"] * 3
    assert "RuntimeError: no memory" in capsys.readouterr().err


def test_an_exit_of_the_function_is_the_end_of_its_trial_alone() -> None:
    def leave() -> None:
        train()
        sys.exit(int(wandb.config.lr > 0.15))

    wandb.agent(wandb.sweep(GRID, project="p"), function=leave)

    assert sorted((run.config["lr"], run.state) for run in Api().runs("p")) == [(0.1, "finished"), (0.2, "failed")]


def test_agents_that_share_a_sweep_get_different_trials() -> None:
    sweep = Sweep.make({"method": "grid", "parameters": {"x": {"min": 1, "max": 40}}})
    drawn: list[int] = []

    def take() -> None:
        mine = Sweep(sweep.id)
        while trial := mine.draw():
            drawn.append(trial.parameters["x"])

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(drawn) == list(range(1, 41))


def test_a_half_line_of_an_agent_that_died_costs_no_other_trial(tmp_path: Path) -> None:
    sweep = Sweep.make(GRID)
    sweep.draw()
    path = sweep.directory / "sweeps" / sweep.id / "trials.jsonl"
    path.write_text(path.read_text() + '{"number": 1, "val')
    second = sweep.draw()

    assert second is not None
    assert [trial.parameters["lr"] for trial in sweep.trials()] == [0.1, 0.2]


def test_no_more_is_drawn_once_it_is_stopped() -> None:
    sweep = Sweep.make(GRID)
    sweep.stop()

    assert (sweep.draw(), sweep.is_over) == (None, True)


def test_a_sweep_that_is_not_there_says_which_are() -> None:
    sweep = Sweep.make(GRID)
    with pytest.raises(TorchtrackError, match=f"there are {sweep.id}"):
        Sweep("nothing")


def test_an_agent_without_function_and_program_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="names no program"):
        work(Sweep.make(GRID))


def test_an_agent_inside_a_job_of_several_ranks_says_where_it_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="with torchrun in the sweep's command"):
        work(Sweep.make(GRID), train)


def test_the_words_of_a_command_stand_for_what_they_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODES", "2")
    asked = {"lr": 0.1, "fast": True, "slow": False, "deep": {"parameters": {"x": "a b"}}, "sizes": [[1, 2]]}
    config = {
        "method": "random",
        "parameters": {k: v if isinstance(v, dict) else {"value": v} for k, v in asked.items()},
    }
    trial = Sweep.make(config).draw()
    assert trial is not None
    words = ("torchrun", "--nnodes=${envvar:NODES}", "${program}", "${args_no_boolean_flags}")

    assert command(words, "t.py", trial) == [
        *("torchrun", "--nnodes=2", "t.py", "--lr=0.1", "--fast", "--deep.x=a b", "--sizes=[[1, 2]]"),
    ]
    assert json.loads(command(["${args_json}"], "t.py", trial)[0])["deep"] == {"x": "a b"}


def test_a_sweep_is_shown_with_its_trials_the_best_first() -> None:
    sweep = Sweep.make({**GRID, "metric": {"name": "loss", "goal": "maximize"}}, project="p")
    work(sweep, train)
    shown = CliRunner().invoke(main, ["sweep", sweep.id])
    first, header, *rows = shown.output.splitlines()

    assert first == f"sweep {sweep.id} in project p: grid, to maximize loss; 2 of 2 drawn"
    assert header.split() == ["trial", "state", "loss", "lr", "seed"]
    assert [row.split() for row in rows] == [
        ["1", "✓", "finished", "0.4", "0.2", "7"],
        ["0", "✓", "finished", "0.2", "0.1", "7"],
    ]


def test_a_file_that_is_not_there_is_no_sweep() -> None:
    assert "sweep.yml: no such file" in CliRunner().invoke(main, ["sweep", "sweep.yml"]).output


SCRIPT = """
import argparse
import torchtrack
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("--seed", type=int)
arguments = parser.parse_args()
with torchtrack.init(config=arguments, system_interval=0) as run:
    run.log({"loss": 1 - arguments.lr})
"""


YAML = """
project: q
method: grid
metric: {name: loss, goal: minimize}
parameters:
  lr:
    values: [0.1, 0.2]
  seed:
    value: 7
"""


def test_the_commands_run_a_program_over_a_grid(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "sweep.yaml").write_text(f"program: {tmp_path / 'train.py'}\n{YAML}")
    made = CliRunner().invoke(main, ["sweep", str(tmp_path / "sweep.yaml")])
    assert made.exit_code == 0, made.output
    line = made.output.splitlines()[-1].split()
    done = subprocess.run(
        [sys.executable, "-m", "torchtrack.cli", *line[1:]], capture_output=True, text=True, check=False, timeout=60
    )

    assert done.returncode == 0, done.stderr
    assert [run.config for run in Api().runs("q")] == [{"lr": 0.2, "seed": 7}, {"lr": 0.1, "seed": 7}]
    assert "the best loss is 0.8, of trial 1: lr=0.2, seed=7" in done.stderr


def test_a_trial_that_others_are_far_ahead_of_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchtrack.sweeps.agent._LOOK_S", 0.02)
    ended: list[float] = []

    def slow() -> None:
        with wandb.init(system_interval=0, sidecar=False) as run:
            run.log({"loss": run.config.at})
            run.flush()
            while run.config.at == 4.0:  # the last one would never end
                pass
            ended.append(run.config.at)

    wandb.agent(wandb.sweep(EARLY, project="p"), function=slow)

    assert ended == [3.0, 2.0, 1.0]
    assert len(Api().runs("p")) == 4


def test_bayes_asks_for_what_promises_most() -> None:
    pytest.importorskip("optuna")
    config = {
        "method": "bayes",
        "metric": {"name": "loss", "goal": "minimize"},
        "parameters": {"x": {"min": -5.0, "max": 5.0}, "kind": {"values": ["good", "bad"]}, "seed": {"value": 1}},
    }
    from torchtrack.sweeps import Plan
    from torchtrack.sweeps.methods import draw

    plan = Plan.of(config)
    known: list[Any] = []
    for number in range(60):
        values = draw(plan, number, "s", known)
        known.append((values, (values["x",] - 2) ** 2 + 10 * (values["kind",] == "bad")))
    late = [values for values, _ in known[40:]]

    assert sum(values["kind",] == "good" for values in late) > 14
    assert sum(abs(values["x",] - 2) < 1 for values in late) > 10


def test_bayes_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    sweep = Sweep.make({**GRID, "method": "bayes"})
    with pytest.raises(TorchtrackError, match=r"torchtrack\[sweeps\]"):
        sweep.draw()


def test_a_variable_that_is_no_trial_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHTRACK_TRIAL", "5")
    with pytest.raises(ValueError, match="TORCHTRACK_TRIAL is the JSON value '5'"):
        wandb.init(mode="disabled")
    assert Settings.resolve().id is None


def test_the_guides_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "guides" / "sweeps.md").read_text()
    (program,) = re.findall(r"^```python\n(.+?)^```", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "guide.py").write_text(program)
    runpy.run_path(str(tmp_path / "guide.py"))

    assert "{'lr': 0.001, 'optimizer': {'name': 'sgd'}}" in capsys.readouterr().out


WAITS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(open("told", "w").write("")))
open("there", "w").close()
while True:
    time.sleep(0.01)
"""


def test_a_program_is_told_that_its_agent_has_to_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "waits.py").write_text(WAITS)
    sweep = Sweep.make({**GRID, "program": "waits.py"})
    agent = subprocess.Popen(
        [sys.executable, "-m", "torchtrack.cli", "agent", sweep.id], stderr=subprocess.DEVNULL, cwd=tmp_path
    )
    until((tmp_path / "there").exists)
    agent.terminate()

    assert agent.wait(30) == 128 + signal.SIGTERM
    assert (tmp_path / "told").exists()
