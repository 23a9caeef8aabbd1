"""Where ranks meet before they merge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch.distributed

from torchtrack.watch.meeting import Meeting
from torchtrack.watch.plan import Plan

dist: Any = torch.distributed


def never() -> bool:
    return False


def turning(after: int) -> Callable[[], bool]:
    """Says False so often, then True."""
    asked = iter([False] * after)
    return lambda: next(asked, True)


def test_a_run_that_ends_waits_for_no_group_that_does_not_stand_yet() -> None:
    meeting = Meeting(dist.HashStore(), "p", rank=0, world_size=2, attempt=1)

    with pytest.raises(TimeoutError, match="did not come together"):
        meeting.group(cast("Plan", None), never, turning(3))  # the other rank has ended its run, and will not come
