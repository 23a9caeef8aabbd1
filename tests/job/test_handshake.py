"""Ranks as threads agree on a run over a store."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed

from tests.job.conftest import PATIENCE_S
from torchtrack.job import Identity, Job
from torchtrack.job.handshake import Link

Eventually = Callable[[Callable[[], object]], None]
dist: Any = torch.distributed


def settled(jobs: list[Job]) -> set[tuple[str, int, bool]]:
    """What the ranks agreed on: one element if they did."""
    identities = [job.wait(PATIENCE_S) for job in jobs]
    return {(identity.uid, identity.attempt, identity.provisional) for identity in identities}


def losses(job: Job) -> int:
    """How often the job could not use its store."""
    return job._handshake.losses if job._handshake is not None else 0


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_all_ranks_agree_on_rank_0s_run(launch: Any, order: tuple[int, ...]) -> None:
    ours = launch(size=3)
    jobs = {rank: ours.start(rank, name=f"name of {rank}") for rank in order}
    assert settled(list(jobs.values())) == {(jobs[0].identity.uid, 1, False)}
    assert {job.identity.name for job in jobs.values()} == {"name of 0"}
    assert [jobs[rank].identity.rank for rank in range(3)] == [0, 1, 2]


def test_a_late_rank_0_is_waited_for_by_nobody_and_joined_in_the_end(launch: Any, eventually: Eventually) -> None:
    ours = launch()
    member = ours.start(1)
    own = member.identity
    assert own.provisional
    eventually(lambda: ours.joins() == 1)
    assert member.wait(0) == own
    leader = ours.start(0)
    assert member.wait(PATIENCE_S).uid == leader.identity.uid
    assert member.aliases == (own.uid,)


def test_rank_0_has_its_identity_at_once_when_nobody_else_starts(launch: Any) -> None:
    assert not launch().start(0).identity.provisional


def test_a_rank_alone_keeps_its_provisional_identity(launch: Any, eventually: Eventually) -> None:
    ours = launch()
    job = ours.start(1)
    eventually(lambda: ours.joins() == 1)
    assert job.store() is None
    job.close()
    assert job.wait() == job.identity
    assert job.identity.provisional


def test_reading_the_identity_waits_for_rank_0_only_once(launch: Any) -> None:
    job = launch().start(1)
    job._patience_s = 0.01
    assert job.wait().provisional
    assert job._patience_s <= 0


def test_a_run_that_has_waited_for_a_late_rank_0_waits_for_it_once_more_when_it_ends(launch: Any) -> None:
    ours = launch()
    member = ours.start(1)
    member._patience_s = 0.0  # spent before rank 0 has begun, as while it ends a run before
    leader = ours.start(0)
    assert member.wait(PATIENCE_S, last=True).uid == leader.identity.uid


def test_a_second_run_of_the_job_is_another_run(launch: Any) -> None:
    ours = launch()
    first = [ours.start(rank) for rank in (0, 1)]
    second = [ours.start(rank, ordinal=1) for rank in (1, 0)]
    assert len(settled(first)) == len(settled(second)) == 1
    assert settled(first) != settled(second)


def test_a_second_run_on_one_rank_only_is_its_own(launch: Any) -> None:
    ours = launch()
    assert len(settled([ours.start(rank) for rank in (0, 1)])) == 1
    assert ours.start(1, ordinal=1).identity.provisional


def test_a_restart_is_the_next_attempt_on_every_rank_whatever_the_store_still_holds(launch: Any) -> None:
    before = launch()
    first = [before.start(rank) for rank in (0, 1)]
    (agreed,) = settled(first)
    before.close()
    after = launch(restart=1)
    member = after.start(1)  # finds the answers of the attempt before in the store
    assert member.wait(0).provisional
    assert settled([member, after.start(0)]) == {(agreed[0], 2, False)}


def test_a_place_in_the_queue_that_is_never_filled_holds_nobody_up(launch: Any) -> None:
    ours = launch()
    keys = dist.PrefixStore("torchtrack/0", ours.store)
    keys.add("joins", 1)
    keys.set(f"join/{keys.add('joins', 1)}", "damaged")
    assert len(settled([ours.start(rank) for rank in (1, 0)])) == 1


def test_a_restart_on_a_node_without_the_key_files_learns_of_the_run_from_the_store(
    launch: Any, tmp_path: Path
) -> None:
    before = launch()
    uid = before.start(0).wait(PATIENCE_S).uid
    before.start(1).wait(PATIENCE_S)
    before.close()
    elsewhere = launch(tmp_path / "elsewhere", restart=1)
    told: list[Identity] = []
    leader, member = elsewhere.start(0), elsewhere.start(1)
    leader.on_joined(told.append)
    assert settled([leader, member]) == {(uid, 2, False)}
    assert [identity.uid for identity in told] == [uid]


def test_a_lost_connection_does_not_make_another_attempt(launch: Any, tmp_path: Path, eventually: Eventually) -> None:
    before = launch()
    before.start(0)
    before.start(1).wait(PATIENCE_S)
    before.close()
    broken = threading.Event()

    class Breaking(Link):
        def require(self) -> None:
            if broken.is_set():
                raise ConnectionError("reset")

    after = launch(tmp_path / "elsewhere", restart=1)
    after.link = Breaking
    leader = after.start(0)
    assert leader.wait(PATIENCE_S).attempt == 2
    broken.set()
    eventually(lambda: losses(leader) > 1)
    broken.clear()
    assert settled([after.start(1)]) == {(leader.identity.uid, 2, False)}


def test_a_rank_that_comes_after_rank_0_has_finished_still_finds_its_run(launch: Any) -> None:
    ours = launch()
    leader = ours.start(0)
    ours.start(1).wait(PATIENCE_S)  # the leader has reached the store
    leader.close()
    assert ours.start(1).wait(PATIENCE_S).uid == leader.identity.uid


def test_joining_calls_back_once_with_the_new_identity(launch: Any, eventually: Eventually) -> None:
    ours = launch()
    job = ours.start(1)
    told: list[Identity] = []
    threads: list[str] = []
    job.on_joined(told.append)
    job.on_joined(lambda _: threads.append(threading.current_thread().name))
    uid = ours.start(0).identity.uid
    eventually(lambda: threads)
    assert [identity.uid for identity in told] == [uid]
    assert threads == ["torchtrack-handshake"]
    late: list[Identity] = []
    job.on_joined(late.append)
    assert late == told


def test_the_agreed_store_is_the_callers_own(launch: Any) -> None:
    ours = launch()
    jobs = [ours.start(rank) for rank in (0, 1)]
    settled(jobs)
    first, second = (job.store() for job in jobs)
    assert first is not None
    assert second is not None
    first.set("from", "0")
    assert second.get("from") == b"0"
    ours.close()
    assert jobs[0].store() is None


def test_a_store_that_dies_is_borne_in_silence(
    tmp_path: Path, eventually: Eventually, capfd: pytest.CaptureFixture[str]
) -> None:
    server = [dist.TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=5))]
    port = server[0].port
    place = {"WORLD_SIZE": "3", "TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def start(rank: int) -> Job:
        environ = {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        job = Job.start(dir=tmp_path, project="p", environ=environ, ordinal=0)
        job._patience_s = PATIENCE_S
        return job

    jobs = [start(rank) for rank in (0, 1)]
    assert len(settled(jobs)) == 1
    identity = jobs[0].identity
    server.clear()
    jobs.append(start(2))
    eventually(lambda: min(losses(jobs[0]), losses(jobs[2])) > 1)
    assert jobs[0].store() is jobs[2].store() is None
    assert jobs[0].identity == identity
    assert jobs[2].identity.provisional
    for job in jobs:
        job.close()
    assert capfd.readouterr().err == ""


def test_rank_0_shows_itself_to_the_ranks_it_starts_until_it_is_closed(tmp_path: Path) -> None:
    environ: dict[str, str] = {}
    first = Job.start(dir=tmp_path, project="p", environ=environ, ordinal=0)
    second = Job.start(dir=tmp_path, project="p", environ=environ, ordinal=1)
    first.close()
    assert second.identity.uid in environ["_TORCHTRACK_JOB"]
    second.close()
    assert environ == {}


def test_a_forked_child_knows_the_run_and_takes_no_part(launch: Any, eventually: Eventually) -> None:
    ours = launch()
    job = ours.start(0)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        job.after_fork_in_child()
        alive = [thread.name for thread in threading.enumerate()]
        job.close()
        os.write(writer, f"{job.wait().uid} {job.store()} {alive}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        assert pipe.read() == f"{job.identity.uid} None ['MainThread']"
    assert ours.start(1).wait(PATIENCE_S).uid == job.identity.uid


def test_a_connector_that_fails_leaves_the_rank_alone(tmp_path: Path, eventually: Eventually) -> None:
    def broken() -> Link:
        raise RuntimeError("no store today")

    environ = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
    job = Job.start(dir=tmp_path, project="p", environ=environ, ordinal=0, connector=broken)
    eventually(lambda: losses(job) > 1)
    job.close()
    assert job.identity.provisional
