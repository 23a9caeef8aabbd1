"""What nobody needs in an object store: moto's server on loopback stands in for S3."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import torchtrack
from tests.cli.test_sync import call, record
from tests.runs import begin
from tests.server.test_blobs import Bucket as Stand
from tests.server.test_blobs import bucket
from torchtrack.server import garbage
from torchtrack.server.app import Config
from torchtrack.server.blobs import BlobStore, Bucket
from torchtrack.server.catalog import Catalog

LATER_S = 2 * garbage.PART_S
STRAY = "b" * 64


@pytest.fixture
def s3() -> Iterator[Stand]:
    with bucket() as made:
        made.open()
        yield made


def moved_to(store: Bucket, runs: Path, uid: str) -> str:
    """Put the media of a run into the bucket alone, as a server with --blobs has them, and a file no row names."""
    (picture,) = (runs / uid / "media").iterdir()
    store.put(uid, picture.name, picture)
    store.put(uid, STRAY, picture)
    picture.unlink()
    return picture.name


def left(store: Bucket) -> set[tuple[str, str]]:
    return {(blob.uid, blob.name) for blob in store.blobs()}


def test_in_a_bucket_only_old_files_that_no_row_names_go(s3: Stand, tmp_path: Path) -> None:
    uid, store = record(tmp_path), Bucket(s3.url)
    name = moved_to(store, tmp_path, uid)
    early = list(garbage.find(tmp_path, bucket=store))
    found = list(garbage.find(tmp_path, now=time.time() + LATER_S, bucket=store))
    for each in found:
        each.remove()

    assert early == []
    assert [(str(each.place), each.why) for each in found] == [(f"{s3.url}/{uid}/media/{STRAY}", garbage.UNNAMED)]
    assert left(store) == {(uid, name)}


def test_in_a_bucket_files_of_damaged_journals_and_of_other_servers_stay(s3: Stand, tmp_path: Path) -> None:
    uid, store = record(tmp_path), Bucket(s3.url)
    name = moved_to(store, tmp_path, uid)
    (journal,) = tmp_path.glob(f"{uid}/000/*.ttj")
    data = bytearray(journal.read_bytes())
    data[len(data) // 2] ^= 1
    journal.write_bytes(data)
    store.put("f" * 16, STRAY, journal)

    assert list(garbage.find(tmp_path, now=time.time() + LATER_S, bucket=store)) == []
    assert left(store) == {(uid, name), (uid, STRAY), ("f" * 16, STRAY)}


def test_in_a_bucket_what_an_artifact_holds_stays_and_another_run_has_it_without_sending_it(
    s3: Stand, tmp_path: Path
) -> None:
    run = begin(dir=tmp_path / "runs", mode="offline", project="p")
    artifact = torchtrack.Artifact("model", "model")
    with artifact.new_file("w") as file:
        file.write("weights")
    torchtrack.log_artifact(artifact)
    run.finish(quiet=True)
    (listing,), store = (tmp_path / "runs" / run.uid / "media").iterdir(), Bucket(s3.url)
    part = artifact.held("w").sha256
    store.put(run.uid, part, Path(artifact.at("w")))
    store.put(run.uid, listing.name, listing)
    listing.unlink()
    blobs = BlobStore(tmp_path / "runs", tmp_path / "waiting", s3.url)
    blobs.share("e" * 16, [part, STRAY], run.uid)

    assert list(garbage.find(tmp_path / "runs", now=time.time() + LATER_S, bucket=store)) == []
    assert left(store) == {(run.uid, part), (run.uid, listing.name), ("e" * 16, part)}
    assert b"".join(blobs.read("e" * 16, part, 0, 7)) == b"weights"


def test_media_of_a_deleted_run_leave_the_bucket_when_somebody_says_yes(
    s3: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, store = tmp_path / "server", Bucket(s3.url)
    gone, kept = record(data / "runs"), record(data / "runs")
    names = {uid: moved_to(store, data / "runs", uid) for uid in (gone, kept)}
    catalog = Catalog(Config(data=data).catalog_url)
    catalog.delete(gone, "ann")
    catalog.close()
    monkeypatch.setenv("TORCHTRACK_BLOBS", s3.url)
    told = call("gc", "--data", str(data), "--deleted-days", "0")
    there = left(store)
    done = call("gc", "--data", str(data), "--deleted-days", "0", "--yes")

    assert (told[0], told[1].count("media of a deleted run")) == (0, 2), told
    assert len(there) == 4
    assert (done[0], left(store)) == (0, {(kept, names[kept]), (kept, STRAY)}), done
    assert [(data / "runs" / uid).exists() for uid in (gone, kept)] == [False, True]


def test_a_bucket_that_does_not_answer_is_said_and_nothing_is_removed(s3: Stand, tmp_path: Path) -> None:
    data = tmp_path / "server"
    uid = record(data / "runs")
    code, said = call("gc", "--data", str(data), "--blobs", f"{s3.url.replace('media', 'none')}/x", "--yes")

    assert (code, "the blob store does not take or give files now" in said) == (1, True), said
    assert (data / "runs" / uid).exists()
