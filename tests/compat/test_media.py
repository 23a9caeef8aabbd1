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
from tests.runs import begin, finished
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


def test_a_table_with_types_refuses_other_cells() -> None:
    made: Any = wandb.Table
    typed = made(columns=["n", "text"], dtype=[float, str], optional=[False, True])
    typed.add_data(np.int64(1), None)
    for row, said in (([None, "a"], "'n' is not optional"), ([1.0, 2], "'text' holds string, got the number 2")):
        with pytest.raises(TypeError, match=said):
            typed.add_data(*row)
    inferred = made(columns=["n"], data=[[1], [2.5]], allow_mixed_types=False)
    with pytest.raises(TypeError, match="'n' holds number, got the string 'x'"):
        inferred.add_data("x")

    assert ([*map(tuple, typed.data)], inferred.data) == ([(1, None)], [[1], [2.5]])


@pytest.mark.parametrize("argument", [{"dtype": [int]}, {"log_mode": "SOMETIMES"}])
def test_arguments_of_a_table_that_do_not_fit_are_refused(argument: dict[str, Any]) -> None:
    made: Any = wandb.Table
    with pytest.raises(ValueError, match=r"Table\("):
        made(columns=["a", "b"], **argument)


def test_an_immutable_table_is_recorded_once() -> None:
    made: Any = wandb.Table
    run = begin()
    table = made(columns=["a"], data=[[1]], log_mode="IMMUTABLE")
    run.log({"t": table})
    run.log({"t": table})

    assert [row["step"] for row in finished(run).media().to_pylist()] == [0]


def test_tables_are_joined_by_a_column() -> None:
    made: Any = wandb
    left = made.Table(columns=["id", "guess"], data=[[1, "a"], [2, "b"], [3, "c"]])
    right = made.Table(columns=["guess", "id"], data=[["x", 2], ["y", 1], ["z", 1]])
    joined = made.JoinedTable(left, right, "id")

    assert joined.columns == ["id", "guess", "guess_2"]
    assert joined.data == [[1, "a", "y"], [1, "a", "z"], [2, "b", "x"]]


def test_a_box_of_a_scene_is_its_corners() -> None:
    made: Any = wandb
    turned = made.box3d(center=(1, 0, 0), size=(2, 4, 6), orientation=(1, 0, 0, 1), label="car")  # a quarter about z
    corners = np.array(turned["corners"])

    np.testing.assert_allclose([corners.min(0), corners.max(0)], [[-1, -1, -3], [3, 1, 3]], atol=1e-12)
    assert turned["label"] == "car"
    assert "score" not in turned


@pytest.mark.parametrize(
    ("html", "styled"),
    [
        ("<html><head><title>t</title></head><b>x</b>", "<html><head><title>t</title>STYLE</head><b>x</b>"),
        ("<b>x</b>", "<head>STYLE</head><b>x</b>"),
    ],
)
def test_html_gets_a_style_if_that_is_asked_for(html: str, styled: str) -> None:
    style = '<base target="_blank"><style>body{margin:0;font-family:sans-serif}</style>'

    assert encoded(wandb.Html(html)).data.decode() == html
    assert encoded(wandb.Html(html, inject=True)).data.decode() == styled.replace("STYLE", style)


def test_a_table_of_an_evaluation_has_its_columns_from_their_roles_and_is_recorded_once() -> None:
    table = wandb.EvalTable(
        input_columns=["image"],
        output_columns=["guess"],
        score_columns=["right"],
        data=[["a", "4", 1.0], ["b", "5", 0.0]],
    )
    plain = wandb.EvalTable(columns=["guess"], data=[["4"], ["5"]])
    rows = json.loads(encoded(plain).data)

    assert json.loads(encoded(table).data)["columns"] == ["image", "guess", "right"]
    assert table.means() == {"right": 0.5}
    assert (rows["columns"], rows["data"]) == (["row", "guess"], [[0, "4"], [1, "5"]])
    with pytest.raises(ValueError, match="IMMUTABLE"):
        encoded(plain)
    with pytest.raises(ValueError, match="no column 'x'"):
        wandb.EvalTable(columns=["a"], score_columns=["x"])
    with pytest.raises(ValueError, match='takes "IMMUTABLE"'):
        wandb.EvalTable(columns=["a"], log_mode="MUTABLE")


def test_a_graph_is_a_table_of_its_nodes_and_where_they_lead() -> None:
    graph = wandb.Graph()
    first = graph.add_node(id=1, name="in", class_name="Dense", output_shape=[None, 4], num_parameters=8)
    graph.add_edge(first, graph.add_node("out"))
    table = json.loads(encoded(graph).data)

    assert table["data"] == [["in", "Dense", "[None, 4]", 8, "out"], ["out", None, "", None, ""]]


def test_what_images_belong_together_is_read_back_beside_them() -> None:
    run = begin()
    first, alone = wandb.Image(np.zeros((2, 2)), grouping=3), wandb.Image(np.ones((2, 2)))
    run.log({"seen": [wandb.Image(first), alone]})
    uid = run.uid
    project = finished(run).project
    rows = wandb.Api().run(f"team/{project}/{uid}").media().to_pylist()

    assert [row["grouping"] for row in rows] == [3, None]


def test_a_graph_says_how_it_is_to_be_shown() -> None:
    graph = wandb.Graph(format="onnx")
    graph.add_node("a")

    assert json.loads(encoded(graph).data)["format"] == "onnx"
    assert json.loads(encoded(wandb.Graph()).data)["format"] == "keras"


def test_a_table_of_an_evaluation_says_its_roles_and_where_it_was_to_lie() -> None:
    table = wandb.EvalTable(data=[[1, 2, 0.5]], input_columns=["x"], output_columns=["y"], score_columns=["s"])
    other = wandb.EvalTable(columns=["x"], data=[[1]], backend="ces")

    told = {"input": ["x"], "output": ["y"], "score": ["s"], "backend": "weave"}
    assert json.loads(encoded(table).data)["evaluation"] == told
    assert json.loads(encoded(other).data)["evaluation"]["backend"] == "ces"
    with pytest.raises(ValueError, match=r"backend=. takes .weave. or .ces.; got 's3'"):
        wandb.EvalTable(columns=["x"], backend="s3")


def test_a_table_of_an_evaluation_refuses_media_where_that_was_asked_for() -> None:
    image = wandb.Image(np.ones((2, 2)), caption="seven")
    kept = wandb.EvalTable(columns=["x"], data=[[image]], unsupported_media_mode="stub")

    assert json.loads(encoded(kept).data)["data"] == [[0, "seven"]]
    with pytest.raises(TypeError, match="medium Image"):
        wandb.EvalTable(columns=["x"], data=[[image]], unsupported_media_mode="raise")
    table = wandb.EvalTable(columns=["x"], unsupported_media_mode="raise")
    table.add_data(1)
    with pytest.raises(TypeError, match="medium Html"):
        table.add_data(wandb.Html("x"))
    with pytest.raises(ValueError, match='takes "stub" or "raise"'):
        wandb.EvalTable(columns=["x"], unsupported_media_mode="drop")
