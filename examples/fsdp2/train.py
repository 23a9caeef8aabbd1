"""Train a small GPT on the source code of Python's standard library, sharded over the ranks (FSDP2); watch all of it.

    torchrun --standalone --nproc-per-node=2 examples/fsdp2/train.py    # two ranks, one run
    ... train.py max_steps=50 lr=3e-4                                   # any field of Config below

One file, read from top to bottom: examples/ddp/train.py with its model sharded. No rank holds all of the model, so
whatever runs it is done by all ranks together. Nothing is downloaded: the text is what your Python was installed with.
With the defaults two CPU ranks take about a minute, and the loss of a character falls from 4.6 (knows nothing) to
about 2.
"""

import dataclasses
import math
import os
import sys
import sysconfig
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import torchtrack


@dataclasses.dataclass
class Config:
    """What can be changed on the command line."""

    # data
    num_chars: int = 1_500_000  # how much source to read; the last tenth is for validation
    block_size: int = 128  # how many characters the model sees at once
    # model: 0.8 million parameters
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    # training
    max_steps: int = 200
    batch_size: int = 8  # sequences of a micro-batch
    accumulation: int = 4  # micro-batches of a step, shared by the ranks
    lr: float = 3e-3
    min_lr: float = 3e-4
    warmup_steps: int = 20
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    # watching
    eval_every: int = 50
    eval_batches: int = 8
    log_freq: int = 20  # steps between two looks at every gradient and parameter
    project: str = "examples"


config = Config()
for word in sys.argv[1:]:
    key, _, value = word.partition("=")
    if key not in dataclasses.asdict(config):
        sys.exit(f"{word!r}: write key=value with one of {', '.join(dataclasses.asdict(config))}")
    setattr(config, key, type(getattr(config, key))(value))

# ---- where this process stands ---------------------------------------------------------------------------------------
# torchrun sets RANK, LOCAL_RANK and WORLD_SIZE.

if "RANK" not in os.environ:
    sys.exit("a sharded model needs torchrun, for one process too: torchrun --standalone --nproc-per-node=1 train.py")
rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
device = torch.device("cpu")
if torch.cuda.is_available():
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
mesh = init_device_mesh(device.type, (world_size,))
if config.accumulation % world_size:
    sys.exit(f"accumulation={config.accumulation} has to be a multiple of the {world_size} ranks that share it")
micro_steps = config.accumulation // world_size

torch.manual_seed(1337)  # the same weights on every rank, of which each keeps its part
sampling = torch.Generator().manual_seed(1337 + rank)  # other sequences on every rank
# Computes in bfloat16 where that is fast, which is not on CPUs. Gradients are summed, and weights kept, in float32.
precision = MixedPrecisionPolicy()
if device.type == "cuda":
    precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)

# ---- data ------------------------------------------------------------------------------------------------------------
# The vocabulary is fixed: newline and printable ASCII. Whatever else a file holds is left out.

VOCABULARY = "\n" + "".join(map(chr, range(32, 127)))


def read_source(num_chars: int) -> Tensor:
    """The first files of the standard library, in the order of their names, as numbers of characters."""
    text = ""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text += path.read_text(encoding="utf-8", errors="ignore")
        if len(text) >= num_chars:
            break
    index = {character: number for number, character in enumerate(VOCABULARY)}
    return torch.tensor([index[character] for character in text[:num_chars] if character in index], dtype=torch.uint8)


source = read_source(config.num_chars)
train_data, val_data = source[: len(source) * 9 // 10], source[len(source) * 9 // 10 :]


def get_batch(data: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random sequences, and the same one character on: what the model is to predict."""
    starts = torch.randint(len(data) - config.block_size - 1, (config.batch_size,), generator=generator)
    x = torch.stack([data[i : i + config.block_size] for i in starts]).long()
    y = torch.stack([data[i + 1 : i + 1 + config.block_size] for i in starts]).long()
    return x.to(device), y.to(device)


# ---- model -----------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = self.qkv(x).view(batch, length, 3, config.n_head, width // config.n_head)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.proj(y.transpose(1, 2).reshape(batch, length, width))
        return out


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention()
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = nn.Sequential(
            nn.Linear(config.n_embd, 4 * config.n_embd), nn.GELU(), nn.Linear(4 * config.n_embd, config.n_embd)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(len(VOCABULARY), config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.ModuleList(Block() for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, len(VOCABULARY), bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # what is added to the residual stream starts smaller, by the number of additions
                scale = math.sqrt(2 * config.n_layer) if name.endswith(("proj.weight", "mlp.2.weight")) else 1.0
                nn.init.normal_(parameter, std=0.02 / scale)

    def forward(self, x: Tensor) -> Tensor:
        h = self.wte(x) + self.wpe(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            h = block(h)
        logits: Tensor = self.head(self.ln_f(h))
        return logits


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.view(-1, logits.shape[-1]).float(), targets.view(-1))


# A block's parameters are gathered when its turn comes and let go of after it, forward and backward; those of no block
# are the root's. From here on each parameter is a DTensor: whole to look at, and one part of world_size lies here.
model = GPT().to(device)
for block in model.blocks:
    fully_shard(block, mesh=mesh, mp_policy=precision)
sharded = fully_shard(model, mesh=mesh, mp_policy=precision)  # the model itself, with what steers the sharding
matrices = [p for p in model.parameters() if p.dim() >= 2]
vectors = [p for p in model.parameters() if p.dim() < 2]  # biases and norms are not decayed
optimizer = torch.optim.AdamW(
    [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
    lr=config.lr,
    betas=(0.9, 0.95),
)


def learning_rate(step: int) -> float:
    """Linear warmup, then a cosine down to min_lr."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    return config.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (config.lr - config.min_lr)


@torch.no_grad()
def validate() -> Tensor:
    """The mean loss of the same sequences each time, other ones on each rank. Stays on the device."""
    model.eval()
    generator = torch.Generator().manual_seed(rank)
    total = torch.zeros((), device=device)
    for _ in range(config.eval_batches):
        x, y = get_batch(val_data, generator)
        total += loss_of(model(x), y)
    model.train()
    return total / config.eval_batches


@torch.no_grad()
def generate(prompt: str, length: int) -> str:
    """What the model writes. On all ranks together: each pass gathers the shards of all."""
    model.eval()
    numbers = torch.tensor([[VOCABULARY.index(character) for character in prompt]], device=device)
    for _ in range(length):
        logits = model(numbers[:, -config.block_size :])[0, -1].float() / 0.8
        following = torch.multinomial(logits.softmax(-1), 1)
        numbers = torch.cat([numbers, following[None]], dim=1)
    return "".join(VOCABULARY[number] for number in numbers[0].tolist())


# ---- training --------------------------------------------------------------------------------------------------------
# The three lines that make this a run: init on every rank, watch the model, log what is worth a curve. What is printed
# is kept with it.

run = torchtrack.init(project=config.project, config=dataclasses.asdict(config), console=True)
run.watch(model, log="all", log_freq=config.log_freq)

if rank == 0:
    count = sum(p.numel() for p in model.parameters())
    print(f"{count:,} parameters, {len(train_data):,} characters, {world_size} ranks on {device.type}", flush=True)

tokens_per_step = config.accumulation * config.batch_size * config.block_size
began = time.perf_counter()
for step in range(config.max_steps):
    metrics: dict[str, float | Tensor] = {}
    if step % config.eval_every == 0 or step == config.max_steps - 1:
        metrics["val/loss"] = validate()

    lr = learning_rate(step)
    for group in optimizer.param_groups:
        group["lr"] = lr

    step_began = time.perf_counter()
    loss_sum = torch.zeros((), device=device)
    for micro_step in range(micro_steps):
        x, y = get_batch(train_data, sampling)
        # Backward averages the gradients over the ranks and leaves each its part; only the last one needs that
        sharded.set_requires_gradient_sync(micro_step == micro_steps - 1)
        loss = loss_of(model(x), y) / micro_steps
        loss.backward()
        loss_sum += loss.detach()
    nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

    # Tensors are passed as they are: nobody waits for the device, and the page shows their mean over the ranks.
    metrics |= {"train/loss": loss_sum, "lr": lr, "tokens_per_s": tokens_per_step / (time.perf_counter() - step_began)}
    run.log(metrics, step=step)

    if rank == 0 and (step % config.eval_every == 0 or step == config.max_steps - 1):
        print(  # .item() waits for the device, so it is done only here
            f"step {step:4d}   train {loss_sum.item():.3f}   val {torch.as_tensor(metrics['val/loss']).item():.3f}"
            f"   {time.perf_counter() - began:5.1f} s",
            flush=True,
        )

sample = generate("def ", 300)
if rank == 0:
    run.log({"sample": sample}, step=config.max_steps - 1)
    print(f"\nA sample:\n\n{sample}\n\nThe run lies in {run.dir}", flush=True)
run.finish()
distributed.destroy_process_group()
