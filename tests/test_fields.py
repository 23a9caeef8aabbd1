"""Config and summary: a mapping with attributes that tells what is written to it."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import pickle
from typing import Any

import pytest

from torchtrack.fields import Fields


@pytest.fixture
def told() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def fields(told: list[dict[str, Any]]) -> Fields:
    return Fields({"lr": 0.1, "name": "x"}, told.append)


def test_keys_are_attributes(fields: Fields, told: list[dict[str, Any]]) -> None:
    fields.lr = 0.2
    fields["depth"] = 12

    assert (fields.lr, fields["lr"], fields.depth, fields.get("no"), "lr" in fields) == (0.2, 0.2, 12, None, True)
    assert told == [{"lr": 0.2}, {"depth": 12}]


def test_the_first_content_is_not_told(fields: Fields, told: list[dict[str, Any]]) -> None:
    assert dict(fields) == {"lr": 0.1, "name": "x"}
    assert (len(fields), list(fields), told) == (2, ["lr", "name"], [])


@dataclasses.dataclass
class Model:
    depth: int = 3


@pytest.mark.parametrize("source", [{"depth": 3}, argparse.Namespace(depth=3), Model()], ids=["dict", "args", "class"])
def test_an_update_takes_what_init_takes_and_is_told_once(
    fields: Fields, told: list[dict[str, Any]], source: Any
) -> None:
    fields.update(source, allow_val_change=True, lr=1.0)

    assert dict(fields) == {"lr": 1.0, "name": "x", "depth": 3}
    assert told == [{"depth": 3, "lr": 1.0}]


def test_an_empty_update_is_not_told(fields: Fields, told: list[dict[str, Any]]) -> None:
    fields.update({})
    fields.update(None)

    assert told == []


def test_a_missing_attribute_says_what_there_is(fields: Fields) -> None:
    with pytest.raises(AttributeError, match="no 'lrr' here; there are: lr, name"):
        _ = fields.lrr
    with pytest.raises(KeyError):
        _ = fields["lrr"]
    assert not hasattr(fields, "lrr")


def test_what_was_recorded_is_not_deleted(fields: Fields, caplog: pytest.LogCaptureFixture) -> None:
    del fields["lr"]
    assert fields["lr"] == 0.1
    assert "'lr' is not deleted" in caplog.text


@pytest.mark.parametrize("wrong", [5, [("a", 1)], "lr=1"])
def test_an_update_with_no_mapping_is_refused_and_raises_nothing(
    fields: Fields, told: list[dict[str, Any]], caplog: pytest.LogCaptureFixture, wrong: Any
) -> None:
    fields.update(wrong, depth=3)
    assert (fields.as_dict(), told) == ({"lr": 0.1, "name": "x", "depth": 3}, [{"depth": 3}])
    assert "did not take the update" in caplog.text


def test_a_copy_and_what_a_checkpoint_holds_are_plain_dicts(fields: Fields) -> None:
    fields.update({"layers": {"n": [1]}})
    for other in (copy.copy(fields), copy.deepcopy(fields), pickle.loads(pickle.dumps(fields)), fields.as_dict()):
        assert type(other) is dict
        assert other == {"lr": 0.1, "name": "x", "layers": {"n": [1]}}
    copy.copy(fields)["lr"] = 5.0
    assert fields.lr == 0.1
    assert repr(fields) == "{'lr': 0.1, 'name': 'x', 'layers': {'n': [1]}}"
