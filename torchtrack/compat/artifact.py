"""An artifact: files with a name, a type and, once logged, a version. `entries.py` has its files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from torchtrack.compat import digests, store, ttl
from torchtrack.compat.entries import Files
from torchtrack.errors import TorchtrackError
from torchtrack.redact import plain

_NAME: Final = re.compile(r"[A-Za-z0-9_\-. ]{1,128}")


def _told(run: Any) -> list[dict[str, Any]]:
    return [event.data for event in run.events("artifact")]


class Artifact(Files):
    """Files with a name, a type and, once logged, a version.

    Args:
        name: letters, digits, `_`, `-`, `.` and spaces.
        type: such as "model" or "dataset".
        description: free text.
        metadata: a mapping of plain values.
        incremental: start from the files of the newest version.
        use_as: what runs that use it use it as, unless `use_artifact` says else.
        storage_region: where its files are meant to lie; kept with it, for who runs the server.
        digest_algorithm: "MD5" or "XXH128": a second digest of each file, which is compared wherever files are given
            out. All are named by their SHA-256 in any case, which is that without, and "SHA256".

    Raises:
        ValueError: a name with other characters, or another algorithm.
        MissingDependencyError: "XXH128" without xxhash.
    """

    def __init__(
        self,
        name: str,
        type: str,  # noqa: A002
        description: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        incremental: bool = False,
        use_as: str | None = None,
        storage_region: str | None = None,
        digest_algorithm: str | None = None,
    ) -> None:
        super().__init__(digests.known(digest_algorithm))
        if not _NAME.fullmatch(str(name)):
            raise ValueError(f"the name of an artifact has letters, digits, '_', '-', '.' and spaces, got {name!r}")
        self.source_name, self.type, self.description = name, type, description
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.incremental, self.use_as = incremental, use_as
        self.project, self.entity = "", ""
        self.version: str | None = None
        self.aliases: list[str] = []
        self.tags: list[str] = []
        self.created_at: str | None = None
        self.storage_region = storage_region
        self._ttl_s: float | None = None
        self._inherits = True
        self._run = ""

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """`name`, or `name:v0` once it has a version."""
        return f"{self.source_name}:{self.version}" if self.version else self.source_name

    @property
    def qualified_name(self) -> str:
        """`project/name:v0`."""
        return f"{self.project}/{self.name}" if self.project else self.name

    full_name = qualified_name

    @property
    def id(self) -> str | None:
        """Its digest, once logged."""
        return self.digest if self.version else None

    @property
    def state(self) -> str:
        """PENDING until it is logged, then COMMITTED."""
        return "COMMITTED" if self.version else "PENDING"

    @property
    def is_draft(self) -> bool:
        """Whether it has no version yet."""
        return self.version is None

    @property
    def ttl(self) -> timedelta | None:
        """How old it may get before `torchtrack gc` removes it; None: as old as it likes, or as `gc` is told.

        `ArtifactTTL.INHERIT` leaves that to `gc --artifact-days`, as it is if nothing is said; None is never. A version
        with an alias of its own, besides "latest", stays. Of a logged one `save()` writes it down.

        Raises:
            ValueError: set to a timedelta that is not above 0.
        """
        return None if self._ttl_s is None else timedelta(seconds=self._ttl_s)

    @ttl.setter
    def ttl(self, value: timedelta | ttl.ArtifactTTL | None) -> None:
        self._ttl_s = ttl.seconds(value)
        self._inherits = value is ttl.ArtifactTTL.INHERIT

    @property
    def terms(self) -> dict[str, Any]:
        """How it is to be kept: what was said of it, and nothing where nothing was."""
        given = {
            "storage_region": self.storage_region,
            "digest_algorithm": self.digest_algorithm if self.digest_algorithm in digests.SECOND else None,
            "ttl_s": self._ttl_s if self._ttl_s is not None or self._inherits else ttl.NEVER_S,
        }
        return {name: value for name, value in given.items() if value is not None}

    def agree(self, terms: Mapping[str, Any]) -> None:
        """Take terms that were written down."""
        self.storage_region, kept_s = terms.get("storage_region"), terms.get("ttl_s")
        self.digest_algorithm = digests.known(terms.get("digest_algorithm"))
        self._inherits, self._ttl_s = kept_s is None, kept_s if kept_s != ttl.NEVER_S else None

    @property
    def digest(self) -> str:
        """SHA-256 over names and contents of the files, and references."""
        if self._away:
            return str(self._away.about["digest"])
        whole = hashlib.sha256()
        for path in self.paths():
            whole.update(f"{path}\0{self.held(path).sha256}\0".encode())
        for name, uri in sorted(self.references().items()):
            whole.update(f"{name}\0{uri}\0".encode())
        return whole.hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.held(path).size for path in self.paths())

    @property
    def file_count(self) -> int:
        """How many files it has."""
        return len(self.paths()) + len(self.references())

    # -- its life -----------------------------------------------------------------------------------------------------

    def wait(self, timeout: int | None = None) -> Artifact:
        """It is there once `log_artifact` has returned."""
        del timeout
        return self

    def finalize(self) -> None:
        """Nothing is left to do."""

    def link(self, target_path: str, aliases: Iterable[str] | None = None) -> Artifact:
        """Give the version these names in a collection: see `link_artifact`."""
        from torchtrack.compat.artifacts import link

        link(self, target_path, aliases)
        return self

    def save(self, *_: Any, **__: Any) -> None:
        """Write changed metadata, description, aliases and ttl of a logged artifact.

        Raises:
            TorchtrackError: it lies on a server.
        """
        self._refuse_away("save()")
        if self._top is not None and self.version:
            self.write_manifest(self._top)
            store.point(self._top.parent, [*self.aliases], self.version)

    def write_manifest(self, top: Path, digest: str | None = None) -> None:
        """Write down what it is, in the folder of its version."""
        held = {path: self.held(path) for path in self.paths()}
        facts = {
            "format": 1,
            "name": self.source_name,
            "type": self.type,
            "project": self.project,
            "description": self.description,
            "metadata": plain(self.metadata),
            "use_as": self.use_as,
            "tags": self.tags,
            "created_at": self.created_at,
            "digest": digest or self.digest,
            "terms": self.terms,
            "run": self._run,
            "files": {
                path: {"size": each.size, "sha256": each.sha256, **({"parts": each.parts} if each.parts[1:] else {})}
                for path, each in held.items()
            },
            "digests": self.digests(),
            "references": self.references(),
        }
        store.write(top / "manifest.json", json.dumps(facts, indent=1, default=str))

    def delete(self, delete_aliases: bool = False) -> None:
        """Remove this version.

        Raises:
            ValueError: aliases name it, and `delete_aliases` is False.
            TorchtrackError: it lies on a server.
        """
        self._refuse_away("delete()")
        if self._top is None or not self.version:
            return
        pointing = [alias for alias, version in store.aliases(self._top.parent).items() if version == self.version]
        if pointing and not delete_aliases:
            raise ValueError(
                f"{self.name} is also {', '.join(pointing)}; delete(delete_aliases=True) removes those too"
            )
        store.remove(self._top)

    def logged_by(self) -> Any:
        """The run that logged it first, with wandb's methods; None if that is not known."""
        api = self._api()
        run = api.with_uid(self._run) if api and self._run else None
        return run and api.seen(run)

    def used_by(self) -> list[Any]:
        """The runs where it lies that used it, with wandb's methods."""
        api = self._api()
        mine = {"action": "used", "digest": self.digest}.items()
        called = f"{self.project}/{self.source_name}:"
        return [
            api.seen(run)
            for run in (api._plain.runs() if api else ())
            if any(mine <= told.items() and told["name"].startswith(called) for told in _told(run))
        ]

    def _api(self) -> Any:
        """Reads the runs that are where it lies; None for one that is not logged."""
        from torchtrack.compat.public import Api

        if self._away:
            return Api(self._away.server.url, api_key=self._away.server.key)
        return None if self._top is None else Api(self._top.parents[3])

    def _refuse_away(self, call: str) -> None:
        if self._away:
            raise TorchtrackError(
                f"{call}: {self.qualified_name} lies on {self._away.server.url}, where versions stay as they were "
                f"logged; log_artifact(artifact, aliases=[...]) gives it further names"
            )
