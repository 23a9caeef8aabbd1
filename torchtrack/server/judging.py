"""What the stability rules conclude of the runs in the store, kept until something new of a run comes: see `verdicts`.

To conclude it, all steps of a run are replayed. Of a run that goes on there is always something new, and more and more
to replay: it has its turn again only after a pause in proportion to the last one. What the run's own lookout has
recorded meanwhile is shown at once. Other questions go first: see `courtesy`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from torchtrack.api.findings import replay, together
from torchtrack.api.held import HeldRows
from torchtrack.api.run import Run
from torchtrack.api.source import Api
from torchtrack.api.streams import Rows
from torchtrack.errors import RunNotFoundError, StoreError
from torchtrack.server.courtesy import Courtesy
from torchtrack.server.metrics import MetricsStore
from torchtrack.server.problems import ApiError
from torchtrack.server.stored import open_source
from torchtrack.server.verdicts import Verdicts
from torchtrack.stability import Finding, default_rules

SHARE: Final = 0.1
"""At most so much of the time of a run that goes on is spent on replaying it."""
HELD: Final = 1000
"""Runs of which it is remembered what was concluded."""
PATIENCE_S: Final = 10.0


def newest(streams: Sequence[Rows]) -> tuple[int, int]:
    """What changes when something new of a run is in the store, of all its streams."""
    return max((stream.batch for stream in streams if isinstance(stream, HeldRows)), default=0), len(streams)


@dataclass
class _Verdict:
    """What was concluded of a run, and of which state of it."""

    version: tuple[int, int]
    replayed: list[Finding]
    due: float
    """When it may be replayed again while the run goes on."""
    shown: list[Finding]


class Judge:
    """Concludes for several threads, one run at a time.

    Args:
        store: where the rows are.
        batch: the Indexer's counter; None: always look.
        clock: seconds that only go forward.
        courtesy: knows who asks meanwhile.
    """

    def __init__(
        self,
        store: MetricsStore,
        batch: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
        courtesy: Courtesy | None = None,
    ) -> None:
        self._runs = Api.of(open_source(store, batch))
        self._verdicts = Verdicts(store)
        self._clock = clock
        self._courtesy = courtesy or Courtesy()
        self._busy = threading.Lock()
        self._known: OrderedDict[str, _Verdict] = OrderedDict()

    def findings(self, uid: str) -> list[Finding]:
        """What the rules conclude of a run.

        Of a large run that takes minutes. Who asks meanwhile is told what was concluded last, if anything was.

        Raises:
            RunNotFoundError: it is gone.
            ApiError: the rules are looking at runs, and nothing is known of this one yet.
        """
        known = self._known.get(uid)
        if not self._busy.acquire(timeout=0 if known else PATIENCE_S):
            if known:
                return known.shown
            raise ApiError(
                503, "busy", "the stability rules are looking at runs; ask again in a moment", retry_after_s=1
            )
        try:
            return self._judge(uid).shown
        finally:
            self._busy.release()

    def _judge(self, uid: str) -> _Verdict:
        run = self._runs.with_uid(uid)
        if run is None:
            raise RunNotFoundError(f"run {uid} is gone")
        version = newest(run.every_stream())
        known = self._known.get(uid)
        if known is None or known.version != version:
            known = self._anew(run, version, known)
            run.release()
        self._known[uid] = known
        self._known.move_to_end(uid)
        if len(self._known) > HELD:
            self._known.popitem(last=False)
        return known

    def _anew(self, run: Run, version: tuple[int, int], known: _Verdict | None) -> _Verdict:
        rules = default_rules()
        names = {rule.name for rule in rules}
        began = self._clock()
        if known is not None and run.state == "running" and began < known.due:
            known.shown = together(run.events("finding"), known.replayed, names)
            return known
        replayed = self._verdicts.of(run.uid, version) if known is None else None
        if replayed is None:
            replayed = replay(rules, self._courtesy.among(run.steps()))
            with contextlib.suppress(StoreError):  # what is not kept is found again one day
                self._verdicts.keep(run.uid, version, replayed)
        ended = self._clock()
        due = ended + (ended - began) * (1 / SHARE - 1)
        return _Verdict(version, replayed, due, together(run.events("finding"), replayed, names))
