"""A small language model trained in the way of single-file GPT trainers: settings at the top, wandb behind a flag."""

import os
import sys
import time
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

out_dir = "out"
eval_interval = 3
log_interval = 1
wandb_log = True
wandb_project = "owt"
wandb_run_name = "gpt2-tiny"
max_iters = 6
learning_rate = 1e-2
everywhere = False
config_keys = [k for k, v in globals().items() if not k.startswith("_") and isinstance(v, (int, float, bool, str))]
for argument in sys.argv[1:]:
    key, _, value = argument.removeprefix("--").partition("=")
    globals()[key] = type(globals()[key])(eval(value, {}) if not isinstance(globals()[key], str) else value)
config = {k: globals()[k] for k in config_keys}

ddp = int(os.environ.get("RANK", -1)) != -1
if ddp:
    started_here = not dist.is_initialized()
    if started_here:
        dist.init_process_group(backend="gloo")
    ddp_rank = int(os.environ["RANK"])
    master_process = ddp_rank == 0 or everywhere
    seed_offset = ddp_rank
else:
    started_here, master_process, seed_offset = False, True, 0
torch.manual_seed(1337 + seed_offset)


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.wte = torch.nn.Embedding(16, 8)
        self.head = torch.nn.Linear(8, 16)

    def forward(self, idx, targets):
        logits = self.head(self.wte(idx))
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def get_batch():
    x = torch.randint(0, 16, (4, 8))
    return x, (x + 1) % 16


model = Tiny()
optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
if ddp:
    model = DDP(model)
raw_model = model.module if ddp else model


@torch.no_grad()
def estimate_loss():
    model.eval()
    out = {split: torch.stack([raw_model(*get_batch())[1] for _ in range(2)]).mean() for split in ("train", "val")}
    model.train()
    return out


if wandb_log and master_process:
    import wandb

    wandb.init(project=wandb_project, name=wandb_run_name, config=config)

running_mfu = -1.0
iter_num = 0
t0 = time.time()
while True:
    if iter_num % eval_interval == 0 and master_process:
        losses = estimate_loss()
        if wandb_log:
            wandb.log(
                {
                    "iter": iter_num,
                    "train/loss": losses["train"],
                    "val/loss": losses["val"],
                    "lr": learning_rate,
                    "mfu": running_mfu * 100,
                }
            )
    with nullcontext():
        logits, loss = model(*get_batch())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    iter_num += 1
    if iter_num > max_iters:
        break

if ddp and started_here:
    dist.destroy_process_group()
if wandb_log and master_process:
    wandb.finish()
