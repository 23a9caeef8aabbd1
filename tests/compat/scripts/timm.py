"""Image classification in the way of large training scripts: argparse, a summary function that logs rows to wandb."""

import argparse
import logging
import os
from collections import OrderedDict

import numpy as np
import torch

try:
    import wandb

    has_wandb = True
except ImportError:
    has_wandb = False

_logger = logging.getLogger("train")
parser = argparse.ArgumentParser(description="training")
parser.add_argument("--experiment", default="", type=str)
parser.add_argument("--log-wandb", action="store_true", default=False)
parser.add_argument("--wandb-tags", default=[], type=str, nargs="+")
parser.add_argument("--wandb-resume-id", default="", type=str)
parser.add_argument("--model", default="tiny", type=str)
parser.add_argument("--epochs", default=3, type=int)
parser.add_argument("--everywhere", type=lambda text: text == "True", default=False)


def update_summary(epoch, train_metrics, eval_metrics, lr=None, log_wandb=False):
    rowd = OrderedDict(epoch=epoch)
    rowd.update([("train_" + k, v) for k, v in train_metrics.items()])
    if eval_metrics:
        rowd.update([("eval_" + k, v) for k, v in eval_metrics.items()])
    if lr is not None:
        rowd["lr"] = lr
    if log_wandb:
        wandb.log(rowd)


def main():
    args = parser.parse_args()
    rank = int(os.environ.get("RANK", 0))
    primary = rank == 0 or args.everywhere
    model = torch.nn.Linear(12, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if primary and args.log_wandb:
        if has_wandb:
            assert not args.wandb_resume_id or args.wandb_resume_id
            wandb.init(
                project=args.experiment,
                name=args.model,
                config=args,
                tags=args.wandb_tags,
                resume="must" if args.wandb_resume_id else None,
                id=args.wandb_resume_id if args.wandb_resume_id else None,
            )
            wandb.watch(model, log="gradients", log_freq=2)
        else:
            _logger.warning("metrics not being logged to wandb")
    best_metric = None
    for epoch in range(args.epochs):
        for _ in range(2):
            loss = model(torch.ones(2, 12)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        train_metrics = OrderedDict([("loss", loss.item())])
        eval_metrics = OrderedDict([("loss", loss.item()), ("top1", np.float64(10.0 * epoch))])
        if primary:
            update_summary(epoch, train_metrics, eval_metrics, lr=0.1, log_wandb=args.log_wandb and has_wandb)
            best_metric = eval_metrics["top1"]
    if primary and args.log_wandb and has_wandb:
        wandb.summary["best_top1"] = best_metric
        wandb.run.summary.update({"epochs": args.epochs})
        wandb.log({"inputs": [wandb.Image(np.ones((4, 4, 3)), caption=f"rank {rank}")]})
        wandb.finish()


if __name__ == "__main__":
    main()
