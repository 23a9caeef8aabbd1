"""Media with wandb's arguments: `torchtrack.Image`, `Audio` and `Table`, and those that only wandb has names for."""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from torchtrack import guard, media
from torchtrack.compat import drawing
from torchtrack.compat.said import no_effect
from torchtrack.media import Figure, Medium, Pending

_Kept = Callable[[], tuple[bytes, str, dict[str, Any]]]
_VIDEOS: Final = {"gif": "image/gif", "mp4": "video/mp4", "webm": "video/webm", "ogg": "video/ogg"}
_MODELS: Final = {
    "babylon": "application/json",
    "glb": "model/gltf-binary",
    "gltf": "model/gltf+json",
    "obj": "model/obj",
    "stl": "model/stl",
    "json": "application/json",
}
_POINTS: Final = "application/vnd.torchtrack.points+json"


class Image(media.Image):
    """An image for `log`.

    Args:
        data_or_path: what `torchtrack.media.Image` takes, also a tensor (n, channels, height, width), drawn as a row,
            and another Image. An array with floats below 0 is scaled to 0..1, one with floats above 2 is taken to lie
            in 0..255, unless `normalize` is False.
        mode: a mode of pillow, such as "L", that it is converted to; a text that is none is the caption.
        caption: a line of text shown with it.
        grouping: no effect: images logged in one list are one group.
        classes: names of the classes of boxes and masks: [{"id": 0, "name": "cat"}].
        boxes: boxes by group, drawn into the image: {"predictions": {"box_data": [...], "class_labels": {...}}}.
        masks: masks by group, drawn over it: {"predictions": {"mask_data": array, "class_labels": {...}}}.
        file_type: "png" (the default), "jpg" or "jpeg".
        normalize: whether floats are scaled so; else they are clipped to 0..1.
        data: the first argument by its name here.
    """

    def __init__(
        self,
        data_or_path: Any = None,
        mode: str | None = None,
        caption: str | None = None,
        grouping: int | None = None,
        classes: Any = None,
        boxes: Mapping[str, Any] | None = None,
        masks: Mapping[str, Any] | None = None,
        file_type: str | None = None,
        normalize: bool = True,
        *,
        data: Any = None,
    ) -> None:
        no_effect("Image", grouping=grouping)
        inner = data_or_path if data is None else data
        if isinstance(inner, media.Image):
            caption = inner.caption if caption is None else caption
            inner = inner.data
        if mode is not None and mode not in drawing.MODES:
            mode, caption = None, mode if caption is None else caption
        super().__init__(inner, caption)
        self._look = drawing.Look(mode, classes, boxes, masks, file_type, normalize)

    @property
    def image(self) -> Any:
        """It as an image of pillow."""
        from PIL import Image as PilImage

        return PilImage.open(io.BytesIO(self.snapshot().encode().data))

    def _kept(self) -> _Kept:
        before, look = self.data, self._look.kept()
        self.data = drawing.displayable(before, normalize=self._look.normalize)
        try:
            drawn = super()._kept()
        finally:
            self.data = before
        return (lambda: look.applied(*drawn())) if look.changes else drawn


class Audio(media.Audio):
    """A sound for `log`.

    Args:
        data_or_path: what `torchtrack.media.Audio` takes, or a list of samples.
        sample_rate: samples per second; needed unless it is a path.
        caption: a line of text shown with it.
        data: the first argument by its name here.
    """

    def __init__(
        self, data_or_path: Any = None, sample_rate: int | None = None, caption: str | None = None, *, data: Any = None
    ) -> None:
        inner = data_or_path if data is None else data
        if isinstance(inner, (list, tuple)):
            import numpy as np

            inner = np.asarray(inner)
        super().__init__(inner, None if sample_rate is None else int(sample_rate), caption)


class Table(media.Table):
    """A table for `log`: at most 100 000 cells. A cell that is an image or another medium holds what it is called.

    Args:
        columns: the names of the columns; by default the dataframe's, else Input, Output, Expected.
        data: the rows, an array, or a dataframe.
        rows: the rows, by an older name.
        dataframe: a pandas dataframe, in place of data.
        dtype: no effect: cells keep the types they have.
        optional: no effect: any cell may be None.
        allow_mixed_types: no effect: a column may hold several types.
        log_mode: no effect: a table is recorded as it is whenever it is logged.
    """

    def __init__(
        self,
        columns: Sequence[Any] | None = None,
        data: Any = None,
        rows: Any = None,
        dataframe: Any = None,
        dtype: Any = None,
        optional: Any = True,
        allow_mixed_types: bool | None = None,
        log_mode: str | None = None,
    ) -> None:
        asked = None if optional is True else optional, True if allow_mixed_types is False else None
        mode = None if log_mode == "MUTABLE" else log_mode
        no_effect("Table", dtype=dtype, optional=asked[0], allow_mixed_types=asked[1], log_mode=mode)
        given = rows if data is None else data
        if hasattr(given, "itertuples"):
            dataframe, given = given, None
        if columns is None:
            columns = list(getattr(dataframe, "columns", ("Input", "Output", "Expected")))
        super().__init__(list(columns))
        made = guard.outcome(_rows, self.columns, given, dataframe)
        self._wrong = made if isinstance(made, Exception) else None
        if self._wrong is None:
            self.data = made

    def add_row(self, *row: Any) -> None:
        """Add a row, by an older name."""
        self.add_data(*row)

    def add_column(self, name: str, data: Iterable[Any], optional: bool = False) -> None:
        """Add a column.

        Raises:
            ValueError: it has not as many cells as there are rows.
        """
        del optional
        cells = list(data)
        if self.data and len(cells) != len(self.data):
            raise ValueError(f"column {name!r} has {len(cells)} cells for {len(self.data)} rows")
        self.data = [[*row, cell] for row, cell in zip(self.data or [[]] * len(cells), cells, strict=True)]
        self.columns = [*(self.columns or ()), name]

    def add_computed_columns(self, function: Callable[[int, dict[str, Any]], Mapping[str, Any]]) -> None:
        """Add columns that a function makes of the index and the cells of each row."""
        made = [function(index, dict(zip(self._names(), row, strict=True))) for index, row in enumerate(self.data)]
        for name in dict.fromkeys(name for each in made for name in each):
            self.add_column(name, [each.get(name) for each in made])

    def get_column(self, name: str, convert_to: str | None = None) -> Any:
        """The cells of a column; as an array with convert_to="numpy"."""
        at = self._names().index(name)
        cells = [row[at] for row in self.data]
        if convert_to == "numpy":
            import numpy as np

            return np.asarray(cells)
        return cells

    def get_index(self) -> list[int]:
        """The numbers of the rows."""
        return list(range(len(self.data)))

    def get_dataframe(self) -> Any:
        """The table as a pandas dataframe."""
        pandas = importlib.import_module("pandas")
        return pandas.DataFrame.from_records(self.data, columns=self._names())

    def iterrows(self) -> Iterator[tuple[int, Sequence[Any]]]:
        """Number and cells of each row."""
        return enumerate(self.data)

    def snapshot(self) -> Pending:
        """Keep the table as it is now; see `torchtrack.media.Table`."""
        if self._wrong is not None:
            raise self._wrong
        before = self.data
        self.data = [[_cell(value) for value in row] for row in before]
        try:
            return super().snapshot()
        finally:
            self.data = before

    def _names(self) -> list[Any]:
        return list(self.columns or ())


class File(Medium):
    """A file of any type.

    Args:
        data: the bytes, a file-like object, or a path.
        mime: its type.
        caption: a line of text shown with it.
    """

    def __init__(self, data: Any, mime: str, caption: str | None = None) -> None:
        super().__init__(caption)
        self.data, self.mime = data, mime

    def _kept(self) -> _Kept:
        content, mime = _content(self.data), self.mime
        return lambda: (content, mime, {})


class Html(File):
    """HTML, as text, a path that ends in .html, or a file-like object.

    Args:
        data: which.
        inject: no effect: as with False, no style is added.
        data_is_not_path: take a text that ends in .html as HTML.
        caption: a line of text shown with it.
    """

    def __init__(
        self, data: Any, inject: bool | None = None, data_is_not_path: bool = False, caption: str | None = None
    ) -> None:
        no_effect("Html", inject=inject or None)
        is_path = isinstance(data, os.PathLike) or (isinstance(data, str) and data.endswith((".html", ".htm")))
        if isinstance(data, str) and (data_is_not_path or not is_path):
            data = data.encode()
        super().__init__(data, "text/html", caption)


class Video(Medium):
    """A video: a path, a file-like object, or frames (time, channels, height, width), which become a GIF.

    Args:
        data_or_path: which; several videos (n, time, channels, height, width) are drawn side by side.
        caption: a line of text shown with it.
        fps: frames a second of an array (4 by default).
        format: of a file-like object: "gif" (the default), "mp4", "webm" or "ogg". Frames become a GIF in any case.
    """

    def __init__(
        self,
        data_or_path: Any,
        caption: str | None = None,
        fps: int | None = None,
        format: str | None = None,  # noqa: A002
    ) -> None:
        super().__init__(caption)
        self.data, self.fps, self.format = data_or_path, fps or 4, format or "gif"

    def _kept(self) -> _Kept:
        data, fps = self.data, self.fps
        if isinstance(data, (str, os.PathLike)) or hasattr(data, "read"):
            kind = self.format if hasattr(data, "read") else Path(data).suffix.lstrip(".").lower()
            if kind not in _VIDEOS:
                raise ValueError(f"Video takes files of type {', '.join(_VIDEOS)}, got {kind!r}")
            content = _content(data)
            return lambda: (content, _VIDEOS[kind], {})
        frames = drawing.frames(data)
        return lambda: (drawing.gif(frames(), fps), "image/gif", {"fps": fps})


class Object3D(Medium):
    """A point cloud (n, 3 | 4 | 6), a scene of `boxes` and `points`, or a file: obj, gltf, glb, babylon, stl, pts.json.

    Args:
        data_or_path: which.
        caption: a line of text shown with it.
        kwargs: file_type, of a file-like object; others have no effect.
    """

    def __init__(self, data_or_path: Any, caption: str | None = None, **kwargs: Any) -> None:
        super().__init__(caption)
        self.data, self.file_type = data_or_path, kwargs.pop("file_type", None)
        if kwargs:
            no_effect("Object3D", **kwargs)

    def _kept(self) -> _Kept:
        data = self.data
        if isinstance(data, (str, os.PathLike)) or hasattr(data, "read"):
            kind = self.file_type or Path(getattr(data, "name", data)).suffix.lstrip(".").lower()
            if kind not in _MODELS:
                raise ValueError(f"Object3D takes files of type {', '.join(_MODELS)}, got {kind!r}")
            content = _content(data)
            return lambda: (content, _MODELS[kind], {})
        scene = dict(data) if isinstance(data, Mapping) else {"points": data}
        read = drawing.lists_of(scene)
        return lambda: (json.dumps(read()).encode(), _POINTS, {})


class Molecule(Medium):
    """A molecule in a file of a chemistry format, or a file-like object; kept as it is.

    Args:
        data_or_path: which.
        caption: a line of text shown with it.
        kwargs: file_type, of a file-like object, such as "pdb"; others have no effect.
    """

    def __init__(self, data_or_path: Any, caption: str | None = None, **kwargs: Any) -> None:
        super().__init__(caption)
        self.data, self.file_type = data_or_path, kwargs.pop("file_type", None)
        if kwargs:
            no_effect("Molecule", **kwargs)

    def _kept(self) -> _Kept:
        content = _content(self.data)
        kind = self.file_type or Path(getattr(self.data, "name", self.data)).suffix.lstrip(".").lower()
        return lambda: (content, f"chemical/x-{kind or 'unknown'}", {})


class Plotly(Figure):
    """A figure of plotly or matplotlib, or the path of one in HTML."""

    def __init__(self, val: Any) -> None:
        super().__init__(val)

    def snapshot(self) -> Pending:
        """Keep the figure as it is now."""
        return Html(self.figure).snapshot() if isinstance(self.figure, str) else super().snapshot()


@dataclasses.dataclass
class Classes:
    """Names of classes: a list of {"id": 0, "name": "cat"}."""

    class_set: Sequence[Mapping[str, Any]]


def _rows(columns: Sequence[Any], given: Any, dataframe: Any) -> list[list[Any]]:
    if dataframe is not None:
        if not hasattr(dataframe, "itertuples"):
            raise TypeError(f"dataframe must be a pandas dataframe, got {type(dataframe).__name__}")
        return [list(row) for row in dataframe[list(columns)].itertuples(index=False, name=None)]
    given = given.tolist() if hasattr(given, "tolist") else given
    return [] if given is None else [list(row) for row in given]


def _content(data: Any) -> bytes:
    if isinstance(data, bytes):
        return data
    if hasattr(data, "read"):
        if hasattr(data, "seek"):
            data.seek(0)
        content = data.read()
        return content.encode() if isinstance(content, str) else bytes(content)
    return Path(data).read_bytes()


def _cell(value: Any) -> Any:
    """A medium in a table is not shown in it: its caption or the kind it is of stands there."""
    if isinstance(value, Medium):
        return value.caption or f"[{type(value).__name__}]"
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor) and value.device.type == "cpu":
        return value.detach().tolist()  # another would have to be waited for
    return value
