"""torchtrack for DeepSpeed: what ZeRO keeps in flat buffers, as rows in the names of your module.

    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    run = torchtrack.init(project="zero")
    torchtrack_deepspeed.watch(run, engine)

Nothing of DeepSpeed is imported: the engine brings all that is needed.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import torch

from torchtrack import guard
from torchtrack.watch import Shard

if TYPE_CHECKING:
    import torchtrack
    from torchtrack.watch import Watcher

__all__ = ["watch"]


def watch(run: torchtrack.Run, engine: Any, **arguments: Any) -> Watcher | None:
    """Watch what a DeepSpeed engine trains, under ZeRO stage 0, 1 or 2. Call it on every rank, before the first step.

    Gradients are those that the optimizer uses: accumulated, averaged over ranks, unscaled, before clipping. Parameters
    are the optimizer's own, in fp32. Each element is counted on the rank that steps it.

    Args:
        run: of this process.
        engine: what `deepspeed.initialize` returned.
        arguments: of `Run.watch`: log, log_freq, include, ...

    Returns:
        What `Run.watch` returns.

    Raises:
        TypeError: `engine` is no DeepSpeed engine, or an argument is not one of `Run.watch`.
        ValueError: ZeRO stage 3, whose parameters this rank holds only in the middle of a step.
    """
    stage = getattr(engine, "zero_optimization_stage", None)
    if stage is None:
        missing = (
            "" if importlib.util.find_spec("deepspeed") else " (DeepSpeed is not installed: pip install deepspeed)"
        )
        raise TypeError(
            f"watch() takes the engine that deepspeed.initialize() returned, got {type(engine).__name__}{missing}"
        )
    if stage() > 2:
        raise ValueError(f"watch() knows ZeRO stages 0, 1 and 2, and this is stage {stage()}")
    watcher = run.watch(engine.module, **arguments)
    if watcher is not None and stage() > 0:
        _Told(watcher, engine)
    return watcher


class _Told:
    """Tells a watcher of each step of ZeRO's optimizer, which steps slices that have no names."""

    def __init__(self, watcher: Watcher, engine: Any) -> None:
        self._watcher = watcher
        self._named = list(engine.module.named_parameters())
        self._stage = "pre_clip" if engine.gradient_clipping() > 0 else "step"
        self._optimizer = engine.optimizer
        self._original = engine.optimizer.step
        engine.optimizer.step = self._step

    def _step(self, *args: Any, **kwargs: Any) -> Any:
        if self._watcher.is_due():  # what is read there is DeepSpeed's own: another version may have other names
            guard.attempt("the DeepSpeed adapter", self._observe)
        result = self._original(*args, **kwargs)
        self._watcher.step(skipped=bool(getattr(self._optimizer, "overflow", False)))
        return result

    def _observe(self) -> None:
        """What this rank's slice holds: the gradients are there between the last backward pass and the step."""
        for name, parameter in self._named:
            held = getattr(parameter, "_hp_mapping", None)
            if held is None:
                continue  # all of it lies in the slices of other ranks
            place = held.lp_fragment_address
            shard = Shard(parameter.numel(), place.start)
            gradient = held.get_lp_grad_fragment(parameter._index_in_param_group).reshape(-1)
            if gradient.numel() > place.numel:  # of the whole parameter
                gradient = gradient[place.start : place.start + place.numel]
            unscale = gradient.new_full((), 1 / getattr(self._optimizer, "loss_scale", 1.0), dtype=torch.float32)
            self._watcher.observe(name, gradient, shard=shard, stage=self._stage, multiplier=unscale)
            self._watcher.observe(name, held.get_hp_fragment(), kind="parameter", shard=shard)
