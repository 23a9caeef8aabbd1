"""watch(model): exact histograms and norms of what a model trains on, over all ranks, off the training thread's time.

hooks (when) -> watcher (what) -> kernels (how) -> drain (to the host) -> reduce (one all-reduce) -> rows
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from torchtrack.watch import kernels, layout, nonfinite
from torchtrack.watch.blackbox import BlackBox, Order
from torchtrack.watch.layout import Shard
from torchtrack.watch.schedule import Schedule
from torchtrack.watch.watcher import KINDS, Watcher

if TYPE_CHECKING:
    from torchtrack.job import Job
    from torchtrack.phases import Phases
    from torchtrack.recorder import Recorder

__all__ = ["Order", "Shard", "Watcher", "describe", "start"]


def start(
    models: Any,
    *,
    log: Any,
    log_freq: Any,
    name: str | None,
    include: str | Sequence[str] | None,
    exclude: str | Sequence[str] | None,
    budget: Any,
    reduce: Any,
    checksum_every: Any,
    recorder: Recorder,
    job: Job | None,
    ordinal: int,
    prefixes: MutableMapping[nn.Module, str],
    phases: Phases | None = None,
    blackbox: Order | None = None,
    on_nonfinite: Any = "record",
) -> Watcher:
    """Check the arguments of `Run.watch` and begin to watch.

    Args:
        models: a module or several.
        log: "all", "gradients", "parameters", None, or several names of `KINDS`.
        log_freq: optimizer steps from one sample to the next.
        name: prefix of the parameters' names.
        include: patterns of names to watch.
        exclude: patterns of names to leave out.
        budget: the share of the training time that samples may take, instead of `log_freq`; None for none.
        reduce: "host", or "device" for the backend that training uses.
        checksum_every: samples from one comparison of replicas to the next; 0 for none.
        recorder: where rows go.
        job: the other ranks.
        ordinal: number of this watch in the run.
        prefixes: the prefix of every model this run has watched; the new ones are added.
        phases: the clock of the run, which is told how long this rank waits for the others.
        blackbox: how the black box is kept; None for none.
        on_nonfinite: one of `nonfinite.ACTIONS`.

    Raises:
        TypeError: something that is no module, or an argument of the wrong type.
        ValueError: a value that is not allowed.
    """
    modules = [models] if isinstance(models, nn.Module) else models
    if not isinstance(modules, (list, tuple)) or not modules or not all(isinstance(m, nn.Module) for m in modules):
        raise TypeError(
            f"watch() takes a torch.nn.Module or a list of them, got {_describe(models)}; pass the model itself"
        )
    if isinstance(log_freq, bool) or not isinstance(log_freq, int):
        raise TypeError(f"watch(log_freq=) takes a whole number of optimizer steps, got {_describe(log_freq)}")
    if log_freq < 1:
        raise ValueError(f"watch(log_freq=) takes 1 (every optimizer step) or more, got {log_freq}")
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, (int, float))):
        raise TypeError(f"watch(budget=) takes a share of the training time such as 0.01, got {_describe(budget)}")
    if budget is not None and not 0 < budget < 1:
        raise ValueError(f"watch(budget=) takes a share between 0 and 1, such as 0.01 for 1 %, got {budget}")
    if reduce not in ("host", "device"):
        raise ValueError(f'watch(reduce=) takes "host" or "device", got {reduce!r}')
    if isinstance(checksum_every, bool) or not isinstance(checksum_every, int):
        raise TypeError(f"watch(checksum_every=) takes a whole number of samples, got {_describe(checksum_every)}")
    if checksum_every < 0:
        raise ValueError(f"watch(checksum_every=) takes 0 (never) or more, got {checksum_every}")
    nonfinite.check(on_nonfinite, modules)
    kinds = _kinds(log)
    given = _name(name)
    include, exclude = _patterns("include", include), _patterns("exclude", exclude)
    names = dict(prefixes)
    inner = [layout.unwrap(module) for module in modules]
    if len(inner) > 1 and _are_parts_of_one(inner):
        chosen = [_prefix(given, 0, inner[0], names)] * len(inner)
        names |= dict.fromkeys(inner, chosen[0])
    else:
        chosen = [_prefix(given, i, module, names) for i, module in enumerate(inner)]
    device = _device(modules) if reduce == "device" else None
    prefixes.update(names)
    if kinds:
        for place in {p.device for module in modules for p in module.parameters()}:
            kernels.prepare(place)
    watcher = Watcher(
        list(zip(chosen, modules, strict=True)),
        kinds,
        Schedule(log_freq, None if budget is None else float(budget)),
        recorder,
        job,
        ordinal,
        include,
        exclude,
        device,
        checksum_every,
        phases,
    )
    if on_nonfinite != "record":
        judge = nonfinite.Judge(
            on_nonfinite, watcher.models, recorder, job, ordinal, watcher.own_norms, watcher.trains, include, exclude
        )
        watcher.on_nonfinite = judge
    if kinds and blackbox is not None:
        watcher.blackbox = BlackBox(watcher.models, recorder, ordinal, blackbox, watcher.schedule, include, exclude)
    return watcher


def describe(models: Sequence[tuple[str, nn.Module]]) -> dict[str, Any]:
    """The structure of watched models: every module's class, every parameter's shape, dtype, device and sharding."""
    tree: dict[str, dict[str, Any]] = {}
    for prefix, model in models:
        inner = layout.unwrap(model)
        for name, module in inner.named_modules():  # a wrapper comes before what it wraps
            path = f"{prefix}{layout.strip(name)}".rstrip("/")
            tree[path] = {"name": path, "class": layout.class_name(module), "parameters": []}
        for held in layout.held_by(model, prefix):
            owner, _, leaf = held.name[len(prefix) :].rpartition(".")
            described = {"name": leaf, "shape": list(held.shape), **_described(held.parameter)}
            tree[f"{prefix}{owner}".rstrip("/")]["parameters"].append(described)
    return {"modules": list(tree.values()), "data_parallel": any(layout.averages(model) for _, model in models)}


def _described(parameter: Any) -> dict[str, Any]:
    described = {"dtype": str(parameter.dtype), "trainable": parameter.requires_grad}
    if layout.is_dtensor(parameter):
        described["placements"] = [str(placement) for placement in parameter.placements]
        described["mesh"] = list(parameter.device_mesh.shape)
    return described


def _device(models: Sequence[nn.Module]) -> torch.device:
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError('watch(reduce="device") needs torch.distributed.init_process_group() before it')
    parameter = next((p for model in models for p in model.parameters()), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _kinds(log: Any) -> tuple[str, ...]:
    """The kinds of rows that a value of `log` asks for, in the order of `KINDS`."""
    names = ", ".join(f'"{name}"' for name in KINDS)
    allowed = f'"all", "gradients", "parameters", None or a tuple of any of {names}'
    if isinstance(log, (list, tuple)) and all(isinstance(what, str) for what in log):
        if not log or not KINDS.keys() >= set(log):
            raise ValueError(f"watch(log=) takes {allowed}, got {log!r}")
        return tuple(kind for what, kind in KINDS.items() if what in log)
    if log is not None and not isinstance(log, str):
        raise TypeError(f"watch(log=) takes {allowed}, got {_describe(log)}")
    named = {"all": layout.KINDS, "gradients": ("gradient",), "parameters": ("parameter",), None: ()}
    if log not in named:
        raise ValueError(f"watch(log=) takes {allowed}, got {log!r}")
    return named[log]


def _name(name: Any) -> str:
    if name is None:
        return ""
    if not isinstance(name, str):
        raise TypeError(f"watch(name=) takes a string, got {_describe(name)}")
    if not name.strip("/"):
        raise ValueError(f"watch(name=) takes a non-empty string, got {_describe(name)}")
    return name.strip("/")


def _are_parts_of_one(models: Sequence[nn.Module]) -> bool:
    """Whether no two have a parameter of the same name: the stages of a pipeline are named as the whole model is."""
    names = [held.name for model in models for held in layout.held_by(model)]
    return len(set(names)) == len(names)


def _prefix(name: str, index: int, model: nn.Module, prefixes: dict[nn.Module, str]) -> str:
    """The prefix of a model's names; a model that is watched again keeps the one it had."""
    if name:
        prefix = f"{name}{index or ''}/"
        if any(taken == prefix and other is not model for other, taken in prefixes.items()):
            raise ValueError(f"watch(name={name!r}) names another model of this run already; choose another name")
    elif model in prefixes:
        prefix = prefixes[model]
    else:
        prefix = f"model{len(prefixes)}/" if prefixes else ""
    prefixes[model] = prefix
    return prefix


def _patterns(argument: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    patterns = [value] if isinstance(value, str) else value
    if not isinstance(patterns, (list, tuple)) or not all(isinstance(p, str) for p in patterns):
        raise TypeError(f'watch({argument}=) takes patterns such as "layers.*.weight", got {_describe(value)}')
    return tuple(patterns)


def _describe(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {sorted({type(v).__name__ for v in value}) or 'nothing'}"
    return f"{type(value).__name__} {str(value)[:60]!r}"
