"""torchtrack: every rank of a training job, one run."""
