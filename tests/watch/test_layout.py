"""Whose rows: names of parameters under wrappers, and elements in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from torchtrack.watch import layout


@pytest.mark.parametrize(
    ("name", "stripped"),
    [
        ("a.weight", "a.weight"),
        ("_orig_mod.a.weight", "a.weight"),
        ("a._checkpoint_wrapped_module.b._fsdp_wrapped_module.weight", "a.b.weight"),
        ("my_orig_mod.weight", "my_orig_mod.weight"),
    ],
)
def test_wrappers_do_not_show_in_names(name: str, stripped: str) -> None:
    assert layout.strip(name) == stripped


def test_unwrap_finds_the_users_module_in_any_nesting() -> None:
    model = nn.Linear(2, 2)
    compiled: Any = torch.compile(nn.DataParallel(model), backend="eager")
    assert layout.unwrap(nn.DataParallel(compiled)) is model


def test_a_dense_tensor_of_a_usual_layout_is_flattened_without_a_copy() -> None:
    x = torch.randn(2, 3, 4, 5)
    for tensor in (x, x.reshape(6, 20).t(), x.to(memory_format=torch.channels_last)):
        view = layout.flat(tensor, whole=True)
        assert view.data_ptr() == tensor.data_ptr()
        assert view.sort().values.equal(tensor.reshape(-1).sort().values)


def test_a_part_is_taken_in_the_order_of_the_elements_whatever_the_layout() -> None:
    x = torch.randn(2, 3, 4, 5)
    for tensor in (x, x.reshape(6, 20).t(), x.to(memory_format=torch.channels_last), x[:, ::2]):
        assert layout.flat(tensor, whole=False).equal(tensor.contiguous().view(-1))
