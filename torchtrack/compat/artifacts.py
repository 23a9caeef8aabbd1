"""Artifacts of a project: logged, used, linked and found, in the folder of runs and then on the server of the run.

A version is complete or not there: it is made beside the others and renamed (store.py says where). What it holds is
sent to the server before the row that says so: that row names the list of its files (`torchtrack.contents`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from torchtrack import blobs, contents, guard
from torchtrack.api.remote import Server
from torchtrack.compat import away, store
from torchtrack.compat.artifact import Artifact
from torchtrack.errors import ServerError
from torchtrack.redact import plain
from torchtrack.run import Run
from torchtrack.settings import Settings


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
        artifact._run = run.uid
        _keep(artifact, folder, run.project)
    elif artifact._away:
        _bring(artifact, folder, run)
    artifact.aliases = list(dict.fromkeys([*artifact.aliases, "latest", *named]))
    store.point(folder, named, str(artifact.version))
    _tell(run, "logged", artifact)


def _tell(run: Run, action: str, artifact: Artifact) -> None:
    """Record it, and where the files are listed that are to be sent."""
    held = {path: artifact.held(path) for path in artifact.paths()}
    listed = contents.encode(held, artifact.references(), artifact.digests())
    digest = blobs.store(blobs.Blob(listed, "application/json", None, {}), Path(run.dir))
    about = {**_facts(artifact), "description": artifact.description, "tags": artifact.tags, "terms": artifact.terms}
    run._event("artifact", {"action": action, **about, "contents": digest, "first": artifact._run})


def _bring(artifact: Artifact, folder: Path, run: Run) -> None:
    """Make a version of this folder of one that lies on a server, so that it can have further names."""
    copy = Artifact(artifact.source_name, artifact.type, artifact.description, artifact.metadata)
    copy.agree(artifact.terms)
    for path in artifact.paths():
        copy.add_file(artifact.at(path), name=path)
    copy._references, copy._run = dict(artifact.references()), artifact._run
    _keep(copy, folder, run.project, str(artifact.version))
    artifact._away, artifact._held, artifact._top = None, copy._held, copy._top
    artifact._references, artifact._digests = copy._references, copy._digests
    artifact.version, artifact.project, artifact._run = copy.version, copy.project, copy._run


def use_artifact(
    run: Run,
    artifact_or_name: Artifact | str,
    type: str | None = None,  # noqa: A002
    aliases: Iterable[str] | None = None,
    use_as: str | None = None,
) -> Artifact:
    """An artifact by `name:version`, `name:alias` or `project/name:alias`; that the run used it is recorded.

    It is looked for in the folder of runs, and then on the server that the run is sent to: from there its files come
    when they are asked for.

    Args:
        run: that uses it.
        artifact_or_name: which; one that is not logged yet is logged.
        type: that it has to be of.
        aliases: of one that is logged by this.
        use_as: what for, such as "teacher"; recorded with it.

    Raises:
        ServerError: there is none (`wandb.errors.CommError`).
        ValueError: it is of another type.
    """
    if isinstance(artifact_or_name, Artifact):
        logged = artifact_or_name.version is not None
        artifact = artifact_or_name if logged else log_artifact(run, artifact_or_name, aliases=aliases)
    else:
        artifact = _found(run, artifact_or_name)
    of_type(artifact, type)
    run._event("artifact", {"action": "used", "use_as": use_as or artifact.use_as, **_facts(artifact)})
    return artifact


def link_artifact(run: Run, artifact: Artifact, target_path: str, aliases: Iterable[str] | None = None) -> Artifact:
    """Give a version further names: `target_path` is a collection, whose versions are copies.

    Returns:
        The artifact of the collection.
    """
    logged = artifact if artifact.version or run.disabled else log_artifact(run, artifact)
    if run.disabled:
        return logged
    copy = link(logged, target_path, aliases)
    guard.attempt("link_artifact()", _tell, run, "linked", copy)
    return copy


def _found(run: Run, name: str) -> Artifact:
    try:
        return find(run.settings.dir, run.project, name)
    except ServerError as error:
        settings = run.settings
        if settings.mode != "online" or not settings.url:
            raise
        server = Server(settings.url, settings.api_key)
        try:
            return find_there(server, settings.dir, run.project, name)
        except ServerError as there:
            raise ServerError(f"{error}; {there}") from None


def find_there(server: Server, top: Path, project: str, name: str) -> Artifact:
    """An artifact on a server, by the names that `find` takes.

    Args:
        server: which.
        top: the folder of runs whose contents are kept, so that nothing is fetched twice.
        project: that the name is in, if it does not say another.
        name: the name.

    Raises:
        ServerError: there is none, or the server does not answer.
    """
    project, own, wanted = _parsed(project, name)
    known = away.versions(server, project, own)
    found = [each for each in known if wanted == each["version"] or wanted in each["aliases"]]
    if not found:
        there = f"its versions are {', '.join(each['version'] for each in known)}" if known else "it has none"
        raise ServerError(f"no artifact {name!r} in project {project!r} on {server.url}: {there}")
    return there_is(server, top, found[-1])


def there_is(server: Server, top: Path, about: Mapping[str, Any]) -> Artifact:
    """The artifact of a version that a server told of."""
    artifact = Artifact(about["name"], about["type"], about["description"], about["metadata"])
    artifact.version, artifact.project, artifact._run = about["version"], about["project"], about["run"]
    artifact.created_at = datetime.fromtimestamp(about["time"], timezone.utc).isoformat(timespec="seconds")
    artifact.aliases, artifact.tags = list(about["aliases"]), list(about["tags"] or ())
    artifact.agree(about.get("terms") or {})
    artifact._away = away.Away(server, top / "artifacts" / ".content", about)
    return artifact


def _parsed(project: str, name: str) -> tuple[str, str, str]:
    """Project, name, and version or alias."""
    path, _, wanted = name.partition(":")
    *places, own = path.split("/")
    return places[-1] if places else project, own, wanted or "latest"


def find(top: Path, project: str, name: str) -> Artifact:
    """An artifact by `name`, `name:version`, `name:alias`, `project/name:...` or `entity/project/name:...`.

    Raises:
        ServerError: there is none.
    """
    project, own, wanted = _parsed(project, name)
    folder = store.folder_of(top, project, own)
    known = store.versions(folder)
    version = store.aliases(folder).get(wanted, wanted) if wanted != "latest" else known[-1] if known else ""
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
    facts = _manifest(top)
    artifact = Artifact(facts["name"], facts["type"], facts["description"], facts["metadata"])
    artifact.use_as = facts.get("use_as")
    artifact.agree(facts.get("terms") or {})
    artifact._digests = facts.get("digests")
    artifact.version, artifact.project, artifact.created_at = top.name, facts["project"], facts["created_at"]
    artifact._run = facts.get("run", "")
    files = facts["files"]
    if all("sha256" in file and ("parts" in file or file["size"] <= contents.PART_BYTES) for file in files.values()):
        artifact._held = {path: _held(file) for path, file in files.items()}
    artifact.tags, artifact._references, artifact._top = facts["tags"], facts["references"], top
    artifact.aliases = [alias for alias, version in store.aliases(top.parent).items() if version == top.name]
    if store.versions(top.parent)[-1:] == [top.name]:
        artifact.aliases.append("latest")
    return artifact


def _manifest(top: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((top / "manifest.json").read_text())
    return facts


def _held(file: Mapping[str, Any]) -> contents.Held:
    """A file as the manifest says."""
    size, digest = file["size"], file["sha256"]
    return contents.Held(size, digest, tuple(file.get("parts") or ([digest] if size else [])))


def names(top: Path, project: str) -> list[str]:
    """The names of a project's artifacts."""
    folder = top / "artifacts" / quote(project, safe=" ")
    return sorted(unquote(path.name) for path in folder.iterdir()) if folder.is_dir() else []


def _keep(artifact: Artifact, folder: Path, project: str, version: str | None = None) -> None:
    """Make a version of an artifact: of this number if it is free, else the next one."""
    known = store.versions(folder)
    if artifact.incremental and known:
        newest = load(folder / known[-1])
        for path in set(newest.paths()) - set(artifact.paths()):
            artifact.add_file(newest._files / path, name=path)
    staged, artifact._held = artifact._files.parent, None
    artifact._held = {path: artifact.held(path) for path in artifact.paths()}
    artifact._digests = dict(artifact.digests())
    digest = artifact.digest
    if known and _manifest(folder / known[-1])["digest"] == digest:
        artifact.version, artifact.project, artifact._top = known[-1], project, folder / known[-1]
        artifact._run = str(_manifest(folder / known[-1]).get("run") or artifact._run)
        shutil.rmtree(staged, ignore_errors=True)
        return
    artifact.project, artifact.created_at = project, datetime.now(timezone.utc).isoformat(timespec="seconds")
    artifact.write_manifest(staged, digest)
    store.share(folder.parents[2], {staged / "files" / path: held.sha256 for path, held in artifact._held.items()})
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    number = store.newest(folder) + 1
    number = int(version[1:]) if version and version not in known else number
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
    if not artifact.version:
        raise ValueError(f"link(): {artifact.source_name} has to be logged first")
    path, _, alias = target_path.partition(":")
    *places, own = path.split("/")
    project = places[-1] if places else artifact.project
    top = Settings.resolve().dir if artifact._top is None else artifact._top.parents[3]
    copy = Artifact(own, artifact.type, artifact.description, artifact.metadata)
    copy.storage_region, copy.digest_algorithm = artifact.storage_region, artifact.digest_algorithm
    copy.ttl = None  # as there: what is linked does not run out
    copy._references, copy._run = dict(artifact.references()), artifact._run
    for each in artifact.paths():
        copy.add_file(artifact.at(each), name=each)
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
