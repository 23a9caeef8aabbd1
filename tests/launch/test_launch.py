"""Scripts that know nothing of torchtrack, plain and launched: the same output, exit code and weights, and a run."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.launch.launcher import (
    ACCELERATE,
    COMMAND,
    MODULE,
    PYTHON,
    TORCHRUN,
    Launcher,
    flat,
    norms,
    path,
    printed,
)
from tests.runs import column, own


def test_a_plain_script(launcher: Launcher) -> None:
    script = [sys.executable, "-uX", "utf8", path("plain.py"), "--lr", "0.2"]
    out = launcher.compare(script, [*COMMAND, "--log-freq", "2", "--name", "mine", "--", *script])
    run = launcher.run()
    losses = flat(printed(out))

    assert (run.name, run.config["lr"], run.config["width"], run.config["api_key"]) == ("mine", 0.2, 16, "[redacted]")
    assert column(run, "loss") == column(run, "backward/sum") == column(run, "backward/mean") == losses
    assert column(run, "lr") == flat(printed(out, "lr"))
    assert norms(run).keys() == {"first.weight", "first.bias", "last.weight", "last.bias"}
    gradients = run.tensors(kind="gradient", name="last.bias").to_pylist()
    assert [(row["step"], row["stage"]) for row in gradients] == [(0, "pre_clip"), (2, "pre_clip"), (4, "pre_clip")]
    assert {f"phase/{name}_s" for name in ("data", "forward", "backward", "optimizer", "other")} <= set(own(run))


def test_ranks_of_torchrun_are_one_run(launcher: Launcher) -> None:
    plain, seen = launcher.folder / "plain", launcher.folder / "launched"
    plain.mkdir()
    seen.mkdir()
    script = path("ddp.py")
    launched = [*TORCHRUN, "-m", "torchtrack.launch", "--log-freq", "1", script, str(seen)]
    launcher.compare([*TORCHRUN, script, str(plain)], launched)
    run = launcher.run()
    texts = [(seen / f"rank{rank}.txt").read_text() for rank in (0, 1)]

    assert texts == [(plain / f"rank{rank}.txt").read_text() for rank in (0, 1)]
    assert run.world_size == 2
    for rank in (0, 1):
        calls = printed(texts[rank])
        table = run.history(["backward/sum", "backward/mean", "loss"], ranks=rank)
        assert [len(values) for values in calls] == [1, 1, 1, 3, 3, 3]
        assert table.column("backward/sum").to_pylist() == pytest.approx([sum(v) for v in calls], rel=1e-12)
        assert table.column("backward/mean").to_pylist() == pytest.approx([sum(v) / len(v) for v in calls], rel=1e-12)
        assert table.column("loss").to_pylist() == [*flat(calls[:3]), None, None, None]  # no loss: there are several
    assert norms(run).keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert all(len(found) == 6 for found in norms(run).values())


def test_fully_sharded_ranks(launcher: Launcher) -> None:
    script = path("fsdp2.py")
    out = launcher.compare([*TORCHRUN, script], [*COMMAND, "--log-freq", "1", *TORCHRUN, script])
    run = launcher.run()

    assert run.history("loss", ranks=0).column("loss").to_pylist() == flat(printed(out))
    assert norms(run).keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert [len(found) for found in norms(run).values()] == [4] * 4


def test_ranks_that_the_script_spawns_are_one_run(launcher: Launcher) -> None:
    script = path("spawned.py")
    out = launcher.compare([*PYTHON, script, "one"], [*MODULE, "--log-freq", "1", script, "two"])
    run = launcher.run()

    assert run.world_size == 2
    assert run.history("loss", ranks=0).column("loss").to_pylist() == flat(printed(out))
    assert norms(run).keys() == {"weight", "bias"}


def test_ranks_of_accelerate_launch_are_one_run(launcher: Launcher) -> None:
    script = path("accelerated.py")
    out = launcher.compare([*ACCELERATE, script], [*COMMAND, "--log-freq", "1", "--", *ACCELERATE, script])
    run, calls = launcher.run(), printed(out, "calls")

    assert run.world_size == 2
    assert [len(values) for values in calls] == [2] * 4
    sums = run.history("backward/sum", ranks=0).column("backward/sum").to_pylist()
    assert sums == pytest.approx([sum(values) for values in calls], rel=1e-6)
    assert "loss" not in own(run)
    assert norms(run).keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert {row["stage"] for row in run.tensors(kind="gradient").to_pylist()} == {"pre_clip"}
    assert all(len(found) == 4 for found in norms(run).values())


def test_a_gradient_scaler(launcher: Launcher) -> None:
    script = path("amp.py")
    out = launcher.compare([*PYTHON, script], [*MODULE, "--log-freq", "1", script])
    run, calls, lengths = launcher.run(), printed(out), flat(printed(out, "norm"))

    assert [len(values) for values in calls] == [1] * 6 + [2] * 2
    assert column(run, "backward/sum") == [sum(values) for values in calls]  # unscaled, infinite ones too
    assert column(run, "backward/mean") == [sum(values) / len(values) for values in calls]
    assert column(run, "loss") == flat(calls[:6])
    rows = run.tensors(kind="gradient", name="weight").to_pylist()
    overflows = (0, 3)
    assert [(row["step"], row["stage"]) for row in rows] == [
        (step, "skipped" if step in overflows else "step") for step in range(8)
    ]
    for row, length in zip(rows, lengths, strict=True):
        assert sum(row["counts"]) == row["numel"]
        assert row["step"] in overflows or row["norm"] == pytest.approx(length, rel=1e-6)


def test_two_models_with_an_optimizer_each(launcher: Launcher) -> None:
    script = path("gan.py")
    out = launcher.compare([*PYTHON, script], [*MODULE, "--log-freq", "1", script])
    run = launcher.run()
    critic, generator = printed(out, "discriminator"), flat(printed(out, "generator"))

    assert column(run, "loss/generator") == column(run, "backward/sum/generator") == generator
    assert column(run, "backward/sum/discriminator") == pytest.approx([sum(calls) for calls in critic], rel=1e-12)
    assert {"loss", "loss/discriminator"}.isdisjoint(own(run))
    every = [[*calls, other] for calls, other in zip(critic, generator, strict=True)]
    steps = run.history(["backward/sum", "backward/mean"])
    assert steps.column("step").to_pylist() == list(range(5))
    assert steps.column("backward/sum").to_pylist() == pytest.approx([sum(calls) for calls in every], rel=1e-12)
    assert steps.column("backward/mean").to_pylist() == pytest.approx([sum(calls) / 3 for calls in every], rel=1e-12)
    assert (set(column(run, "lr/generator")), set(column(run, "lr/discriminator"))) == ({0.01}, {0.02})
    assert {name.partition("/")[0] for name in norms(run)} == {"generator", "discriminator"}
    assert all(len(found) == 5 for found in norms(run).values())


def test_two_optimizers_of_one_model_beside_its_average(launcher: Launcher) -> None:
    script = path("shared.py")
    out = launcher.compare([*PYTHON, script], [*MODULE, "--log-freq", "1", script])
    first, second = sorted(launcher.runs(), key=lambda run: run.created)  # of a forked child, then of the script

    assert column(first, "loss") + column(second, "loss") == flat(printed(out))
    assert set(column(second, "lr/sgd")) == {0.1}
    assert (set(column(second, "lr/adamw/0")), set(column(second, "lr/adamw/head"))) == ({0.2}, {0.01})
    assert norms(second).keys() == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert {row["step"] for row in second.tensors(name="1.bias").to_pylist()} == {0, 1, 2, 3}
    assert out.splitlines()[-1] == "None None"  # what the script lets go of is gone


def test_a_learner_with_environments_in_other_processes(launcher: Launcher) -> None:
    script = path("rl.py")
    out = launcher.compare([*PYTHON, script], [*MODULE, "--log-freq", "1", script])
    run = launcher.run()  # of the learner, and none of the processes that only act

    assert column(run, "loss") == flat(printed(out))
    assert norms(run).keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_data_loaders_with_forked_and_spawned_workers(launcher: Launcher) -> None:
    script = path("loaders.py")
    out = launcher.compare([*PYTHON, script], [*MODULE, script])
    run = launcher.run()

    assert column(run, "loss") == flat(printed(out))
    assert norms(run).keys() == {"weight", "bias"}
    assert len(column(run, "phase/data_s")) == len(column(run, "loss")) - 1  # the run begins with the first step


@pytest.mark.peers
def test_a_script_that_uses_wandb_itself(launcher: Launcher) -> None:
    pytest.importorskip("wandb")
    script = path("tracked.py")
    out = launcher.compare([*PYTHON, script], [*MODULE, script])

    assert column(launcher.run(), "loss") == flat(printed(out))
    assert len(list(launcher.folder.glob("wandb/offline-run-*"))) == 2


def test_an_optimizer_with_a_closure(launcher: Launcher) -> None:
    script = path("closure.py")
    out = launcher.compare([*PYTHON, script], [*MODULE, "--log-freq", "1", script])
    run, calls = launcher.run(), printed(out, "calls")

    assert all(len(values) > 1 for values in calls)
    assert column(run, "backward/sum") == pytest.approx([sum(values) for values in calls], rel=1e-12)
    assert column(run, "backward/mean") == pytest.approx([sum(values) / len(values) for values in calls], rel=1e-12)
    assert "loss" not in own(run)
    assert [len(found) for found in norms(run).values()] == [3, 3]


def test_compiled_training_is_compiled_as_without(launcher: Launcher) -> None:
    script = path("compiled.py")
    out = launcher.compare([*PYTHON, script], [*MODULE, script])
    run = launcher.run()

    assert column(run, "loss") == flat(printed(out))
    assert norms(run).keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_in_a_run_that_the_script_began_only_models_it_does_not_watch_are_added(launcher: Launcher) -> None:
    script = path("own.py")
    out = launcher.compare([*PYTHON, script], [*MODULE, "--log-freq", "1", script])
    plain, launched = sorted(launcher.runs(), key=lambda run: len(norms(run)))

    assert own(plain) == own(launched) == ["mine"]
    assert column(launched, "mine") == flat(printed(out, "mine"))
    assert norms(plain).keys() == {"weight", "bias"}
    assert norms(launched).keys() == {"weight", "bias", "second/weight", "second/bias"}


def test_the_guides_commands_record_its_script(launcher: Launcher) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "launch.md").read_text()
    program, commands = re.findall(r"^```(?:python|sh)\n(.+?)^```", guide, re.MULTILINE | re.DOTALL)
    (launcher.folder / "train.py").write_text(program)
    launcher.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    first, second = (shlex.split(command) for command in commands.splitlines())
    done = launcher.both(first, second)

    assert [one.code for one in done] == [0, 0], done
    assert len(launcher.runs()) == 2
    for run in launcher.runs():
        assert run.config == {"lr": 0.2}
        assert len(column(run, "loss")) == 20
        assert [len(found) for found in norms(run).values()] == [2, 2]
