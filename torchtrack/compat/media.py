"""Media with wandb's arguments: `torchtrack.Image` and `Audio`, and those that only wandb has names for."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from torchtrack import media
from torchtrack.compat import drawing
from torchtrack.compat.said import no_effect
from torchtrack.compat.tables import EvalTable, Graph, JoinedTable, Table
from torchtrack.media import Figure, Medium, Pending

__all__ = [
    "Audio", "Classes", "EvalTable", "File", "Graph", "Html", "Image", "JoinedTable", "Molecule", "Object3D", "Plotly",
    "Table", "Video", "box3d",
]  # fmt: skip

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
_STYLE: Final = b'<base target="_blank"><style>body{margin:0;font-family:sans-serif}</style>'
_POINTS: Final = "application/vnd.torchtrack.points+json"


class Image(media.Image):
    """An image for `log`.

    Args:
        data_or_path: what `torchtrack.media.Image` takes, also a tensor (n, channels, height, width), drawn as a row,
            and another Image. An array with floats below 0 is scaled to 0..1, one with floats above 2 is taken to lie
            in 0..255, unless `normalize` is False.
        mode: a mode of pillow, such as "L", that it is converted to; a text that is none is the caption.
        caption: a line of text shown with it.
        grouping: how many images of a list belong together, from this one on; recorded beside it, and in `media()`.
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
        inner = data_or_path if data is None else data
        self._told = {} if grouping is None else {"grouping": int(grouping)}
        if isinstance(inner, media.Image):
            caption = inner.caption if caption is None else caption
            self._told = {**getattr(inner, "_told", {}), **self._told}
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

    def snapshot(self) -> Pending:
        """Keep it as it is now."""
        return dataclasses.replace(super().snapshot(), told=self._told)

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
        inject: add a base for its links and a plain style; without, it is kept as it is.
        data_is_not_path: take a text that ends in .html as HTML.
        caption: a line of text shown with it.
    """

    def __init__(
        self, data: Any, inject: bool | None = None, data_is_not_path: bool = False, caption: str | None = None
    ) -> None:
        is_path = isinstance(data, os.PathLike) or (isinstance(data, str) and data.endswith((".html", ".htm")))
        if isinstance(data, str) and (data_is_not_path or not is_path):
            data = data.encode()
        super().__init__(data, "text/html", caption)
        self._inject = bool(inject)

    def _kept(self) -> _Kept:
        content = _content(self.data)
        return lambda: (_styled(content) if self._inject else content, self.mime, {})


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


def box3d(
    *,
    center: Sequence[float],
    size: Sequence[float],
    orientation: Sequence[float],
    color: Sequence[int] | None = None,
    label: str | None = None,
    score: float | None = None,
) -> dict[str, Any]:
    """A box of a scene for `Object3D`, by its eight corners.

    Args:
        center: x, y, z.
        size: along x, y and z, before it is turned.
        orientation: a quaternion, the real part first; it need not be of length 1.
        color: red, green and blue, 0 to 255.
        label: its name.
        score: how sure it is.

    Raises:
        ValueError: not three, three and four numbers, or a quaternion of length 0.
    """
    import numpy as np

    if (len(center), len(size), len(orientation)) != (3, 3, 4) or not any(orientation):
        raise ValueError("box3d() takes center=(x, y, z), size=(x, y, z) and orientation=(real, i, j, k), not all 0")
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    real, *axis = np.asarray(orientation, np.float64) / np.linalg.norm(orientation)
    flat = signs * np.asarray(size) / 2
    twice = 2 * np.cross(axis, flat)
    corners = flat + real * twice + np.cross(axis, twice) + np.asarray(center)
    given = {"color": color and list(color), "label": label, "score": score}
    return {"corners": corners.tolist(), **{name: value for name, value in given.items() if value is not None}}


@dataclasses.dataclass
class Classes:
    """Names of classes: a list of {"id": 0, "name": "cat"}."""

    class_set: Sequence[Mapping[str, Any]]


def _styled(html: bytes) -> bytes:
    """HTML with the style at the end of its head, or before all where it has none."""
    head = html.lower().find(b"</head>")
    return html[:head] + _STYLE + html[head:] if head >= 0 else b"<head>" + _STYLE + b"</head>" + html


def _content(data: Any) -> bytes:
    if isinstance(data, bytes):
        return data
    if hasattr(data, "read"):
        if hasattr(data, "seek"):
            data.seek(0)
        content = data.read()
        return content.encode() if isinstance(content, str) else bytes(content)
    return Path(data).read_bytes()
