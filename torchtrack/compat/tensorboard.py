"""`sync_tensorboard=True`: what is written for TensorBoard is recorded too.

Every event of torch.utils.tensorboard and of tensorboardX goes through the `add_event` of an EventFileWriter. While a
run captures, that method of the class hands a copy of each event to it, and does what it does. Nothing is imported for
it: what is imported later is found when it is.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
import threading
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any, Final

import numpy as np

from torchtrack import guard
from torchtrack.active import active
from torchtrack.bins import from_limits
from torchtrack.compat.media import File
from torchtrack.histogram import Histogram
from torchtrack.mime import mime_of
from torchtrack.run import Run

WRITERS: Final = ("tensorboard.summary.writer.event_file_writer", "tensorboardX.event_file_writer")
SUMMARIES: Final = ("torch.utils.tensorboard.writer", "tensorboardX.writer")

_originals: dict[str, tuple[type, str, Callable[..., Any]]] = {}
_captures: list[Capture] = []
_thread = threading.local()


class Capture:
    """What one run takes of the events.

    Args:
        run: where they go.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._top: Path | None = None

    def event(self, writer: Any, event: Any) -> None:
        """Record the values of an event of a writer."""
        prefix = self._prefix(_folder(writer))
        metrics = {f"{prefix}{name}": value for name, value in values_of(event.summary).items()}
        if metrics:
            self.run.log(metrics, step=int(event.step))

    def histogram(self, writer: Any, tag: Any, histogram: Histogram, step: Any) -> None:
        """Record values that were counted before they became an event."""
        self.run.log({f"{self._prefix(_folder(writer))}{tag}": histogram}, step=int(step or 0))

    def _prefix(self, folder: Path) -> str:
        """The first writer's folder is the top; another below it, or beside it, names its values."""
        if self._top is None:
            self._top = folder
        if folder == self._top:
            return ""
        if self._top in folder.parents:
            return f"{folder.relative_to(self._top).as_posix()}/"
        return f"{folder.name}/"


_patched = False


def patch(root_logdir: Any = None, *_: Any, **__: Any) -> None:
    """`wandb.tensorboard.patch`: record what is written for TensorBoard in the active run, or in those to come.

    Args:
        root_logdir: not needed: the first writer's folder is the top.
    """
    global _patched
    del root_logdir
    _patched = True
    run = active()
    if run is not None and not run.disabled:
        capture(run)


def unpatch() -> None:
    """Not in runs to come; a run that captures does so until it ends."""
    global _patched
    _patched = False


def is_patched() -> bool:
    """Whether runs capture without being told."""
    return _patched


def capture(run: Run) -> None:
    """Record what is written for TensorBoard until the run ends."""
    if any(each.run is run for each in _captures):
        return
    if not _captures:
        for name in (*WRITERS, *SUMMARIES):
            if name in sys.modules:
                _wrap(sys.modules[name])
        sys.meta_path.insert(0, _Later())
    mine = Capture(run)
    _captures.append(mine)
    run._endings.append(lambda: _release(mine))


def _release(mine: Capture) -> None:
    if mine in _captures:
        _captures.remove(mine)
    if not _captures:
        for kind, name, original in _originals.values():
            setattr(kind, name, original)
        _originals.clear()
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Later)]


def _wrap(module: Any) -> None:
    """Put ourselves before a class of a module."""
    name = module.__name__
    if name in _originals:
        return
    kind, method, make = (
        (module.EventFileWriter, "add_event", _listening)
        if name in WRITERS
        else (module.SummaryWriter, "add_histogram", _counting)
    )
    original = getattr(kind, method)
    _originals[name] = (kind, method, original)
    setattr(kind, method, make(original))


def _listening(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def add_event(self: Any, event: Any, *args: Any, **kwargs: Any) -> Any:
        for each in [] if getattr(_thread, "counted", False) else list(_captures):
            guard.attempt("sync_tensorboard", each.event, self, event)
        return original(self, event, *args, **kwargs)

    return add_event


def _counting(original: Callable[..., Any]) -> Callable[..., Any]:
    """Values are counted as they are; the event that follows has them in buckets already."""

    @wraps(original)
    def add_histogram(self: Any, tag: str, values: Any, global_step: Any = None, *args: Any, **kwargs: Any) -> Any:
        counted = guard.outcome(Histogram.of, values)
        if not isinstance(counted, Histogram):
            return original(self, tag, values, global_step, *args, **kwargs)
        for each in list(_captures):
            guard.attempt("sync_tensorboard", each.histogram, self, tag, counted, global_step)
        _thread.counted = True
        try:
            return original(self, tag, values, global_step, *args, **kwargs)
        finally:
            _thread.counted = False

    return add_histogram


def _folder(writer: Any) -> Path:
    """Where a writer writes; that of tensorboardX has no method for it."""
    folder = writer.get_logdir() if hasattr(writer, "get_logdir") else writer.logdir
    return Path(os.path.abspath(folder))  # noqa: PTH100  # links are left as they are


def values_of(summary: Any) -> dict[str, Any]:
    """What a summary of TensorBoard holds, as values for `log`, by name."""
    return {name: value for each in summary.value for name, value in _recorded(each)}


def _recorded(value: Any) -> Iterator[tuple[str, Any]]:
    """Name and value of what a summary holds; none for what has no meaning here."""
    kind, plugin = value.WhichOneof("value"), value.metadata.plugin_data.plugin_name
    if kind == "simple_value":
        yield value.tag, float(value.simple_value)
    elif kind == "histo":
        yield value.tag, from_limits(value.histo)
    elif kind == "image":
        content = value.image.encoded_image_string
        yield value.tag, File(content, mime_of(content))
    elif kind == "audio":
        yield value.tag, File(value.audio.encoded_audio_string, value.audio.content_type or "audio/wav")
    elif kind == "tensor" and plugin == "text":
        text = b"\n".join(value.tensor.string_val).decode("utf-8", "replace")
        yield value.tag.removesuffix("/text_summary"), text
    elif kind == "tensor" and plugin == "scalars":
        yield value.tag, _number(value.tensor)


def _number(tensor: Any) -> float:
    if tensor.tensor_content:
        kind = {1: np.float32, 2: np.float64}.get(tensor.dtype, np.float32)
        return float(np.frombuffer(tensor.tensor_content, kind)[0])
    held = list(tensor.float_val) or list(tensor.double_val) or list(tensor.int_val) or list(tensor.int64_val)
    return float(held[0])


class _Later(importlib.abc.MetaPathFinder):
    """Sees to it that a writer imported while a run captures is captured too."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """The module's own spec, whose loader also wraps its class."""
        del target
        if name not in (*WRITERS, *SUMMARIES):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            guard.attempt("sync_tensorboard", _wrap, module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # of this one loader
        return spec
