"""Where this process stands in its job: rank, node and launcher, read from torch.distributed or the environment.

torch is never imported here: a script that imports it later is still served, because every question looks again.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final


@dataclass(frozen=True)
class World:
    """The place of one process among all processes of its job."""

    rank: int = 0
    local_rank: int = 0
    node: int = 0
    world_size: int = 1
    local_world_size: int = 1
    launcher: str = "python"
    """ "torchrun" | "env" | "mpi" | "slurm" | "lightning" | "spawn" | "python"."""
    known: bool = True
    """False: the rank is a guess until torch.distributed is initialised (a multiprocessing child, a rank per node)."""

    @classmethod
    def discover(cls, environ: Mapping[str, str] | None = None) -> World:
        """The place as known now: torch.distributed if it is initialised, else the launcher's variables.

        Empty and unreadable variables count as absent.
        """
        found = _from_environment(os.environ if environ is None else environ)
        dist = torch_distributed()
        if dist is None:
            return found
        try:
            if not dist.is_initialized():
                return found
            rank, size = int(dist.get_rank()), int(dist.get_world_size())
        except (RuntimeError, ValueError):  # another thread is destroying the process group
            return found
        if rank < 0 or (found.known and (rank, size) == (found.rank, found.world_size)):
            return found
        if found.launcher in ("python", "spawn"):
            found = replace(found, local_rank=rank, local_world_size=size)
        return replace(found, rank=rank, world_size=size, known=True)


def torch_distributed() -> Any | None:
    """The module torch.distributed if the script has imported it completely and this torch has it built in."""
    for name in ("torch", "torch.distributed"):
        module = sys.modules.get(name)
        if module is None or getattr(module.__spec__, "_initializing", False):
            return None
    dist: Any = sys.modules["torch.distributed"]
    return dist if dist.is_available() else None


def restart_count(environ: Mapping[str, str]) -> int:
    """How often the scheduler or torchrun has restarted this launch; 0 for a fresh one."""
    counts = (_integer(environ, name) for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    return max((count for count in counts if count is not None), default=0)


def job_key(environ: Mapping[str, str], ordinal: int, argv: Sequence[str] = ()) -> str | None:
    """What a restarted launch has in common with its earlier attempts, or None if nothing tells.

    Args:
        environ: environment variables.
        ordinal: how many runs this process has started before this one.
        argv: the command line. A batch job may run many scripts under one scheduler id; torchrun's id is one launch.
    """
    launch = _launch(environ)
    if launch is None:
        return None
    kind = launch.split(":", 1)[0]
    if kind != "torchelastic" and argv:
        launch += "@" + hashlib.blake2s("\0".join(argv).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    return f"{launch}#{ordinal}"


def launch_context(environ: Mapping[str, str]) -> str:
    """The scheduler context, equal in a process and in the ranks it starts by running itself again."""
    return _launch(environ) or ""


def is_multiprocessing_child() -> bool:
    """Whether this process was started by `multiprocessing` (mp.spawn, a DataLoader worker, a notebook launcher)."""
    module = sys.modules.get("multiprocessing.process")
    return module is not None and module.parent_process() is not None


def is_dataloader_worker() -> bool:
    """Whether this process only loads data for a rank and must not become one."""
    data = sys.modules.get("torch.utils.data")
    get_worker_info = getattr(data, "get_worker_info", None)
    if get_worker_info is not None and get_worker_info() is not None:
        return True
    if not is_multiprocessing_child():
        return False
    process = sys.modules["multiprocessing.process"].current_process()
    target = getattr(process, "_target", None)
    if getattr(target, "__module__", "").startswith("torch.utils.data"):
        return True
    # A spawned child imports the user's script before it knows its target. Under a launcher that set a rank such a
    # child is a helper of that rank: ranks themselves are started by the launcher.
    return bool(getattr(process, "_inheriting", False)) and _from_environment(os.environ).launcher != "spawn"


_LAUNCH_VARIABLES: Final = ("LSB_JOBID", "PBS_JOBID", "AZUREML_RUN_ID", "CLOUD_ML_JOB_ID", "TRAINING_JOB_NAME")


def _launch(environ: Mapping[str, str]) -> str | None:
    run_id = environ.get("TORCHELASTIC_RUN_ID", "").strip()
    if run_id and run_id.lower() != "none":
        return f"torchelastic:{run_id}"
    if job := environ.get("SLURM_JOB_ID", "").strip():
        task, step = environ.get("SLURM_ARRAY_TASK_ID", "").strip(), environ.get("SLURM_STEP_ID", "").strip()
        return f"slurm:{job}" + (f"_{task}" if task else "") + (f".{step}" if step else "")
    for name in _LAUNCH_VARIABLES:
        if value := environ.get(name, "").strip():
            index = environ.get("LSB_JOBINDEX", "").strip() if name == "LSB_JOBID" else ""
            return f"{name.lower()}:{value}" + (f"[{index}]" if index else "")
    return None


def _integer(environ: Mapping[str, str], *names: str) -> int | None:
    """The first of these variables that holds a number >= 0."""
    for name in names:
        try:
            value = int(environ.get(name, ""))
        except ValueError:
            continue
        if value >= 0:
            return value
    return None


def _from_environment(environ: Mapping[str, str]) -> World:
    for source in (_torchrun_or_env, _mpi, _slurm, _partial):
        if (world := source(environ)) is not None:
            return world
    if is_multiprocessing_child():
        return World(launcher="spawn", known=False)
    return World()


def _torchrun_or_env(environ: Mapping[str, str]) -> World | None:
    rank, local_rank = _integer(environ, "RANK"), _integer(environ, "LOCAL_RANK")
    size = _integer(environ, "WORLD_SIZE")
    if rank is None or local_rank is None or size is None or rank >= size:
        return None
    elastic = any(environ.get(name) for name in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"))
    local_size = _integer(environ, "LOCAL_WORLD_SIZE", "LOCAL_SIZE")
    node = _integer(environ, "GROUP_RANK", "NODE_RANK", "CROSS_RANK")
    return _world("torchrun" if elastic else "env", rank, size, local_rank, local_size, node)


_MPI: Final = (
    # rank, size, local rank, local size
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("PMIX_RANK", "PMIX_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
)


def _mpi(environ: Mapping[str, str]) -> World | None:
    for rank_name, size_name, local_rank_name, local_size_name in _MPI:
        rank, size = _integer(environ, rank_name), _integer(environ, size_name, "SLURM_NTASKS")
        if rank is None or size is None or rank >= size:
            continue
        local_rank, node = _integer(environ, local_rank_name, "SLURM_LOCALID"), _integer(environ, "SLURM_NODEID")
        return _world("mpi", rank, size, local_rank, _integer(environ, local_size_name), node)
    return None


def _slurm(environ: Mapping[str, str]) -> World | None:
    rank, size = _integer(environ, "SLURM_PROCID"), _integer(environ, "SLURM_NTASKS")
    if rank is None or size is None or size <= 1 or rank >= size:  # an interactive shell has a PROCID too
        return None
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0]  # "8(x4)": 8 tasks on each of 4 nodes
    local_size = int(tasks) if tasks.isdecimal() else _integer(environ, "SLURM_NTASKS_PER_NODE")
    local_rank, node = _integer(environ, "SLURM_LOCALID"), _integer(environ, "SLURM_NODEID")
    return _world("slurm", rank, size, local_rank, local_size, node)


def _partial(environ: Mapping[str, str]) -> World | None:
    """Launchers that set a part only: Lightning's children (LOCAL_RANK), operators that set RANK per node."""
    local_rank, node = _integer(environ, "LOCAL_RANK"), _integer(environ, "NODE_RANK", "GROUP_RANK")
    size, rank = _integer(environ, "WORLD_SIZE") or 1, _integer(environ, "RANK")
    if local_rank is not None:
        world = _world("lightning", rank or local_rank, max(size, local_rank + 1), local_rank, None, node)
        return world if not node else replace(world, known=False)
    if rank is not None and size > 1:
        return World(rank=rank, world_size=max(size, rank + 1), node=node or 0, launcher="env", known=False)
    return World(node=node, launcher="env", known=False) if node else None


def _world(
    launcher: str, rank: int, size: int, local_rank: int | None, local_size: int | None, node: int | None
) -> World:
    local_size = min(local_size, size) if local_size else (size if not node else 1)
    if local_rank is None:
        local_rank = rank % local_size
    if node is None:
        node = rank // local_size
    return World(rank, local_rank, node, size, max(local_size, local_rank + 1), launcher)
