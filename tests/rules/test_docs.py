"""The pages say what the code does: each setting, command and option is there, and none that is not."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
from pathlib import Path

import click
import pytest

from tests.rules import source
from torchtrack.cli import main
from torchtrack.settings import ENVIRONMENT, Settings
from torchtrack.version import __version__

DOCS = source.ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), *sorted(source.ROOT.glob("*.md"))]
VARIABLE = re.compile(r"\bTORCHTRACK_[A-Z_]+\b")
INIT_ARGUMENTS = {field.name for field in dataclasses.fields(Settings)}


def commands(group: click.Command, path: str = "torchtrack") -> dict[str, click.Command]:
    """Every command by what is typed: {"torchtrack ls": ...}."""
    if not isinstance(group, click.Group):
        return {path: group}
    found = {}
    for name, command in group.commands.items():
        found.update(commands(command, f"{path} {name}"))
    return found


def sections(page: str) -> dict[str, str]:
    """The text under each second-level heading that is a command."""
    parts = re.split(r"^## `(torchtrack [a-z -]+?)(?: [A-Z\[].*)?`$", (DOCS / page).read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_variable_in_the_code_is_in_the_settings_page_and_the_other_way_round() -> None:
    constants = (node.value for _, node in source.nodes() if isinstance(node, ast.Constant))
    in_code = {name for text in constants if isinstance(text, str) for name in VARIABLE.findall(text)}
    in_page = set(VARIABLE.findall((DOCS / "settings.md").read_text()))

    assert in_page == in_code
    assert set(ENVIRONMENT.values()) <= in_page


def test_every_argument_of_init_is_in_the_settings_page_and_the_other_way_round() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \|", (DOCS / "settings.md").read_text(), flags=re.MULTILINE)

    assert len(rows) == len(set(rows))
    assert set(rows) == INIT_ARGUMENTS


def test_every_command_has_its_section_and_the_other_way_round() -> None:
    assert set(sections("commands.md")) == set(commands(main))


@pytest.mark.parametrize("name", commands(main))
def test_the_section_of_a_command_names_exactly_its_options(name: str) -> None:
    options = {
        text
        for parameter in commands(main)[name].params
        if isinstance(parameter, click.Option)
        for text in (*parameter.opts, *parameter.secondary_opts)
        if text.startswith("--")
    }

    assert set(re.findall(r"--[a-z][a-z-]*", sections("commands.md").get(name, ""))) - {"--help"} == options - {
        "--help"
    }


def test_the_newest_version_in_the_changelog_is_the_packages() -> None:
    versions = re.findall(r"^## (\d+\.\d+\.\d+)", (source.ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)

    assert versions[0] == __version__


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(source.ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    inside = [link for link in links if not link.startswith(("http://", "https://", "mailto:"))]

    assert [link for link in inside if not (page.parent / link).exists()] == []


def test_the_source_map_names_files_that_exist() -> None:
    named = re.findall(
        r"`((?:torchtrack|tests|examples|benchmarks|docs)/[\w./-]*)`", (DOCS / "source-map.md").read_text()
    )

    assert named
    assert [name for name in named if not (source.ROOT / name).exists()] == []


def test_no_file_names_a_machine() -> None:
    home, here = f"{Path.home()}/", str(source.ROOT)
    done = subprocess.run(["git", "ls-files", "-z"], cwd=source.ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    found = []
    for name in filter(None, done.stdout.split("\0")):
        data = (source.ROOT / name).read_bytes() if (source.ROOT / name).is_file() else b""
        if home.encode() in data or here.encode() in data:
            found.append(name)

    assert found == []
