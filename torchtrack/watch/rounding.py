"""Updates that rounding takes away: a step too small for the bits a weight has.

Two shares, by layer, of the parameters whose update is counted in this sample:

    watch/update_lost_bf16    of the elements that the step changed, those that bf16 would have left as they were
    watch/update_unchanged    of all elements, those that the step left as they were in the format they are kept in

The first says what bf16 weights would lose where weights are kept in more bits. Where they are kept in bf16, the loss
has happened: the second is its upper bound, since an element without a gradient does not change either.

At most `MOST` elements of a tensor are looked at, evenly spaced: of a tensor that has more the shares are estimates,
whose standard error is 0.2 % at most if what lies next to each other is alike by chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import torch

from torchtrack.records import UPDATE_LOST, UPDATE_UNCHANGED
from torchtrack.watch.drain import HostCopy
from torchtrack.watch.layers import layers_of
from torchtrack.watch.place import elements

if TYPE_CHECKING:
    from torchtrack.watch.updates import Kept

MOST: Final = 1 << 16


class Rounded:
    """Counts of one step, on their way to the host.

    Args:
        counts: by layer, int64 [3]: elements looked at, those that changed, those of them that bf16 would not show.
    """

    def __init__(self, counts: Mapping[str, torch.Tensor]) -> None:
        by_device: dict[torch.device, list[str]] = {}
        for layer, each in counts.items():
            by_device.setdefault(each.device, []).append(layer)
        self._copies = [
            (layers, HostCopy(torch.stack([counts[layer] for layer in layers]))) for layers in by_device.values()
        ]

    def ready(self) -> bool:
        """Whether the numbers are on the host."""
        return all(copy.ready() for _, copy in self._copies)

    def counts(self) -> dict[str, list[int]]:
        """By layer, once `ready`."""
        return {
            layer: row
            for layers, copy in self._copies
            for layer, row in zip(layers, copy.numpy().tolist(), strict=True)
        }


def rounded(kept: Sequence[Kept]) -> Rounded | None:
    """Look at parameters after the step and what was kept of them; None if there is nothing to look at. No wait."""
    counts: dict[str, torch.Tensor] = {}
    for layer, rows in (layers_of([each.held.name for each in kept]) or {"": list(range(len(kept)))}).items():
        pairs = [pair for i in rows for pair in _pair(kept[i])]
        if pairs and len({after.device for after, _ in pairs}) == 1:
            counts[layer] = _count(*(torch.cat(side) for side in zip(*pairs, strict=True)))
    return Rounded(counts) if counts else None


def shares(several: Iterable[Rounded]) -> dict[str, float]:
    """The metrics, of all layers together and of each."""
    sums: dict[str, list[int]] = {}
    for each in several:
        for layer, row in each.counts().items():
            for place in {"", layer}:
                sums[place] = [a + b for a, b in zip(sums.get(place, [0, 0, 0]), row, strict=True)]
    found = {}
    for layer, (looked, changed, lost) in sums.items():
        end = f"/{layer}" if layer else ""
        found[f"{UPDATE_UNCHANGED}{end}"] = (looked - changed) / looked
        if changed:
            found[f"{UPDATE_LOST}{end}"] = lost / changed
    return found


@torch.no_grad()
def _pair(kept: Kept) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Evenly spaced elements after and before; none if the step put another tensor in the parameter's place."""
    after = elements(kept.held.local(kept.held.parameter).detach(), kept.place.cut)[0]
    before = kept.before
    if after.shape != before.shape or after.device != before.device or not after.numel():
        return []
    stride = -(-after.numel() // MOST) | 1  # odd: an even one may meet the same columns in every row
    return [(after.reshape(-1)[::stride].to(before.dtype), before.reshape(-1)[::stride])]


@torch.no_grad()
def _count(after: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    changed = after != before
    lost = changed & (after.bfloat16() == before.bfloat16())
    return torch.stack([torch.full_like(total := changed.sum(), after.numel()), total, lost.sum()])
