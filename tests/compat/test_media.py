"""Media with wandb's arguments."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImage

import torchtrack as wandb
from torchtrack.blobs import Blob
from torchtrack.media import as_media


def encoded(value: Any) -> Blob:
    (medium,) = as_media(value) or ()
    return medium.snapshot().encode()


def pixels(value: Any) -> np.ndarray[Any, Any]:
    return np.asarray(PilImage.open(io.BytesIO(encoded(value).data)))


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        ([[0.0, 1.0]], [[0, 255]]),
        ([[-1.0, 1.0]], [[0, 255]]),
        ([[0.0, 255.0]], [[0, 255]]),
        ([[0.0, 1.01]], [[0, 255]]),
        ([[-2.0, 0.0, 2.0]], [[0, 128, 255]]),
    ],
)
@pytest.mark.parametrize("tensor", [False, True])
def test_floats_are_brought_into_range(data: Any, wanted: Any, tensor: bool) -> None:
    torch = pytest.importorskip("torch")
    image = wandb.Image(torch.tensor(data) if tensor else np.array(data))

    assert pixels(image).tolist() == wanted
    assert image.data is not None


def test_without_normalizing_floats_are_clipped() -> None:
    assert pixels(wandb.Image(np.array([[-1.0, 0.5]]), normalize=False)).tolist() == [[0, 128]]


def test_a_batch_of_tensors_is_one_image() -> None:
    torch = pytest.importorskip("torch")

    assert pixels(wandb.Image(torch.zeros(3, 3, 4, 5))).shape == (4, 15, 3)


def test_mode_caption_and_file_type_are_taken() -> None:
    blob = encoded(wandb.Image(np.ones((4, 4, 3)), "L", "four by four", file_type="jpg"))

    assert (blob.mime, blob.caption) == ("image/jpeg", "four by four")


def test_boxes_are_drawn_where_they_lie_and_named() -> None:
    box = {"position": {"minX": 0.25, "maxX": 0.75, "minY": 0.25, "maxY": 0.75}, "class_id": 1}

    def drawn(labels: dict[int, str]) -> Any:
        boxes = {"predictions": {"box_data": [box], "class_labels": labels}}
        return pixels(wandb.Image(np.zeros((64, 64, 3), np.uint8), boxes=boxes)).any(axis=2)

    named, bare = drawn({1: "cat"}), drawn({})
    edge = np.zeros((64, 64), bool)
    edge[16:49, 16:49], edge[18:47, 18:47] = True, False

    assert (bare == edge).all()
    assert named[edge].all()
    assert named[18:30, 18:40].any()


def test_masks_are_laid_over_the_image() -> None:
    mask = np.zeros((8, 8), int)
    mask[:4] = 3
    drawn = pixels(wandb.Image(np.zeros((8, 8, 3), np.uint8), masks={"truth": {"mask_data": mask}}))

    assert drawn[:4].any(axis=2).all()
    assert not drawn[4:].any()


def test_an_image_of_an_image_keeps_the_caption() -> None:
    assert wandb.Image(wandb.Image(np.ones((2, 2)), caption="inner")).caption == "inner"


def test_a_tables_columns_can_be_added_read_and_computed() -> None:
    table = wandb.Table(columns=["a"], data=np.array([[1], [2]]))
    table.add_data(3)
    table.add_column("b", ["x", "y", "z"])
    table.add_computed_columns(lambda index, row: {"sum": row["a"] + index})

    assert table.get_column("sum") == [1, 3, 5]
    assert table.get_dataframe().columns.tolist() == ["a", "b", "sum"]
    assert json.loads(encoded(table).data)["data"] == [[1, "x", 1], [2, "y", 3], [3, "z", 5]]


def test_a_table_takes_a_dataframe_as_data_too() -> None:
    frame = pytest.importorskip("pandas").DataFrame({"a": [1.0], "b": ["x"]})

    for table in (wandb.Table(dataframe=frame), wandb.Table(data=frame), wandb.Table(["a"], dataframe=frame)):
        assert table.get_column("a") == [1.0]


@pytest.mark.parametrize("arguments", [{"dataframe": [1]}, {"data": [1, 2]}])
def test_a_table_of_no_rows_is_refused_when_it_is_logged_not_when_it_is_made(arguments: Any) -> None:
    table = wandb.Table(**arguments)

    with pytest.raises(TypeError):
        table.snapshot()


def test_media_in_a_table_are_named() -> None:
    table = wandb.Table(columns=["image"], data=[[wandb.Image(np.ones((2, 2)), caption="seven")], [wandb.Html("x")]])

    assert json.loads(encoded(table).data)["data"] == [["seven"], ["[Html]"]]


def test_frames_become_a_gif_that_plays() -> None:
    frames = np.zeros((3, 3, 8, 8), np.uint8)
    frames[1:] = [[[[100]]], [[[200]]]]
    blob = encoded(wandb.Video(frames, fps=10))
    film: Any = PilImage.open(io.BytesIO(blob.data))

    assert (blob.mime, film.n_frames, film.info["duration"]) == ("image/gif", 3, 100)


def test_files_are_kept_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"film")
    (tmp_path / "a.glb").write_bytes(b"glTF")
    (tmp_path / "a.pdb").write_bytes(b"ATOM")
    (tmp_path / "a.html").write_text("<b>")
    kept = [
        encoded(value)
        for value in (
            wandb.Video(str(tmp_path / "a.mp4")),
            wandb.Object3D(str(tmp_path / "a.glb")),
            wandb.Molecule(str(tmp_path / "a.pdb")),
            wandb.Html(str(tmp_path / "a.html")),
            wandb.Html("<i>"),
        )
    ]

    assert [(blob.data, blob.mime) for blob in kept] == [
        (b"film", "video/mp4"),
        (b"glTF", "model/gltf-binary"),
        (b"ATOM", "chemical/x-pdb"),
        (b"<b>", "text/html"),
        (b"<i>", "text/html"),
    ]


def test_a_point_cloud_is_kept_as_json() -> None:
    assert json.loads(encoded(wandb.Object3D(np.eye(3))).data) == {"points": np.eye(3).tolist()}


def test_samples_in_a_list_are_a_sound() -> None:
    assert encoded(wandb.Audio([0.0, 0.5], sample_rate=8000)).mime == "audio/wav"


@pytest.mark.parametrize("value", [wandb.Video(np.zeros((3, 3))), wandb.Video("a.txt"), wandb.Object3D("a.txt")])
def test_what_cannot_be_kept_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="takes"):
        value.snapshot()
