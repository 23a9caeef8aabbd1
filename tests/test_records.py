"""The tables: part of the format on disk."""

from __future__ import annotations

import pyarrow as pa
import pytest

from torchtrack import records
from torchtrack.records import Table


def test_the_numbers_of_tables_are_part_of_the_format() -> None:
    assert {table.name: int(table) for table in Table} == {
        "SCALARS": 1,
        "TEXTS": 2,
        "TENSORS": 3,
        "MEDIA": 4,
        "LOGS": 5,
        "EVENTS": 6,
    }
    assert records.SCHEMAS.keys() == set(Table)


COLUMNS = {
    Table.SCALARS: "step time name value reduce partial",
    Table.TEXTS: "step time name text",
    Table.TENSORS: "sample step time kind name stage ranks numel covers count sum sum_sq min max zeros nans pos_infs"
    " neg_infs buckets counts",
    Table.MEDIA: "step time name sha256 mime size caption",
    Table.LOGS: "time stream line",
    Table.EVENTS: "time step type json",
}


@pytest.mark.parametrize("table", Table)
def test_the_columns_of_a_table_are_part_of_the_format(table: Table) -> None:
    assert " ".join(records.SCHEMAS[table].names) == COLUMNS[table]


@pytest.mark.parametrize("table", Table)
def test_a_batch_comes_back_as_it_was(table: Table) -> None:
    schema = records.SCHEMAS[table]
    batch = pa.RecordBatch.from_pylist([dict.fromkeys(schema.names)], schema=schema)

    assert records.decode(table, records.encode(batch)).to_batches() == [batch]


def test_several_frames_come_back_one_after_the_other_with_their_sizes() -> None:
    batches = [
        pa.RecordBatch.from_pylist([{"step": step, "name": f"n{size}"} for step in range(size)], schema=records.TEXTS)
        for size in (2, 0, 3)
    ]
    rows, sizes = records.decode_all(Table.TEXTS, [records.encode(batch) for batch in batches])
    payloads = [records.encode(batches[0]), records.encode(pa.RecordBatch.from_pylist([], schema=records.LOGS))]

    assert sizes == [2, 0, 3]
    assert rows.to_pylist() == [row for batch in batches for row in batch.to_pylist()]
    with pytest.raises(ValueError, match="chema"):
        records.decode_all(Table.TEXTS, payloads)


def test_the_payload_of_another_table_is_refused() -> None:
    batch = pa.RecordBatch.from_pylist([], schema=records.TEXTS)
    with pytest.raises(ValueError, match=r"a logs frame has the columns \['step', 'time', 'name', 'text'\], expected"):
        records.decode(Table.LOGS, records.encode(batch))


def test_a_payload_that_is_damaged_is_refused() -> None:
    batch = pa.RecordBatch.from_pylist([{"step": 1, "name": "x"}], schema=records.TEXTS)
    payload = records.encode(batch).to_pybytes()
    for damaged in (b"", payload[:40], b"\0" * 64):
        with pytest.raises(pa.ArrowInvalid):
            records.decode(Table.TEXTS, damaged)


def test_dictionary_codes_out_of_range_are_refused() -> None:
    names = pa.DictionaryArray.from_arrays(pa.array([7], pa.int32()), pa.array(["x"]), safe=False)
    columns = [pa.array([1]), pa.array([0], records.TEXTS.field("time").type), names, pa.array(["t"])]
    batch = pa.RecordBatch.from_arrays(columns, schema=records.TEXTS)
    with pytest.raises(pa.ArrowInvalid):
        records.decode(Table.TEXTS, records.encode(batch))


@pytest.mark.parametrize(
    ("text", "kept"), [("abc", "abc"), ("\u00fc\U0001f600", "\u00fc\U0001f600"), ("a\ud800", "a?")]
)
def test_encodable_replaces_lone_surrogates_only(text: str, kept: str) -> None:
    assert records.encodable(text) == kept
    assert records.encodable(text).encode()
