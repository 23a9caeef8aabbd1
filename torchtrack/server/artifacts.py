"""Versions of artifacts, put together from what runs said when they logged them.

Machines that log under one name number their versions without knowing of each other. Here the same files are the same
version; another one that comes under a number that is taken gets the next.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from torchtrack.contents import is_digest
from torchtrack.server.reading import Reader

_SAID: Final = ("type", "digest", "description", "metadata", "files", "bytes", "contents", "tags", "terms")


class Said(NamedTuple):
    """That a run logged an artifact: which run, when in microseconds since 1970, and what it said."""

    uid: str
    time_us: int
    project: str
    name: str
    version: str
    about: dict[str, Any]


def versions(reader: Reader, project: str, name: str | None = None) -> list[dict[str, Any]]:
    """The versions of the artifacts of a project, or of one of them, by name and from the oldest on."""
    of_name: dict[str, list[Said]] = {}
    for said in _said(reader):
        if said.project == project and name in (None, said.name):
            of_name.setdefault(said.name, []).append(said)
    return [version for each in sorted(of_name) for version in _numbered(of_name[each])]


def _said(reader: Reader) -> Iterable[Said]:
    """What runs said of artifacts of their own projects, in the order of time."""
    rows = reader.store.query(
        "SELECT stream, time, json FROM events WHERE type = 'artifact' ORDER BY time, stream, seq, row"
    ).to_pylist()
    several = reader.of_runs(rows)
    own = reader.own_projects({uid for uid, _, _ in several})
    for uid, home, row in several:
        about = json.loads(row["json"])
        if not isinstance(about, dict) or about.get("action") not in ("logged", "linked"):
            continue
        project, _, rest = str(about.get("name")).rpartition("/")
        name, _, version = rest.rpartition(":")
        if name and project == own.get(uid):  # nobody adds to another project's artifacts
            yield Said(uid, int(row["time"] or 0), home, name, version, about)


def _numbered(said: Iterable[Said]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    aliases: dict[str, str] = {}
    for each in said:
        about, digest = each.about, str(each.about.get("digest"))
        if digest not in found:
            taken = {version["version"] for version in found.values()}
            number = each.version if each.version not in taken else f"v{max(map(_number, taken)) + 1}"
            place = {"project": each.project, "name": each.name, "version": number, "run": each.uid}
            found[digest] = {**place, "time": each.time_us / 1e6}
        version = found[digest]
        if is_digest(about.get("contents")) or "contents" not in version:
            version["run"] = each.uid
            version.update({name: about.get(name) for name in _SAID})
        named = about.get("aliases")
        aliases |= {str(alias): digest for alias in named or () if alias != "latest"} if isinstance(named, list) else {}
    ordered = sorted(found.values(), key=lambda version: _number(version["version"]))
    for version in ordered:
        mine = [alias for alias, digest in aliases.items() if digest == version["digest"]]
        version["aliases"] = mine + (["latest"] if version is ordered[-1] else [])
    return ordered


def _number(version: str) -> int:
    return int(version[1:]) if version[:1] == "v" and version[1:].isdecimal() else -1
