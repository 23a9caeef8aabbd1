"""The same training by a plain loop, by transformers.Trainer in several ways, and by an Accelerate loop.

accelerate launch --num_processes 2 train.py RUNS CHECKPOINTS
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.state import AcceleratorState
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, SequentialSampler
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import torchtrack
import torchtrack_huggingface
from tests.integrations.huggingface.scripts.models import (
    ACCUMULATE,
    BATCH,
    CLIP,
    LR,
    SAVED_AT,
    STEPS,
    Classifier,
    Points,
    batch_of,
)
from torchtrack_huggingface import TorchtrackCallback, TorchtrackTracker

RUNS, CHECKPOINTS = (Path(word) for word in sys.argv[1:3])
WATCH: dict[str, Any] = {"log": "all", "log_freq": 1}
POINTS = Points(BATCH * ACCUMULATE * STEPS * 2)


class InOrder(Trainer):
    """The Trainer as it is, on data in the order in which it lies."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return SequentialSampler(POINTS)


def plain() -> None:
    run = torchtrack.init(project="plain", dir=RUNS)
    inner = Classifier()
    model = DistributedDataParallel(inner)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    run.watch(model, **WATCH)
    rank, size = dist.get_rank(), dist.get_world_size()
    for step in range(STEPS):
        losses = []
        for micro in range(ACCUMULATE):
            model.require_backward_grad_sync = micro == ACCUMULATE - 1
            loss = model(**batch_of(POINTS, (step * ACCUMULATE + micro) * size + rank))[0] / ACCUMULATE
            loss.backward()
            losses.append(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        run.log({"train/loss": torch.stack(losses).sum(), "train/grad_norm": norm}, step=step + 1)
    run.finish()


def trainer(steps: int, callback: TorchtrackCallback | None, *, resume: bool, **more: Any) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(CHECKPOINTS),
        per_device_eval_batch_size=BATCH,
        gradient_accumulation_steps=ACCUMULATE,
        max_grad_norm=CLIP,
        max_steps=steps,
        logging_steps=1,
        eval_steps=1,
        save_steps=SAVED_AT,
        metric_for_best_model="loss",
        optim="sgd",
        learning_rate=LR,
        lr_scheduler_type="constant",
        disable_tqdm=True,
        use_cpu=True,
        **{"report_to": "none", "per_device_train_batch_size": BATCH, "eval_strategy": "steps", **more},
    )
    made = InOrder(
        model=Classifier(),
        args=arguments,
        train_dataset=POINTS,
        eval_dataset=POINTS,
        callbacks=[callback] if callback else None,
    )
    made.train(resume_from_checkpoint=resume)
    return made


def in_other_ways() -> None:
    once: dict[str, Any] = {"resume": False, "eval_strategy": "no", "save_strategy": "no"}
    compiled: dict[str, Any] = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    trainer(STEPS, TorchtrackCallback("compiled", watch=WATCH, dir=RUNS), **once, **compiled)
    torchtrack.finish()
    finding: dict[str, Any] = {"auto_find_batch_size": True, "per_device_train_batch_size": BATCH + 1}
    trainer(STEPS, TorchtrackCallback("finding", watch=WATCH, dir=RUNS), **once, **finding)
    torchtrack.finish()


def sharded(version: int) -> None:
    """By FSDP1 or `fully_shard`, which Accelerate leaves to accelerators: it is told that this is one."""
    original = AcceleratorState.__init__

    def on_a_cpu(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.fsdp_plugin, self.device = fsdp_plugin, torch.device("cpu")
            PartialState._shared_state["distributed_type"] = self.distributed_type = DistributedType.FSDP

    config = {"version": version, "transformer_layer_cls_to_wrap": ["Linear"], "sync_module_states": False}
    once: dict[str, Any] = {"resume": False, "eval_strategy": "no", "save_strategy": "no"}
    callback = TorchtrackCallback(f"fsdp{version}", watch=WATCH, dir=RUNS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AcceleratorState, "__init__", on_a_cpu)
        trainer(STEPS, callback, **once, fsdp=True, fsdp_config=config)
    torchtrack.finish()


def checkpointed() -> None:
    config = GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=1)
    words = [{"input_ids": torch.arange(i, i + 8) % 16, "labels": torch.arange(i, i + 8) % 16} for i in range(16)]
    arguments = TrainingArguments(
        output_dir=str(CHECKPOINTS),
        max_steps=2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        gradient_checkpointing=True,
        disable_tqdm=True,
        use_cpu=True,
    )
    callback = TorchtrackCallback("checkpointed", watch=WATCH, dir=RUNS)
    Trainer(model=GPT2LMHeadModel(config), args=arguments, train_dataset=words, callbacks=[callback]).train()
    torchtrack.finish()


def accelerated() -> None:
    tracker = TorchtrackTracker("accelerate", dir=RUNS)
    accelerator = Accelerator(cpu=True, log_with=tracker, gradient_accumulation_steps=ACCUMULATE)
    accelerator.init_trackers("not used", config={"lr": LR})
    model = Classifier()
    data = DataLoader(POINTS, batch_size=BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    model, optimizer, data = accelerator.prepare(model, optimizer, data)
    tracker.tracker.watch(model, **WATCH)
    step = 0
    for batch in data:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch)[0])
            if accelerator.sync_gradients:
                step += 1
                norm = accelerator.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            accelerator.log({"train/grad_norm": norm}, step=step)
            tracker.log({"process": float(accelerator.process_index)}, step=step)
    tracker.finish()


def main() -> None:
    dist.init_process_group("gloo")
    torchtrack_huggingface.register()
    plain()
    init: dict[str, Any] = {"dir": RUNS, "id": "trainer", "resume": "allow"}
    trainer(SAVED_AT, TorchtrackCallback("trainer", watch=WATCH, **init), resume=False)
    torchtrack.finish()
    made = trainer(STEPS, TorchtrackCallback("trainer", watch=WATCH, **init), resume=True)
    made.predict(POINTS)
    torchtrack.finish()
    in_other_ways()
    checkpointed()
    accelerated()
    torchtrack.init(project="report_to", dir=RUNS)
    trainer(2, None, resume=False, report_to="torchtrack", run_name="unused", save_strategy="no")
    torchtrack.finish()
    sharded(1)
    sharded(2)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
