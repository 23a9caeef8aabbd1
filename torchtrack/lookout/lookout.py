"""One run: what its ranks have written goes through the rules, and what changes in the findings is recorded.

**The same findings as afterwards.** Rules see the steps that a reader of the whole run would give them, in the same
order (`api/feed.py`). Where that cannot be (rows that came late, a new attempt that goes back), the rules begin anew
from the first row; that costs as much as a replay, so it happens at most every `_AGAIN_S`, takes at most a tenth of the
time, and is done in any case at the end. A finding that is no more is withdrawn.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

import pyarrow as pa

from torchtrack import records
from torchtrack.api.feed import HOLD_S, Feed, TooMuchError
from torchtrack.journal.frame import FILE_NAME, Kind
from torchtrack.journal.origin import origin
from torchtrack.journal.writer import Writer
from torchtrack.lookout.said import Said, encode
from torchtrack.stability import Finding, Monitor, Rule, default_rules

_AGAIN_S: Final = 60.0
_SHARE: Final = 0.1
_AROUND_S: Final = 10.0
_JOINING_S: Final = 600.0
_PASSES: Final = 3


class Lookout:
    """Follows one run.

    **Threads:** one.

    Args:
        directory: the folder of runs.
        uid: of the run.
        rules: makes fresh rules.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        directory: Path,
        uid: str,
        *,
        rules: Callable[[], Iterable[Rule]] = default_rules,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._rules, self._clock = rules, clock
        self._uid = uid
        self._said: Said | None = None
        self._around_at = self._again_at = 0.0
        self._began_at = clock()
        self._changed: dict[str, Finding] = {}
        self._gave_up = False
        self._writer = _writer(directory / uid / "nodes", uid)
        self._writer.meta({"type": "lookout"})  # so that the courier knows that there is one
        self._begin()

    def _begin(self) -> None:
        self._feed = Feed(self._directory, self._uid)
        self._monitor = Monitor(self._rules())
        self._catching_up = True
        self._caught_up_at = self._clock() + HOLD_S
        self._cost_s = 0.0

    @property
    def ended(self) -> bool:
        """Whether all ranks that it sees have closed their journals."""
        return self._gave_up or self._feed.ended

    @property
    def moved(self) -> bool:
        """Whether the run turned out to be another: this rank is not rank 0, whose uid is the run's."""
        return self._feed.uid != self._uid

    def look(self, *, over: bool = False) -> bool:
        """Take in what was written since the last look. True if there is more to read at once."""
        if self._gave_up:
            return False
        now_s, started_s = self._clock(), time.process_time()
        if self._feed.stale and not self._catching_up and now_s >= self._again_at:
            self._begin()
        self._look_around(now_s)
        try:
            steps = self._feed.take(now_s, over=over)
        except TooMuchError as error:
            self._gave_up = True
            self.warn(f"the stability rules do not run beside this run: {error}; torchtrack findings replays them")
            return False
        self._said = self._said or Said(event.data for event in self._feed.said() if event.rank < 0)
        for step in steps:
            self._changed.update((finding.id, finding) for finding in self._monitor.update(step))
        self._cost_s += time.process_time() - started_s
        if self._catching_up and not self._feed.behind and (over or now_s >= self._caught_up_at):
            self._catching_up = False
            self._again_at = now_s + max(_AGAIN_S, self._cost_s / _SHARE)
            self._tell(self._monitor.everything, now_s, all_of_them=True, last=False)
        elif not self._catching_up:
            self._tell(self._changed.values(), now_s, all_of_them=False, last=False)
        return self._feed.behind

    def finish(self) -> None:
        """Nothing more will come: take in the rest, say how each finding stands at the end, and close the journal."""
        for _ in range(_PASSES):
            while self.look(over=True):
                pass
            if not self._feed.stale or self._gave_up:
                break
            self._begin()
        if not self._gave_up:
            self._tell(self._monitor.everything, self._clock(), all_of_them=True, last=True)
        self.close("finish")

    def close(self, reason: str) -> None:
        """Close the journal as it is."""
        self._writer.seal(reason)
        self._writer.close()

    def warn(self, text: str) -> None:
        """Record a warning, such as of a rule that has failed."""
        self._record("warning", {"key": "lookout", "text": text}, None)

    def _tell(self, findings: Iterable[Finding], now_s: float, *, all_of_them: bool, last: bool) -> None:
        if self._said is not None:
            for data in self._said.news(findings, now_s, all_of_them=all_of_them, last=last):
                self._record("finding", data, data["last_step"])
        self._changed = {}

    def _record(self, kind: str, data: dict[str, object], step: int | None) -> None:
        row = {"time": datetime.now(timezone.utc), "step": step, "type": kind, "json": encode(data)}
        batch = pa.RecordBatch.from_pylist([row], schema=records.EVENTS)
        self._writer.append(Kind.DATA, records.encode(batch), table=records.Table.EVENTS, rows=1)

    def _look_around(self, now_s: float) -> None:
        """Ranks that began before they knew whose they are wrote elsewhere: look there while they may still say so."""
        if now_s < self._around_at or now_s > self._began_at + _JOINING_S:
            return
        self._around_at = now_s + _AROUND_S
        since = time.time() - (now_s - self._began_at) - 60.0
        own = self._directory / self._uid
        folders = [f for f in self._directory.iterdir() if f != own and f.is_dir() and f.stat().st_mtime > since]
        files = [path for folder in folders for path in folder.glob("[0-9]*/*.ttj")]
        self._feed.admit([path for path in files if _may_join(path)])


def _writer(folder: Path, uid: str) -> Writer:
    stream = secrets.randbits(64)
    nobody = {"attempt": 0, "rank": -1, "local_rank": -1, "node": -1, "world_size": 0}
    return Writer(folder, f"{stream:016x}", stream, {"role": "node", "by": "lookout", "uid": uid, **nobody, **origin()})


def _may_join(path: Path) -> bool:
    """Whether this is the first file of a rank other than 0: those join others."""
    name = FILE_NAME.fullmatch(path.name)
    return bool(name) and name[2] is None and not path.name.startswith("0-")  # type: ignore[index]  # it matched
