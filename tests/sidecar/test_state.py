"""Facts in, a state out."""

from __future__ import annotations

from typing import Any

import pytest

from torchtrack.sidecar.state import StreamFacts, run_state

S = 1_000_000_000
NOW = 1_000 * S


def facts(attempt: int = 1, rank: int = 0, **known: Any) -> StreamFacts:
    return StreamFacts(attempt, rank, **{"last_frame_ns": NOW - 100 * S, **known})


def exited(rank: int = 0, at: int = 900, **known: Any) -> StreamFacts:
    return facts(rank=rank, exit_time_ns=at * S, **known)


@pytest.mark.parametrize(
    ("stream", "state"),
    [
        (facts(last_frame_ns=NOW - S), "running"),
        (facts(last_heartbeat_ns=NOW - S), "running"),
        (facts(last_heartbeat_ns=NOW - 61 * S), "lost"),
        (facts(last_frame_ns=None), "lost"),
        (facts(ended_reason="finish", sealed=True), "finished"),
        (facts(ended_reason="exit"), "finished"),
        (facts(sealed=True), "finished"),
        (exited(ended_reason="exit", exit_code=0), "finished"),
        (exited(ended_reason="exit"), "finished"),
        (exited(ended_reason="finish", exit_signal=9), "finished"),
        (exited(ended_reason="finish", exit_code=1), "failed"),
        (exited(ended_reason="exit", exit_code=3), "failed"),
        (exited(ended_reason="exit", exit_signal=6), "killed"),
        (exited(exit_code=5), "failed"),
        (facts(ended_reason="exception", ended_error="ValueError: x"), "failed"),
        (exited(ended_reason="exception", exit_signal=15), "failed"),
        (exited(exit_signal=9), "killed"),
        (facts(ended_reason="signal"), "killed"),
        (exited(), "crashed"),
        (exited(exit_code=0), "crashed"),
    ],
)
def test_one_stream_decides_the_state(stream: StreamFacts, state: str) -> None:
    assert run_state([stream], NOW).name == state


def test_a_run_of_which_nothing_is_recorded_has_crashed() -> None:
    assert run_state([], NOW).name == "crashed"


def test_the_first_failing_rank_gives_the_verdict() -> None:
    streams = [exited(0, at=902, exit_signal=15), exited(1, at=901, exit_code=3), exited(2, at=903, exit_signal=15)]
    state = run_state(streams, NOW)
    assert (state.name, state.rank, state.why) == ("failed", 1, "exit code 3")


def test_a_rank_that_raised_failed_when_it_said_so_not_when_it_died() -> None:
    raised = exited(1, at=950, ended_reason="exception", ended_error="ValueError: x", ended_time_ns=900 * S)
    state = run_state([exited(0, at=901, exit_signal=15), raised], NOW)
    assert (state.name, state.rank, state.why) == ("failed", 1, "ValueError: x")


@pytest.mark.parametrize("how", [{"exit_signal": 9}, {"exit_signal": 11}, {"exit_code": 5}])
def test_a_death_seen_after_its_peers_raised_over_it_still_comes_first(how: dict[str, int]) -> None:
    raised = facts(rank=0, ended_reason="exception", ended_error="RuntimeError: peer", ended_time_ns=900 * S - S // 2)
    state = run_state([raised, exited(1, at=900, **how)], NOW)
    assert (state.rank, "peer" in state.why) == (1, False)


@pytest.mark.parametrize("how", [{"exit_signal": 15}, {"exit_signal": 9, "at": 930}, {}])
def test_a_rank_that_its_launcher_ended_is_not_the_cause(how: dict[str, int]) -> None:
    raised = facts(rank=0, ended_reason="exception", ended_error="ValueError: x", ended_time_ns=900 * S - S // 2)
    state = run_state([raised, exited(**{"rank": 1, "at": 900, **how})], NOW)
    assert (state.name, state.rank) == ("failed", 0)


def test_a_rank_that_vanished_first_comes_before_those_its_launcher_killed() -> None:
    assert run_state([exited(0, at=902, exit_signal=15), exited(1, at=901)], NOW).name == "crashed"


def test_the_latest_attempt_decides() -> None:
    assert run_state([exited(exit_code=1), facts(attempt=2, last_frame_ns=NOW)], NOW).name == "running"


def test_a_run_goes_on_while_one_rank_lives() -> None:
    streams = [facts(ended_reason="finish"), facts(rank=1), facts(rank=2, last_heartbeat_ns=NOW)]
    assert run_state(streams, NOW).name == "running"


def test_a_run_is_finished_when_all_ranks_are() -> None:
    assert run_state([facts(ended_reason="finish"), facts(rank=1, ended_reason="exit")], NOW).name == "finished"
    assert run_state([facts(ended_reason="finish"), facts(rank=1)], NOW).name == "lost"


def test_a_failure_counts_even_without_a_time() -> None:
    assert run_state([facts(ended_reason="exception", last_frame_ns=None)], NOW).name == "failed"
