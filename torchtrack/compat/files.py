"""Files that scripts hand over: save, restore, code.

They are copied into `files/` of the run's folder at once. An event `saved` names a list of them, as those of artifacts
do (`torchtrack.contents`): so they are sent by the same way.
"""

from __future__ import annotations

import glob
import inspect
import os
import secrets
import shutil
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final

from torchtrack import blobs, contents, guard
from torchtrack.compat.artifact import Artifact
from torchtrack.compat.artifacts import log_artifact
from torchtrack.compat.said import once
from torchtrack.run import Run

FOLDER: Final = "files"
_OWN: Final = ("media", "nodes")
"""Folders of a run that are never saved, besides those of its journals."""
_known: weakref.WeakKeyDictionary[Run, dict[str, tuple[tuple[int, int], contents.Held]]] = weakref.WeakKeyDictionary()
"""Of each file of a run that was told: time of change and size, and its digests."""


def save(
    run: Run,
    glob_str: str | os.PathLike[str] | None = None,
    base_path: str | os.PathLike[str] | None = None,
    policy: str = "live",
    glob: bool = True,
) -> list[str] | bool:
    """Copy files into the run's folder; never raises for a file that is not there.

    Args:
        run: whose.
        glob_str: a path, or a pattern of paths.
        base_path: the part of the paths that is left away; by default a relative path is kept, of another its name.
        policy: "now" copies once, "live" and "end" again at the end of the run. What is copied is sent to the server of
            the run, if there is one; with "end" only at the end.
        glob: whether `*` and `?` make it a pattern.

    Returns:
        The copies.

    Raises:
        ValueError: another policy.
    """
    if policy not in ("live", "now", "end"):
        raise ValueError(f"save(policy=) takes 'live', 'now' or 'end', got {policy!r}")
    if glob_str is None:
        return True
    if run.disabled:
        return []
    pattern, base = os.fspath(glob_str), None if base_path is None else os.fspath(base_path)

    def copy(*, tell: bool = True) -> list[str]:
        copies: list[str] = []
        guard.attempt("save()", lambda: copies.extend(_copy(run, pattern, base, glob)))
        if tell:
            guard.attempt("save()", _tell, run, copies)
        return copies

    copies = copy(tell=policy != "end")
    if policy != "now":
        run._endings.append(copy)
    if not copies and policy == "now":
        once(f"save() found no file {pattern}")
    return copies


def _copy(run: Run, pattern: str, base: str | None, is_glob: bool) -> list[str]:
    own = Path(run.dir)
    found = glob.glob(pattern, recursive=True) if is_glob else [pattern]  # noqa: PTH207  # a pattern may be absolute
    copies = []
    for path in map(Path, sorted(found)):
        if not path.is_file():
            continue
        if path.resolve().is_relative_to(own.resolve()):
            copies.append(str(path))  # it lies there already
            continue
        target = own / FOLDER / _inside(path, base)
        if not target.exists() or target.stat().st_mtime_ns != path.stat().st_mtime_ns:
            _replace(path, target)
        copies.append(str(target))
    return copies


def _replace(path: Path, target: Path) -> None:
    """Copy a file whole or not at all: one that is being sent stays as it was."""
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        shutil.copy2(path, beside)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def _tell(run: Run, copies: list[str]) -> None:
    """Record what was saved, so that it is sent: a list of it, if something of it is new or has changed."""
    own, known = Path(run.dir).resolve(), _known.setdefault(run, {})
    files = {path.relative_to(own).as_posix(): path for path in (Path(copy).resolve() for copy in copies)}
    held, before = {}, dict(known)
    for inside, path in files.items():
        top, status = inside.partition("/")[0], path.stat()
        if top in _OWN or top.isdigit():
            continue
        stands = status.st_mtime_ns, status.st_size
        if inside not in known or known[inside][0] != stands:
            known[inside] = stands, contents.measure(path)
        held[inside] = known[inside][1]
    if all(before.get(inside) == known[inside] for inside in held):
        return
    listed = blobs.Blob(contents.encode(held, {}), "application/json", None, {})
    about = {inside: {"size": each.size, "sha256": each.sha256} for inside, each in held.items()}
    run._event("saved", {"contents": blobs.store(listed, own), "files": about})


def _inside(path: Path, base: str | None) -> Path:
    if base is not None:
        return Path(os.path.relpath(path, base).replace("../", ""))
    return Path(path.name) if path.is_absolute() or ".." in path.parts else path


def restore(
    run: Run,
    name: str,
    run_path: str | None = None,
    replace: bool = False,
    root: str | os.PathLike[str] | None = None,
) -> IO[str]:
    """A file that `save` kept, copied to `root` and opened.

    Args:
        run: the run of this process.
        name: of the file.
        run_path: `project/id` or `entity/project/id` of another run, in the folder of runs or on the server.
        replace: overwrite a file of that name in `root`.
        root: where to; by default it is opened where it lies.

    Raises:
        ValueError: there is no such file, here or on the server of the run.
    """
    kept = _kept(run, name, run_path)
    if root is None:
        return kept.open()
    target = Path(root) / name
    if replace or not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(kept, target)
    return target.open()


def _kept(run: Run, name: str, run_path: str | None) -> Path:
    """Where a saved file lies: in the folder of runs, else fetched from the server of the run."""
    from torchtrack.compat.public import Api

    path = run_path or f"{run.project}/{run.id}"
    path = path if path.count("/") < 2 else path.partition("/")[2]
    settings = run.settings

    def of(api: Api) -> Path:
        return api.seen(api._plain.run(path)).file(name).at()

    own = Path(run.dir)
    found: Any = None if run_path else next((at for at in (own / FOLDER / name, own / name) if at.is_file()), None)
    if found is None:
        found = guard.outcome(lambda: of(Api(settings.dir)))
    if not isinstance(found, Path) and settings.mode == "online" and settings.url:
        found = guard.outcome(lambda: of(Api(settings.url, api_key=settings.api_key)))
    if not isinstance(found, Path):
        raise ValueError(f"restore(): no file {name!r} was saved by the run {path}")
    return found


def _is_python(path: str) -> bool:
    return path.endswith(".py")


def log_code(
    run: Run,
    root: str | None = ".",
    name: str | None = None,
    include_fn: Callable[..., bool] = _is_python,
    exclude_fn: Callable[..., bool] | None = None,
) -> Artifact | None:
    """Keep source files as an artifact of type "code".

    Args:
        run: whose.
        root: the folder to look in.
        name: of the artifact.
        include_fn: which files, by path, or path and root; by default those that end in .py.
        exclude_fn: which not.

    Returns:
        The artifact; None if there are no such files.
    """
    top = Path(root or ".").resolve()
    artifact = Artifact(name or f"source-{run.project}-{Path(sys.argv[0]).stem or 'code'}", "code")
    skipped = {
        ".git",
        ".venv",
        "venv",
        "node_modules",
        "__pycache__",
        "torchtrack-runs",
        "wandb",
        run.settings.dir.name,
    }
    for folder, folders, names in os.walk(top):
        folders[:] = [each for each in folders if each not in skipped]
        for each in sorted(names):
            path = str(Path(folder) / each)
            if _asked(include_fn, path, str(top)) and not (exclude_fn and _asked(exclude_fn, path, str(top))):
                artifact.add_file(path, name=str(Path(path).relative_to(top)))
    return log_artifact(run, artifact) if artifact.file_count else None


def _asked(function: Callable[..., bool], path: str, root: str) -> bool:
    takes = len(inspect.signature(function).parameters)
    return bool(function(path, root) if takes > 1 else function(path))


def save_script(run: Run) -> None:
    """Keep the script that runs, as `files/code/<name>`."""
    script = Path(getattr(sys.modules.get("__main__"), "__file__", None) or "")
    if script.is_file():
        target = Path(run.dir) / FOLDER / "code" / script.name

        guard.attempt("save_code", _replace, script, target)
        guard.attempt("save_code", _tell, run, [str(target)])
