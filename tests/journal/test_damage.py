"""A file that is cut anywhere, or damaged anyhow, never gives a wrong row."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchtrack.journal import Frame, Kind, Stream, Writer, frame

if TYPE_CHECKING:
    from tests.journal.conftest import NewWriter

FinalStream = Callable[[Path], Stream]
STREAM = 0x0123456789ABCDEF


@pytest.fixture
def sealed(new_writer: NewWriter) -> tuple[Path, list[Frame]]:
    """A small sealed journal and its frames."""
    writer = new_writer(sync_interval_s=60)
    for number in range(7):
        writer.append(Kind.DATA, bytes([number]) * (number * 11), table=1, rows=1)
    writer.seal("finish")
    writer.close()
    return writer.path, Stream(writer.path).poll()


def named(stream: Stream) -> set[int]:
    """The seqs that the reader says are lost."""
    return {seq for damage in stream.damages for seq in range(damage.first_seq, damage.last_seq + 1)}


def test_a_file_cut_at_any_byte_gives_exactly_the_frames_before_the_cut(sealed: tuple[Path, list[Frame]]) -> None:
    path, frames = sealed
    ends = [found.end for found in frame.scan(path.read_bytes(), STREAM, opening=True)]
    assert len(ends) == len(frames) == 9

    for size in range(path.stat().st_size - 1, -1, -1):
        with path.open("r+b") as file:
            file.truncate(size)
        stream = Stream(path)
        whole = sum(end <= size for end in ends)
        assert stream.poll() == frames[:whole]
        assert stream.state == ("ok" if size in (0, *ends) else "pending")
        assert stream.damages == []


def test_any_flipped_bit_costs_at_most_its_own_frame_and_is_named(sealed: tuple[Path, list[Frame]]) -> None:
    path, frames = sealed
    whole = path.read_bytes()
    seal_at = [found.offset for found in frame.scan(whole, STREAM, opening=True)][-1]

    with path.open("r+b", buffering=0) as file:
        for bit in range(len(whole) * 8):
            at, flipped = bit // 8, whole[bit // 8] ^ 1 << bit % 8
            file.seek(at)
            file.write(bytes([flipped]))
            stream = Stream(path)
            read = stream.poll()
            file.seek(at)
            file.write(whole[at : at + 1])
            lost = {item.seq for item in frames} - {item.seq for item in read}
            assert [item for item in frames if item.seq not in lost] == read
            assert len(lost) <= 1
            if at < seal_at or not lost:
                assert stream.state == "damaged"
                assert named(stream) == lost
            else:  # the seal itself: nothing behind it can prove that it will not come
                assert stream.state == "pending"


Pages = st.lists(
    st.tuples(st.sampled_from(["zero", "garbage", "repeat", "insert", "delete", "swap", "move"]), st.integers(0, 99)),
    min_size=1,
    max_size=4,
)


def damage(data: bytes, kind: str, number: int, size: int, garbage: bytes) -> bytes:
    """The file after one accident with one of its pages."""
    pages = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
    at = number % len(pages)
    other = (number * 7 + 1) % len(pages)
    if kind == "zero":
        pages[at] = bytes(len(pages[at]))
    elif kind == "garbage":
        pages[at] = garbage[: len(pages[at])]
    elif kind == "repeat":
        pages.insert(at, pages[at])
    elif kind == "insert":
        pages.insert(at, garbage[: 1 + number])
    elif kind == "delete":
        del pages[at]
    elif kind == "swap":
        pages[at], pages[other] = pages[other], pages[at]
    else:
        pages[at] = pages[other]
    return b"".join(pages)


@settings(deadline=None, max_examples=200)
@given(
    sizes=st.lists(st.integers(0, 400), min_size=1, max_size=15),
    accidents=Pages,
    page=st.sampled_from([64, 128, 512]),
    garbage=st.binary(min_size=512, max_size=512),
    seal=st.booleans(),
)
def test_damaged_pages_never_give_a_wrong_row_and_every_lost_one_is_named(
    sizes: list[int], accidents: list[tuple[str, int]], page: int, garbage: bytes, seal: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        writer = Writer(Path(folder), f"0-{STREAM:016x}", STREAM, {}, sync_interval_s=60)
        for number, size in enumerate(sizes):
            writer.append(Kind.DATA, bytes([number]) * size, table=1)
        if seal:
            writer.seal("finish")
        writer.close()
        frames = {item.seq: item for item in Stream(writer.path).poll()}
        data = writer.path.read_bytes()
        for kind, number in accidents:
            data = damage(data, kind, number, page, garbage)
        writer.path.write_bytes(data)
        stream = Stream(writer.path, grace_s=-1e18, gone=lambda *_: True)
        read = stream.poll()

    seqs = [item.seq for item in read]
    assert seqs == sorted(set(seqs))
    assert all(item == frames[item.seq] for item in read)
    assert named(stream).isdisjoint(seqs)
    assert named(stream) | set(seqs) == set(range(stream.next_seq))
