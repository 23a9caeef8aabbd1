"""From the device to the host without waiting for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.watch.conftest import Events
from torchtrack.testing import SyncGuard
from torchtrack.watch.drain import HostCopy, snapshot


def test_on_the_cpu_the_numbers_are_there_at_once() -> None:
    copy = HostCopy(torch.tensor([1.5, 2.5], dtype=torch.bfloat16))
    assert copy.ready()
    assert copy.numpy().dtype == np.float64
    assert copy.numpy().tolist() == [1.5, 2.5]
    assert HostCopy(torch.tensor([7])).numpy().dtype == np.int64
    assert HostCopy(torch.tensor(3.25)).value() == 3.25


def test_a_snapshot_keeps_the_value_of_its_moment() -> None:
    value = torch.tensor(1.0, requires_grad=True)
    copy = snapshot(value)
    with torch.no_grad():
        value.fill_(2.0)
    assert copy.value() == 1.0


def test_from_a_device_the_copy_is_ready_when_its_event_has_happened(events: Events) -> None:
    with FakeTensorMode(), SyncGuard() as guard:
        copy = HostCopy(torch.empty(4, device="lazy:0"))
    assert (guard.violations, guard.copies_to_host, events.recorded) == ([], 1, [torch.device("lazy:0")])
    assert not copy.ready()
    events.happened = True
    assert copy.ready()


@pytest.mark.usefixtures("events")
def test_the_host_side_is_on_the_host_whatever_the_default_device() -> None:
    with FakeTensorMode(), torch.device("lazy:0"), SyncGuard() as guard:
        HostCopy(torch.empty(4, device="lazy:0"))
    assert (guard.violations, guard.copies_to_host) == ([], 1)
