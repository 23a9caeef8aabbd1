"""Trackers people keep: what torchtrack records is forwarded to TensorBoard, wandb, MLflow or a sink of your own.

    journals of the ranks -> feed (steps, when they are complete, all ranks combined) -> Forwarder -> Sink

Each sink is a process of its own beside the sidecar of rank 0's node (`python -m torchtrack.sinks DIR SINK`), at the
lowest priority: one that hangs or fails hangs or fails there, and neither the training nor another sink notices.
"""

from torchtrack.sinks.forwarder import Forwarder
from torchtrack.sinks.sink import About, Sink, open_sink

__all__ = ["About", "Forwarder", "Sink", "open_sink"]
