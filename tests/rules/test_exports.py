"""The public doors: what `__init__.py` files offer."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import torchtrack
from tests.rules import source

DOORS = [path for path in source.files() if path.name == "__init__.py"]
LIVE = {"__version__", "run"}
"""Names of torchtrack that belong to the active run or are no import."""


def imported_names(path: Path) -> set[str]:
    """Public names a file imports, for type checkers too: torchtrack/__init__.py loads its names when they are used."""
    froms = (node for node in ast.walk(source.tree(path)) if isinstance(node, ast.ImportFrom))
    inside = (node for node in froms if (node.module or "").startswith("torchtrack"))
    return {alias.asname or alias.name for node in inside for alias in node.names if not alias.name.startswith("_")}


def test_torchtrack_exports_exactly_its_public_names() -> None:
    assert set(torchtrack.__all__) == imported_names(source.PACKAGE / "__init__.py") | LIVE


@pytest.mark.parametrize("name", sorted(torchtrack.__all__))
def test_every_exported_name_is_there(name: str) -> None:
    assert hasattr(torchtrack, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = torchtrack.no_such_name


@pytest.mark.parametrize("path", DOORS, ids=source.dotted)
def test_a_door_lists_its_names_in_order_and_all_are_there(path: Path) -> None:
    module = importlib.import_module(source.dotted(path))
    names = list(getattr(module, "__all__", ()))

    assert names == sorted(names)
    assert [name for name in names if name not in LIVE and not hasattr(module, name)] == []


def test_the_front_door_is_short() -> None:
    assert len((source.PACKAGE / "__init__.py").read_text().splitlines()) <= 60
