"""Medium: what is logged is what it was at that moment, and ends up whole under its own hash."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import subprocess
import sys
import threading
import types
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import pytest
import torch

from torchtrack.blobs import Blob
from torchtrack.errors import MissingDependencyError
from torchtrack.media import MAX_TABLE_CELLS, Audio, Figure, Image, Medium, Table, as_media


def pixels(medium: Image | Figure) -> Any:
    blob = medium.snapshot().encode()
    assert blob.mime == "image/png"
    return np.asarray(PIL.Image.open(io.BytesIO(blob.data)))


def table(medium: Table) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"a browser does not read {constant}")

    return json.loads(medium.snapshot().encode().data, parse_constant=refuse)


@pytest.fixture
def figure() -> Iterator[Any]:
    drawn, axes = plt.subplots(figsize=(2, 1), dpi=50)
    axes.plot([0, 1], [0, 1])
    yield drawn
    plt.close(drawn)


COLORS = np.array([[[255, 0, 0], [0, 128, 0]], [[0, 0, 255], [9, 9, 9]], [[1, 2, 3], [4, 5, 6]]], np.uint8)
GRAY = COLORS[:, :, 0]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (COLORS, COLORS),
        (GRAY, GRAY),
        (GRAY[:, :, None], GRAY),
        (np.dstack([COLORS, GRAY]), np.dstack([COLORS, GRAY])),
        (COLORS / 255, COLORS),
        (COLORS.astype(np.int64), COLORS),
        (GRAY > 100, np.where(GRAY > 100, 255, 0)),
        (COLORS[::-1, ::-1], COLORS[::-1, ::-1]),
        (torch.from_numpy(COLORS).permute(2, 0, 1), COLORS),
        (torch.from_numpy(GRAY.copy()), GRAY),
        (torch.from_numpy(GRAY.copy())[None], GRAY),
        (torch.from_numpy(GRAY.copy())[None] / 255, GRAY),
        (torch.full((2, 2), 0.5, dtype=torch.bfloat16), np.full((2, 2), 128)),
        (torch.full((2, 2), 0.5, requires_grad=True), np.full((2, 2), 128)),
        (PIL.Image.fromarray(COLORS), COLORS),
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'dtype', '')}-{getattr(value, 'shape', '')}",
)
def test_an_image_keeps_its_pixels(data: Any, expected: Any) -> None:
    np.testing.assert_array_equal(pixels(Image(data)), expected)


def test_float_values_beyond_their_range_are_clipped() -> None:
    np.testing.assert_array_equal(pixels(Image(np.array([[-3.0, 2.0, np.nan, np.inf]]))), [[0, 255, 0, 255]])


def test_integers_beyond_their_range_are_clipped() -> None:
    np.testing.assert_array_equal(pixels(Image(np.array([[-3, 256, 255]]))), [[0, 255, 255]])


def test_an_encoded_image_tells_its_size_and_caption() -> None:
    blob = Image(COLORS, caption="three rows").snapshot().encode()
    assert blob.caption == "three rows"
    assert blob.meta == {"width": 2, "height": 3}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_an_image_file_is_kept_byte_for_byte_whatever_its_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image.txt"
    PIL.Image.fromarray(COLORS).save(path, format=kind)
    content = path.read_bytes()
    pending = Image(path).snapshot()
    path.unlink()
    blob = pending.encode()
    assert (blob.data, blob.mime) == (content, f"image/{kind.lower()}")


def test_an_image_file_of_another_format_becomes_png(tmp_path: Path) -> None:
    PIL.Image.fromarray(COLORS).save(tmp_path / "image.bmp")
    np.testing.assert_array_equal(pixels(Image(str(tmp_path / "image.bmp"))), COLORS)


def test_a_file_that_is_no_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(b"<svg onload=alert(1)>")
    with pytest.raises(ValueError, match="no image that pillow can read"):
        Image(path).snapshot().encode()


def test_a_cmyk_image_is_converted() -> None:
    assert pixels(Image(PIL.Image.new("CMYK", (2, 2)))).shape == (2, 2, 3)


def _zero_array(data: Any) -> None:
    data[...] = 0


def _zero_pil(data: Any) -> None:
    data.paste(0, (0, 0, *data.size))


@pytest.mark.parametrize(
    ("data", "change"),
    [
        (GRAY.copy(), _zero_array),
        (torch.from_numpy(GRAY.copy()), _zero_array),
        (PIL.Image.fromarray(GRAY.copy()), _zero_pil),
    ],
    ids=["array", "tensor", "pil"],
)
def test_a_change_after_the_snapshot_is_not_in_the_image(data: Any, change: Callable[[Any], None]) -> None:
    pending = Image(data).snapshot()
    change(data)
    assert np.asarray(PIL.Image.open(io.BytesIO(pending.encode().data))).any()


def test_an_image_may_be_encoded_in_another_thread() -> None:
    pending = Image(torch.from_numpy(GRAY.copy())).snapshot()
    blobs: list[Blob] = []
    thread = threading.Thread(target=lambda: blobs.append(pending.encode()))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(io.BytesIO(blobs[0].data))), GRAY)


def test_a_snapshot_of_a_tensor_does_not_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    for name in ("cpu", "numpy", "tolist", "item", "__array__", "to"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, name=name: read.append(name))
    Image(torch.zeros(3, 4, 4)).snapshot()
    Audio(torch.zeros(16), sample_rate=8000).snapshot()
    assert read == []


def test_a_tensor_of_another_stream_is_read_after_the_event_recorded_at_its_snapshot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []

    class Tensor(torch.Tensor):
        @property
        def device(self) -> Any:  # type: ignore[override]  # a device this machine lacks
            return types.SimpleNamespace(type="fake")

        def cpu(self, *_: Any, **__: Any) -> torch.Tensor:
            order.append("copied")
            return torch.zeros(2, 2)

    event = types.SimpleNamespace(synchronize=lambda: order.append("waited"))

    def record_event() -> Any:
        order.append("recorded")
        return event

    stream = types.SimpleNamespace(record_event=record_event)
    monkeypatch.setattr(torch, "fake", types.SimpleNamespace(current_stream=lambda _: stream), raising=False)
    pending = Image(torch.zeros(2, 2).as_subclass(Tensor)).snapshot()
    assert order == ["recorded"]
    pending.encode()
    assert order == ["recorded", "waited", "copied"]


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((2, 2, 2)),
        np.zeros(4),
        np.zeros((1, 3, 2, 2)),
        torch.zeros(2, 2, 3),
        torch.zeros(8, 3, 2, 2),
        np.zeros((0, 2)),
    ],
    ids=lambda data: f"{type(data).__name__}-{tuple(data.shape)}",
)
def test_an_array_of_no_image_shape_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match="got the shape"):
        Image(data).snapshot()


@pytest.mark.parametrize("data", [None, 3, [[1, 2]], object()])
def test_data_that_is_no_image_is_refused_by_snapshot_not_by_the_constructor(data: Any) -> None:
    image = Image(data)
    with pytest.raises(TypeError, match="Image takes no"):
        image.snapshot()


def test_without_pillow_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'torchtrack\[media\]'"):
        Image(GRAY).snapshot()


def test_a_matplotlib_figure_is_drawn_at_once(figure: Any) -> None:
    pending = Image(figure).snapshot()
    figure.clear()
    blank = pixels(Image(figure))
    drawn = np.asarray(PIL.Image.open(io.BytesIO(pending.encode().data)))
    assert drawn.shape == blank.shape == (50, 100, 4)
    assert (drawn != blank).any()


def test_axes_stand_for_their_figure(figure: Any) -> None:
    np.testing.assert_array_equal(pixels(Image(figure.axes[0])), pixels(Image(figure)))


def test_the_pyplot_module_stands_for_its_current_figure(figure: Any) -> None:
    media = as_media(plt)
    assert media is not None
    np.testing.assert_array_equal(pixels(media[0]), pixels(Image(figure)))  # type: ignore[arg-type]  # a Figure


def test_drawing_leaves_the_figure_open_with_its_canvas(figure: Any) -> None:
    canvas = figure.canvas
    Figure(figure).snapshot()
    assert figure.canvas is canvas
    assert plt.fignum_exists(figure.number)


def test_a_plotly_figure_is_kept_as_it_is() -> None:
    plotly = type("PlotlyFigure", (), {"__module__": "plotly.graph_objs", "to_json": lambda _: '{"data": []}'})()
    blob = Figure(plotly, caption="c").snapshot().encode()
    assert (blob.data, blob.mime, blob.caption) == (b'{"data": []}', "application/vnd.plotly+json", "c")


def test_something_else_is_no_figure() -> None:
    with pytest.raises(TypeError, match="matplotlib or plotly, got str"):
        Figure("figure").snapshot()


def sound(medium: Audio) -> tuple[Any, Any]:
    with wave.open(io.BytesIO(medium.snapshot().encode().data)) as file:
        kind = {1: np.uint8, 2: np.int16, 4: np.int32}[file.getsampwidth()]
        frames = np.frombuffer(file.readframes(file.getnframes()), kind).reshape(-1, file.getnchannels())
        return frames, file.getparams()


def test_a_sound_of_floats_is_kept_with_16_bits() -> None:
    frames, parameters = sound(Audio(np.array([0.0, 0.5, -1.0, 3.0, np.nan]), sample_rate=8000))
    assert frames[:, 0].tolist() == [0, 16384, -32767, 32767, 0]
    assert parameters.framerate == 8000


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32])
def test_a_sound_of_integers_is_kept_as_it_is(kind: Any) -> None:
    samples = np.array([[1, 2], [3, 4], [5, 6]], kind)
    np.testing.assert_array_equal(sound(Audio(samples, sample_rate=16000))[0], samples)


def test_a_tensor_of_sound_has_its_channels_first() -> None:
    samples = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.int16)
    assert sound(Audio(samples, sample_rate=16000))[0].tolist() == [[1, 4], [2, 5], [3, 6]]


def test_an_encoded_sound_tells_its_length() -> None:
    blob = Audio(np.zeros((4000, 2)), sample_rate=8000, caption="silence").snapshot().encode()
    assert (blob.mime, blob.caption) == ("audio/wav", "silence")
    assert blob.meta == {"sample_rate": 8000, "channels": 2, "seconds": 0.5}


def test_a_sound_file_is_kept_byte_for_byte(tmp_path: Path) -> None:
    content = Audio(np.zeros(8), sample_rate=8000).snapshot().encode().data
    (tmp_path / "sound").write_bytes(content)
    blob = Audio(tmp_path / "sound").snapshot().encode()
    assert (blob.data, blob.mime) == (content, "audio/wav")


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (Audio(np.zeros(8)), "sample_rate"),
        (Audio(np.zeros(8), sample_rate=0), "sample_rate"),
        (Audio(np.zeros((2, 2, 2)), sample_rate=8000), "one or two dimensions"),
    ],
)
def test_a_sound_that_cannot_be_played_is_refused(audio: Audio, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        audio.snapshot()


def test_a_sound_of_64_bit_integers_is_refused() -> None:
    with pytest.raises(ValueError, match="got int64"):
        Audio(np.zeros(8, np.int64), sample_rate=8000).snapshot().encode()


def test_a_file_that_is_no_sound_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sound.wav").write_bytes(b"text")
    with pytest.raises(ValueError, match="no WAV, MP3, FLAC or Ogg file"):
        Audio(tmp_path / "sound.wav").snapshot()


def test_a_table_keeps_columns_and_rows() -> None:
    medium = Table(columns=["step", "text"], data=[[1, "a"]])
    medium.add_data(2, None)
    assert table(medium) == {"columns": ["step", "text"], "data": [[1, "a"], [2, None]]}


def test_a_table_in_a_browser_has_no_numbers_json_lacks() -> None:
    medium = Table(columns=["a"], data=[[float("nan")], [float("inf")], [np.float32("-inf")], [[float("nan"), 1.5]]])
    assert table(medium)["data"] == [["NaN"], ["Infinity"], ["-Infinity"], [["NaN", 1.5]]]


def test_cells_of_any_type_become_json() -> None:
    @dataclasses.dataclass
    class Point:
        x: int

    medium = Table(columns=["a"], data=[[np.int64(3)], [torch.tensor(2.5)], [Point(1)], [Path("a/b")], [True]])
    assert table(medium)["data"] == [[3], [2.5], [{"x": 1}], ["a/b"], [True]]


def test_a_table_of_a_dataframe_has_its_columns() -> None:
    rows = [(1, "a"), (2, "b")]
    frame = types.SimpleNamespace(columns=["n", "s"], itertuples=lambda **_: iter(rows))
    assert table(Table(dataframe=frame)) == {"columns": ["n", "s"], "data": [[1, "a"], [2, "b"]]}


def test_a_row_added_after_the_snapshot_is_not_in_the_table() -> None:
    cell = [1]
    medium = Table(columns=["a"], data=[[cell]])
    pending = medium.snapshot()
    medium.add_data(2)
    cell.append(9)
    assert json.loads(pending.encode().data)["data"] == [[[1]]]


def test_a_table_of_too_many_cells_is_refused() -> None:
    medium = Table(columns=["a"], data=[[0]] * (MAX_TABLE_CELLS + 1))
    with pytest.raises(ValueError, match="at most 100000 cells, this one has 100001 rows of 1 columns"):
        medium.snapshot()


def test_a_table_of_as_many_cells_as_allowed_is_kept() -> None:
    assert len(table(Table(columns=["a"], data=[[0]] * MAX_TABLE_CELLS))["data"]) == MAX_TABLE_CELLS


def test_a_row_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"row 1 of the table has 1 cells for 2 columns \['a', 'b'\]"):
        Table(columns=["a", "b"], data=[[1, 2], [3]]).snapshot()


def test_a_table_without_columns_is_refused() -> None:
    with pytest.raises(TypeError, match="needs its columns"):
        Table(data=[[1]]).snapshot()


def test_something_else_is_no_dataframe() -> None:
    with pytest.raises(TypeError, match="pandas dataframe, got list"):
        Table(dataframe=[[1]]).snapshot()


@pytest.mark.parametrize(
    "medium", [Image(GRAY), Audio(GRAY), Table(), Figure(None)], ids=lambda medium: type(medium).__name__
)
def test_media_stand_for_themselves(medium: Medium) -> None:
    assert as_media(medium) == (medium,)


def test_a_list_of_images_is_that_many_media() -> None:
    first, second = Image(GRAY), Image(COLORS)
    assert as_media([first, second]) == (first, second)


def test_pil_images_and_figures_may_be_logged_as_they_are(figure: Any) -> None:
    media = as_media([PIL.Image.fromarray(GRAY), figure])
    assert media is not None
    assert [type(medium) for medium in media] == [Image, Figure]


@pytest.mark.parametrize(
    "value", [1.0, "text", None, [], (), [1.0], [Image(GRAY), 1.0], {"a": Image(GRAY)}, GRAY, torch.zeros(2, 2), json]
)
def test_other_values_are_no_media(value: Any) -> None:
    assert as_media(value) is None


@pytest.mark.parametrize("module", ["PIL.Image", "matplotlib.figure", "torch", "numpy"])
def test_a_module_that_another_thread_is_just_importing_stands_in_nobodys_way(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = type("Figure", (), {"__module__": "plotly.graph_objs", "to_json": staticmethod(lambda: "{}")})()
    monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    assert [type(medium) for medium in as_media(figure) or ()] == [Figure]
    assert as_media(1.0) is None


def test_media_imports_no_numpy_pillow_torch_or_matplotlib() -> None:
    code = (
        "import sys, torchtrack.media; heavy = {'numpy', 'PIL', 'torch', 'matplotlib', 'pyarrow'}\n"
        "sys.exit(str(heavy & sys.modules.keys()) if heavy & sys.modules.keys() else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
