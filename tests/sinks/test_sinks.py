"""What sinks write, read back by the trackers' own readers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchtrack
from tests.api.journals import UID, RankJournal
from tests.sinks.samples import VALUES, Noting, two_ranks, with_media
from torchtrack.errors import TorchtrackError
from torchtrack.histogram import Histogram
from torchtrack.settings import Settings
from torchtrack.sinks import Forwarder

OURS = Histogram.of(np.array(VALUES, np.float32))
NOTING = "tests.sinks.samples:Noting"


def forward(uid: str, folder: Path, spec: str) -> None:
    """In a process of its own, since these trackers leave threads behind."""
    command = [sys.executable, "-m", "torchtrack.cli", "forward", uid, "--to", spec, "--dir", str(folder / "runs")]
    environ = {**os.environ, "HOME": str(folder), "PYTHONPATH": ":".join(sys.path)}
    subprocess.run(command, check=True, capture_output=True, env=environ, timeout=120)


@pytest.fixture(autouse=True)
def noted() -> Iterator[None]:
    yield
    Noting.steps.clear()
    Noting.rewound.clear()


def test_tensorboards_own_reader_has_our_numbers_and_counts(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Forwarder(tmp_path, two_ranks(tmp_path), f"tensorboard={tmp_path / 'logs'}").finish()
    (folder,) = (tmp_path / "logs" / "llm").iterdir()
    read = EventAccumulator(str(folder), size_guidance={"tensors": 0, "histograms": 0})
    read.Reload()

    losses = [(event.step, event.value) for event in read.Scalars("loss")]
    assert losses == [(step, step + 1.0) for step in range(4)]
    (event,) = read.Histograms("gradient/w")
    value = event.histogram_value
    counts, ends = OURS.to_edges()
    ours = [(end, count) for end, count in zip(ends[1:].tolist(), counts.tolist(), strict=True) if count]
    theirs = [(end, n) for end, n in zip(value.bucket_limit, value.bucket, strict=True) if n]
    assert [count for _, count in theirs] == [count for _, count in ours]
    assert (value.num, value.min, value.max) == (OURS.finite, OURS.min, OURS.max)
    assert (value.sum, value.sum_squares) == (OURS.sum, OURS.sum_sq)
    assert [event.value for event in read.Scalars("nonfinite/gradient/w")] == [2.0]


def test_our_import_reads_back_what_our_sink_wrote(tmp_path: Path) -> None:
    from tests.importers.imported import bring

    Forwarder(tmp_path / "a", two_ranks(tmp_path / "a"), f"tensorboard={tmp_path / 'logs'}").finish()
    bring(tmp_path / "logs", tmp_path / "b")
    (run,) = torchtrack.Api(tmp_path / "b").runs()
    back = run.histogram("logged", "gradient/w", 1)

    regular = slice(165, 325)
    assert back.counts[regular].tolist() == OURS.counts[regular].tolist()
    assert (back.count, back.sum, back.min, back.max) == (OURS.finite, OURS.sum, OURS.min, OURS.max)


def test_what_a_sink_has_is_not_sent_again(tmp_path: Path) -> None:
    uid = two_ranks(tmp_path)
    Forwarder(tmp_path, uid, NOTING).finish()
    Forwarder(tmp_path, uid, NOTING).finish()

    assert [step.step for step in Noting.steps] == [0, 1, 2, 3]
    assert Noting.steps[1].histograms["gradient/w"] == OURS


def test_an_attempt_that_goes_back_rewinds_the_sink(tmp_path: Path) -> None:
    uid = two_ranks(tmp_path)
    Forwarder(tmp_path, uid, NOTING).finish()
    with RankJournal(tmp_path, attempt=2) as journal:
        for step in (2, 3, 4):
            journal.log(step, {"loss": 100.0})

    Forwarder(tmp_path, uid, NOTING).finish()

    assert Noting.rewound == [2]
    assert [step.step for step in Noting.steps] == [0, 1, 2, 3, 2, 3, 4]
    assert Noting.steps[-1].scalars == {"loss": 100.0}


def test_an_attempt_that_says_where_it_begins_rewinds_the_sink_to_there(tmp_path: Path) -> None:
    uid = two_ranks(tmp_path)
    Forwarder(tmp_path, uid, NOTING).finish()
    with RankJournal(tmp_path, attempt=2, from_step=2) as journal:
        journal.log(3, {"val": 100.0})

    Forwarder(tmp_path, uid, NOTING).finish()

    assert Noting.rewound == [2]
    assert [step.step for step in Noting.steps] == [0, 1, 2, 3, 3]
    assert Noting.steps[-1].scalars == {"val": 100.0}


@pytest.mark.parametrize("given", ["tensorboard,mlflow", ["tensorboard", "mlflow"]])
def test_sinks_are_named_in_one_setting(given: object) -> None:
    assert Settings.resolve(sinks=given).sinks == ("tensorboard", "mlflow")


@pytest.mark.parametrize("wrong", ["tensorbord", "os.system", 3, [1]])
def test_a_sink_that_is_none_is_refused_at_the_call(wrong: object) -> None:
    with pytest.raises((ValueError, TypeError), match="sinks="):
        Settings.resolve(sinks=wrong)


def rows_of_wandb(folder: Path) -> list[dict[str, Any]]:
    """The rows of the one run that was forwarded to wandb offline."""
    from torchtrack.importers.source import Losses
    from torchtrack.importers.wandb import _parsed, _place, _record_class, entries

    (file,) = (folder / "runs" / "sinks").rglob("*.wandb")
    rows = []
    for _, data in entries(file, 0, Losses()):
        record = _parsed(_record_class(), data)
        if record.WhichOneof("record_type") == "history":
            row: dict[str, Any] = {}
            for item in record.history.item:
                _place(row, item, json.loads(item.value_json))
            rows.append(row)
    return rows


@pytest.mark.peers
def test_wandbs_offline_file_has_our_histograms(tmp_path: Path) -> None:
    forward(two_ranks(tmp_path / "runs"), tmp_path, "wandb=offline")
    rows = rows_of_wandb(tmp_path)

    assert [row["loss"] for row in rows] == [1, 2, 3, 4]
    counts, ends = OURS.to_edges()
    assert rows[1]["gradient/w"] == {"_type": "histogram", "values": counts.tolist(), "bins": ends.tolist()}


def with_bins(runs: Path) -> str:
    """A finished run whose histogram has two bins of its own; its uid."""
    counted: Any = Histogram
    run: Any = torchtrack.init(dir=runs, system_interval=0, sidecar=False)
    run.log({"binned": counted([1.0, 2.0, 2.0], num_bins=2), "plain": counted([1.0, 2.0])})
    run.finish(quiet=True)
    return str(run.uid)


def test_a_histogram_goes_to_sinks_with_the_bins_of_its_own(tmp_path: Path) -> None:
    Forwarder(tmp_path, with_bins(tmp_path), NOTING).finish()
    found = {name: each.to_edges() for name, each in Noting.steps[0].histograms.items()}

    assert [part.tolist() for part in found["binned"]] == [[1, 2], [1.0, 1.5, 2.0]]
    assert len(found["plain"][0]) > 300


@pytest.mark.peers
def test_wandbs_offline_file_has_the_bins_of_a_histogram(tmp_path: Path) -> None:
    forward(with_bins(tmp_path / "runs"), tmp_path, "wandb=offline")

    assert rows_of_wandb(tmp_path)[0]["binned"] == {"_type": "histogram", "values": [1, 2], "bins": [1.0, 1.5, 2.0]}


READ = """
import json, sys
from mlflow import MlflowClient

client = MlflowClient(tracking_uri=sys.argv[1])
(run,) = client.search_runs([client.get_experiment_by_name("llm").experiment_id])
losses = [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, "loss")]
norm = client.get_metric_history(run.info.run_id, "gradient/w/norm")[0].value
print(json.dumps([losses, norm, run.data.params, run.info.run_name, run.info.status]))
"""


@pytest.mark.peers
def test_mlflows_store_has_our_metrics(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'm.db'}"
    forward(two_ranks(tmp_path / "runs"), tmp_path, f"mlflow={uri}")
    environ = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", READ, uri], check=True, capture_output=True, env=environ, timeout=120)

    losses, norm, params, name, status = json.loads(done.stdout.splitlines()[-1])
    assert losses == [[step, step + 1.0] for step in range(4)]
    assert norm == OURS.norm
    assert params == {"lr": "0.1", "model.width": "3"}
    assert (name, status) == ("calm", "FINISHED")


def test_a_sink_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(TorchtrackError, match=r"torchtrack\[mlflow\]"):
        Forwarder(tmp_path, two_ranks(tmp_path), "mlflow").finish()


def test_texts_and_media_reach_a_sink_at_their_step(tmp_path: Path) -> None:
    Forwarder(tmp_path, with_media(tmp_path), NOTING).finish()
    first, second = Noting.steps

    assert [dict(step.texts) for step in (first, second)] == [{"said": "hello"}, {"said": "bye"}]
    assert {name: [each.mime for each in media] for name, media in first.media.items()} == {
        "picture": ["image/png"],
        "sound": ["audio/wav"],
        "table": ["application/vnd.torchtrack.table+json"],
    }
    assert first.media["picture"][0].caption == "black"
    assert len(second.media["pictures"]) == 2
    assert all(each.path.is_file() for media in first.media.values() for each in media)


def test_of_texts_of_several_ranks_those_of_the_lowest_count(tmp_path: Path) -> None:
    for rank in (1, 0):
        with RankJournal(tmp_path, rank=rank, world_size=2) as journal:
            journal.log(0, {"loss": 1.0})
            journal.text(0, "said", f"rank {rank}")

    Forwarder(tmp_path, UID, NOTING).finish()

    assert [dict(step.texts) for step in Noting.steps] == [{"said": "rank 0"}]


def test_texts_wait_for_their_step(tmp_path: Path) -> None:
    with RankJournal(tmp_path) as journal:
        journal.log(0, {"loss": 1.0})
        journal.text(9, "said", "early")
        journal.log(1, {"loss": 1.0})
        clock = iter([0.0, 10.0, 20.0, 100.0, 200.0])
        forwarder = Forwarder(tmp_path, UID, NOTING, clock=lambda: next(clock))
        forwarder.look()
        forwarder.look()
        before = [step.step for step in Noting.steps]
        journal.log(9, {"loss": 1.0})
    forwarder.finish()

    assert 9 not in before
    assert [dict(step.texts) for step in Noting.steps if step.step == 9] == [{"said": "early"}]


def test_tensorboards_own_reader_has_texts_images_sounds_and_tables(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Forwarder(tmp_path, with_media(tmp_path), f"tensorboard={tmp_path / 'logs'}").finish()
    (folder,) = (tmp_path / "logs" / "llm").iterdir()
    read = EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0, "audio": 0})
    read.Reload()
    (image,) = read.Images("picture")
    (sound,) = read.Audio("sound")
    said = [event.tensor_proto.string_val[0] for event in read.Tensors("said/text_summary")]

    assert said == [b"hello", b"bye"]
    assert (image.step, image.width, image.height, image.encoded_image_string[:4]) == (0, 5, 3, b"\x89PNG")
    assert (sound.sample_rate, sound.length_frames, sound.content_type) == (8000.0, 80, "audio/wav")
    assert b"| 1 | x\\|y |" in read.Tensors("table/text_summary")[0].tensor_proto.string_val[0]
    assert read.Tags()["images"] == ["picture", "pictures/0", "pictures/1"]


@pytest.mark.peers
def test_wandbs_offline_file_has_texts_and_media(tmp_path: Path) -> None:
    forward(with_media(tmp_path / "runs"), tmp_path, "wandb=offline")
    first, second = rows_of_wandb(tmp_path)

    assert (first["said"], second["said"]) == ("hello", "bye")
    assert {name: first[name]["_type"] for name in ("picture", "sound", "table")} == {
        "picture": "image-file",
        "sound": "audio-file",
        "table": "table-file",
    }
    assert (first["picture"]["caption"], second["pictures"]["count"]) == ("black", 2)


MEDIA = """
import json, sys
from mlflow import MlflowClient

client = MlflowClient(tracking_uri=sys.argv[1])
(run,) = client.search_runs([client.get_experiment_by_name("llm").experiment_id])
paths, found = [""], []
while paths:
    for file in client.list_artifacts(run.info.run_id, paths.pop()):
        (paths if file.is_dir else found).append(file.path)
print(json.dumps(sorted(found)))
"""


@pytest.mark.peers
def test_mlflows_store_has_texts_and_media(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    forward(with_media(tmp_path / "runs"), tmp_path, "mlflow")
    uri = f"sqlite:///{tmp_path / 'runs' / 'sinks' / 'mlflow.db'}"
    environ = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", MEDIA, uri], check=True, capture_output=True, env=environ, timeout=120)

    assert json.loads(done.stdout.splitlines()[-1]) == [
        *("media/picture/0.png", "media/pictures/1-0.png", "media/pictures/1-1.png", "media/sound/0.wav"),
        *("tables/table/0.json", "texts/said/0.txt", "texts/said/1.txt"),
    ]
