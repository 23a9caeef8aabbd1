"""torchtrack for Lightning: all ranks of a Trainer or of Fabric are one run.

    trainer = Trainer(logger=TorchtrackLogger(project="digits"), callbacks=[TorchtrackCallback()])

Works with `lightning` and with `pytorch_lightning`: see `torchtrack_lightning.framework`.
"""

from torchtrack_lightning.callback import TorchtrackCallback
from torchtrack_lightning.logger import TorchtrackLogger

__all__ = ["TorchtrackCallback", "TorchtrackLogger"]
