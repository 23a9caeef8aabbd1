"""Lists of what artifacts hold."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from torchtrack import contents

NAME = "a" * 64


@pytest.mark.parametrize(("size", "parts"), [(0, 0), (1, 1), (8, 1), (9, 2), (16, 2), (17, 3)])
def test_a_file_is_measured_whole_and_in_parts(
    size: int, parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "PART_BYTES", 8)
    data = bytes(range(size))
    (tmp_path / "f").write_bytes(data)
    held = contents.measure(tmp_path / "f")

    assert (held.size, held.sha256) == (size, hashlib.sha256(data).hexdigest())
    assert held.parts == tuple(hashlib.sha256(data[at : at + 8]).hexdigest() for at in range(0, size, 8))
    assert len(held.parts) == parts


def test_a_list_is_read_as_it_was_written_and_is_the_same_for_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "PART_BYTES", 8)
    files = {}
    for name, size in (("empty", 0), ("ä/b", 5), ("large", 20)):
        (tmp_path / "f").write_bytes(bytes(size))
        files[name] = contents.measure(tmp_path / "f")
    data = contents.encode(files, {"raw": "s3://b/raw"})

    assert contents.decode(data) == (files, {"raw": "s3://b/raw"}, 8, {})
    assert contents.encode(dict(reversed(files.items())), {"raw": "s3://b/raw"}) == data


def listed(**changes: Any) -> bytes:
    file = {"size": 3, "sha256": NAME, **changes.pop("file", {})}
    facts = {"format": 1, "part_bytes": 8, "files": {changes.pop("path", "w"): file}, "references": {}, **changes}
    return json.dumps(facts).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        listed(format=2),
        listed(part_bytes=0),
        listed(part_bytes="8"),
        listed(files=[]),
        listed(references=None),
        listed(path="../w"),
        listed(path="/w"),
        listed(path="a//w"),
        listed(path="a\0w"),
        listed(file={"size": -1}),
        listed(file={"size": "3"}),
        listed(file={"size": 9}),
        listed(file={"sha256": "w"}),
        listed(file={"size": 9, "parts": [NAME, "../../w"]}),
        listed(file={"size": 9, "parts": 2}),
    ],
)
def test_what_is_no_list_is_refused(data: bytes) -> None:
    assert contents.decode(listed()).files["w"].parts == (NAME,)
    with pytest.raises(ValueError, match="no list of an artifact's contents"):
        contents.decode(data)


def test_second_digests_are_in_a_list_only_where_there_are_some() -> None:
    with_them = contents.encode({}, {}, {"a": "rL0Y20zC+Fzt72VPzMSk2A=="})

    assert contents.decode(with_them).digests == {"a": "rL0Y20zC+Fzt72VPzMSk2A=="}
    assert contents.encode({}, {}, {}) == contents.encode({}, {})
