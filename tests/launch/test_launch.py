"""Scripts that know nothing of torchtrack, plain and launched: the same output, exit code and weights, and a run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

import torchtrack
from tests.runs import column, own
from torchtrack.api.run import Run
from torchtrack.launch.options import LOGGED
from torchtrack.watch.watcher import KINDS

PYTHON = [sys.executable]
MODULE = [sys.executable, "-m", "torchtrack.launch"]
COMMAND = [sys.executable, "-m", "torchtrack.cli", "launch"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
OURS = re.compile(r"^torchtrack: .*\n", re.MULTILINE)


def path(script: str) -> str:
    return str(Path(__file__).parent / "scripts" / script)


class Done(NamedTuple):
    """How a process has ended."""

    code: int
    out: str
    err: str


class Launcher:
    """Runs a script plainly and launched in the same folder, both at once where that is two processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(torchtrack.__file__).parent.parent),
            "WANDB_DIR": str(folder),
            "WANDB_SILENT": "true",
        }

    def start(self, command: Sequence[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, process: subprocess.Popen[str]) -> Done:
        out, err = process.communicate("what is typed", timeout=120)
        return Done(process.returncode, out, err)

    def both(self, plainly: Sequence[str], launched: Sequence[str]) -> tuple[Done, Done]:
        if plainly[: len(TORCHRUN)] == TORCHRUN:  # four that end at once on few cores: torch's own abort now and then
            return self.end(self.start(plainly)), self.end(self.start(launched))
        processes = self.start(plainly), self.start(launched)
        return self.end(processes[0]), self.end(processes[1])

    def compare(self, plainly: Sequence[str], launched: Sequence[str]) -> str:
        """What both printed, which has to be the same, as has the exit code, which has to be 0."""
        plain, done = self.both(plainly, launched)
        assert plain.code == 0, plain.err
        assert (done.code, done.out) == (0, plain.out), done.err
        assert "failed and goes on" not in done.err, done.err
        return done.out

    def runs(self) -> list[Run]:
        folder = self.folder / "runs"
        return torchtrack.Api(folder).runs() if folder.exists() else []

    def run(self) -> Run:
        (run,) = self.runs()
        assert run.state == "finished"
        return run


@pytest.fixture
def launcher(tmp_path: Path) -> Launcher:
    return Launcher(tmp_path)


def printed(out: str, word: str = "loss") -> list[list[float]]:
    """The numbers behind a word, one list a line."""
    return [[float(number) for number in line.split()[1:]] for line in out.splitlines() if line.startswith(f"{word} ")]


def flat(lines: list[list[float]]) -> list[float]:
    return [number for line in lines for number in line]


def norms(run: Run, kind: str = "gradient") -> dict[str, list[float]]:
    """Name -> the norm at each sampled step; every row has to tell of the whole tensor, with a histogram."""
    found: dict[str, list[float]] = {}
    for row in run.tensors(kind=kind).to_pylist():
        assert row["coverage"] == 1.0
        assert sum(row["counts"]) == row["numel"]
        found.setdefault(row["name"], []).append(row["norm"])
    return found


# -- shapes of scripts ------------------------------------------------------------------------------------------------


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


def test_ranks_that_the_script_spawns_are_one_run(launcher: Launcher) -> None:
    script = path("spawned.py")
    out = launcher.compare([*PYTHON, script, "one"], [*MODULE, "--log-freq", "1", script, "two"])
    run = launcher.run()

    assert run.world_size == 2
    assert run.history("loss", ranks=0).column("loss").to_pylist() == flat(printed(out))
    assert norms(run).keys() == {"weight", "bias"}


def test_a_gradient_scaler(launcher: Launcher) -> None:
    script = path("amp.py")
    out = launcher.compare([*PYTHON, script], [*MODULE, "--log-freq", "1", script])
    run = launcher.run()

    assert column(run, "loss") == column(run, "backward/sum") == flat(printed(out))  # unscaled, infinite ones too
    rows = run.tensors(kind="gradient", name="weight").to_pylist()
    assert [(row["step"], row["stage"]) for row in rows] == [
        (step, "skipped" if step in (0, 3) else "step") for step in range(6)
    ]


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


# -- how scripts end, and what goes wrong -----------------------------------------------------------------------------


def test_an_exception_is_the_scripts_own(launcher: Launcher) -> None:
    script = [path("failing.py"), "exception"]
    plain, done = launcher.both([*PYTHON, *script], [*MODULE, *script])
    (run,) = launcher.runs()

    assert (plain.code, plain.out) == (done.code, done.out) == (1, "trained\n")
    assert "KeyError: 'exception'" in plain.err
    assert OURS.sub("", done.err) == plain.err  # the same traceback, without a frame of ours
    assert run.state == "failed"
    assert column(run, "loss") == [0.0]


def test_in_a_run_that_the_script_began_only_models_it_does_not_watch_are_added(launcher: Launcher) -> None:
    script = path("own.py")
    out = launcher.compare([*PYTHON, script], [*MODULE, "--log-freq", "1", script])
    plain, launched = sorted(launcher.runs(), key=lambda run: len(norms(run)))

    assert own(plain) == own(launched) == ["mine"]
    assert column(launched, "mine") == flat(printed(out, "mine"))
    assert norms(plain).keys() == {"weight", "bias"}
    assert norms(launched).keys() == {"weight", "bias", "second/weight", "second/bias"}


def test_runs_that_cannot_be_written_change_nothing(launcher: Launcher) -> None:
    (launcher.folder / "runs").write_text("a file")
    done = launcher.end(launcher.start([*MODULE, path("failing.py"), "status"]))

    assert (done.code, done.out) == (7, "trained\n")
    assert "torchtrack cannot write to" in done.err


def test_a_failure_in_torchtrack_changes_nothing(launcher: Launcher) -> None:
    fault = """
        import torchtrack.columns, torchtrack.redact
        def fail(*args, **kwargs):
            raise RuntimeError("on purpose")
        torchtrack.columns.Layout.of = fail
        torchtrack.redact.Redactor.value = fail
    """
    (launcher.folder / "sitecustomize.py").write_text(textwrap.dedent(fault))
    launcher.environ["PYTHONPATH"] += f":{launcher.folder}"
    done = launcher.end(launcher.start([*COMMAND, "--", *PYTHON, path("failing.py"), "status"]))

    assert (done.code, done.out) == (7, "trained\n")
    assert "failed and goes on without it: on purpose" in done.err


def test_a_script_that_trains_nothing_leaves_no_run_and_the_paths_are_its_own(launcher: Launcher) -> None:
    names = "import sys, os; print(sys.path, sys.argv, __name__, 'torchtrack.run' in sys.modules)"
    plain, done = launcher.both([*PYTHON, "-c", names, "a"], [*COMMAND, *PYTHON, "-c", names, "a"])
    (launcher.folder / "pack.py").write_text(names)
    module, seen = launcher.both(
        [*PYTHON, "-m", "pack", "-m", "b"], [*MODULE, "--log", "none", "-m", "pack", "-m", "b"]
    )

    assert (done.code, done.out, done.err) == (0, plain.out, "")
    assert (seen.code, seen.out, seen.err) == (0, module.out, "")
    assert launcher.runs() == []


def test_a_sitecustomize_that_ours_hides_is_run(launcher: Launcher) -> None:
    (launcher.folder / "sitecustomize.py").write_text("print('theirs', __name__)")
    launcher.environ["PYTHONPATH"] += f":{launcher.folder}"
    done = launcher.end(launcher.start([*COMMAND, *PYTHON, "-c", "import sitecustomize as s; print(s.__file__)"]))

    assert done.out.splitlines()[-2:] == ["theirs sitecustomize", str(launcher.folder / "sitecustomize.py")]


def test_what_may_be_logged_is_what_watch_can() -> None:
    assert set(LOGGED) == set(KINDS)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--log", "weights", "python"], 2, 'takes "all", "none" or some of gradients'),
        (["--log-freq", "0", "python"], 2, "--log-freq"),
        (["no-such-program"], 127, "torchtrack: cannot run no-such-program: No such file or directory"),
        (["./train.py"], 126, "to run a script: python ./train.py"),
        ([], 2, "Missing argument"),
    ],
)
def test_a_wrong_command_is_told(launcher: Launcher, words: list[str], code: int, message: str) -> None:
    (launcher.folder / "train.py").write_text("")
    done = launcher.end(launcher.start([*COMMAND, *words]))

    assert done.code == code
    assert message in " ".join(done.err.split())


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
