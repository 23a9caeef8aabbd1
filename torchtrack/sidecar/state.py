"""What became of a run, from what its streams and the sidecars recorded. No clock, no files: facts in, a state out."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

LOST_AFTER_NS: Final = 60_000_000_000
"""A stream without heartbeat, frame or exit for so long is lost."""

_SEEN_LATE_NS: Final = 1_000_000_000
"""A death is recorded when the sidecar saw it; on a busy machine, other ranks may by then have raised over it."""

Name = Literal["running", "finished", "failed", "killed", "crashed", "lost"]


@dataclass(frozen=True)
class StreamFacts:
    """What is recorded about one stream (one rank in one attempt). Times are wall times in nanoseconds."""

    attempt: int
    rank: int
    sealed: bool = False
    ended_reason: str | None = None
    """The rank's own last word: "finish" | "exit" | "exception" | "signal"."""
    ended_error: str | None = None
    ended_time_ns: int | None = None
    exit_code: int | None = None
    exit_signal: int | None = None
    exit_time_ns: int | None = None
    """When the sidecar saw the process gone; how is unknown if the parent was faster to collect it."""
    last_heartbeat_ns: int | None = None
    last_frame_ns: int | None = None


@dataclass(frozen=True)
class State:
    """The state of a run, whose rank decided it, and why, in words for people."""

    name: Name
    rank: int | None = None
    why: str = ""


def run_state(streams: Sequence[StreamFacts], now_ns: int) -> State:
    """The state of a run: its latest attempt decides, and there the first rank that went wrong: others die of it.

    Args:
        streams: all streams of the run.
        now_ns: wall time.
    """
    latest = max((stream.attempt for stream in streams), default=0)
    states = [(_bad_since(stream), _stream_state(stream, now_ns)) for stream in streams if stream.attempt == latest]
    bad = [(since, state) for since, state in states if state.name in ("failed", "killed", "crashed")]
    if bad:
        return min(bad, key=lambda item: item[0])[1]
    for name in ("running", "lost", "finished"):
        for _, state in states:
            if state.name == name:
                return state
    return State("crashed", None, "nothing was recorded")


def lost_at_ns(streams: Sequence[StreamFacts]) -> int | None:
    """When a run will be lost unless there is a sign of life; None if it runs no more, and time changes nothing."""
    if run_state(streams, 0).name != "running":
        return None
    latest = max(stream.attempt for stream in streams)
    open_ = [s for s in streams if s.attempt == latest and _stream_state(s, 0).name == "running"]
    return max(_last_sign(stream) or 0 for stream in open_) + LOST_AFTER_NS


def _stream_state(stream: StreamFacts, now_ns: int) -> State:
    rank = stream.rank
    if stream.ended_reason == "exception":
        return State("failed", rank, stream.ended_error or "an exception ended it")
    if stream.exit_code:
        return State("failed", rank, f"exit code {stream.exit_code}")
    if stream.ended_reason == "finish":
        # What happens to a process after its run was finished is not the run's: a notebook is killed in the evening.
        return State("finished", rank)
    if stream.exit_signal is not None:
        return State("killed", rank, f"signal {stream.exit_signal}")
    if stream.ended_reason == "signal":
        return State("killed", rank, stream.ended_error or "a signal ended it")
    if stream.ended_reason is not None or stream.sealed:
        return State("finished", rank)
    if stream.exit_time_ns is not None:
        return State("crashed", rank, "the process ended without a word")
    if now_ns - (_last_sign(stream) or 0) > LOST_AFTER_NS:
        return State("lost", rank, "no sign of life for a minute")
    return State("running", rank)


def _bad_since(stream: StreamFacts) -> float:
    """When a stream went wrong; a rank may take long to die, so its own last word counts first.

    A process that ended without a last word, and not by the SIGTERM with which launchers end the ranks that are left,
    went wrong before it was seen.
    """
    if stream.exit_time_ns is None or stream.ended_time_ns is not None:
        times = [time_ns for time_ns in (stream.ended_time_ns, stream.exit_time_ns) if time_ns is not None]
        return min(times, default=float("inf"))
    by_itself = bool(stream.exit_code) or stream.exit_signal not in (None, signal.SIGTERM)
    return stream.exit_time_ns - (_SEEN_LATE_NS if by_itself else 0)


def _last_sign(stream: StreamFacts) -> int | None:
    signs = [sign for sign in (stream.last_heartbeat_ns, stream.last_frame_ns) if sign is not None]
    return max(signs, default=None)
