"""What a run was started with: enough to repeat it, nothing that is private."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import threading
import types
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import omegaconf
import pytest

from torchtrack import environment
from torchtrack.environment import capture, config_dict, git_state, packages, quick, slow
from torchtrack.redact import REDACTED

CANARY = "canary-7f3a91c2"


def git(folder: Path, *arguments: str) -> str:
    identity = [
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@t",
        "-c",
        "init.defaultBranch=main",
        "-c",
        "commit.gpgsign=false",
    ]
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, env=environ, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "--quiet")
    (root / "train.py").write_text("lr = 1\n")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "first")
    return root


def test_quick_tells_the_interpreter_machine_and_command_line() -> None:
    facts = quick(argv=["train.py", "--lr", "3"])
    assert facts["python"] == platform.python_version()
    assert facts["implementation"] == platform.python_implementation()
    assert facts["executable"] == Path(sys.executable).name
    assert facts["hostname"] == platform.node()
    assert facts["cwd"] == str(Path.cwd())
    assert facts["argv"] == ["train.py", "--lr", "3"]


def test_capture_is_json() -> None:
    facts = capture()
    assert json.loads(json.dumps(facts)) == facts
    assert facts.keys() >= {"python", "torch", "platform", "hostname", "cpu", "gpus", "git", "argv", "packages"}


def test_quick_starts_no_process_and_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a process on the training thread")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(os, "fork", refuse)
    before = set(sys.modules)
    quick()
    assert set(sys.modules) == before


def test_nothing_tells_who_the_user_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USER", "LOGNAME", "HOME", "MAIL", "SSH_CONNECTION"):
        monkeypatch.setenv(name, "/somebody-unmistakable")
    assert "somebody-unmistakable" not in json.dumps(capture())


def test_environment_variables_are_taken_by_an_allow_list() -> None:
    allowed = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "8",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "OMP_NUM_THREADS": "1",
        "NCCL_DEBUG": "INFO",
        "SLURM_JOB_ID": "17",
        "TORCH_LOGS": "+dynamo",
        "TORCHELASTIC_RUN_ID": "x",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    }
    refused = {
        "PATH": "/bin",
        "MY_RANK": "1",
        "SLURM_JWT": "abc",
        "SLURM_JOB_USER": "me",
        "SSH_AUTH_SOCK": "/run/agent",
    }
    assert quick(environ=allowed | refused)["env"] == allowed


def test_an_allowed_variable_is_still_redacted() -> None:
    environ = {"TORCH_HUB_TOKEN": CANARY, "NCCL_CONF": f"key={CANARY}"}
    assert CANARY not in json.dumps(quick(environ=environ))


def test_the_command_line_is_redacted() -> None:
    facts = quick(argv=["train.py", "--api-key", "X", f"--url=https://u:p@h/{CANARY}"], environ={"A_TOKEN": CANARY})
    assert facts["argv"] == ["train.py", "--api-key", REDACTED, f"--url=https://{REDACTED}@h/{REDACTED}"]


def test_torch_is_told_when_the_program_uses_it() -> None:
    import torch

    build = quick()["torch"]
    assert build == {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip}


def test_torch_is_not_imported_to_be_told() -> None:
    code = (
        "import sys; from torchtrack.environment import capture; facts = capture()\n"
        "assert facts['torch'] is None; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=30)


def test_versions_of_gpu_libraries_are_told_where_torch_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.cuda.nccl", types.SimpleNamespace(version=lambda: (2, 27, 3)))
    monkeypatch.setitem(sys.modules, "torch.backends.cudnn", types.SimpleNamespace(version=lambda: 91002))
    facts = slow()
    assert (facts["nccl"], facts["cudnn"]) == ("2.27.3", "91002")


def test_a_torch_without_gpu_libraries_is_told_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError("the cuDNN found is not the one torch was built with")

    monkeypatch.setitem(sys.modules, "torch.cuda.nccl", types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torch.backends.cudnn", types.SimpleNamespace(version=refuse))
    assert not {"nccl", "cudnn"} & slow().keys()


def test_packages_are_those_that_importlib_finds() -> None:
    found = packages()
    for name in ("numpy", "nvidia-ml-py", "pytest", "pyyaml", "omegaconf"):
        assert found[name] == importlib.metadata.version(name)


def test_the_package_that_would_be_imported_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, version in (("a", "2.0"), ("b", "1.0")):
        (tmp_path / folder / f"Some_Package.x-{version}.dist-info").mkdir(parents=True)
    (tmp_path / "b" / "old-0.3-py3.11.egg-info").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path / name) for name in ("missing", "a", "b")])
    assert packages() == {"some-package-x": "2.0", "old": "0.3"}


def test_git_tells_the_commit_branch_and_root(repository: Path) -> None:
    inside = repository / "deep" / "er"
    inside.mkdir(parents=True)
    state = git_state(inside)
    assert state is not None
    assert state["root"] == str(repository)
    assert state["commit"] == git(repository, "rev-parse", "HEAD")
    assert state["branch"] == "main"
    assert (state["dirty"], state["diff"], state["untracked"], state["remote"]) == (False, "", [], None)


def test_uncommitted_changes_are_kept_as_a_diff_that_applies(repository: Path) -> None:
    (repository / "train.py").write_text("lr = 2\n")
    state = git_state(repository)
    assert state is not None
    assert state["dirty"]
    git(repository, "checkout", "train.py")
    (repository.parent / "patch").write_text(state["diff"])
    git(repository, "apply", str(repository.parent / "patch"))
    assert (repository / "train.py").read_text() == "lr = 2\n"


def test_of_untracked_files_only_the_names_are_kept(repository: Path) -> None:
    (repository / "notes ü.txt").write_text("private words")
    state = git_state(repository)
    assert state is not None
    assert state["untracked"] == ["notes ü.txt"]
    assert "private words" not in json.dumps(state)


def test_a_long_diff_is_cut(repository: Path) -> None:
    (repository / "train.py").write_text("x" * (3 << 20))
    state = git_state(repository)
    assert state is not None
    assert len(state["diff"]) == 1 << 20
    assert state["diff_truncated"]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://user:pass@github.com/o/r.git", "https://github.com/o/r.git"),
        ("https://ghp_0123456789@github.com/o/r.git", "https://github.com/o/r.git"),
        ("git@github.com:o/r.git", "git@github.com:o/r.git"),
    ],
)
def test_the_remote_is_told_without_its_user(url: str, expected: str, repository: Path) -> None:
    git(repository, "remote", "add", "origin", url)
    state = git_state(repository)
    assert state is not None
    assert state["remote"] == expected


def test_a_secret_in_the_diff_is_redacted(repository: Path) -> None:
    (repository / "train.py").write_text(f"key = '{CANARY}'\n")
    facts = slow(repository, environ={"MY_API_KEY": CANARY})
    assert "+key = " in facts["git"]["diff"]
    assert CANARY not in json.dumps(facts)


def test_a_repository_without_commits_is_told(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    state = git_state(tmp_path)
    assert state is not None
    assert (state["commit"], state["branch"], state["diff"]) == (None, "main", None)


def test_a_commit_without_branch_is_told(repository: Path) -> None:
    git(repository, "checkout", "--quiet", "--detach")
    state = git_state(repository)
    assert state is not None
    assert state["branch"] is None


def test_outside_a_repository_there_is_no_git_state(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert git_state(tmp_path) is None
    assert capfd.readouterr() == ("", "")


def test_without_the_git_command_there_is_no_git_state(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_state(repository) is None


def test_a_git_command_that_hangs_is_given_up(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "bin" / "git"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\nexec sleep 60\n")
    command.chmod(0o700)
    monkeypatch.setenv("PATH", str(command.parent), prepend=os.pathsep)
    monkeypatch.setattr(environment, "_GIT_TIMEOUT_S", 0.05)
    assert git_state(repository) is None


def test_git_takes_no_lock_and_runs_nothing_of_the_repository(repository: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    for hook in ("fsmonitor", "diff"):
        script = tmp_path / hook
        script.write_text(f"#!/bin/sh\ntouch {ran}\n")
        script.chmod(0o700)
    git(repository, "config", "core.fsmonitor", str(tmp_path / "fsmonitor"))
    git(repository, "config", "diff.external", str(tmp_path / "diff"))
    git(repository, "config", "diff.driver.textconv", str(tmp_path / "diff"))
    (repository / ".gitattributes").write_text("*.py diff=driver\n")
    (repository / "train.py").write_text("lr = 2\n")
    index = (repository / ".git" / "index").stat()
    assert git_state(repository) is not None
    assert not ran.exists()
    assert (repository / ".git" / "index").stat().st_mtime_ns == index.st_mtime_ns


def test_a_removed_working_directory_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert quick()["cwd"] == ""
    assert git_state() is None


def test_slow_leaves_no_thread_behind(repository: Path) -> None:
    before = threading.active_count()
    git_state(repository)
    assert threading.active_count() == before


@dataclasses.dataclass
class Model:
    width: int = 8
    betas: tuple[float, float] = (0.9, 0.95)


class KeysOnly:
    def keys(self) -> list[str]:
        return ["lr"]

    def __getitem__(self, key: str) -> float:
        return {"lr": 0.1}[key]


class AbslFlags:
    """absl's FLAGS: [] gives a flag object, not its value."""

    def __getitem__(self, name: str) -> Any:
        return types.SimpleNamespace(name=name)

    def flag_values_dict(self) -> dict[str, Any]:
        return {"lr": 0.5, "name": "x"}


def _omegaconf() -> Any:
    return omegaconf.OmegaConf.create(
        {"lr": 0.1, "warm": "${lr}", "sizes": [1, 2], "model": {"name": "${model.kind}", "kind": "x"}}
    )


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: {"lr": 0.1, "model": Model()}, {"lr": 0.1, "model": {"width": 8, "betas": [0.9, 0.95]}}),
        (lambda: Namespace(lr=0.1), {"lr": 0.1}),
        (lambda: types.SimpleNamespace(lr=0.1), {"lr": 0.1}),
        (Model, {"width": 8, "betas": [0.9, 0.95]}),
        (_omegaconf, {"lr": 0.1, "warm": 0.1, "sizes": [1, 2], "model": {"name": "x", "kind": "x"}}),
        (lambda: {"inner": _omegaconf().model}, {"inner": {"name": "x", "kind": "x"}}),
        (AbslFlags, {"lr": 0.5, "name": "x"}),
        (KeysOnly, {"lr": 0.1}),
        (dict, {}),
    ],
)
def test_a_configuration_object_becomes_a_dict(make: Callable[[], Any], expected: dict[str, Any]) -> None:
    assert config_dict(make()) == expected


def test_an_interpolation_that_cannot_be_resolved_is_kept_as_written() -> None:
    config = omegaconf.OmegaConf.create({"a": "${missing.thing}", "b": "???"})
    assert config_dict(config) == {"a": "${missing.thing}", "b": "???"}


@pytest.mark.parametrize("config", ["lr=1", [1, 2], 3, None, object(), Model, omegaconf.OmegaConf.create([1])])
def test_what_is_no_configuration_is_refused_with_what_is(config: Any) -> None:
    with pytest.raises(
        TypeError, match=r"config must be a dict.* got .*; for an object with attributes pass vars\(config\)"
    ):
        config_dict(config)


def test_a_configuration_keeps_its_secrets_for_the_user() -> None:
    assert config_dict({"api_key": "mine"}) == {"api_key": "mine"}
