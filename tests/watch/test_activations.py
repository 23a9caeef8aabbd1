"""What modules put out in the forward passes of a sampled step."""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from tests.watch.conftest import Truth, Watched, backward, scaled_step
from tests.watch.test_watcher import step_in_backward
from torchtrack.histogram import Histogram

ACTIVATIONS = ("activations",)
LEAVES = ("0", "1", "2")


class Seen:
    """The outputs of a model's leaf modules, seen by hooks of the test's own."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.outputs: dict[str, list[torch.Tensor]] = {}
        for name, module in model.named_modules():
            if not list(module.children()):
                module.register_forward_hook(self._hook(name))
        self.theirs = hooks_of(model)

    def _hook(self, name: str) -> Callable[..., None]:
        return lambda _module, _args, output: self.outputs.setdefault(name, []).append(output.detach().clone())

    def truth(self) -> Truth:
        """Of all outputs since the last call."""
        found, self.outputs = self.outputs, {}
        return {name: Histogram.of(torch.cat([t.reshape(-1) for t in ts])) for name, ts in found.items()}


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_an_activation_is_the_output_of_a_module_without_children(watched: Watched, model: nn.Module) -> None:
    seen = Seen(model)
    watched.watch(model, log=ACTIVATIONS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    truths = []
    for step in range(3):
        backward(model, step)
        truths.append(seen.truth())
        optimizer.step()
    rows = watched.check("activation", truths, "step")
    assert {row["name"] for row in rows} == set(LEAVES)


def test_micro_batches_of_one_step_add_up(watched: Watched, model: nn.Module) -> None:
    seen = Seen(model)
    watched.watch(model, log=ACTIVATIONS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    truths = []
    for step in range(2):
        for micro in range(3):
            backward(model, 3 * step + micro)
        truths.append(seen.truth())
        optimizer.step()
    rows = watched.check("activation", truths, "step")
    assert rows[0]["count"] == 3 * 5 * 8


def test_hooks_are_there_only_before_sampled_steps(watched: Watched, model: nn.Module) -> None:
    seen = Seen(model)
    watched.watch(model, log=ACTIVATIONS, log_freq=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    installed, truths = [], []
    for step in range(7):
        installed.append(hooks_of(model) - seen.theirs)
        backward(model, step)
        truths.append(seen.truth())
        optimizer.step()
    assert installed == [3, 0, 0, 3, 0, 0, 3]
    watched.check("activation", [truths[0], truths[3], truths[6]], "step")


def test_unwatch_takes_the_hooks_away(watched: Watched, model: nn.Module) -> None:
    watched.watch(model, log=ACTIVATIONS)
    assert hooks_of(model) == 3
    watched.run.unwatch()
    assert hooks_of(model) == 0


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.LBFGS])
def test_in_a_closure_it_is_the_first_forward_pass_of_the_step(watched: Watched, model: nn.Module, kind: Any) -> None:
    seen = Seen(model)
    watched.watch(model, log=ACTIVATIONS)
    optimizer = kind(model.parameters(), lr=0.1)
    truths: list[Truth] = []
    for step in range(2):
        first: list[Truth] = []

        def closure(step: int = step, first: list[Truth] = first) -> torch.Tensor:
            optimizer.zero_grad()
            loss = backward(model, step)
            first.append(seen.truth())
            return loss

        optimizer.step(closure)
        truths.append(first[0])
    watched.check("activation", truths, "step")


def test_optimizers_inside_the_backward_pass_have_the_forward_pass_before_it(
    watched: Watched, model: nn.Module
) -> None:
    seen = Seen(model)
    watched.watch(model, log=ACTIVATIONS, log_freq=2)
    step_in_backward(model)
    truths = []
    for step in range(5):
        backward(model, step)
        truths.append(seen.truth())
    watched.check("activation", truths[::2], "step")


def test_two_optimizers_in_turns_have_each_its_own_forward_passes(watched: Watched, model: nn.Sequential) -> None:
    seen = Seen(model)
    watched.watch(model, log=ACTIVATIONS, log_freq=2)
    optimizers = [torch.optim.SGD(model[i].parameters(), lr=0.01) for i in (0, 2)]
    truths = []
    for step in range(4):
        for turn, optimizer in enumerate(optimizers):
            backward(model, 2 * step + turn)
            truths.append(seen.truth())
            optimizer.step()
    watched.check("activation", [truths[i] for i in (0, 1, 4, 5)], "step")


def test_an_optimizer_that_rests_is_not_waited_for_forever(watched: Watched, model: nn.Sequential) -> None:
    watched.watch(model, log=ACTIVATIONS, log_freq=2)
    first, second = (torch.optim.SGD(model[i].parameters(), lr=0.01) for i in (0, 2))
    for optimizer in [first, first] + [second] * 11:
        backward(model)
        optimizer.step()
    assert hooks_of(model) == 0


def test_a_step_that_the_scaler_leaves_out_has_its_activations(watched: Watched, model: nn.Module) -> None:
    seen = Seen(model)
    watched.watch(model, log=ACTIVATIONS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    truths = []
    for bad in (False, True, False):
        scaled_step(model, optimizer, scaler, clip=False, bad=bad)
        truths.append(seen.truth())
    watched.check("activation", truths, ["step", "skipped", "step"])


def test_evaluation_is_not_counted(watched: Watched, model: nn.Module) -> None:
    seen = Seen(model)
    watched.watch(model, log=ACTIVATIONS)
    x = torch.ones(2, 4)
    with torch.no_grad():
        model(x)
    model.eval()
    model(x)
    model.train()
    seen.truth()
    backward(model)
    truth = seen.truth()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    watched.check("activation", [truth], "step")


class Doubled(nn.Module):
    """Runs an operator that the kernels use too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x], 1)


def cat_is_kept() -> Any:
    return create_selective_checkpoint_contexts([torch.ops.aten.cat.default])  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("selective", [False, True], ids=["all", "selective"])
def test_what_checkpointing_computes_again_is_not_counted_again_and_gradients_are_the_same(
    watched: Watched, selective: bool
) -> None:
    model = nn.Sequential(nn.Linear(4, 8), Doubled(), nn.Linear(16, 3))
    options: dict[str, Any] = {"context_fn": cat_is_kept} if selective else {}
    x = torch.randn(5, 4)
    model(x).square().sum().backward()
    plain = [p.grad for p in model.parameters()]
    seen = Seen(model)
    watched.watch(model, log=ACTIVATIONS)
    model.zero_grad()
    loss = checkpoint(model, x, use_reentrant=False, **options).square().sum()
    truth = seen.truth()
    loss.backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(plain, model.parameters(), strict=True))  # type: ignore[arg-type]
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    watched.check("activation", [truth], "step")


class Several(nn.Module):
    """Puts out a tuple."""

    def forward(self, x: torch.Tensor) -> Any:
        return {"ids": None, "states": [x * 2, x * 3]}


def test_of_several_outputs_the_first_tensor_is_counted_and_integers_are_left_out(watched: Watched) -> None:
    model = nn.ModuleDict({"several": Several(), "flatten": nn.Flatten(), "last": nn.Linear(4, 1)})
    watched.watch(model, log=ACTIVATIONS)
    x = torch.randn(3, 4)
    model["flatten"](torch.ones(2, 2, dtype=torch.int64))
    model["last"](model["several"](x)["states"][1]).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    rows = {row["name"]: row for row in watched.rows()}
    assert set(rows) == {"several", "last"}
    assert rows["several"]["norm"] == pytest.approx(float((2 * x).norm()))


def test_include_and_exclude_choose_modules_by_name(watched: Watched) -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2))
    watched.watch(model, log=ACTIVATIONS, include=["0", "0.*"], exclude="0.1")
    backward(model)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert {row["name"] for row in watched.rows()} == {"0", "0.0"}


def test_a_model_without_children_is_named_by_its_class(watched: Watched) -> None:
    model = nn.Linear(4, 2)
    watched.watch([nn.Linear(4, 3), model], log=ACTIVATIONS)
    backward(model)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert {row["name"] for row in watched.rows()} == {"model1/Linear"}


def test_a_copy_of_a_watched_model_and_one_read_from_a_file_have_no_hooks_of_ours(
    watched: Watched, model: nn.Module
) -> None:
    watched.watch(model, log=ACTIVATIONS)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        backward(other)
        assert "torchtrack" not in repr([module._forward_hooks for module in other.modules()])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    backward(model)
    optimizer.step()
    assert watched.rows(name="0")[0]["count"] == 5 * 8


def test_functorch_transforms_are_left_alone(watched: Watched, model: nn.Module) -> None:
    watched.watch(model, log=ACTIVATIONS)
    held: dict[str, torch.Tensor] = dict(model.named_parameters())
    x = torch.ones(6, 4)
    torch.func.vmap(lambda row: torch.func.functional_call(model, held, (row,)))(x).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert watched.rows() == []


class Whole(nn.Sequential):
    """torch does not compile the containers of its own alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in self:
            x = module(x)
        return x


# -- torch.compile ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_freq", [1, 2])
@pytest.mark.parametrize("given", ["plain", "compiled", "in place", "a part"])
def test_compiled_modules_are_left_out_with_one_warning_and_compiled_once(
    watched: Watched, model: nn.Sequential, given: str, log_freq: int, caplog: pytest.LogCaptureFixture
) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = Whole(*model)
    running: Any = model
    if given == "in place":
        model.compile(backend="eager", fullgraph=True)
    elif given == "a part":
        part: Any = torch.compile(model[0], backend="eager")
        model[0] = part
    else:
        running = torch.compile(model, backend="eager", fullgraph=True)
    with caplog.at_level(logging.WARNING, "torchtrack"):
        watched.watch(running if given == "compiled" else model, log=ACTIVATIONS, log_freq=log_freq)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(5):
            optimizer.zero_grad()
            backward(running, step)
            optimizer.step()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert ["leaves out activations" in message for message in caplog.messages] == [True]
    assert {row["name"] for row in watched.rows()} == ({"1", "2"} if given == "a part" else set())
    torch._dynamo.reset()
