"""Every row exactly once: random histories of clients, server, network and disk against a dictionary."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.server.simulated import Journal, Key, Network, Server, simulate_disk, stored
from torchtrack.sidecar.upload.engine import Uploader
from torchtrack.sidecar.upload.transport import UnreachableError

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  # it is faster, and nothing is kept
MOODS = ("deliver", "deliver", "lose", "mute", "twice", "late")


class Replication(RuleBasedStateMachine):
    """Two clients that send the same journals to one server."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="torchtrack-", dir=MEMORY))
        self.now = 0.0
        self.patch = pytest.MonkeyPatch()

    @initialize(seed=st.integers(0, 1 << 32), ranks=st.integers(1, 3))
    def begin(self, seed: int, ranks: int) -> None:
        self.rng = random.Random(seed)
        self.server = Server(self.folder / "server")
        simulate_disk(self.server.disk, self.patch.setattr)
        self.journals = [Journal(self.folder / "runs", 0xAB00 + rank, rank) for rank in range(ranks)]
        self.networks = [Network(self.server), Network(self.server)]
        self.clients = [self.client(network) for network in self.networks]
        self.damaged = False

    def client(self, network: Network) -> Uploader:
        uploader = Uploader(network, clock=lambda: self.now, rng=self.rng)
        for journal in self.journals:
            uploader.follow(journal.path)
        return uploader

    # -- what happens -----------------------------------------------------------------------------------------------

    @rule(rank=st.integers(0, 2), sizes=st.lists(st.integers(0, 400), min_size=1, max_size=5))
    def log(self, rank: int, sizes: list[int]) -> None:
        journal = self.journals[rank % len(self.journals)]
        for size in sizes:
            journal.append(self.rng.randbytes(size))

    @rule(rank=st.integers(0, 2), end=st.booleans())
    def next_file_or_end(self, rank: int, end: bool) -> None:
        journal = self.journals[rank % len(self.journals)]
        if end:
            journal.seal()
        elif not journal.sealed:
            journal.next_file()

    @rule(which=st.integers(0, 1), mood=st.sampled_from(MOODS), times=st.integers(1, 4))
    def send(self, which: int, mood: str, times: int) -> None:
        self.networks[which].mood = mood
        for _ in range(times):
            self.now += self.clients[which].step()
        self.networks[which].mood = "deliver"

    @rule(which=st.integers(0, 1))
    def deliver_late(self, which: int) -> None:
        with contextlib.suppress(UnreachableError):
            self.networks[which].deliver_late(self.rng)

    @rule(which=st.integers(0, 1))
    def crash_client(self, which: int) -> None:
        self.clients[which] = self.client(self.networks[which])

    @rule(later=st.booleans())
    def crash_server(self, later: bool) -> None:
        if later:
            self.server.dies = True
        else:
            self.server.crash()

    @rule()
    def cut_power(self) -> None:
        self.server.cut_power(self.rng)

    @rule(sync=st.booleans())
    def let_the_disk_fail(self, sync: bool) -> None:
        if sync:
            self.server.disk.fail_sync = 1
        else:
            self.server.disk.fail_write = 1

    @rule()
    def back_up(self) -> None:
        self.server.back_up()

    @rule()
    def restore_the_backup(self) -> None:
        self.server.restore()
        for which, network in enumerate(self.networks):
            network.told.clear()  # it has forgotten what it said
            if self.clients[which].done:  # it was told that all is there, and has left: somebody runs `sync` again
                self.clients[which] = self.client(network)

    @precondition(lambda self: not self.damaged)
    @rule(rank=st.integers(0, 2))
    def damage_a_journal(self, rank: int) -> None:
        self.damaged = True
        self.journals[rank % len(self.journals)].damage(self.rng)

    # -- what must hold ---------------------------------------------------------------------------------------------

    @property
    def committed(self) -> dict[Key, bytes]:
        return {key: raw for journal in self.journals for key, raw in journal.frames.items()}

    @invariant()
    def nothing_is_twice_changed_or_lost_after_an_ack(self) -> None:
        there = self.server.frames()  # asserts that nothing is there twice
        committed = self.committed
        assert all(committed[key] == raw for key, raw in there.items())
        for network in self.networks:
            for stream, position in network.told.items():
                missing = {seq for seq in range(position) if (stream, seq) not in there}
                assert not missing or self.damaged, f"acked up to {position}, lost {missing}"

    def teardown(self) -> None:
        try:
            if hasattr(self, "server"):
                self.settle()
        finally:
            self.patch.undo()
            shutil.rmtree(self.folder)

    def settle(self) -> None:
        """With a network and a disk that work, all that is still to be had arrives."""
        for journal in self.journals:
            journal.seal()
        self.server.disk.fail_sync = self.server.disk.fail_write = 0
        self.server.dies = False
        for client in self.clients:
            for _ in range(400):
                self.now += client.step()
                if client.idle and client.done:
                    break
        there, committed = self.server.frames(), self.committed
        assert all(tail.problem is None for client in self.clients for tail in client.tails.values())
        lost = committed.keys() - there.keys()
        assert not lost if not self.damaged else len(lost) <= 1, f"lost: {lost}"
        if not self.damaged:
            assert all(client.done for client in self.clients)
            for stream in {stream for stream, _ in committed}:
                position = self.server.store.position(stream)
                assert (position.sealed, position.missing) == (True, ())
        for stream, path in self.server.store.streams().items():
            self.server.store.position(stream)
            stored(path, strict=True)
        self.server.stop()


def test_every_frame_arrives_exactly_once() -> None:
    run(Replication, settings(max_examples=150, stateful_step_count=30, derandomize=True))


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_every_frame_arrives_exactly_once_in_thousands_of_histories() -> None:
    run(Replication, settings(max_examples=3000, stateful_step_count=50, derandomize=False))


def run(machine: type[RuleBasedStateMachine], how: settings) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(machine, settings=how)
