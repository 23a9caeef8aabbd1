"""What log() does with a row: plain numbers straight to their buffer, anything else value by value, nothing raised."""

from __future__ import annotations

import json
import logging
import operator
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from torchtrack import guard, records
from torchtrack.background import Background
from torchtrack.bins import Binned
from torchtrack.blobs import store
from torchtrack.columns import Layout, is_exact
from torchtrack.histogram import Histogram
from torchtrack.media import Pending
from torchtrack.recorder import Recorder
from torchtrack.records import MAX_NAME, RESERVED, encodable, histogram_row
from torchtrack.redact import Redactor
from torchtrack.values import REDUCES, Deferred, Text, convert, flatten

_MAX_LAYOUTS: Final = 4096
_MAX_BAD_NAMES: Final = 1000
_MAX_WAITING_MEDIA: Final = 64
_REST: Final = "(more names)"
_INT64: Final = 1 << 63
logger = logging.getLogger("torchtrack")


class Logbook:
    """Takes the rows of one process.

    Args:
        recorder: where rows go.
        background: where media are encoded.
        redactor: keeps secrets out of texts and events.
        strict: raise what cannot be recorded instead of leaving it out.
        folder: the run's folder; asked on the background thread.
    """

    def __init__(
        self,
        recorder: Recorder,
        background: Background,
        redactor: Redactor,
        folder: Callable[[], Path],
        *,
        strict: bool,
    ) -> None:
        self.bad_values: Counter[str] = Counter()
        """How many values of each name could not be recorded."""
        self._recorder = recorder
        self._background = background
        self._redactor = redactor
        self._folder = folder
        self._strict = strict
        self._layouts: dict[tuple[Any, ...], Layout] = {}
        self._lock = threading.RLock()  # a signal handler may log while this thread holds it
        self._media_room = threading.BoundedSemaphore(_MAX_WAITING_MEDIA)
        self._closed = ""

    def log(self, metrics: Any, step: Any, commit: bool, reduce: Any) -> None:
        """Record a row; see `Run.log`."""
        plain_step = step is None or (type(step) is int and -_INT64 <= step < _INT64)
        if plain_step and type(metrics) is dict and type(reduce) is str:
            values = metrics.values()
            layout = self._layouts.get((reduce, *metrics, *map(type, values)))
            if layout is not None and (not layout.integers or _exact(layout, values)):
                self._recorder.row(layout, values, step, commit=commit)
                return
        self._log_mixed(metrics, step, commit, reduce)

    def event(self, kind: str, data: Mapping[str, Any]) -> None:
        """Queue an event; secrets in it are not recorded."""
        now, step = time.time_ns() // 1000, self._recorder.step
        content = self._redactor.value(dict(data))

        def row() -> dict[str, Any]:
            return {"time": now, "step": step, "type": kind, "json": json.dumps(content, default=str)}

        self._recorder.put(records.Table.EVENTS, row)

    def line(self, stream: str, line: str) -> None:
        """Queue a line of the console."""
        now = time.time_ns() // 1000

        def row() -> dict[str, Any]:
            return {"time": now, "stream": stream, "line": encodable(self._redactor.text(line))}

        self._recorder.put(records.Table.LOGS, row, 128 + len(line))

    def refuse(self, name: str, error: Exception) -> None:
        """Count a value that cannot be recorded and say so once a name; strict raises it."""
        if self._strict:
            raise error
        self._count(name, error)

    def amend(self, name: str, error: Exception) -> None:
        """The same of a part for which something else was taken, as the error says; the rest is recorded."""
        if self._strict:
            raise error
        self._count(name, error, lost=False)

    def _count(self, name: str, error: Exception, *, lost: bool = True) -> None:
        with self._lock:
            if name not in self.bad_values and len(self.bad_values) >= _MAX_BAD_NAMES:
                name = _REST
            self.bad_values[name] += 1
            first = self.bad_values[name] == 1
        if first:
            logger.warning("torchtrack: %s%s", f"{name!r} was not recorded: " if lost else "", error)
            if not self._closed:
                self.event("warning", {"key": name, "message": str(error)})

    def close(self, why: str) -> None:
        """Refuse every further row with this message."""
        self._closed = why
        self._layouts = {}

    def _log_mixed(self, metrics: Any, step: Any, commit: bool, reduce: Any) -> None:
        if self._closed:
            self.refuse("log()", RuntimeError(self._closed))
            return
        if not isinstance(metrics, Mapping):
            self.refuse("log()", TypeError(f"log() takes a dict of metrics, got {_brief(metrics)}"))
            return
        at = self._step(step)
        if type(reduce) is not str or reduce not in REDUCES:
            error = f"log(reduce=) takes one of {', '.join(REDUCES)}; got {_brief(reduce)} and took 'mean'"
            self.amend("reduce", ValueError(error))
            reduce = "mean"
        if self._learn(metrics, reduce):
            self.log(metrics, at, commit, reduce)
            return
        now = self._recorder.step if at is None else at
        numbers = dict(self._numbers(metrics, now, reduce))
        if numbers:
            key = (reduce, *numbers)
            layout = self._layouts.get(key) or self._keep(key, Layout(list(numbers), reduce))
            self._recorder.row(layout, numbers.values(), now, commit=False)
        if commit:
            self._recorder.commit(now)

    def _step(self, step: Any) -> int | None:
        if step is None:
            return None
        try:
            if isinstance(step, bool) or _is_on_device(step) or not -_INT64 <= (at := operator.index(step)) < _INT64:
                raise TypeError
        except TypeError:
            what = f"got {_brief(step)} and took the run's own"
            self.amend("step", TypeError(f"log(step=) takes a whole number of 64 bits, {what}"))
            return None
        return at

    def _learn(self, metrics: Mapping[Any, Any], reduce: str) -> bool:
        """Whether this row holds plain numbers only; its layout is then known for the next time."""
        if type(metrics) is not dict or not all(map(_is_plain_name, metrics)):
            return False
        layout = Layout.of(metrics, reduce)
        if layout is None or not _exact(layout, metrics.values()):
            return False
        self._keep((reduce, *metrics, *map(type, metrics.values())), layout)
        return True

    def _keep(self, key: tuple[Any, ...], layout: Layout) -> Layout:
        if len(self._layouts) >= _MAX_LAYOUTS:
            self._layouts = {}
        self._layouts[key] = layout
        return layout

    def _numbers(self, metrics: Mapping[Any, Any], step: int, reduce: str) -> Iterable[tuple[str, float]]:
        """The numbers of a mixed row; everything else in it is queued on the way."""
        for name, value in flatten(metrics):
            if name.startswith(RESERVED):
                prefix = name.split("/", 1)[0]
                error = f"names under {prefix}/ are torchtrack's own; log it under another name"
                self.refuse(name, ValueError(error))
                continue
            if len(name) > MAX_NAME:
                error = f"a name of {len(name)} characters; at most {MAX_NAME} are recorded"
                self.refuse(f"{name[:60]}...", ValueError(error))
                continue
            converted = guard.outcome(convert, value)
            if isinstance(converted, Exception):
                self.refuse(name, converted)
            elif isinstance(converted, float):
                yield name, converted
            else:
                self._put(name, converted, step, reduce)

    def _put(self, name: str, value: Text | Deferred | Histogram | tuple[Pending, ...], step: int, reduce: str) -> None:
        now = time.time_ns()
        if isinstance(value, Text):
            written = value.text

            def row() -> dict[str, Any]:
                text = None if written is None else self._redactor.text(written)
                return {"step": step, "time": now // 1000, "name": name, "text": text}

            self._recorder.put(records.Table.TEXTS, row, 256 + len(written or ""))
        elif isinstance(value, Deferred):
            self._recorder.later(value.later, name, step, reduce=value.reduce or reduce, partial=value.partial)
        elif isinstance(value, Histogram):
            self._recorder.put(records.Table.TENSORS, lambda: histogram_row(name, value, step, now // 1000), 3000)
            if isinstance(value, Binned):
                ends = {"low": value.bins[0], "high": value.bins[-1]}
                self.event("bins", {"name": name, "step": step, "counts": value.histogram, **ends})
        else:
            for pending in value:
                self._media(name, pending, step, now)

    def _media(self, name: str, pending: Pending, step: int, time_ns: int) -> None:
        def store_it() -> None:
            failure = guard.outcome(self._store, name, pending, step, time_ns)
            self._media_room.release()
            if isinstance(failure, Exception):
                self._count(name, failure)

        if self._media_room.acquire(blocking=False):
            if self._background.submit("media", store_it):
                return
            self._media_room.release()
        self.refuse(name, RuntimeError("media come faster than they can be written; this one was dropped"))

    def _store(self, name: str, pending: Pending, step: int, time_ns: int) -> None:
        blob = pending.encode()
        row = {
            "step": step,
            "time": time_ns // 1000,
            "name": name,
            "sha256": store(blob, self._folder()),
            "mime": blob.mime,
            "size": len(blob.data),
            "caption": None if blob.caption is None else encodable(str(blob.caption)),
        }
        self._recorder.put(records.Table.MEDIA, lambda: row)
        if pending.told:
            self.event("medium", {"name": name, "step": step, "sha256": row["sha256"], **pending.told})


def _is_plain_name(name: Any) -> bool:
    return type(name) is str and len(name) <= MAX_NAME and not name.startswith(RESERVED) and encodable(name) == name


def _is_on_device(value: Any) -> bool:
    """Whether this is a tensor whose number would have to be waited for."""
    return getattr(getattr(value, "device", None), "type", "cpu") != "cpu"


def _brief(value: Any) -> str:
    """What was passed, for a message. Never the text of a tensor: it would wait for its device."""
    kind = type(value).__name__
    return f"{kind} {str(value)[:40]!r}" if isinstance(value, (str, bool, int, float)) else kind


def _exact(layout: Layout, values: Iterable[Any]) -> bool:
    held = list(values)
    return all(is_exact(held[i]) for i in layout.integers)
