"""The bytes of a frame."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchtrack import records
from torchtrack.journal import frame
from torchtrack.journal.frame import Kind

U64 = st.integers(0, 2**64 - 1)


def encoded(payload: bytes = b"payload", *, kind: Kind = Kind.DATA, stream: int = 7, seq: int = 3) -> bytes:
    return b"".join(frame.encode(kind, payload, stream=stream, seq=seq, mono_ns=5, table=1)[0])


@given(st.sampled_from(Kind), st.binary(max_size=200), U64, U64, U64, st.integers(0, 255))
def test_what_is_encoded_is_read_back(
    kind: Kind, payload: bytes, stream: int, seq: int, mono_ns: int, table: int
) -> None:
    buffers, crc = frame.encode(kind, payload, stream=stream, seq=seq, mono_ns=mono_ns, table=table)
    data = b"".join(buffers)

    found = frame.read_frame(data, 0, stream)

    assert found is not None
    assert found.payload() == payload
    assert found.header == (len(payload), frame.Codec.NONE, kind, table, seq, mono_ns, crc)
    assert found.end == len(data) == frame.frame_size(len(payload))
    assert len(data) % 8 == 0


def test_the_layout_is_the_documented_one() -> None:
    data = encoded(b"payload", stream=7, seq=3)

    magic, length, flags, seq, mono_ns, payload_crc, header_crc = struct.unpack("<8sIIQQII", data[:40])

    assert magic == b"\x89TTJ\r\n\x1a\x01"
    assert (length, flags, seq, mono_ns) == (7, 2 << 4 | 1 << 8, 3, 5)
    assert payload_crc == zlib.crc32(b"payload", zlib.crc32(struct.pack("<QQ", 7, 3)))
    assert header_crc == zlib.crc32(data[:36])
    assert data[40:] == b"payload\0"


def test_the_numbers_kept_beside_the_tables_are_those_of_the_tables() -> None:
    from torchtrack.journal import writer

    assert frame.FORMAT == records.FORMAT_VERSION
    assert int(records.Table.EVENTS) == int(writer._EVENTS)


def test_a_frame_copied_to_another_stream_does_not_verify() -> None:
    assert frame.read_frame(encoded(stream=7), 0, 8) is None


def test_a_header_with_a_field_this_format_does_not_know_is_no_header() -> None:
    for flags in (9 << 4, 2 << 4 | 5, 2 << 4 | 1 << 16):
        fields = struct.pack("<8sIIQQI", frame.MAGIC, 0, flags, 0, 0, 0)

        assert frame.read_header(fields + struct.pack("<I", zlib.crc32(fields))) is None


def test_a_length_beyond_the_limit_is_no_header() -> None:
    fields = struct.pack("<8sIIQQI", frame.MAGIC, frame.MAX_PAYLOAD + 1, 2 << 4, 0, 0, 0)

    assert frame.read_header(fields + struct.pack("<I", zlib.crc32(fields))) is None


@given(st.lists(st.one_of(st.binary(max_size=60), st.just(frame.MAGIC)), max_size=8))
def test_scan_finds_every_frame_whatever_lies_between(junk: list[bytes]) -> None:
    data = b"".join(piece + encoded(seq=seq) for seq, piece in enumerate(junk))

    found = list(frame.scan(data, 7))

    assert [item.header.seq for item in found] == list(range(len(junk)))


@pytest.mark.parametrize("size", [0, 100, frame.COMPRESS_FROM - 1, frame.COMPRESS_FROM, 100_000])
def test_payloads_are_compressed_from_4_kib_on(size: int) -> None:
    payload = b"0123456789abcdef" * (size // 16 + 1)
    payload = payload[:size]

    codec, stored = frame.compress(payload)

    assert codec is (frame.Codec.ZSTD if size >= frame.COMPRESS_FROM else frame.Codec.NONE)
    assert (frame.decompress(bytes(stored)) if codec else stored) == payload
    assert len(stored) <= size


def test_a_payload_that_zstd_would_make_larger_is_stored_as_it_is() -> None:
    payload = os.urandom(10_000)

    assert frame.compress(payload) == (frame.Codec.NONE, payload)


def test_a_payload_that_grows_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _, stored = frame.compress(bytes(100_000))
    monkeypatch.setattr(frame, "MAX_PAYLOAD", 99_999)

    with pytest.raises(ValueError, match="grows beyond 99999 bytes"):
        frame.decompress(bytes(stored))


@pytest.mark.parametrize("cut", [1, 10, 20])
def test_a_payload_that_is_no_zstd_frame_is_a_value_error(cut: int) -> None:
    _, stored = frame.compress(bytes(100_000))

    with pytest.raises(ValueError, match="decompress"):
        frame.decompress(bytes(stored)[:cut])


def test_writing_and_reading_small_frames_imports_no_pyarrow() -> None:
    script = (
        "import sys, pathlib, tempfile; from torchtrack.journal import Kind, Stream, Writer, check, find_streams\n"
        "w = Writer(pathlib.Path(tempfile.mkdtemp()), '0-00000000000000aa', 170, {})\n"
        "w.append(Kind.HEARTBEAT, b'{}'); w.seal('finish'); w.close()\n"
        "assert len(Stream(w.path).poll()) == 3\n"
        "assert 'pyarrow' not in sys.modules"
    )

    subprocess.run([sys.executable, "-c", script], check=True)
