"""Who may know whom: the arrows of docs/architecture.md, and what stays out of a process."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rules import source

COMMON = {"errors", "forks", "guard", "version"}
"""Known to all parts; they know nobody."""
ARROWS: dict[str, set[str]] = {
    # at the bottom: they know nothing of each other
    "version": set(),
    "errors": set(),
    "guard": set(),
    "forks": set(),
    "beside": set(),
    "records": {"histogram"},
    "histogram": set(),
    "settings": {"credentials"},
    "credentials": set(),
    "bins": {"histogram"},
    "blobs": set(),
    "contents": set(),
    "mime": set(),
    "naming": set(),
    "phases": set(),
    "alerts": set(),
    "batches": set(),
    # parts
    "background": set(),
    "console": set(),
    "redact": set(),
    "system": set(),
    "environment": {"redact", "system"},
    "fields": {"environment"},
    "media": {"blobs", "mime", "redact"},
    "job": set(),
    "journal": {"records"},
    "columns": {"records"},
    "recorder": {"columns", "journal", "records"},
    "wire": {"journal"},
    "sidecar": {"alerts", "contents", "credentials", "journal", "records", "wire"},
    "watch": {"histogram", "journal", "records"},
    "stability": {"batches", "histogram"},
    "values": {"columns", "histogram", "media", "recorder", "records", "watch"},
    "logbook": {
        "background",
        "bins",
        "blobs",
        "columns",
        "histogram",
        "media",
        "recorder",
        "records",
        "redact",
        "values",
    },
    # the training script's side
    "run": {
        "alerts",
        "background",
        "batches",
        "console",
        "environment",
        "fields",
        "job",
        "journal",
        "logbook",
        "naming",
        "phases",
        "recorder",
        "redact",
        "settings",
        "sidecar",
        "system",
        "watch",
    },
    "active": {"environment", "fields", "job", "naming", "run", "settings"},
    "launch": {"active", "run", "watch"},
    "compat": {
        "",
        "active",
        "api",
        "bins",
        "blobs",
        "contents",
        "credentials",
        "environment",
        "fields",
        "histogram",
        "media",
        "mime",
        "records",
        "redact",
        "run",
        "settings",
        "sweeps",
    },
    "sweeps": {"active", "api", "run", "settings"},
    # the reader's side
    "api": {"batches", "credentials", "histogram", "journal", "naming", "records", "sidecar", "stability"},
    "server": {
        "alerts",
        "api",
        "contents",
        "credentials",
        "histogram",
        "journal",
        "naming",
        "records",
        "stability",
        "wire",
    },
    "lookout": {"api", "beside", "journal", "records", "stability"},
    "importers": {"bins", "blobs", "histogram", "job", "journal", "mime", "records", "redact"},
    "sinks": {"api", "beside", "bins", "histogram", "mime", "records", "stability"},
    "cli": {
        "alerts",
        "api",
        "compat",
        "credentials",
        "importers",
        "journal",
        "launch",
        "records",
        "server",
        "settings",
        "sidecar",
        "sinks",
        "sweeps",
        "wire",
    },
    # everyone's
    "testing": {"histogram"},
    "": set(),
}
"""Part -> the parts it may import, at its top or inside a function. "" is torchtrack/__init__.py."""

WITHOUT_TORCH = (
    "api",
    "cli",
    "histogram",
    "importers",
    "job",
    "journal",
    "lookout",
    "records",
    "recorder",
    "server",
    "settings",
    "sidecar",
    "sinks",
    "stability",
)


def part_of(module: str) -> str:
    return [*module.split("."), ""][1]


def modules_of(part: str) -> list[str]:
    return [m for m in map(source.dotted, source.files()) if part_of(m) == part and not m.endswith("__main__")]


def loaded_by(*modules: str) -> set[str]:
    """The top-level packages in a fresh interpreter after importing these modules."""
    code = "import sys\n" + "".join(f"import {module}\n" for module in modules)
    code += "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=source.ROOT)
    return set(done.stdout.split())


def test_every_part_has_its_place_in_the_table() -> None:
    assert {part_of(source.dotted(path)) for path in source.files()} == set(ARROWS)


@pytest.mark.parametrize("path", source.files(), ids=source.dotted)
def test_a_part_imports_only_what_its_arrows_allow(path: Path) -> None:
    own = part_of(source.dotted(path))
    allowed = ARROWS[own] | {own} | (COMMON if own not in COMMON else set())
    wrong = []
    for node, name in source.imports(path):
        if name.startswith("torchtrack.") and part_of(name) in ARROWS and part_of(name) not in allowed:
            wrong.append(f"{source.place(path, node)} imports {name}")

    assert wrong == []


def test_no_arrow_points_back() -> None:
    left = {part: knows if part in COMMON else knows | COMMON for part, knows in ARROWS.items()}
    while free := {part for part, knows in left.items() if not knows & left.keys()}:
        left = {part: knows for part, knows in left.items() if part not in free}

    assert left == {}


def test_importing_torchtrack_loads_nothing_heavy() -> None:
    assert not loaded_by("torchtrack") & {"torch", "numpy", "pyarrow", "psutil", "pynvml", "click", "rich"}


def test_what_reads_and_what_writes_files_never_loads_torch() -> None:
    modules = [module for part in WITHOUT_TORCH for module in modules_of(part)]

    assert "torch" not in loaded_by(*modules)


def test_the_sidecar_stays_small() -> None:
    assert not loaded_by(*modules_of("sidecar")) & {"torch", "numpy", "pyarrow"}


def test_no_test_framework_is_loaded_outside_testing() -> None:
    parts = set(ARROWS) - {"testing", "watch", ""}
    modules = [module for part in sorted(parts) for module in modules_of(part)]

    assert not loaded_by(*modules) & {"pytest", "hypothesis"}


def test_the_core_needs_no_framework() -> None:
    text = (source.ROOT / "pyproject.toml").read_text()
    core = text.split("\ndependencies = [", 1)[1].split("\n]", 1)[0]
    names = set(re.findall(r'^  "([A-Za-z0-9_-]+)', core, re.MULTILINE))
    assert {"numpy", "pyarrow"} <= names
    assert names.isdisjoint({"torch", "lightning", "transformers", "accelerate", "trl", "fastapi", "chdb", "numba"})
