"""Real processes: what a user starts, in the ways users start it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.job.conftest import PATIENCE_S
from torchtrack.job import Identity, Job
from torchtrack.testing import ranks, torchrun

PREAMBLE = """
import json, os, sys, time
from pathlib import Path
from torchtrack.job import Job
def patiently(job):
    job._patience_s = 40.0
    return job.wait(40.0)
folder = Path(sys.argv[1])
def tell(job, **more):
    i = job.identity
    place = {"rank": i.rank, "size": i.world_size, "solo": i.provisional}
    print(json.dumps({"uid": i.uid, "attempt": i.attempt, **place, **more}), flush=True)
"""


def script(folder: Path, body: str) -> Path:
    """A training script."""
    path = folder / "train.py"
    path.write_text(PREAMBLE + body)
    return path


def told(output: str) -> list[dict[str, object]]:
    """What the processes printed, by rank."""
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return sorted(lines, key=lambda line: (line["attempt"], line["rank"]))


def run(path: Path, *args: str) -> list[dict[str, object]]:
    """Run a script as a user does."""
    done = subprocess.run(
        [sys.executable, str(path), str(path.parent / "runs"), *args], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
    return told(done.stdout)


def patiently(job: Job) -> Identity:
    """Its definite identity, however busy the machine is."""
    job._patience_s = PATIENCE_S
    return job.wait(PATIENCE_S)


def agree(folder: str) -> tuple[str, int, bool]:
    job = Job.start(dir=Path(folder), project="p")
    identity = patiently(job)
    job.close()
    return (identity.uid, identity.rank, identity.provisional)


def test_ranks_of_torchrun_agree_over_the_agents_store_before_any_process_group(tmp_path: Path) -> None:
    answers = ranks(2).run(agree, str(tmp_path))
    assert len({uid for uid, _, _ in answers}) == 1
    assert [(rank, solo) for _, rank, solo in answers] == [(0, False), (1, False)]


def agree_in_a_process_group(folder: str) -> tuple[str, int, bool]:
    environ = {name: value for name, value in os.environ.items() if name != "TORCHELASTIC_USE_AGENT_STORE"}
    job = Job.start(dir=Path(folder), project="p", environ=environ)
    identity = patiently(job)
    assert job.store() is not None
    job.close()
    return (identity.uid, identity.rank, identity.provisional)


def test_ranks_agree_over_the_process_groups_store_where_there_is_no_agents(tmp_path: Path) -> None:
    first, second = ranks(2, init=True).run(agree_in_a_process_group, str(tmp_path))
    assert first == (second[0], 0, False)
    assert not second[2]


def test_a_restart_by_torchrun_is_attempt_2_of_the_same_run_on_all_ranks(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        """
import torch.distributed as dist
job = Job.start(dir=folder, project="p")
dist.init_process_group("gloo")
patiently(job)
tell(job)
dist.barrier()
job.close()
dist.destroy_process_group()
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and job.identity.rank == 1:
    sys.exit(3)
""",
    )
    done = torchrun(path, str(tmp_path / "runs"), max_restarts=1)
    assert done.returncode == 0, done.stderr
    lines = told(done.stdout)
    assert len({line["uid"] for line in lines}) == 1
    assert {(line["attempt"], line["rank"], line["solo"]) for line in lines} >= {
        (1, 1, False),
        (2, 0, False),
        (2, 1, False),
    }


def test_children_of_mp_spawn_learn_their_rank_and_run_from_the_process_group(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        """
import torch.distributed as dist, torch.multiprocessing as mp
def main(index):
    job = Job.start(dir=folder, project="p", id="mine")
    before = job.identity.provisional
    dist.init_process_group("gloo", init_method=f"file://{folder}.rendezvous", rank=index, world_size=2)
    patiently(job)
    store = job.store()
    tell(job, before=before, store=store is not None)
    dist.barrier()
    job.close()
    dist.destroy_process_group()
if "resume" in sys.argv:
    job = Job.start(dir=folder, project="p", id="mine", resume="must")
    job.close()
    tell(job)
elif __name__ == "__main__":
    mp.spawn(main, nprocs=2)
""",
    )
    first, second = run(path)
    assert first["uid"] == second["uid"]
    assert [(line["rank"], line["size"], line["solo"]) for line in (first, second)] == [(0, 2, False), (1, 2, False)]
    assert first["before"] is second["before"] is first["store"] is second["store"] is True
    (again,) = run(path, "resume")
    assert (again["uid"], again["attempt"]) == (first["uid"], 2)


LIGHTNING = """
import subprocess
job = Job.start(dir=folder, project="p")
if "LOCAL_RANK" not in os.environ:
    child = {**os.environ, **json.loads(sys.argv[2])}
    subprocess.run([sys.executable, *sys.argv], env=child, check=True)
job.close()
tell(job)
"""


def test_a_rank_that_the_script_starts_by_running_itself_joins_at_once(tmp_path: Path) -> None:
    first, second = run(script(tmp_path, LIGHTNING), '{"LOCAL_RANK": "1", "WORLD_SIZE": "2"}')
    assert (second["uid"], second["rank"], second["solo"]) == (first["uid"], 1, False)


def test_a_torchrun_below_a_run_is_a_run_of_its_own(tmp_path: Path) -> None:
    other = '{"LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "other"}'
    first, second = run(script(tmp_path, LIGHTNING), other)
    assert second["uid"] != first["uid"]


def test_a_helper_script_below_a_restarted_rank_is_a_run_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    for name, value in {**variables, "TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": "1"}.items():
        monkeypatch.setenv(name, value)
    body = """
import subprocess
job = Job.start(dir=folder, project="p")
if "helper" not in sys.argv:
    subprocess.run([sys.executable, *sys.argv, "helper"], check=True)
job.close()
tell(job)
"""
    first, second = run(script(tmp_path, body))
    assert second["uid"] != first["uid"]
    assert first["attempt"] == second["attempt"] == 1


def test_a_process_that_closes_nothing_exits_cleanly_while_its_rank_0_never_came(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        """
import atexit, threading
import torch.distributed as dist
# Runs last: a thread that is still in the store's C++ when the interpreter ends may abort the process.
atexit.register(lambda: print(json.dumps({"attempt": 2, "rank": 1, "threads": threading.active_count()})))
server = dist.TCPStore("127.0.0.1", 0, None, True)
os.environ.update(RANK="1", LOCAL_RANK="1", WORLD_SIZE="2", TORCHELASTIC_RUN_ID="x")
os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(server.port))
job = Job.start(dir=folder, project="p")
while not dist.PrefixStore("torchtrack/0", server).add("joins", 0):
    time.sleep(0.01)
tell(job)
""",
    )
    line, last = run(path)  # without close(): the worst case
    assert line["solo"] is True
    assert last["threads"] == 1
