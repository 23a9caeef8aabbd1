"""One small model under every wrapper there is, trained on real ranks, and the truth about each step."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    ShardingStrategy,
    fully_shard,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.pipelining.schedules import (
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
)
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit, in the import alone
    from torch.distributed.optim import ZeroRedundancyOptimizer

WIDTH = 12
BATCH, TOKENS = 8, 4
Tensors = dict[str, torch.Tensor]


class Block(nn.Module):
    """A residual MLP whose sizes divide evenly over no usual number of ranks unless asked to."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, hidden)
        self.down = nn.Linear(hidden, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))  # type: ignore[no-any-return]


def model(hidden: int = 24, layers: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(Block(hidden) for _ in range(layers)), nn.Linear(WIDTH, 3))


def loss_of(output: torch.Tensor, *_: Any) -> torch.Tensor:
    return output.square().mean()


@dataclass
class Trained:
    """A wrapped model and how to train it.

    Attributes:
        watch: what is given to `Run.watch`.
        optimizers: stepped after each backward pass.
        forward: from the batch to the loss, on this rank.
        clip: clips gradients; returns nothing.
        named: name -> parameter, as `watch` should name them; of FSDP1, which has no such thing, the unsharded twin's.
        data_ranks: how many ranks get different batches, and which of them this one is.
        backward: replaces the plain pass.
        gradients: the whole gradients, where they do not lie in `named`.
        parts: how tensors of one name on all ranks become the truth: "same" (each has all of it), "union" (each name
            lies on some ranks), "stack" (each rank has its own).
    """

    watch: Any
    optimizers: list[torch.optim.Optimizer]
    forward: Callable[[torch.Tensor], torch.Tensor]
    named: Callable[[], Tensors]
    clip: Callable[[], object] | None = None
    data_ranks: tuple[int, int] = (1, 0)
    backward: Callable[[torch.Tensor], object] | None = None
    parts: str = "same"
    gradients: Callable[[], Tensors] | None = None


def of_module(module: nn.Module) -> Callable[[], Tensors]:
    return lambda: dict(module.named_parameters())


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


def clips(module: nn.Module) -> Callable[[], object]:
    return lambda: nn.utils.clip_grad_norm_(module.parameters(), 0.05)


def everywhere() -> tuple[int, int]:
    return dist.get_world_size(), dist.get_rank()


# -- replicas ---------------------------------------------------------------------------------------------------------


def ddp(**options: Any) -> Trained:
    inner = model()
    hook = options.pop("hook", None)
    wrapped = DistributedDataParallel(inner, **options)
    if hook is not None:
        wrapped.register_comm_hook(None, hook)
    return Trained(wrapped, [adamw(wrapped.parameters())], wrapped, of_module(inner), clips(wrapped), everywhere())


def ddp_compiled() -> Trained:
    inner = model()
    wrapped: Any = torch.compile(DistributedDataParallel(inner), backend="aot_eager")
    return Trained(wrapped, [adamw(inner.parameters())], wrapped, of_module(inner), clips(inner), everywhere())


def zero_redundancy() -> Trained:
    inner = model()
    wrapped = DistributedDataParallel(inner)
    optimizer = ZeroRedundancyOptimizer(wrapped.parameters(), torch.optim.Adam, lr=1e-2)
    return Trained(wrapped, [optimizer], wrapped, of_module(inner), None, everywhere())


# -- shards -----------------------------------------------------------------------------------------------------------


def fsdp2(mesh_shape: tuple[int, ...] = (), *, hidden: int = 24, **options: Any) -> Trained:
    inner = model(hidden)
    named = tuple("abc"[: len(mesh_shape)])
    mesh = init_device_mesh("cpu", mesh_shape or (dist.get_world_size(),), mesh_dim_names=named or None)
    for block in inner:
        fully_shard(block, mesh=mesh, **options)
    fully_shard(inner, mesh=mesh, **options)
    names = [name for name, _ in inner.named_parameters()]
    kept = dict(zip(names, inner.parameters(), strict=True))  # unlike named_parameters() after a forward
    return Trained(inner, [adamw(inner.parameters())], inner, lambda: dict(kept), clips(inner), everywhere())


def fsdp2_checkpointed() -> Trained:
    inner = nn.Sequential(*(checkpoint_wrapper(block) for block in model()))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in inner:
        fully_shard(block, mesh=mesh)
    fully_shard(inner, mesh=mesh)
    plain = [name.replace("_checkpoint_wrapped_module.", "") for name, _ in inner.named_parameters()]
    kept = dict(zip(plain, inner.parameters(), strict=True))
    return Trained(inner, [adamw(inner.parameters())], inner, lambda: dict(kept), clips(inner), everywhere())


def fsdp2_compiled() -> Trained:
    trained = fsdp2()
    compiled: Any = torch.compile(trained.watch, backend="aot_eager")
    trained.watch = trained.forward = compiled
    return trained


def fsdp1(strategy: ShardingStrategy = ShardingStrategy.FULL_SHARD, *, use_orig_params: bool) -> Trained:
    inner = model(hidden=25)
    names = {name: tuple(p.shape) for name, p in inner.named_parameters()}
    options: dict[str, Any] = {}
    if strategy == ShardingStrategy.HYBRID_SHARD:
        options["device_mesh"] = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("a", "b"))
    wrapped = FullyShardedDataParallel(
        inner,
        sharding_strategy=strategy,
        use_orig_params=use_orig_params,
        auto_wrap_policy=ModuleWrapPolicy({Block}),
        device_id=torch.device("cpu"),
        **options,
    )

    def full() -> Tensors:
        with FullyShardedDataParallel.summon_full_params(wrapped, writeback=False):
            held = {n.replace("_fsdp_wrapped_module.", ""): p.detach().clone() for n, p in wrapped.named_parameters()}
        return {name: held[name].view(shape) for name, shape in names.items()}

    def full_gradients() -> Tensors:
        """The gradients, by the way parameters go: into the flat parameters and back."""
        modules = FullyShardedDataParallel.fsdp_modules(wrapped)
        handles: list[Any] = [m._handle for m in modules if m._handle is not None]
        kept = []
        for handle in handles:
            local = handle.flat_param.grad if not use_orig_params else None
            if local is None:  # views of it hang on the original parameters
                pieces = zip(handle.flat_param._params, handle.flat_param._shard_param_infos, strict=True)
                local = torch.zeros_like(handle.flat_param)
                for parameter, info in pieces:
                    if info.in_shard and parameter.grad is not None:
                        to = slice(info.offset_in_shard, info.offset_in_shard + info.numel_in_shard)
                        local[to] = parameter.grad.reshape(-1)
            kept.append((handle, handle.flat_param.detach().clone()))
            handle.flat_param.data.copy_(local)
        found = full()
        for handle, values in kept:
            handle.flat_param.data.copy_(values)
        return found

    return Trained(
        wrapped,
        [adamw(wrapped.parameters())],
        wrapped,
        full,
        lambda: wrapped.clip_grad_norm_(0.05),
        everywhere(),
        gradients=full_gradients,
    )


# -- tensor parallelism -----------------------------------------------------------------------------------------------


def _parallel(inner: Any, mesh: Any, *, sequence: bool) -> None:
    for block in inner[:-1]:
        plan: dict[str, Any] = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        if sequence:
            from torch.distributed.tensor import Replicate, Shard
            from torch.distributed.tensor.parallel import PrepareModuleInput, PrepareModuleOutput

            plan = {
                "norm": SequenceParallel(sequence_dim=1),
                "up": ColwiseParallel(input_layouts=Shard(1)),
                "down": RowwiseParallel(output_layouts=Shard(1)),
            }
            block_in = PrepareModuleInput(
                input_layouts=(Replicate(),), desired_input_layouts=(Shard(1),), use_local_output=True
            )
            block_out = PrepareModuleOutput(output_layouts=(Shard(1),), desired_output_layouts=(Replicate(),))
            parallelize_module(block, mesh, plan)
            parallelize_module(block, mesh, block_in)
            parallelize_module(block, mesh, block_out)
        else:
            parallelize_module(block, mesh, plan)


def tensor_parallel(*, sequence: bool = False) -> Trained:
    inner = model()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    _parallel(inner, mesh, sequence=sequence)
    return Trained(inner, [torch.optim.AdamW(inner.parameters(), lr=1e-2, foreach=False)], inner, of_module(inner))


def fsdp2_and_tensor_parallel() -> Trained:
    inner = model()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    _parallel(inner, mesh["tp"], sequence=False)
    for block in inner:
        fully_shard(block, mesh=mesh["dp"])
    fully_shard(inner, mesh=mesh["dp"])
    optimizer = torch.optim.AdamW(inner.parameters(), lr=1e-2, foreach=False)
    names = [name for name, _ in inner.named_parameters()]
    kept = dict(zip(names, inner.parameters(), strict=True))
    return Trained(inner, [optimizer], inner, lambda: dict(kept), None, (2, mesh["dp"].get_local_rank()))


# -- pipelines and experts --------------------------------------------------------------------------------------------


def pipeline(schedule: Any, stages: int = 1) -> Trained:
    """Stages in the user's names; with 4 ranks two pipelines side by side whose gradients are averaged by hand."""
    whole = model(layers=3)
    mesh = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("dp", "pp"))
    group, place = mesh["pp"].get_group(), mesh["pp"].get_local_rank()
    cuts = list(range(0, 4, 4 // (2 * stages)))
    parts, pipes = [], []
    for i in range(stages):
        index = place + 2 * i
        part = nn.Module()
        part.layers = nn.ModuleDict(
            {str(k): copy.deepcopy(whole[k]) for k in range(cuts[index], cuts[index] + cuts[1])}
        )
        part.forward = partial(_through, part)
        parts.append(part)
        pipes.append(PipelineStage(part, index, 2 * stages, torch.device("cpu"), group=group))
    running = schedule(pipes if stages > 1 else pipes[0], 4, loss_fn=loss_of)
    dp, width = mesh["dp"].get_group(), mesh["dp"].size()

    def backward(batch: torch.Tensor) -> None:
        first, last = place == 0, place == 1
        running.step(*([batch] if first else []), **({"target": batch} if last else {}))
        for part in parts:
            for parameter in part.parameters():
                dist.all_reduce(parameter.grad, group=dp)
                parameter.grad.div_(width)  # type: ignore[union-attr]

    def named() -> Tensors:
        return {name: p for part in parts for name, p in part.named_parameters()}

    parameters = [p for part in parts for p in part.parameters()]
    data = (width, mesh["dp"].get_local_rank())
    optimizer = adamw(parameters)
    return Trained(parts, [optimizer], loss_of, named, None, data, backward=backward, parts="union")


def _through(part: Any, x: torch.Tensor) -> torch.Tensor:
    for layer in part.layers.values():
        x = layer(x)
    return x


def experts() -> Trained:
    """Every rank has an expert of its own under the same name, beside layers that all share."""
    inner = model(layers=2)
    torch.manual_seed(10 + dist.get_rank())
    inner[1] = Block(24)
    shared = [p for i, block in enumerate(inner) for p in block.parameters() if i != 1]

    def backward(batch: torch.Tensor) -> None:
        loss_of(inner(batch)).backward()
        for parameter in shared:
            dist.all_reduce(parameter.grad)
            parameter.grad.div_(dist.get_world_size())  # type: ignore[union-attr]

    return Trained(
        inner,
        [adamw(inner.parameters())],
        inner,
        of_module(inner),
        None,
        everywhere(),
        backward=backward,
        parts="stack",
    )


# -- other optimizers -------------------------------------------------------------------------------------------------


def in_backward() -> Trained:
    """Each sharded parameter has an optimizer of its own, which steps inside the backward pass.

    `_apply_optimizer_in_backward` under DDP needs an accelerator: torch waits there for a stream of it.
    """
    trained = fsdp2()
    inner, kept = trained.watch, trained.named()
    used: Tensors = {}
    before: Tensors = {}

    def steps(name: str, optimizer: torch.optim.Optimizer) -> Callable[[torch.Tensor], None]:
        def hook(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            used[name], before[name] = whole(parameter.grad), whole(parameter)
            optimizer.step()
            optimizer.zero_grad()

        return hook

    for name, parameter in kept.items():
        parameter.register_post_accumulate_grad_hook(steps(name, torch.optim.SGD([parameter], lr=1e-2)))
    return Trained(inner, [], inner, lambda: before, None, everywhere(), gradients=lambda: used)


def lbfgs() -> Trained:
    inner = model(layers=1)
    wrapped = DistributedDataParallel(inner)
    optimizer = torch.optim.LBFGS(wrapped.parameters(), lr=1e-2, max_iter=2)
    return Trained(wrapped, [optimizer], wrapped, of_module(inner), None, everywhere())


WRAPPERS: dict[str, tuple[int, Callable[[], Trained]]] = {
    "ddp": (2, ddp),
    "ddp bucket view": (2, partial(ddp, gradient_as_bucket_view=True)),
    "ddp static graph": (2, partial(ddp, static_graph=True)),
    "ddp unused": (2, partial(ddp, find_unused_parameters=True)),
    "ddp comm hook": (2, partial(ddp, hook=fp16_compress_hook)),
    "ddp compiled": (2, ddp_compiled),
    "zero redundancy": (2, zero_redundancy),
    "lbfgs": (2, lbfgs),
    "in backward": (2, in_backward),
    "fsdp2": (2, fsdp2),
    "fsdp2 uneven": (4, partial(fsdp2, hidden=7)),
    "fsdp2 reshard off": (2, partial(fsdp2, reshard_after_forward=False)),
    "fsdp2 mixed precision": (
        2,
        partial(fsdp2, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)),
    ),
    "fsdp2 checkpointed": (2, fsdp2_checkpointed),
    "fsdp2 compiled": (2, fsdp2_compiled),
    "hsdp": (4, partial(fsdp2, (2, 2))),
    "fsdp1": (2, partial(fsdp1, use_orig_params=False)),
    "fsdp1 original parameters": (2, partial(fsdp1, use_orig_params=True)),
    "fsdp1 no shard": (2, partial(fsdp1, ShardingStrategy.NO_SHARD, use_orig_params=True)),
    "fsdp1 hybrid": (4, partial(fsdp1, ShardingStrategy.HYBRID_SHARD, use_orig_params=True)),
    "tensor parallel": (2, tensor_parallel),
    "sequence parallel": (2, partial(tensor_parallel, sequence=True)),
    "fsdp2 and tensor parallel": (4, fsdp2_and_tensor_parallel),
    "pipeline gpipe": (2, partial(pipeline, ScheduleGPipe)),
    "pipeline 1f1b beside another": (4, partial(pipeline, Schedule1F1B)),
    "pipeline interleaved": (2, partial(pipeline, ScheduleInterleaved1F1B, 2)),
    "pipeline zero bubble": (2, partial(pipeline, ScheduleInterleavedZeroBubble, 2)),
    "experts": (2, experts),
}
"""Name -> number of ranks and how to build it."""


def batches(count: int, place: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    while True:
        yield torch.randn(count * BATCH, TOKENS, WIDTH, generator=generator).chunk(count)[place]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor, on every rank."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()
