"""Train a small character model on the source of Python's standard library with Lightning: two ranks, one run.

    python examples/lightning/train.py                       # two CPU ranks, DDP
    python examples/lightning/train.py devices=1 max_epochs=5

Nothing is downloaded: the text is what your Python was installed with. The loss of a character begins at 4.6.
"""

import dataclasses
import sys
import sysconfig
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from torchtrack_lightning import TorchtrackCallback, TorchtrackLogger


@dataclasses.dataclass
class Config:
    """What can be changed on the command line."""

    num_chars: int = 200_000
    context: int = 16  # how many characters the model sees
    width: int = 128
    batch_size: int = 256  # on each rank
    max_epochs: int = 2
    devices: int = 2
    lr: float = 3e-3
    log_freq: int = 20  # optimizer steps between two looks at every gradient and parameter


VOCABULARY = "\n" + "".join(map(chr, range(32, 127)))


def read_source(num_chars: int) -> Tensor:
    """The first files of the standard library as numbers of characters."""
    text = ""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text += path.read_text(encoding="utf-8", errors="ignore")
        if len(text) >= num_chars:
            break
    index = {character: number for number, character in enumerate(VOCABULARY)}
    return torch.tensor([index[character] for character in text[:num_chars] if character in index])


def loaders(config: Config) -> tuple[DataLoader[tuple[Tensor, ...]], DataLoader[tuple[Tensor, ...]]]:
    """Training and validation: some characters, and the one that follows."""
    windows = read_source(config.num_chars).unfold(0, config.context + 1, 3)
    data = TensorDataset(windows[:, :-1], windows[:, -1])
    train, val = torch.utils.data.random_split(data, [0.9, 0.1], torch.Generator().manual_seed(0))
    return DataLoader(train, config.batch_size, shuffle=True), DataLoader(val, config.batch_size)


class NextCharacter(L.LightningModule):
    """Embeds the last characters and guesses the next one."""

    def __init__(self, context: int, width: int, lr: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.embed = nn.Embedding(len(VOCABULARY), 16)
        self.mlp = nn.Sequential(
            nn.Linear(16 * context, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 96)
        )

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.mlp(self.embed(x).flatten(1)), y)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


def main() -> None:
    config = Config()
    for word in sys.argv[1:]:
        key, _, value = word.partition("=")
        if key not in dataclasses.asdict(config):
            sys.exit(f"{word!r}: write key=value with one of {', '.join(dataclasses.asdict(config))}")
        setattr(config, key, type(getattr(config, key))(value))

    L.seed_everything(1337)
    logger = TorchtrackLogger(project="examples", config=dataclasses.asdict(config))
    trainer = L.Trainer(
        accelerator="auto" if torch.cuda.is_available() else "cpu",
        devices=config.devices,
        strategy="ddp" if config.devices > 1 else "auto",
        max_epochs=config.max_epochs,
        gradient_clip_val=1.0,
        log_every_n_steps=10,
        logger=logger,
        callbacks=[TorchtrackCallback(log="all", log_freq=config.log_freq)],
    )
    train, val = loaders(config)
    trainer.fit(NextCharacter(config.context, config.width, config.lr), train, val)
    if trainer.is_global_zero:
        print(f"\nThe run lies in {logger.experiment.dir}")


if __name__ == "__main__":
    main()
