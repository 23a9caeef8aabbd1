"""A round trip from wandb's own writer, and what damage of its block format costs."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from tests.importers.imported import bring, points, recorded
from torchtrack.importers.source import Losses
from torchtrack.importers.wandb import entries

SCRIPT = """
import sys
import numpy as np
import wandb

run = wandb.init(project="llm", name="calm", dir=sys.argv[1], config={"lr": 0.1, "model": {"width": 3}}, tags=["a"],
                 notes="words", group="g", job_type="train", id="abc123", settings=wandb.Settings(console="off"))
run.define_metric("val/*", step_metric="epoch")
for step in range(4):
    run.log({"loss": 1 / (step + 1), "nan": float("nan"), "val/x": 2 * step, "text": f"step {step}",
             "nested": {"a": step}, "h": wandb.Histogram(np_histogram=([1, 0, 5], [-1.0, 0.25, 1.0, 4.0]))})
run.log({"picture": wandb.Image(np.zeros((4, 5, 3), np.uint8), caption="black"), "system/own": 1.0,
         "table": wandb.Table(columns=["a", "b"], data=[[1, "x"]])})
run.summary["best"] = 0.125
run.config.update({"late": True})
run.finish(exit_code=int(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that failed."""
    folder = tmp_path_factory.mktemp("wandb-source")
    (folder / "train.py").write_text(SCRIPT)
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    environ["PYTHONPATH"] = ":".join(sys.path)
    command = [sys.executable, str(folder / "train.py"), str(folder), "3"]
    subprocess.run(command, check=True, capture_output=True, env=environ, timeout=120)
    return folder / "wandb"


@pytest.mark.peers
def test_a_run_comes_back_value_by_value(written: Path, tmp_path: Path) -> None:
    rows, losses = bring(written, tmp_path / "runs")
    run = recorded(tmp_path / "runs")["calm"]

    assert points(run, "loss") == [(step, 1 / (step + 1)) for step in range(4)]
    assert np.isnan([value for _, value in points(run, "nan")]).tolist() == [True] * 4
    assert points(run, "nested.a") == [(step, float(step)) for step in range(4)]
    assert points(run, "imported/system/own") == [(4, 1.0)]
    assert [row["text"] for row in run.texts().to_pylist()] == [f"step {step}" for step in range(4)]
    back = run.histogram("logged", "h", 2)
    assert (back.count, back.min, back.max) == (6, -1.0, 4.0)
    media = {row["name"]: row for row in run.media().to_pylist()}
    assert (media["picture"]["mime"], media["picture"]["caption"]) == ("image/png", "black")
    table = json.loads((tmp_path / "runs" / run.uid / "media" / media["table"]["sha256"]).read_text())
    assert table == {"columns": ["a", "b"], "data": [[1, "x"]]}
    assert rows[0] > 0
    assert not losses.damages


@pytest.mark.peers
def test_what_a_run_is_called_and_how_it_ended_comes_over(written: Path, tmp_path: Path) -> None:
    bring(written, tmp_path / "runs")
    run = recorded(tmp_path / "runs")["calm"]

    assert (run.id, run.project, run.group, run.job_type) == ("abc123", "llm", "g", "train")
    assert (run.tags, run.notes, run.config) == (("a",), "words", {"lr": 0.1, "model": {"width": 3}, "late": True})
    assert run.state == "failed"
    assert run.attempts[-1].why.endswith("exit code 3")
    assert (run.summary["best"], run.summary["loss"]) == (0.125, 0.25)
    assert [event.data["name"] for event in run.events("metric")] == ["val/*"]


@pytest.mark.peers
def test_a_run_that_is_still_written_is_added_to_once(written: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(written, tmp_path / "copy", symlinks=True))
    (file,) = source.rglob("*.wandb")
    whole = file.read_bytes()
    ends = [end for end, _ in entries(file, 0, Losses())]
    file.write_bytes(whole[: ends[len(ends) // 2] + 5])

    _, losses = bring(source, tmp_path / "runs")
    assert list(losses.damages) == ["files that end within a record: being written, or cut off"]
    file.write_bytes(whole)
    bring(source, tmp_path / "runs")
    rows, _ = bring(source, tmp_path / "runs")

    run = recorded(tmp_path / "runs")["calm"]
    assert rows == [0]
    assert points(run, "loss") == [(step, 1 / (step + 1)) for step in range(4)]
    assert (run.summary["loss"], run.summary["best"]) == (0.25, 0.125)
    assert (run.config["late"], run.state) == (True, "failed")
    assert run.tensors(kind="logged").num_rows == 4


def block(*bodies: tuple[int, bytes]) -> bytes:
    return b"".join(
        struct.pack("<IHB", zlib.crc32(body, zlib.crc32(bytes([form]))), len(body), form) + body
        for form, body in bodies
    )


def test_entries_over_several_blocks_are_whole_and_damage_costs_its_block(tmp_path: Path) -> None:
    first = b":W&B\xe1\xbe\x00" + block((1, b"alone"), (2, b"x" * 30000))
    first += block((3, b"y" * (32768 - len(first) - 7)))
    second = block((4, b"z"), (1, b"behind"))
    second += bytes(32768 - len(second))
    file = tmp_path / "run.wandb"
    file.write_bytes(first + second)
    losses = Losses()

    assert [data[:6] for _, data in entries(file, 0, losses)] == [b"alone", b"xxxxxx", b"behind"]

    data = bytearray(file.read_bytes())
    data[40] ^= 1
    file.write_bytes(bytes(data))
    losses = Losses()
    assert [data[:6] for _, data in entries(file, 0, losses)] == [b"alone", b"behind"]
    assert losses.damages
