"""The harness of tests on real ranks."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from torchtrack import guard
from torchtrack.testing import RankError, Ranks, leaks, ranks, torchrun
from torchtrack.testing.rank_worker import Rules


def alive(pid: int) -> bool:
    """A zombie is dead: in a container nobody may be there to reap it."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@dataclass(frozen=True)
class Point:
    """A class that only this file has."""

    x: int


def rank_and_pid() -> tuple[int, int]:
    return int(os.environ["RANK"]), os.getpid()


def folder() -> Path:
    return Path.cwd()


def environment() -> dict[str, str]:
    return dict(os.environ)


def all_reduced(value: int) -> float:
    import torch
    from torch import distributed

    tensor = torch.tensor([float(value + distributed.get_rank())])
    distributed.all_reduce(tensor)
    return tensor.item()


def init_by_hand() -> bool:
    from torch import distributed

    distributed.init_process_group("gloo")
    distributed.destroy_process_group()
    return distributed.is_initialized()


def moved(point: Point) -> Point:
    return Point(point.x + int(os.environ["RANK"]))


def rank_one_fails(number: int) -> None:
    assert os.environ["RANK"] != "1" or number == 2


def rank_one_fails_while_rank_zero_waits() -> None:
    from torch import distributed

    if distributed.get_rank() == 1:
        raise RuntimeError("before the barrier")
    distributed.barrier()


def rank_one_ends() -> None:
    if os.environ["RANK"] == "1":
        os._exit(7)


def hang() -> None:
    threading.Event().wait()


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def warn() -> None:
    import warnings

    warnings.warn("careful", stacklevel=1)


def leave_a_thread_on_rank_one() -> None:
    if os.environ["RANK"] == "1":
        threading.Thread(target=threading.Event().wait, name="forgotten", daemon=True).start()


def set_a_variable() -> None:
    os.environ["LEFT_BEHIND"] = "1"


def fail_inside() -> None:
    logging.getLogger("torchtrack").setLevel(logging.CRITICAL)
    guard.attempt("test", int, "no number")


@ranks(2)
def test_a_decorated_test_runs_on_every_rank_with_its_fixtures(tmp_path: Path) -> None:
    (tmp_path / os.environ["RANK"]).touch()

    assert os.environ["WORLD_SIZE"] == "2"
    assert tmp_path.is_dir()


@pytest.mark.parametrize("number", [3, 4])
@ranks(2, init=True)
def test_a_decorated_test_takes_parameters(number: int) -> None:
    assert all_reduced(number) == 2 * number + 1


@ranks(2)
def _fails_on_rank_one() -> None:
    assert os.environ["RANK"] == "0"


def test_a_decorated_test_fails_when_one_rank_fails() -> None:
    with pytest.raises(RankError, match="1 of 2 ranks failed"):
        _fails_on_rank_one()


def test_run_returns_every_ranks_value_in_order() -> None:
    assert [rank for rank, _ in ranks(4).run(rank_and_pid)] == [0, 1, 2, 3]


def test_every_rank_is_a_process_of_its_own_and_lives_on() -> None:
    first = [pid for _, pid in ranks(2).run(rank_and_pid)]

    assert len({*first, os.getpid()}) == 3
    assert [pid for _, pid in ranks(2).run(rank_and_pid)] == first


def test_the_environment_is_that_of_torchrun(tmp_path: Path) -> None:
    script = tmp_path / "show.py"
    script.write_text("import os, json\nif os.environ['RANK'] == '1': print(json.dumps(sorted(os.environ)))")

    real = set(json.loads(torchrun(script).stdout.splitlines()[-1]))
    ours = set(ranks(2).run(environment)[1])

    assert {name for name in real - ours if not name.startswith(("TORCH_NCCL_", "PET_"))} == {"TORCHELASTIC_ERROR_FILE"}


def test_every_call_is_another_job_on_another_store() -> None:
    first, second = ranks(2).run(environment)[0], ranks(2).run(environment)[0]

    assert first["TORCHELASTIC_RUN_ID"] != second["TORCHELASTIC_RUN_ID"]
    assert first["TORCHELASTIC_RESTART_COUNT"] == second["TORCHELASTIC_RESTART_COUNT"] == "0"


def test_ranks_see_the_callers_variables_and_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONLY_NOW", "1")
    monkeypatch.chdir(tmp_path)

    assert ranks(2).run(environment)[1]["ONLY_NOW"] == "1"
    assert ranks(2).run(folder) == [tmp_path, tmp_path]


def test_gloo_connects_the_ranks() -> None:
    assert ranks(2, init=True).run(all_reduced, 5) == [11.0, 11.0]


def test_a_body_may_initialise_the_group_itself_again_and_again() -> None:
    assert ranks(2).run(init_by_hand) == [False, False]
    assert ranks(2).run(init_by_hand) == [False, False]


def test_classes_of_the_test_file_travel() -> None:
    assert ranks(2).run(moved, Point(1)) == [Point(1), Point(2)]


def test_ranks_that_fail_cleanly_go_on_to_the_next_test() -> None:
    before = ranks(2).run(rank_and_pid)

    with pytest.raises(RankError):
        ranks(2).run(rank_one_fails, 17)

    assert ranks(2).run(rank_and_pid) == before


def test_a_failing_rank_is_shown_with_its_traceback_and_variables() -> None:
    with pytest.raises(RankError) as failure:
        ranks(2).run(rank_one_fails, 17)

    text = str(failure.value)
    assert "--- rank 1: Traceback" in text
    assert 'assert os.environ["RANK"] != "1"' in text
    assert "number = 17" in text
    assert "--- rank 0" not in text


def test_a_rank_that_waits_for_the_failed_one_does_not_hold_the_test() -> None:
    with pytest.raises(RankError, match="before the barrier"):
        ranks(2, init=True).run(rank_one_fails_while_rank_zero_waits)


def test_a_rank_that_ends_is_reported_and_replaced() -> None:
    with pytest.raises(RankError, match="rank 1: the process ended with exit code 7"):
        ranks(2).run(rank_one_ends)

    assert [rank for rank, _ in ranks(2).run(rank_and_pid)] == [0, 1]


def test_a_rank_that_hangs_says_where_and_is_replaced() -> None:
    before = [pid for _, pid in ranks(2).run(rank_and_pid)]

    with pytest.raises(RankError, match=r"Timeout(.|\n)*in hang"):
        ranks(2, timeout_s=0.5).run(hang)

    assert not set(before) & {pid for _, pid in ranks(2).run(rank_and_pid)}
    assert not any(alive(pid) for pid in before)


def test_what_ranks_print_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    ranks(2).run(say, "hello")

    assert capsys.readouterr().out == "[rank 0] hello\n[rank 1] hello\n"


def test_warnings_are_errors_on_ranks_too() -> None:
    with pytest.raises(RankError, match="UserWarning: careful"):
        ranks(2).run(warn)


def test_a_thread_left_on_a_rank_fails_the_test() -> None:
    rules = Rules(init=False, allow_failures=False, timeout_s=60.0, grace_s=0.2)
    with pytest.raises(RankError, match="thread 'forgotten' is alive"):
        Ranks(size=2, rules=rules).run(leave_a_thread_on_rank_one)


def test_a_variable_left_on_a_rank_fails_the_test() -> None:
    with pytest.raises(RankError, match="environment variable LEFT_BEHIND was set"):
        ranks(2).run(set_a_variable)


def test_a_failure_inside_torchtrack_on_a_rank_fails_the_test() -> None:
    with pytest.raises(RankError, match=r"failed inside and went on: \{'test: ValueError': 1\}"):
        ranks(2).run(fail_inside)


def test_a_failure_inside_torchtrack_can_be_allowed() -> None:
    assert ranks(2, allow_failures=True).run(fail_inside) == [None, None]


def test_a_function_inside_a_function_is_refused() -> None:
    with pytest.raises(ValueError, match="must be a function at the top level of a module"):
        ranks(2).run(lambda: None)


def test_arguments_that_cannot_travel_are_refused() -> None:
    with pytest.raises(TypeError, match="must be picklable"):
        ranks(2).run(say, threading.Lock())  # type: ignore[arg-type]

    assert [rank for rank, _ in ranks(2).run(rank_and_pid)] == [0, 1]


def test_a_job_has_at_least_one_rank() -> None:
    with pytest.raises(ValueError, match=r"ranks\(0\)"):
        ranks(0)


def test_the_pool_ends_with_the_interpreter(tmp_path: Path) -> None:
    script = tmp_path / "use_pool.py"
    script.write_text(
        "import os\nfrom torchtrack.testing import ranks\n"
        "def pid():\n    import os\n    return os.getpid()\n"
        "if __name__ == '__main__':\n    print(*ranks(1).run(pid))\n"
    )

    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)

    assert [alive(int(pid)) for pid in done.stdout.split()[-1:]] == [False]


def test_processes_of_the_pool_are_no_leak() -> None:
    before = leaks.snapshot()
    ranks(4).run(rank_and_pid)

    assert leaks.since(before, grace_s=0) == []


def test_torchrun_restarts_ranks_and_returns_what_they_printed(tmp_path: Path) -> None:
    script = tmp_path / "die_once.py"
    script.write_text(
        "import os, sys\nattempt = os.environ['TORCHELASTIC_RESTART_COUNT']\n"
        "print('attempt', attempt, flush=True)\nsys.exit(3 if attempt == '0' else 0)\n"
    )

    done = torchrun(script, nproc=1, max_restarts=1)

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["attempt", "0", "attempt", "1"]


def test_torchrun_that_takes_too_long_is_killed_with_its_ranks(tmp_path: Path) -> None:
    script = tmp_path / "hang.py"
    script.write_text(
        "import os, pathlib, threading\npathlib.Path('pid').write_text(str(os.getpid()))\nthreading.Event().wait()\n"
    )

    with pytest.raises(subprocess.TimeoutExpired):
        torchrun(script, nproc=1, cwd=tmp_path, timeout_s=5)

    pid = tmp_path / "pid"
    assert not pid.exists() or not alive(int(pid.read_text()))
