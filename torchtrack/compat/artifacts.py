"""Artifacts of a project: logged, used, linked and found. They lie on this machine and are not sent to a server.

A version is complete or not there: it is made beside the others and renamed (store.py says where).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from torchtrack import guard
from torchtrack.compat import store
from torchtrack.compat.artifact import Artifact
from torchtrack.compat.said import no_effect
from torchtrack.errors import ServerError
from torchtrack.redact import plain
from torchtrack.run import Run


def log_artifact(
    run: Run,
    artifact_or_path: Artifact | str | os.PathLike[str],
    name: str | None = None,
    type: str | None = None,  # noqa: A002
    aliases: Iterable[str] | None = None,
    tags: Iterable[str] | None = None,
) -> Artifact:
    """Keep an artifact as the next version of its name; the one that is there if nothing changed.

    Args:
        run: that made it.
        artifact_or_path: it, or a file or folder to make one of.
        name: by default `run-<id>-<file>`.
        type: by default "unspecified".
        aliases: names of the version besides "latest".
        tags: labels.
    """
    artifact = artifact_or_path
    if not isinstance(artifact, Artifact):
        path = Path(artifact)
        artifact = Artifact(name or f"run-{run.id}-{path.name}", type or "unspecified")
        artifact.add_dir(path) if path.is_dir() else artifact.add_file(path)
    named = [aliases] if isinstance(aliases, str) else list(aliases or ())
    if run.disabled:
        return artifact
    artifact.tags = list(dict.fromkeys([*artifact.tags, *(tags or ())]))
    guard.attempt("log_artifact()", _log, run, artifact, named)
    return artifact


def _log(run: Run, artifact: Artifact, named: list[str]) -> None:
    folder = store.folder_of(run.settings.dir, run.project, artifact.source_name)
    if not artifact.version:
        _keep(artifact, folder, run.project)
    artifact.aliases = list(dict.fromkeys([*artifact.aliases, "latest", *named]))
    store.point(folder, named, str(artifact.version))
    run._event("artifact", {"action": "logged", **_facts(artifact)})


def use_artifact(
    run: Run,
    artifact_or_name: Artifact | str,
    type: str | None = None,  # noqa: A002
    aliases: Iterable[str] | None = None,
    use_as: str | None = None,
) -> Artifact:
    """An artifact by `name:version`, `name:alias` or `project/name:alias`; that the run used it is recorded.

    Args:
        run: that uses it.
        artifact_or_name: which; one that is not logged yet is logged.
        type: that it has to be of.
        aliases: of one that is logged by this.
        use_as: no effect.

    Raises:
        ServerError: there is none (`wandb.errors.CommError`).
        ValueError: it is of another type.
    """
    no_effect("use_artifact", use_as=use_as)
    if isinstance(artifact_or_name, Artifact):
        logged = artifact_or_name.version is not None
        artifact = artifact_or_name if logged else log_artifact(run, artifact_or_name, aliases=aliases)
    else:
        artifact = find(run.settings.dir, run.project, artifact_or_name)
    of_type(artifact, type)
    run._event("artifact", {"action": "used", **_facts(artifact)})
    return artifact


def link_artifact(run: Run, artifact: Artifact, target_path: str, aliases: Iterable[str] | None = None) -> Artifact:
    """Give a version further names: `target_path` is a collection, whose versions are copies.

    Returns:
        The artifact of the collection.
    """
    logged = artifact if artifact.version or run.disabled else log_artifact(run, artifact)
    return logged if run.disabled else link(logged, target_path, aliases)


def find(top: Path, project: str, name: str) -> Artifact:
    """An artifact by `name`, `name:version`, `name:alias`, `project/name:...` or `entity/project/name:...`.

    Raises:
        ServerError: there is none.
    """
    path, _, wanted = name.partition(":")
    *places, own = path.split("/")
    project = places[-1] if places else project
    folder = store.folder_of(top, project, own)
    known = store.versions(folder)
    version = store.aliases(folder).get(wanted, wanted) if wanted and wanted != "latest" else known[-1] if known else ""
    if version not in known:
        there = f"its versions are {', '.join(known)}" if known else f"{folder} is not there"
        raise ServerError(f"no artifact {name!r} in project {project!r}: {there}")
    return load(folder / version)


def of_type(artifact: Artifact, wanted: str | None) -> Artifact:
    """The artifact, if it is of this type; None is any.

    Raises:
        ValueError: it is of another type.
    """
    if wanted is not None and artifact.type != wanted:
        raise ValueError(f"{artifact.name} is of type {artifact.type!r}, not {wanted!r}")
    return artifact


def load(top: Path) -> Artifact:
    """The artifact of a version's folder."""
    facts = json.loads((top / "manifest.json").read_text())
    artifact = Artifact(facts["name"], facts["type"], facts["description"], facts["metadata"])
    artifact.version, artifact.project, artifact.created_at = top.name, facts["project"], facts["created_at"]
    artifact.tags, artifact._references, artifact._top = facts["tags"], facts["references"], top
    artifact.aliases = [alias for alias, version in store.aliases(top.parent).items() if version == top.name]
    if store.versions(top.parent)[-1:] == [top.name]:
        artifact.aliases.append("latest")
    return artifact


def names(top: Path, project: str) -> list[str]:
    """The names of a project's artifacts."""
    folder = top / "artifacts" / quote(project, safe=" ")
    return sorted(unquote(path.name) for path in folder.iterdir()) if folder.is_dir() else []


def _keep(artifact: Artifact, folder: Path, project: str) -> None:
    known = store.versions(folder)
    if artifact.incremental and known:
        newest = load(folder / known[-1])
        for path in set(newest.paths()) - set(artifact.paths()):
            artifact.add_file(newest._files / path, name=path)
    staged = artifact._files.parent
    digest = artifact.digest
    if known and json.loads((folder / known[-1] / "manifest.json").read_text())["digest"] == digest:
        artifact.version, artifact.project, artifact._top = known[-1], project, folder / known[-1]
        shutil.rmtree(staged, ignore_errors=True)
        return
    artifact.project, artifact.created_at = project, datetime.now(timezone.utc).isoformat(timespec="seconds")
    artifact.write_manifest(staged, digest)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    number = int(known[-1][1:]) + 1 if known else 0
    while not _renamed(staged, folder / f"v{number}"):
        number += 1  # another rank was faster
    artifact.version, artifact._top = f"v{number}", folder / f"v{number}"


def _renamed(staged: Path, target: Path) -> bool:
    if target.exists():
        return False
    try:
        staged.rename(target)
    except OSError as error:
        if target.exists():
            return False
        if staged.stat().st_dev == target.parent.stat().st_dev:
            raise error
        beside = target.parent / staged.name
        shutil.copytree(staged, beside)
        return _renamed(beside, target)
    return True


def link(artifact: Artifact, target_path: str, aliases: Iterable[str] | None) -> Artifact:
    """The version of a collection that holds copies of an artifact's files.

    Raises:
        ValueError: the artifact is not logged.
    """
    if artifact._top is None or not artifact.version:
        raise ValueError(f"link(): {artifact.source_name} has to be logged first")
    path, _, alias = target_path.partition(":")
    *places, own = path.split("/")
    project = places[-1] if places else artifact.project
    top = artifact._top.parents[3]
    copy = Artifact(own, artifact.type, artifact.description, artifact.metadata)
    copy.add_dir(artifact._files)
    _keep(copy, store.folder_of(top, project, own), project)
    named = [each for each in [*(aliases or ()), alias] if each]
    copy.aliases = ["latest", *named]
    store.point(store.folder_of(top, project, own), named, str(copy.version))
    return copy


def _facts(artifact: Artifact) -> dict[str, Any]:
    return {
        "name": artifact.qualified_name,
        "type": artifact.type,
        "digest": artifact.digest,
        "aliases": artifact.aliases,
        "metadata": plain(artifact.metadata),
        "files": artifact.file_count,
        "bytes": artifact.size,
    }
