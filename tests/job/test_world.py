"""Where a process stands, by its environment."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, cast

import pytest

from torchtrack.job import World, is_dataloader_worker, job_key, restart_count

TORCHRUN = {"RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "GROUP_RANK": "1"}


@pytest.mark.parametrize(
    ("environ", "world"),
    [
        ({}, World()),
        ({**TORCHRUN, "TORCHELASTIC_RUN_ID": "none"}, World(9, 1, 1, 16, 8, "torchrun")),
        ({"RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "LOCAL_SIZE": "8"}, World(9, 1, 1, 16, 8, "env")),
        ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
          "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, World(3, 1, 1, 4, 2, "mpi")),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, World(1, 1, 0, 2, 2, "mpi")),
        ({"PMIX_RANK": "1", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"},
         World(1, 1, 0, 4, 4, "mpi")),
        ({"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_LOCAL_RANK": "0",
          "MV2_COMM_WORLD_LOCAL_SIZE": "1"}, World(1, 0, 1, 2, 1, "mpi")),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
          "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, World(5, 1, 1, 8, 4, "slurm")),
        ({"LOCAL_RANK": "2", "WORLD_SIZE": "4"}, World(2, 2, 0, 4, 4, "lightning")),
    ],
)  # fmt: skip
def test_the_launchers_variables_tell_the_place(environ: dict[str, str], world: World) -> None:
    assert World.discover(environ) == world


def test_torchrun_wins_over_slurm() -> None:
    environ = {**TORCHRUN, "TORCHELASTIC_RUN_ID": "x", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}
    assert World.discover(environ).launcher == "torchrun"


def test_an_interactive_slurm_shell_is_one_process() -> None:
    assert World.discover({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}) == World()


@pytest.mark.parametrize("bad", ["", "x", "-1", "1.5", " "])
def test_unreadable_variables_count_as_absent(bad: str) -> None:
    assert (
        World.discover({"RANK": bad, "LOCAL_RANK": bad, "WORLD_SIZE": bad, "SLURM_PROCID": bad, "PMI_RANK": bad})
        == World()
    )


def test_a_rank_beyond_the_world_is_not_believed() -> None:
    assert World.discover({"OMPI_COMM_WORLD_RANK": "7", "OMPI_COMM_WORLD_SIZE": "2"}) == World()


@pytest.mark.parametrize(
    "environ", [{"RANK": "1", "WORLD_SIZE": "2"}, {"NODE_RANK": "1"}, {"NODE_RANK": "1", "LOCAL_RANK": "0"}]
)
def test_a_rank_per_node_is_only_a_guess(environ: dict[str, str]) -> None:
    assert not World.discover(environ).known


@pytest.mark.parametrize(
    ("environ", "key"),
    [
        ({"TORCHELASTIC_RUN_ID": "a1"}, "torchelastic:a1#2"),
        ({"TORCHELASTIC_RUN_ID": "a1", "SLURM_JOB_ID": "7"}, "torchelastic:a1#2"),
        ({"TORCHELASTIC_RUN_ID": "none", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}, "slurm:7.0#2"),
        ({"TORCHELASTIC_RUN_ID": "", "SLURM_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}, "slurm:7_3#2"),
        ({"LSB_JOBID": "5", "LSB_JOBINDEX": "2"}, "lsb_jobid:5[2]#2"),
        ({"PBS_JOBID": "5.host"}, "pbs_jobid:5.host#2"),
        ({}, None),
    ],
)
def test_the_job_key_is_what_a_restart_has_in_common(environ: dict[str, str], key: str | None) -> None:
    assert job_key(environ, 2) == key


def test_scripts_of_one_batch_job_have_different_job_keys() -> None:
    environ = {"SLURM_JOB_ID": "7"}
    assert job_key(environ, 0, ["a.py"]) != job_key(environ, 0, ["b.py"])
    assert job_key(environ, 0, ["a.py"]) == job_key(environ, 0, ["a.py"])


@pytest.mark.parametrize(
    ("environ", "count"),
    [({}, 0), ({"TORCHELASTIC_RESTART_COUNT": "x"}, 0), ({"TORCHELASTIC_RESTART_COUNT": "2"}, 2),
     ({"TORCHELASTIC_RESTART_COUNT": "0", "SLURM_RESTART_COUNT": "1"}, 1)],
)  # fmt: skip
def test_restarts_are_counted_by_torchrun_or_slurm(environ: dict[str, str], count: int) -> None:
    assert restart_count(environ) == count


def test_looking_for_the_job_imports_nothing_heavy() -> None:
    code = (
        "import sys, torchtrack.job, torchtrack.sidecar.client; torchtrack.job.World.discover({});"
        "torchtrack.job.is_dataloader_worker();"
        "print([m for m in ('torch', 'numpy', 'pyarrow', 'multiprocessing') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_main_process_is_no_dataloader_worker() -> None:
    assert not is_dataloader_worker()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_dataloader_worker_knows_what_it_is(method: str) -> None:
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(cast(Any, _Answers()), num_workers=1, multiprocessing_context=method, batch_size=None)
    assert [bool(answer) for answer in loader] == [True]


class _Answers:
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        if index:
            raise IndexError
        return int(is_dataloader_worker())
