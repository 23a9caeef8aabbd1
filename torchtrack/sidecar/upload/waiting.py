"""Until a node's uploader has sent what a launched command wrote: for who has to stay as long as that takes.

A pod or a SLURM job ends with its last process, and everything on the node with it. What the uploader follows, and for
which launch, is in the file where it notes what has arrived (`progress`); nothing is asked and nothing is opened.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from torchtrack.sidecar.process import address
from torchtrack.sidecar.upload import progress

SETTLE_S: Final = 3.0
"""How long it may take until the uploader says what it follows."""
_LOOK_S: Final = 0.1
_NO_USE: Final = ("no_key", "version")


class Left(NamedTuple):
    """What the server does not have when the wait is over."""

    why: str
    """Why it was not waited for any longer."""
    streams: Mapping[str, Mapping[str, Any]]
    """By stream: `uid`, `path` of its journal in the folder of runs, `acked`: the seq up to which it is there."""


class Wait:
    """The wait of one launch.

    Args:
        directory: the folder of runs.
        url: the server.
        launch: the launch's number.
        timeout_s: how long nothing may arrive.
        clock: monotonic seconds.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        directory: Path,
        url: str,
        launch: str,
        timeout_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._directory, self._launch, self._timeout_s = directory, launch, timeout_s
        self._file = progress.path_of(directory, url, "sidecar")
        self._clock, self._sleep = clock, sleep
        self._record: Mapping[str, Any] = {}
        self._uids: set[Any] = set()

    @property
    def streams(self) -> dict[str, Mapping[str, Any]]:
        """What was not there when it was last looked."""
        found: Mapping[str, Mapping[str, Any]] = self._record.get("following") or {}
        self._uids.update(each.get("uid") for each in found.values() if each.get("launch") == self._launch)
        return {
            name: each
            for name, each in found.items()
            if each.get("launch") == self._launch or (not each.get("launch") and each.get("uid") in self._uids)
        }

    def until_sent(self, on_wait: Callable[[int], None] = lambda _: None) -> Left | None:
        """Wait. None if there was nothing to be sent, or it has arrived.

        Args:
            on_wait: told how many journals are waited for, once when there is something to wait for.
        """
        began = moved = self._clock()
        before: object = None
        while True:
            self._record = progress.read_file(self._file)
            known = self._launch in (self._record.get("launches") or ())
            streams = self.streams
            waiting = {name: each for name, each in streams.items() if not each.get("problem")}
            if known and not waiting:
                refused = [str(each["problem"]) for each in streams.values()]
                return Left(refused[0], streams) if refused else None
            if not self._is_alive():
                return Left("nothing sends it any more", streams) if waiting else None
            if not known and self._clock() > began + SETTLE_S:
                return None
            if known:
                now = {name: (each.get("acked"), each.get("sent")) for name, each in waiting.items()}
                if before is None:
                    on_wait(len(waiting))
                moved = moved if now == before else self._clock()
                before = now
            problem = self._record.get("problem")
            if self._record.get("state") in _NO_USE:
                return Left(str(problem), streams)
            if self._clock() >= moved + self._timeout_s:
                return Left(
                    f"nothing has arrived for {self._timeout_s:.0f} s" + (f": {problem}" if problem else ""), streams
                )
            self._sleep(_LOOK_S)

    def _is_alive(self) -> bool:
        """Whether there is a process that sends, or the one that starts it."""
        pid = self._record.get("pid")
        if isinstance(pid, int) and _runs(pid, str(self._directory.absolute())):
            return True
        try:
            return address(self._directory.absolute()).replace("\0", "@") in Path("/proc/net/unix").read_text()
        except OSError:
            return False


def _runs(pid: int, directory: str) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return "torchtrack.sidecar.upload" in words and directory in words
