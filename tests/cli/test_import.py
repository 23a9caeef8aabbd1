"""`torchtrack import`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Cli
from tests.importers.test_mlflow import RUN, folder_store


def test_it_says_what_came_and_what_did_not(cli: Cli, tmp_path: Path) -> None:
    store = folder_store(tmp_path)
    (store / "1" / RUN / "artifacts" / "model.bin").write_bytes(b"...")

    done = cli("import", str(store), "--dir", "runs")

    assert done.exit_code == 0
    assert "1 run in runs:" in done.output
    assert "exp-one/calm: " in done.output
    assert "not taken over:\n  1 x artifacts stay with MLflow" in done.output
    assert "nothing new" in cli("import", str(store), "--dir", "runs").output
    assert "calm" in cli("ls", "runs").output
    assert "sealed" in cli("fsck", "runs").output or cli("fsck", "runs").exit_code == 0


def test_damage_is_exit_code_1_and_the_rest_is_there(cli: Cli, tmp_path: Path) -> None:
    store = folder_store(tmp_path)
    (store / "1" / RUN / "metrics" / "loss").write_text("1700000000000 1.0 0\nbroken\n")

    done = cli("import", str(store), "--dir", "runs", "--json")
    said = json.loads(done.output)

    assert done.exit_code == 1
    assert said["could_not_be_read"] == {"lines of metric files that are none": 1}
    assert said["runs"][0]["rows"] > 3


def test_a_list_imports_nothing_and_a_project_can_be_given(cli: Cli, tmp_path: Path) -> None:
    store = folder_store(tmp_path)

    assert "would be imported" in cli("import", str(store), "--dir", "runs", "--list").output
    assert not (tmp_path / "runs").exists()
    assert "mine/calm" in cli("import", str(store), "--dir", "runs", "--project", "mine").output


def test_what_is_no_source_is_one_sentence(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    for source, words in (("nowhere", "no such file or folder"), ("empty", "there is no history of")):
        done = cli("import", source, "--dir", "runs")
        assert done.exit_code == 1
        assert words in done.output
    assert cli("import").exit_code == 2
