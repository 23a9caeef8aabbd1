"""What a metric is, by its name: losses, gradient norms, loss scales, phases of a step, memory, amounts of data."""

from __future__ import annotations

import functools
import re
from typing import Final

_TRAINING: Final = r"(?:train|training|total|batch)"
_OTHER: Final = r"(?:val|valid|validation|eval|test)"
_LOSS: Final = r"loss(?:_step|_epoch)?$"
_TRAINING_LOSS: Final = re.compile(rf"^(?:.*/)?(?:{_TRAINING}[_/.])*{_LOSS}", re.IGNORECASE)
_VALIDATION: Final = re.compile(rf"(?:^|[_/.]){_OTHER}[_/.]", re.IGNORECASE)
_VALIDATION_LOSS: Final = re.compile(rf"^(?:.*/)?(?:{_OTHER}[_/.])*{_LOSS}", re.IGNORECASE)
_GRADIENT_NORM: Final = re.compile(r"(?:^|/)(?:grad|gradient|grads|total)_?norm$", re.IGNORECASE)
LOCAL_NORM: Final = "watch/local_grad_norm"
UPDATE_LOST: Final = "watch/update_lost_bf16"
UPDATE_UNCHANGED: Final = "watch/update_unchanged"
MEMORY: Final = frozenset(
    {
        "system/process/memory_rss_bytes",
        "system/gpu/memory_used_bytes",
        "system/torch/memory_allocated_bytes",
        "system/torch/memory_reserved_bytes",
    }
)
"""Of every rank by itself, sampled now and then: ranks have them at different steps."""
_LOSS_SCALE: Final = re.compile(r"(?:^|[/_.])(?:loss|grad|amp)_?scale$|(?:^|/)scaler?(?:/scale)?$", re.IGNORECASE)
_AMOUNT: Final = re.compile(r"(?:^|/)(?:num_|n_)?(?:tokens|samples)(?:_per_(?:step|batch|second|s))?$", re.IGNORECASE)
_LEARNING_RATE: Final = re.compile(r"(^|[/_.])(lr|learning_rate)([/_.-]|$)", re.IGNORECASE)
_PHASE: Final = re.compile(r"^phase/(.+)_s$")


@functools.lru_cache(maxsize=4096)
def is_training_loss(name: str) -> bool:
    """`loss`, `train/loss`, `train_loss` and the like; not `d_loss` and other parts, which may go either way."""
    return bool(_TRAINING_LOSS.search(name)) and not _VALIDATION.search(name)


@functools.lru_cache(maxsize=4096)
def is_loss(name: str) -> bool:
    """A training loss or one of validation."""
    return is_training_loss(name) or bool(_VALIDATION_LOSS.search(name))


@functools.lru_cache(maxsize=4096)
def is_gradient_norm(name: str) -> bool:
    """`watch/grad_norm`, `watch/local_grad_norm` of each rank, and what people log themselves."""
    return bool(_GRADIENT_NORM.search(name))


@functools.lru_cache(maxsize=4096)
def is_loss_scale(name: str) -> bool:
    """The factor of a gradient scaler."""
    return bool(_LOSS_SCALE.search(name))


@functools.lru_cache(maxsize=4096)
def is_amount(name: str) -> bool:
    """Tokens or samples of a step, as people log them on each rank."""
    return bool(_AMOUNT.search(name))


@functools.lru_cache(maxsize=4096)
def is_learning_rate(name: str) -> bool:
    """`lr`, `train/lr`, `learning_rate`, `lr-AdamW/pg1`, and `watch/lr`."""
    return bool(_LEARNING_RATE.search(name))


@functools.lru_cache(maxsize=4096)
def phase_of(name: str) -> str:
    """The phase whose seconds this is; empty if it is something else."""
    found = _PHASE.match(name)
    return found.group(1) if found else ""
