"""Updates that are too small for the bits of a weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.watch.conftest import Watched, backward
from torchtrack.watch import rounding
from torchtrack.watch.holdings import Holdings
from torchtrack.watch.place import place_of
from torchtrack.watch.updates import Kept


def share(part: torch.Tensor, whole: torch.Tensor) -> float:
    return float(part.sum() / whole.sum())


def test_the_share_of_changes_that_bf16_would_lose_is_exact(watched: Watched, model: nn.Module) -> None:
    watched.watch(model, log=("updates",))
    optimizer = torch.optim.SGD(model.parameters(), lr=2e-4)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    backward(model)
    optimizer.step()
    watched.run.log({"loss": 0.0})
    changed, lost = {}, {}
    for name, p in model.named_parameters():
        changed[name] = p.detach() != before[name]
        lost[name] = changed[name] & (p.detach().bfloat16() == before[name].bfloat16())
    run = watched.read()
    [row] = run.history([key for key in run.keys() if key.startswith("watch/update_")]).to_pylist()  # noqa: SIM118
    for layer in ("0", "2"):
        names = [name for name in before if name.startswith(layer)]
        every, gone = (torch.cat([held[name].view(-1) for name in names]) for held in (changed, lost))
        assert row[f"watch/update_lost_bf16/{layer}"] == pytest.approx(share(gone, every))
    every, gone = (torch.cat([each.view(-1) for each in held.values()]) for held in (changed, lost))
    assert 0.0 < share(gone, every) < 1.0
    assert row["watch/update_lost_bf16"] == pytest.approx(share(gone, every))
    assert row["watch/update_unchanged"] == pytest.approx(1 - share(every, torch.ones_like(every)))
    assert "watch/update_lost_bf16/0" not in run.summary


def test_in_bf16_weights_what_is_lost_is_unchanged(watched: Watched, model: nn.Module) -> None:
    model.to(torch.bfloat16)
    watched.watch(model, log=("updates",))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12)
    backward(model)
    optimizer.step()
    watched.run.log({"loss": 0.0})
    run = watched.read()
    assert run.history(["watch/update_unchanged"]).to_pylist()[0]["watch/update_unchanged"] > 0.9
    assert "watch/update_lost_bf16" not in run.keys() or run.summary["watch/update_lost_bf16"] == 0.0  # noqa: SIM118


def test_of_a_large_tensor_evenly_spaced_elements_stand_for_all() -> None:
    model = nn.Linear(1024, 300, bias=False)
    held = Holdings([("", model)]).now()[id(model.weight)][0]
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight[:, ::4] *= 1.5  # a quarter of the columns, which bf16 shows
        model.weight[:, 1::4] *= 1 + 2**-12  # and one which it does not
    place = place_of(held, model.weight, model.weight, None)
    found = rounding.rounded([Kept(held, place, before)])
    assert found is not None
    [(looked, changed, lost)] = found.counts().values()
    assert looked <= rounding.MOST
    assert changed / looked == pytest.approx(0.5, abs=0.01)
    assert lost / changed == pytest.approx(0.5, abs=0.05)
