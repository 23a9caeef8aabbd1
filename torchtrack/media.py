"""Images, audio, tables and figures: values for `log` that are stored as files beside the journal.

Three steps, so that the training thread does only the first: `snapshot` keeps what could change later (a tensor is
cloned on its device, a figure is drawn), `encode` turns that into bytes, `blobs.store` writes them. Constructors never
fail; what cannot be logged is said by `snapshot`, which `log` guards.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import io
import json
import math
import os
import sys
import wave
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from torchtrack.blobs import Blob
from torchtrack.errors import MissingDependencyError
from torchtrack.mime import mime_of
from torchtrack.redact import plain

MAX_TABLE_CELLS: Final = 100_000


@dataclasses.dataclass(frozen=True)
class Pending:
    """A snapshot that waits to be encoded in a background thread."""

    _encode: Callable[[], tuple[bytes, str, dict[str, Any]]]
    _caption: str | None
    told: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What else is said of it; recorded as an event `medium`, beside its name, step and SHA-256."""

    def encode(self) -> Blob:
        """The file. Waits for the device a tensor lies on.

        Raises:
            ValueError: the content is no image.
        """
        data, mime, meta = self._encode()
        return Blob(data, mime, self._caption, meta)


class Medium:
    """A value for `log` that is stored as a file. Others may derive from it.

    Args:
        caption: a line of text shown with it.
    """

    def __init__(self, caption: str | None = None) -> None:
        self.caption = caption

    def snapshot(self) -> Pending:
        """Keep it as it is now.

        Raises:
            TypeError: the data is of no type that the class takes.
            ValueError: the data has no shape or format that the class takes.
            MissingDependencyError: a package is needed and not installed.
            OSError: the file cannot be read.
        """
        return Pending(self._kept(), self.caption)

    def beside(self, name: str) -> Mapping[str, Medium]:  # noqa: ARG002  # for those that derive from it
        """What is recorded with it when it is logged under a name, by names of its own."""
        return {}

    def _kept(self) -> Callable[[], tuple[bytes, str, dict[str, Any]]]:
        """What gives the bytes, their type and facts about them, later and in another thread."""
        raise NotImplementedError


class Image(Medium):
    """An image for `log`.

    Args:
        data: a path, a PIL image, a matplotlib figure or axes, a numpy array (height, width) or
            (height, width, 1 | 3 | 4), or a torch tensor (height, width) or (1 | 3 | 4, height, width). Floating-point
            values are clipped to 0 .. 1, integers to 0 .. 255.
        caption: a line of text shown with it.
    """

    def __init__(self, data: Any, caption: str | None = None) -> None:
        super().__init__(caption)
        self.data = data

    def _kept(self) -> Callable[[], tuple[bytes, str, dict[str, Any]]]:
        data = self.data
        if isinstance(data, str | os.PathLike):
            content = Path(data).read_bytes()
            mime = mime_of(content)
            if mime.startswith("image/"):
                return lambda: (content, mime, {})
            _need_pillow()
            return functools.partial(_encode_file, content)
        if is_a(data, "PIL.Image", "Image"):
            copy = data.copy()
            return lambda: _encode_pil(copy)
        figure = _matplotlib_figure(data)
        if figure is not None:
            drawn = io.BytesIO()
            figure.savefig(drawn, format="png")
            return lambda: (drawn.getvalue(), "image/png", {})
        _need_pillow()
        read = kept_array(data, "Image")
        _check_image_shape(data)
        channels_first = _is_tensor(data)
        return lambda: _encode_array(read(), channels_first)


class Audio(Medium):
    """A sound for `log`.

    Args:
        data: a path, a numpy array (samples,) or (samples, channels), or a torch tensor (samples,) or
            (channels, samples). Integers (uint8, int16, int32) are kept, floating-point values clipped to -1 .. 1
            and kept with 16 bits.
        sample_rate: samples per second; needed unless data is a path.
        caption: a line of text shown with it.
    """

    def __init__(self, data: Any, sample_rate: int | None = None, caption: str | None = None) -> None:
        super().__init__(caption)
        self.data = data
        self.sample_rate = sample_rate

    def _kept(self) -> Callable[[], tuple[bytes, str, dict[str, Any]]]:
        data = self.data
        if isinstance(data, str | os.PathLike):
            content = Path(data).read_bytes()
            mime = mime_of(content)
            if not mime.startswith("audio/"):
                raise ValueError(f"{data} is no WAV, MP3, FLAC or Ogg file")
            return lambda: (content, mime, {})
        if not isinstance(self.sample_rate, int) or self.sample_rate <= 0:
            raise ValueError(f"Audio of an array needs a sample_rate in samples per second, got {self.sample_rate!r}")
        read = kept_array(data, "Audio")
        if len(data.shape) not in (1, 2):
            raise ValueError(f"Audio takes an array of one or two dimensions, got the shape {tuple(data.shape)}")
        channels_first = _is_tensor(data) and len(data.shape) == 2
        rate = self.sample_rate
        return lambda: _encode_wav(read(), channels_first, rate)


class Table(Medium):
    """A table for `log`: at most 100 000 cells.

    Args:
        columns: the names of the columns; by default the dataframe's.
        data: the rows.
        dataframe: a pandas dataframe, in place of data.
    """

    def __init__(
        self, columns: Sequence[str] | None = None, data: Iterable[Sequence[Any]] | None = None, dataframe: Any = None
    ) -> None:
        super().__init__()
        self.columns = columns
        self.data: list[Sequence[Any]] = [] if data is None else list(data)
        self.dataframe = dataframe
        self.chart: Mapping[str, Any] | None = None
        """What is to be drawn of it, if it is the table of a chart: kind, title, and a column a role."""
        self.about: Mapping[str, Any] = {}
        """What else its JSON says, beside `columns`, `data` and `chart`."""

    def add_data(self, *row: Any) -> None:
        """Add a row."""
        self.data.append(row)

    def snapshot(self) -> Pending:
        """Keep the table as it is now.

        Raises:
            TypeError: the dataframe is none, or there are neither columns nor a dataframe.
            ValueError: a row has not as many cells as there are columns, or there are too many cells.
        """
        columns, rows = self._columns_and_rows()
        if len(columns) * len(rows) > MAX_TABLE_CELLS:
            size = f"{len(rows)} rows of {len(columns)} columns"
            raise ValueError(f"a table has at most {MAX_TABLE_CELLS} cells, this one has {size}: log a part of it")
        for index, row in enumerate(rows):
            if len(row) != len(columns):
                raise ValueError(f"row {index} of the table has {len(row)} cells for {len(columns)} columns {columns}")
        kept = [[_cell(value) for value in row] for row in rows]
        more = {**self.about, **({} if self.chart is None else {"chart": dict(self.chart)})}
        return Pending(lambda: _encode_table(columns, kept, more), self.caption)

    def _columns_and_rows(self) -> tuple[list[str], list[Sequence[Any]]]:
        rows = list(self.data)
        frame = self.dataframe
        if frame is not None:
            if not hasattr(frame, "itertuples"):
                raise TypeError(f"dataframe must be a pandas dataframe, got {type(frame).__name__}")
            rows = [*frame.itertuples(index=False, name=None), *rows]
        names = self.columns if self.columns is not None or frame is None else frame.columns
        if names is None:
            raise TypeError('a table needs its columns: Table(columns=["a", "b"], data=[[1, 2]])')
        return [str(name) for name in names], rows


class Figure(Medium):
    """A figure for `log`: of matplotlib, kept as an image, or of plotly, kept as it is.

    Args:
        figure: the figure.
        caption: a line of text shown with it.
    """

    def __init__(self, figure: Any, caption: str | None = None) -> None:
        super().__init__(caption)
        self.figure = figure

    def snapshot(self) -> Pending:
        """Draw the figure as it is now.

        Raises:
            TypeError: it is no figure of matplotlib or plotly.
        """
        if _is_plotly(self.figure):
            content = self.figure.to_json().encode()
            return Pending(lambda: (content, "application/vnd.plotly+json", {}), self.caption)
        if _matplotlib_figure(self.figure) is None:
            raise TypeError(f"Figure takes a figure of matplotlib or plotly, got {type(self.figure).__name__}")
        return Image(self.figure, self.caption).snapshot()


def as_media(value: Any) -> tuple[Medium, ...] | None:
    """The media a logged value stands for; None if it is something else.

    Besides the classes above: a figure of matplotlib or plotly, the module matplotlib.pyplot (its current figure), a
    PIL image, and a list or tuple of any of these.
    """
    if isinstance(value, Medium):
        return (value,)
    if isinstance(value, list | tuple):
        media: list[Medium] = []
        for item in value:
            part = as_media(item)
            if part is None:
                return None
            media += part
        return tuple(media) or None
    if is_a(value, "PIL.Image", "Image"):
        return (Image(value),)
    if _is_plotly(value) or _matplotlib_figure(value) is not None:
        return (Figure(value),)
    return None


def is_a(data: Any, module: str, name: str) -> bool:
    """Whether it is of a class of a module that the program has imported; another thread may be just about to."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(data, kind)


def _is_tensor(data: Any) -> bool:
    return is_a(data, "torch", "Tensor")


def _is_plotly(figure: Any) -> bool:
    return type(figure).__module__.startswith("plotly.") and hasattr(figure, "to_json")


def _matplotlib_figure(data: Any) -> Any:
    """The figure that a figure, axes or the pyplot module stands for, else None."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None and data is pyplot:
        return pyplot.gcf()
    if type(data).__module__.startswith("matplotlib."):
        while data is not None and not is_a(data, "matplotlib.figure", "Figure"):
            data = getattr(data, "figure", None)
        return data
    return data if is_a(data, "matplotlib.figure", "Figure") else None


def _need_pillow() -> None:
    if importlib.util.find_spec("PIL") is None:
        raise MissingDependencyError("images of arrays and tensors need pillow: pip install 'torchtrack[media]'")


def kept_array(data: Any, taker: str) -> Callable[[], Any]:
    """A copy of an array or tensor; calling it gives a numpy array. A tensor's copy stays on its device until then."""
    if is_a(data, "numpy", "ndarray"):
        copy = data.copy()
        return lambda: copy
    if not _is_tensor(data):
        raise TypeError(
            f"{taker} takes no {type(data).__module__}.{type(data).__name__}; see its docstring for what it takes"
        )
    clone = data.detach().clone()
    cloned = _recorded_event(clone)
    return lambda: _to_numpy(clone, cloned)


def _recorded_event(tensor: Any) -> Any:
    """An event after what the caller's stream has to do for a tensor: another thread has another current stream."""
    backend: Any = getattr(sys.modules["torch"], tensor.device.type, None)
    if tensor.device.type == "cpu" or not hasattr(backend, "current_stream"):
        return None
    return backend.current_stream(tensor.device).record_event()


def _to_numpy(tensor: Any, ready: Any) -> Any:
    if ready is not None:
        ready.synchronize()
    tensor = tensor.cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _check_image_shape(data: Any) -> None:
    shape = tuple(data.shape)
    channels = 1 if len(shape) == 2 else shape[0 if _is_tensor(data) else -1] if len(shape) == 3 else 0
    if channels not in (1, 3, 4) or 0 in shape:
        wanted = "(1 | 3 | 4, height, width)" if _is_tensor(data) else "(height, width, 1 | 3 | 4)"
        raise ValueError(
            f"Image takes (height, width) or {wanted}, got the shape {shape}; pass several as a list of Images"
        )


def _encode_array(array: Any, channels_first: bool) -> tuple[bytes, str, dict[str, Any]]:
    import numpy as np
    from PIL import Image as PilImage

    if channels_first and array.ndim == 3:
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype.kind == "f":
        array = np.nan_to_num(array, nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1) * 255 + 0.5
    elif array.dtype.kind == "b":
        array = array * np.uint8(255)
    return _encode_pil(PilImage.fromarray(np.ascontiguousarray(array.clip(0, 255).astype(np.uint8))))


def _encode_file(content: bytes) -> tuple[bytes, str, dict[str, Any]]:
    from PIL import Image as PilImage
    from PIL import UnidentifiedImageError

    try:
        return _encode_pil(PilImage.open(io.BytesIO(content)))
    except UnidentifiedImageError as error:
        raise ValueError("the file is no image that pillow can read") from error


def _encode_pil(image: Any) -> tuple[bytes, str, dict[str, Any]]:
    if image.mode not in ("1", "L", "LA", "I;16", "P", "RGB", "RGBA"):
        image = image.convert("RGBA" if "A" in image.mode or "a" in image.mode else "RGB")
    encoded = io.BytesIO()
    image.save(encoded, format="PNG")
    return encoded.getvalue(), "image/png", {"width": image.width, "height": image.height}


def _encode_wav(samples: Any, channels_first: bool, rate: int) -> tuple[bytes, str, dict[str, Any]]:
    import numpy as np

    samples = samples.T if channels_first else samples
    if samples.dtype.kind == "f":
        samples = (np.nan_to_num(samples).clip(-1, 1) * 32767).round().astype("<i2")
    elif samples.dtype.name not in ("uint8", "int16", "int32"):
        raise ValueError(f"Audio takes floats, uint8, int16 or int32, got {samples.dtype}")
    frames, channels = samples.shape[0], 1 if samples.ndim == 1 else samples.shape[1]
    encoded = io.BytesIO()
    with wave.open(encoded, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(samples.dtype.itemsize)
        file.setframerate(rate)
        file.writeframes(np.ascontiguousarray(samples).tobytes())
    return encoded.getvalue(), "audio/wav", {"sample_rate": rate, "channels": channels, "seconds": frames / rate}


def _encode_table(
    columns: list[str], rows: list[list[Any]], more: Mapping[str, Any]
) -> tuple[bytes, str, dict[str, Any]]:
    content = json.dumps({**more, "columns": columns, "data": rows}, allow_nan=False).encode()
    return content, "application/vnd.torchtrack.table+json", {"rows": len(rows), "columns": len(columns)}


def _cell(value: Any) -> Any:
    """A cell as JSON that a browser reads: NaN and the infinities become text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    return _finite(plain(value))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return value
