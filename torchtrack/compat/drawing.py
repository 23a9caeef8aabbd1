"""Pixels: values brought into range, boxes and masks drawn, frames put into a GIF."""

from __future__ import annotations

import colorsys
import dataclasses
import io
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from torchtrack.media import kept_array

MODES: Final = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16")
_FILES: Final = {"png": ("PNG", "image/png"), "jpg": ("JPEG", "image/jpeg"), "jpeg": ("JPEG", "image/jpeg")}
_OPACITY: Final = 0.4
_CLIPPED: Final = 2.0
"""Up to here a number that is too large is an overshoot of a filter, and clipped."""


@dataclasses.dataclass
class Look:
    """What is done to an image once it is one."""

    mode: str | None
    classes: Any
    boxes: Mapping[str, Any] | None
    masks: Mapping[str, Any] | None
    file_type: str | None
    normalize: bool

    @property
    def changes(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.mode or self.boxes or self.masks or (self.file_type not in (None, "png")))

    def kept(self) -> Look:
        """A copy that later changes do not reach."""
        masks = {
            group: {**mask, "mask_data": later(mask["mask_data"])} if "mask_data" in mask else dict(mask)
            for group, mask in (self.masks or {}).items()
        }
        boxes = {
            group: {**of, "box_data": [dict(box) for box in of["box_data"]]} for group, of in (self.boxes or {}).items()
        }
        return dataclasses.replace(self, boxes=boxes, masks=masks)

    def applied(self, content: bytes, mime: str, facts: dict[str, Any]) -> tuple[bytes, str, dict[str, Any]]:
        """The file with it done."""
        from PIL import Image as PilImage

        image: Any = PilImage.open(io.BytesIO(content))
        if self.mode:
            image = image.convert(self.mode)
        for mask in (self.masks or {}).values():
            image = _masked(image, mask)
        for group in (self.boxes or {}).values():
            image = _boxed(image, group, self._names(group))
        kind, mime = _FILES.get(str(self.file_type or "png").lower(), _FILES["png"])
        if kind == "JPEG" or image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"):
            image = image.convert("RGB")
        encoded = io.BytesIO()
        image.save(encoded, format=kind)
        return encoded.getvalue(), mime, {**facts, "width": image.width, "height": image.height}

    def _names(self, group: Mapping[str, Any]) -> dict[Any, str]:
        listed = getattr(self.classes, "class_set", self.classes) or ()
        return {each["id"]: each["name"] for each in listed} | dict(group.get("class_labels") or {})


def _colour(number: int) -> tuple[int, int, int]:
    """Well apart for the first classes: the hue goes on by the golden ratio."""
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.85, 0.95)
    return int(red * 255), int(green * 255), int(blue * 255)


def _masked(image: Any, mask: Mapping[str, Any]) -> Any:
    import numpy as np
    from PIL import Image as PilImage

    classes = mask["mask_data"]() if "mask_data" in mask else np.asarray(PilImage.open(mask["path"]))
    if classes.ndim != 2:
        raise ValueError(f"a mask holds a class a pixel, of shape (height, width), got {classes.shape}")
    palette = np.array([_colour(number) for number in range(256)], np.uint8)
    over = PilImage.fromarray(palette[classes.astype(np.int64) % 256]).resize(image.size, 0)
    shown = PilImage.fromarray(((classes != 0) * int(255 * _OPACITY)).astype(np.uint8)).resize(image.size, 0)
    base = image.convert("RGB")
    base.paste(over, mask=shown)
    return base


def _boxed(image: Any, group: Mapping[str, Any], names: Mapping[Any, str]) -> Any:
    from PIL import ImageDraw

    base = image.convert("RGB")
    pen = ImageDraw.Draw(base)
    for box in group["box_data"]:
        at = box["position"]
        if "middle" in at:
            (x, y), width, height = at["middle"], at["width"], at["height"]
            left, right, top, bottom = x - width / 2, x + width / 2, y - height / 2, y + height / 2
        else:
            left, right, top, bottom = at["minX"], at["maxX"], at["minY"], at["maxY"]
        if box.get("domain") != "pixel":
            left, right, top, bottom = (
                left * image.width,
                right * image.width,
                top * image.height,
                bottom * image.height,
            )
        number = box.get("class_id", 0)
        colour = _colour(number)
        pen.rectangle((min(left, right), min(top, bottom), max(left, right), max(top, bottom)), outline=colour, width=2)
        text = box.get("box_caption") or names.get(number) or ""
        pen.text((left + 2, top + 1), str(text).encode("latin-1", "replace").decode("latin-1"), fill=colour)
    return base


def is_tensor(data: Any) -> bool:
    """Whether it is one of torch's."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(data, torch.Tensor)


def later(data: Any) -> Callable[[], Any]:
    """A copy of an array, a tensor or a list; calling it gives an array. A tensor stays on its device until then."""
    import numpy as np

    return kept_array(data if is_tensor(data) else np.asarray(data), "an image, a video or a scene")


def lists_of(data: Any) -> Callable[[], Any]:
    """The same with lists, for arrays and tensors inside of lists and dicts too."""
    if is_tensor(data) or hasattr(data, "tolist"):
        read = later(data)
        return lambda: read().tolist()
    if isinstance(data, Mapping):
        held = {key: lists_of(value) for key, value in data.items()}
        return lambda: {key: value() for key, value in held.items()}
    if isinstance(data, (list, tuple)):
        each = [lists_of(value) for value in data]
        return lambda: [value() for value in each]
    return lambda: data


def displayable(data: Any, *, normalize: bool) -> Any:
    """An array or tensor with values an image can hold; anything else as it is.

    Floats below 0 are scaled, from their least and largest to 0..1, those that go beyond 2 are taken to lie in 0..255.
    """
    import numpy as np

    if isinstance(data, (list, tuple)):
        data = np.asarray(data)
    if not (is_tensor(data) or isinstance(data, np.ndarray)):
        return data
    if is_tensor(data) and data.dim() == 4:
        data = data.detach().permute(1, 2, 0, 3).flatten(2)  # beside each other
    if not is_tensor(data) and data.ndim == 3 and data.shape[-1] not in (1, 3, 4) and data.shape[0] == 1:
        data = data[0]
    floating = data.is_floating_point() if is_tensor(data) else data.dtype.kind == "f"
    if not (normalize and floating and all(data.shape)):
        return data
    if is_tensor(data):
        where, low, high = sys.modules["torch"].where, data.min(), data.max()  # stay on the device: nobody waits
    else:
        where, low, high = np.where, np.nanmin(data), np.nanmax(data)
        if low >= 0 and high <= _CLIPPED:
            return data
    span = where(high > low, high - low, high * 0 + 1)
    return where(low < 0, (data - low) / span, where(high > _CLIPPED, data / 255, data))


def frames(data: Any) -> Callable[[], Any]:
    """Frames (time, height, width, channels) of uint8, later; kept as they are now.

    Raises:
        ValueError: the shape is none of a video's.
    """
    import numpy as np

    data = data if is_tensor(data) else np.asarray(data)
    shape = tuple(data.shape)
    if len(shape) not in (4, 5) or shape[-3] not in (1, 3, 4):
        raise ValueError(f"Video takes frames (time, 1 | 3 | 4, height, width), got the shape {shape}")
    read = later(data)

    def bytes_of() -> Any:
        held = read()
        values = (np.concatenate(list(held), axis=-1) if held.ndim == 5 else held).transpose(0, 2, 3, 1)
        if values.dtype.kind == "f":
            values = np.nan_to_num(values) * (255 if values.size and np.nanmax(values) <= 1 else 1)
        return values.clip(0, 255).astype(np.uint8)

    return bytes_of


def gif(values: Any, fps: float) -> bytes:
    """An animated GIF that repeats."""
    from PIL import Image as PilImage

    images = [PilImage.fromarray(frame[:, :, 0] if frame.shape[2] == 1 else frame) for frame in values]
    encoded = io.BytesIO()
    first, *rest = [image.convert("RGB") for image in images]
    first.save(encoded, format="GIF", save_all=True, append_images=rest, duration=max(20, round(1000 / fps)), loop=0)
    return encoded.getvalue()
