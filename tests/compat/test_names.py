"""The names of wandb: which are there, which calls of public scripts are taken, and the table that says so."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import torchtrack
from tests.runs import begin
from torchtrack.compat import coverage, names
from torchtrack.compat.arguments import IGNORED

ROOT = Path(__file__).parents[2]
USED: dict[str, list[tuple[int, list[str]]]] = json.loads((ROOT / "tests/data/wandb_names.json").read_text())
"""By how many of 292 public files which names are used, and by how many of 153 calls which arguments of init."""
ENTRIES = list(coverage.entries())
VALUES: dict[str, Any] = {
    "allow_val_change": True,
    "config": {"lr": 0.1},
    "dir": "there",
    "entity": "team",
    "force": True,
    "group": "g",
    "id": "an-id",
    "job_type": "train",
    "magic": True,
    "mode": "online",
    "monitor_gym": True,
    "name": "n",
    "notes": "text",
    "project": "p",
    "reinit": True,
    "resume": "allow",
    "save_code": True,
    "settings": None,
    "sync_tensorboard": True,
    "tags": ["a"],
    "tensorboard": True,
}


def is_there(name: str) -> bool:
    with contextlib.suppress(torchtrack.TorchtrackError):  # config and summary need a run
        return hasattr(torchtrack, name)
    return True


def test_the_top_level_names_of_at_least_91_percent_of_the_files_are_there() -> None:
    covered = sum(count for count, used in USED["files"] if all(map(is_there, used)))

    assert sum(count for count, _ in USED["files"]) == 292
    assert covered == 291


def test_every_init_call_of_the_files_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _, used in USED["init"]:
        given = {name: VALUES[name] for name in used} | (
            {"settings": torchtrack.Settings()} if "settings" in used else {}
        )
        run = torchtrack.init(**{**given, "system_interval": 0, "reinit": True, "mode": "disabled"})

        assert run.disabled

    assert sum(count for count, _ in USED["init"]) == 153


def test_every_argument_of_the_files_works_in_a_run_that_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = begin(**{**VALUES, "settings": torchtrack.Settings(start_method="fork")})
    recorded = (run.project, run.name, run.id, run.group, run.job_type, run.tags, run.notes, run.config["lr"])
    run.finish(quiet=True)

    assert {name for _, used in USED["init"] for name in used} == set(VALUES)
    assert recorded == ("p", "n", "an-id", "g", "train", ("a",), "text", 0.1)


def test_every_log_call_of_the_files_is_taken() -> None:
    run: Any = begin()
    for _, used in USED["log"]:
        run.log({"x": 1.0}, **{name: {"step": 3, "commit": False}[name] for name in used})
    run.finish(quiet=True)


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.of == "names"], ids=lambda entry: entry.name)
def test_every_name_of_the_table_is_there(entry: coverage.Entry) -> None:
    assert is_there(entry.name)


def test_every_further_name_is_in_the_table() -> None:
    listed = {entry.name for entry in ENTRIES if entry.of == "names"}

    assert set(names.every()) <= listed


@pytest.mark.parametrize("of", ["Run"])
def test_every_attribute_of_a_run_in_the_table_is_there(of: str) -> None:
    run = begin(mode="disabled")

    for entry in ENTRIES:
        if entry.of == of:
            assert hasattr(run, entry.name), entry


CALLS = sorted({entry.of for entry in ENTRIES} - {"names", "Run", "init", "Api"})


REST = {("define_metric", name) for name in ("step_sync", "hidden", "overwrite")}
"""Arguments that a call of ours takes without a name for them."""


@pytest.mark.parametrize("of", CALLS)
def test_every_argument_of_the_table_is_taken(of: str) -> None:
    found: Any = getattr(torchtrack, of)
    if of == "Histogram":
        from torchtrack.compat.histograms import make as found
    elif of in names.CALLS or of in ("watch", "define_metric"):
        found = getattr(begin(mode="disabled"), of)
    taken = inspect.signature(getattr(found, "func", found)).parameters

    for entry in ENTRIES:
        if entry.of == of:
            assert entry.name in taken or (of, entry.name) in REST, entry


def test_only_three_arguments_are_ignored() -> None:
    assert {entry.name for entry in ENTRIES if entry.verdict == "ignored"} == set(IGNORED)
    assert set(IGNORED) == {"entity", "anonymous", "force"}


def test_the_table_counts_each_name_once_with_one_of_three_verdicts() -> None:
    verdicts = Counter(entry.verdict for entry in ENTRIES)

    assert set(verdicts) == {"honoured", "mapped", "ignored"}
    assert [pair for pair, count in Counter((e.of, e.name) for e in ENTRIES).items() if count > 1] == []
    assert [entry for entry in ENTRIES if entry.verdict == "mapped" and not entry.note] == []


def test_the_page_is_made_of_the_table() -> None:
    """If this fails: python -c "from torchtrack.compat.coverage import page; print(page(), end='')" > the page."""
    assert (ROOT / "docs" / "wandb-names.md").read_text() == coverage.page()


def test_the_core_loads_nothing_but_the_list_of_names_until_a_name_is_used() -> None:
    code = "import sys, torchtrack; run = torchtrack.init(mode='disabled'); run.log({'x': 1.0}); run.finish()"
    code += "; print([name for name in sys.modules if name.startswith('torchtrack.compat')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)

    assert done.stdout.strip() == "['torchtrack.compat', 'torchtrack.compat.names']"


@pytest.mark.parametrize("expression", ["api.api_key", "errors.CommError", "sdk.wandb_run.Run", "util.generate_id()"])
def test_a_module_of_wandb_is_there_without_an_import_of_it(expression: str) -> None:
    code = f"import torchtrack as wandb; assert wandb.{expression}"

    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_names_are_not_listed_by_the_package() -> None:
    assert {"Artifact", "Settings", "login"}.isdisjoint({*torchtrack.__all__, *dir(torchtrack)} - set(vars(torchtrack)))


PUBLIC = """
import inspect, json, sys
import wandb

found = {of: getattr(wandb, of, None) or getattr(wandb.Run, of, None) for of in json.loads(sys.argv[1])}
calls = {of: call for of, call in found.items() if callable(call)}
print(json.dumps({
    "names": [name for name in wandb.__all__ if not name.startswith("_")],
    "arguments": [(of, name) for of, call in calls.items() for name in inspect.signature(call).parameters],
    "attributes": [name for name in dir(wandb.Run) if not name.startswith("_")],
}))
"""


@pytest.mark.peers
def test_every_public_name_and_argument_of_wandb_is_in_the_table() -> None:
    if importlib.util.find_spec("wandb") is None:  # an import would stand in the way of the stand-in
        pytest.skip("wandb is not installed")
    listed = {(entry.of, entry.name) for entry in ENTRIES}
    offered = {entry.name for entry in ENTRIES if entry.of == "names"}
    without = {"Run", "Settings", "run", "config", "summary", "AlertLevel", "ArtifactTTL"}
    without |= {"Error", "UsageError", "CommError"}
    same = {"_attach", "termerror", "termwarn"}  # as attach and termlog
    asked = json.dumps(sorted(offered - without - same))
    done = subprocess.run([sys.executable, "-c", PUBLIC, asked], capture_output=True, text=True, check=True)
    public = json.loads(done.stdout.splitlines()[-1])

    assert {("names", name) for name in public["names"]} - listed == set()
    assert {(of, name) for of, name in public["arguments"] if name != "self"} - listed == set()
    assert {("Run", name) for name in public["attributes"]} - listed == set()
