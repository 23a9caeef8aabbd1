"""What a run was started with: its configuration, and the machine, code and packages around it.

`quick` is for the training thread (it only looks at what is in memory); `slow` asks the file system, git and the GPU
driver and belongs in a background thread. Neither imports torch. Nothing that identifies a person is taken, environment
variables only by an allow-list, and all of it goes through `torchtrack.redact`.
"""

from __future__ import annotations

import os
import platform
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchtrack.redact import Redactor, children_of, plain
from torchtrack.system import describe_hardware

_VARIABLES = re.compile(
    r"(?:LOCAL_|GROUP_|ROLE_)?(?:RANK|WORLD_SIZE)|MASTER_(?:ADDR|PORT)|NODE_RANK"
    r"|CUDA_(?:VISIBLE_DEVICES|DEVICE_ORDER|DEVICE_MAX_CONNECTIONS|LAUNCH_BLOCKING|MODULE_LOADING)"
    r"|CUBLAS_WORKSPACE_CONFIG|NVIDIA_(?:VISIBLE_DEVICES|TF32_OVERRIDE)|(?:HIP|ROCR)_VISIBLE_DEVICES"
    r"|OMP_\w+|(?:MKL|OPENBLAS)_NUM_THREADS|PYTHONHASHSEED|TOKENIZERS_PARALLELISM"
    r"|(?:NCCL|GLOO|TORCH|TORCHELASTIC|TORCHINDUCTOR|PYTORCH)_\w+"
    r"|SLURM_(?:JOB_ID|JOB_NAME|JOB_PARTITION|JOB_NUM_NODES|NNODES|NODEID|NTASKS|NTASKS_PER_NODE|PROCID|LOCALID|RESTART_COUNT"
    r"|ARRAY_JOB_ID|ARRAY_TASK_ID|CPUS_PER_TASK|CPUS_ON_NODE|GPUS_ON_NODE|GPUS_PER_NODE|STEP_ID)"
    r"|PBS_JOBID|LSB_JOBID|JOB_ID|OMPI_COMM_WORLD_(?:RANK|SIZE|LOCAL_RANK|LOCAL_SIZE)|KUBERNETES_SERVICE_PORT"
)
_PACKAGE_FOLDER = re.compile(r"(.+?)-([^-]+)(?:-py[\d.]+)?\.(?:dist|egg)-info")
_GIT_TIMEOUT_S = 5.0
_MAX_DIFF_BYTES = 1 << 20
_MAX_UNTRACKED = 1000


def capture(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """All that `quick` and `slow` tell."""
    return quick(argv, environ) | slow(environ=environ)


def quick(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What this process knows about itself without waiting for anything.

    Args:
        argv: the command line, sys.argv by default.
        environ: the environment, os.environ by default.
    """
    environ = os.environ if environ is None else environ
    facts = {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "executable": Path(sys.executable or "").name,
        "platform": f"{platform.system()}-{platform.release()}-{platform.machine()}",
        "hostname": socket.gethostname(),
        "cwd": _cwd(),
        "argv": list(sys.argv if argv is None else argv),
        "env": {name: value for name, value in sorted(environ.items()) if _VARIABLES.fullmatch(name)},
        "torch": _torch_build(),
    }
    redacted: dict[str, Any] = Redactor(environ).value(facts)
    return redacted


def slow(folder: Path | None = None, environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What takes files, other programs or drivers to know: packages, git, hardware, versions of GPU libraries.

    Args:
        folder: where the code lies, for git; the working directory by default.
        environ: the environment, os.environ by default.
    """
    facts = {"packages": packages(), "git": git_state(folder), **describe_hardware(), **_gpu_libraries()}
    redacted: dict[str, Any] = Redactor(environ).value(facts)
    return redacted


def config_dict(config: Any) -> dict[str, Any]:
    """A configuration object as a dict of plain JSON values; not redacted, since the user's code may read it back.

    Accepted: any mapping, argparse.Namespace and types.SimpleNamespace, a dataclass instance, an OmegaConf node
    (resolved), absl's FLAGS, anything with keys() and []. Other objects are refused rather than guessed at.

    Raises:
        TypeError: the object is no such container.
    """
    if hasattr(config, "flag_values_dict"):
        config = config.flag_values_dict()
    if not isinstance(children_of(config), Mapping):
        raise TypeError(
            "config must be a dict, an argparse.Namespace, a dataclass or another mapping, got "
            f"{type(config).__name__}; for an object with attributes pass vars(config)"
        )
    result: dict[str, Any] = plain(config)
    return result


def packages() -> dict[str, str]:
    """Name -> version of every installed distribution.

    Read off the names of the metadata folders: opening each one's metadata takes a hundred times as long, most of it
    with the interpreter held.
    """
    found: dict[str, str] = {}
    for entry in sys.path:
        try:
            with os.scandir(entry or ".") as files:
                names = [file.name for file in files]
        except OSError:
            continue
        for match in filter(None, map(_PACKAGE_FOLDER.fullmatch, names)):
            # The first on sys.path is the one that gets imported.
            found.setdefault(re.sub(r"[-_.]+", "-", match[1]).lower(), match[2])
    return dict(sorted(found.items()))


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """Commit, branch, remote and uncommitted changes of the repository around a folder; None where there is none.

    Of files that git does not know only the names are taken.
    """
    where = Path(_cwd()) if folder is None else folder
    root = _git(where, "rev-parse", "--show-toplevel")
    if not root:
        return None
    top = Path(root.rstrip("\n"))
    status = _git(top, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=normal")
    entries = [] if status is None else [entry for entry in status.split("\0") if entry]
    remote = _git(top, "config", "--get", "remote.origin.url") or ""
    diff = _git(top, "diff", "--no-ext-diff", "--no-textconv", "--no-color", "HEAD")
    return {
        "root": str(top),
        "commit": (_git(top, "rev-parse", "--verify", "--quiet", "HEAD") or "").strip() or None,
        "branch": (_git(top, "symbolic-ref", "--quiet", "--short", "HEAD") or "").strip() or None,
        "remote": re.sub(r"(?<=://)[^/]*@", "", remote.strip()) or None,
        "dirty": None if status is None else bool(entries),
        "untracked": [entry[3:] for entry in entries if entry.startswith("??")][:_MAX_UNTRACKED],
        "diff": diff,
        "diff_truncated": diff is not None and len(diff.encode()) >= _MAX_DIFF_BYTES,
    }


def _git(folder: Path, *arguments: str) -> str | None:
    """What a git command prints, at most 1 MiB of it; None if it fails or takes longer than 5 s."""
    # A repository's own configuration must not make git run programs or wait for a lock or a password.
    command = ["git", "-c", "core.fsmonitor=false", "-c", "core.quotePath=false", *arguments]
    environ = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError:
        return None
    with process:
        timer = threading.Timer(_GIT_TIMEOUT_S, process.kill)
        timer.daemon = True
        timer.start()
        try:
            output = process.stdout.read(_MAX_DIFF_BYTES) if process.stdout else b""
            if len(output) == _MAX_DIFF_BYTES:
                process.kill()
                return output.decode(errors="replace")
            return output.decode(errors="replace") if process.wait() == 0 else None
        finally:
            timer.cancel()
            timer.join()


def _cwd() -> str:
    try:
        return str(Path.cwd())
    except OSError:  # somebody removed it
        return ""


def _torch_build() -> dict[str, str | None] | None:
    """Version and toolkit of torch, if the program has imported it."""
    torch = sys.modules.get("torch")
    version = getattr(torch, "version", None)
    if version is None:
        return None
    toolkits = {name: getattr(version, name, None) for name in ("cuda", "hip")}
    return {"version": str(version.__version__), **toolkits}


def _gpu_libraries() -> dict[str, str]:
    """Versions of NCCL and cuDNN, as far as the program's torch has them."""
    found = {}
    nccl = sys.modules.get("torch.cuda.nccl")
    try:
        if nccl is not None:
            found["nccl"] = ".".join(map(str, nccl.version()))
    except (AttributeError, RuntimeError):
        pass  # built without NCCL
    cudnn = sys.modules.get("torch.backends.cudnn")
    try:
        number = cudnn.version() if cudnn is not None else None
        if number is not None:
            found["cudnn"] = str(number)
    except (AttributeError, RuntimeError):
        pass  # built without cuDNN, or its file does not load
    return found
