"""Train a small GPT-2 on the source of Python's standard library with transformers.Trainer.

    torchrun --nproc-per-node 2 examples/huggingface/train.py     # two CPU ranks, one run
    python examples/huggingface/train.py --max_steps 40 --n_layer 1

Nothing is downloaded: the text is what your Python was installed with, and a token is a byte. The loss of a byte begins
at 5.5.
"""

import argparse
import sysconfig
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from torchtrack_huggingface import TorchtrackCallback


class Source(Dataset[dict[str, Tensor]]):
    """Windows of the standard library's first files, as bytes."""

    def __init__(self, num_bytes: int, context: int) -> None:
        text = b""
        for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
            text += path.read_bytes()
            if len(text) >= num_bytes:
                break
        self.windows = torch.frombuffer(bytearray(text[:num_bytes]), dtype=torch.uint8).unfold(0, context, context // 2)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = self.windows[index].long()
        return {"input_ids": tokens, "labels": tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, default=100)
    parser.add_argument("--num_bytes", type=int, default=500_000)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--n_layer", type=int, default=2)
    parser.add_argument("--log_freq", type=int, default=20, help="optimizer steps between two looks at every tensor")
    options = parser.parse_args()

    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=256, n_positions=options.context, n_embd=64, n_layer=options.n_layer, n_head=4)
    )
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            "checkpoints",
            per_device_train_batch_size=16,
            gradient_accumulation_steps=2,
            learning_rate=3e-3,
            warmup_steps=10,
            max_steps=options.max_steps,
            logging_steps=5,
            save_strategy="no",
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=Source(options.num_bytes, options.context),
        callbacks=[TorchtrackCallback("examples", watch={"log": "all", "log_freq": options.log_freq})],
    )
    trainer.train()


if __name__ == "__main__":
    main()
