"""watch(reduce="device"): merged by the backend that training uses; on the CPU that is gloo too. Not run on a GPU."""

from __future__ import annotations

from pathlib import Path

from tests.ranks import training
from tests.ranks.test_ddp import body, rows
from torchtrack.testing import ranks


def test_rows_merged_on_the_device_are_the_same(tmp_path: Path) -> None:
    results = ranks(2, init=True).run(body, tmp_path, 6, 3, reduce="device")
    uid, gradients, _ = results[0]
    found = rows(tmp_path, uid, "gradient")
    training.assert_rows_are(found, gradients)
    assert {row["ranks"] for row in found} >= {2}
