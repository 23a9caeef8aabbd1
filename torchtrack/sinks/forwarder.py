"""One run to one sink: what has come since the last look, exactly where the sink was left.

How far a sink is stands in a file of its own, `sinks/<uid>-<sink>.json` in the folder of runs, so that the next
process, or the next attempt of the run, goes on there. After a crash between the two some steps may come twice.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from torchtrack.api.source import Api, Folder, Source
from torchtrack.sinks.feed import SinkFeed
from torchtrack.sinks.sink import About, Sink, open_sink, split

_AT_ONCE: Final = 500


class Forwarder:
    """Follows one run for one sink.

    **Threads:** one. What the sink raises is raised.

    Args:
        directory: the folder of runs.
        uid: of the run.
        spec: the sink, as the user named it.
        clock: seconds that only go forward.
    """

    def __init__(self, directory: Path, uid: str, spec: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory, self._spec, self._clock = directory, spec, clock
        self._feed = SinkFeed(directory, uid)
        self._sink: Sink | None = None
        self._uid = uid
        digest = hashlib.blake2s(spec.encode(), digest_size=4).hexdigest()
        self._path = directory / "sinks" / f"{uid}-{split(spec)[0].replace(':', '.')}-{digest}.json"
        known = self._load()
        self.since: int = known.get("since", -(1 << 62))
        """The first step that the sink has not."""
        self._attempt: int = known.get("attempt", 0)
        self.steps = 0
        """How many were handed over."""

    @property
    def ended(self) -> bool:
        """Whether all ranks that are seen have closed their journals."""
        return self._feed.ended

    @property
    def moved(self) -> bool:
        """Whether the run turned out to be another."""
        return self._feed.uid != self._uid

    def look(self, *, over: bool = False) -> bool:
        """Hand over what is complete. True if there is more to read at once."""
        steps = self._feed.take(self._clock(), over=over)
        if self._feed.stale:
            back = self._feed.back_to
            self._feed = SinkFeed(self._directory, self._uid)
            if back is not None and back < self.since:
                self._rewind(back)
            return True
        if steps and self._attempt and self._feed.attempt > self._attempt and steps[0].step < self.since:
            first = self._first_of_attempt()
            if first is not None and first < self.since:
                self._rewind(first)
        self._attempt = max(self._attempt, self._feed.attempt)
        fresh = [step for step in steps if step.step >= self.since]
        for at in range(0, len(fresh), _AT_ONCE):
            part = fresh[at : at + _AT_ONCE]
            self._opened().write(part)  # type: ignore[arg-type]  # those of a SinkFeed are Forwarded
            self.steps += len(part)
            self.since = part[-1].step + 1
            self._save()
        return self._feed.behind

    def finish(self) -> None:
        """Nothing more will come: hand over the rest and close the sink."""
        while self.look(over=True):
            pass
        if self._sink is not None:
            run = Api(self._directory).run(self._uid)
            self._sink.close(run.state, run.summary)

    def _rewind(self, step: int) -> None:
        self._opened().rewind(step)
        self.since = step
        self._save()

    def _first_of_attempt(self) -> int | None:
        from torchtrack.api import parts

        begins = parts.begins(self._feed._streams)
        return min(begins.values(), default=None)

    def _opened(self) -> Sink:
        if self._sink is None:
            self._sink = open_sink(self._spec, self._about())
        return self._sink

    def _about(self) -> About:
        source = Source(Folder(self._directory / self._uid))
        run = Api.of(source).run(self._uid)
        folder = self._directory / "sinks"
        labels: dict[str, Any] = {"group": run.group, "job_type": run.job_type, "tags": run.tags, "notes": run.notes}
        return About(run.uid, run.name, run.project, folder, config=run.config, **labels)

    def _load(self) -> dict[str, Any]:
        try:
            known = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = self._path.with_suffix(".tmp")
        fresh.write_text(json.dumps({"since": self.since, "attempt": self._attempt}))
        fresh.replace(self._path)
