"""Which layer a parameter is in."""

from __future__ import annotations

import pytest

from torchtrack.watch.layers import MAX_LAYERS, layers_of


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.mlp.up.weight", "model.layers.3"),
        ("layers.3.experts.5.weight", "layers.3"),
        ("model.embed.weight", "model.embed"),
        ("a.b.c.weight", "a.b"),
        ("lm_head.weight", "lm_head"),
        ("scale", "scale"),
        ("0.weight", "0"),
        ("model1/h.12.norm.weight", "model1/h.12"),
    ],
)
def test_a_layer_is_the_name_up_to_its_first_number_or_the_module(name: str, layer: str) -> None:
    assert layers_of([name]) == {layer: [0]}


def test_parameters_of_a_layer_are_together_and_too_many_layers_are_none() -> None:
    assert layers_of(["h.0.a", "h.1.a", "h.0.b"]) == {"h.0": [0, 2], "h.1": [1]}
    assert layers_of([f"h.{i}.a" for i in range(MAX_LAYERS + 1)]) == {}
