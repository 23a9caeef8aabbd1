"""What wandb's runs have, on ours."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import torchtrack
from tests.runs import begin, finished


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.chdir(tmp_path)
    run: Any = begin(project="p", entity="team")
    yield run
    run.finish(quiet=True)


def test_a_run_says_what_wandbs_run_says(run: Any) -> None:
    said = (run.entity, run.path, run.offline, run.starting_step, run.sweep_id, run.get_url(), run.project_name())

    assert said == ("team", f"p/{run.id}", True, 0, None, None, "p")
    assert run.start_time > 0
    assert run.uid in run.to_html()


def test_an_attribute_nobody_has_is_an_attribute_error(run: Any) -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = run.nothing


def test_saved_files_keep_their_place_and_are_copied_again_at_the_end(run: Any, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs" / "a.txt"
    log.write_text("early")
    (live,) = run.save("logs/*.txt")
    (now,) = run.save(str(log), policy="now")
    (inside,) = run.save(str(log), base_path=str(tmp_path))
    log.write_text("late, and longer")
    run.finish(quiet=True)
    kept = [Path(path).relative_to(run.dir).as_posix() for path in (live, now, inside)]

    assert kept == ["files/logs/a.txt", "files/a.txt", "files/logs/a.txt"]
    assert (Path(live).read_text(), Path(now).read_text()) == ("late, and longer", "early")


def test_a_file_written_into_the_runs_folder_is_there(run: Any) -> None:
    path = Path(run.dir) / "model.h5"
    path.write_text("weights")

    assert run.save(str(path)) == [str(path)]
    with run.restore("model.h5") as file:
        assert file.read() == "weights"


def test_saving_what_is_not_there_raises_nothing(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.save("nothing-*.txt", policy="now") == []
    assert "found no file nothing-*.txt" in capsys.readouterr().err


def test_a_saved_file_is_told_only_if_it_changed_and_nothing_of_the_run_itself(run: Any, tmp_path: Path) -> None:
    run.log({"x": 1.0})
    run.flush()
    (tmp_path / "a.txt").write_text("one")
    run.save("a.txt", policy="now")
    run.save("a.txt", policy="now")
    run.save(f"{run.dir}/**/*.ttj")
    (tmp_path / "b.txt").write_text("two")
    run.save("b.txt", policy="end")
    recorded = finished(run)

    told = [sorted(event.data["files"]) for event in recorded.events("saved")]
    assert told == [["files/a.txt"], ["files/b.txt"]]
    assert recorded.saved["files/a.txt"]["sha256"] == hashlib.sha256(b"one").hexdigest()


def test_another_policy_is_refused(run: Any) -> None:
    with pytest.raises(ValueError, match="takes"):
        run.save("x", policy="never")


def test_a_file_of_another_run_is_restored_where_it_is_wanted(run: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    run.save("a.txt")
    first = run.id
    run.finish(quiet=True)
    second: Any = begin(project="p")
    with second.restore("a.txt", run_path=f"team/p/{first}", root="there") as file:
        text = file.read()
    with pytest.raises(ValueError, match=r"no file 'b\.txt' was saved"):
        second.restore("b.txt")
    second.finish(quiet=True)

    assert text == (tmp_path / "there" / "a.txt").read_text() == "one"


def test_code_is_kept_as_an_artifact(run: Any, tmp_path: Path) -> None:
    for name in ("a.py", "b.txt", "sub/c.py", ".git/d.py"):
        (tmp_path / "code" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "code" / name).write_text(name)
    artifact = run.log_code("code", name="source", exclude_fn=lambda path, root: path.startswith(f"{root}/sub"))

    assert artifact is not None
    assert ([entry.path for entry in artifact.files()], artifact.type) == (["a.py"], "code")
    assert run.log_code(str(tmp_path / "nothing")) is None


def test_calls_of_the_module_go_to_the_active_run(run: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")

    assert torchtrack.save("a.txt") == [f"{run.dir}/files/a.txt"]
    with torchtrack.restore("a.txt") as file:
        assert file.read() == "one"
    torchtrack.mark_preempting()
    assert finished(run).events("mark")[0].data["title"] == "preempting"


def test_a_config_that_is_assigned_is_an_update(run: Any) -> None:
    module: Any = torchtrack
    module.config = {"lr": 0.1}
    module.config.epochs = 3

    assert run.config.as_dict() == {"lr": 0.1, "epochs": 3}


def test_calls_of_the_module_need_a_run() -> None:
    with pytest.raises(torchtrack.Error, match=r"save\(\) needs a run"):
        torchtrack.save("a.txt")


def test_the_active_run_can_be_attached_to(run: Any) -> None:
    assert torchtrack._attach(run._attach_id) is run
    with pytest.raises(torchtrack.Error, match="is not active in this process"):
        torchtrack._attach("another")


def test_the_folder_of_a_run_that_records_nothing_is_there_until_the_end() -> None:
    run: Any = begin(mode="disabled")
    folder = Path(run.dir)
    (folder / "model.pt").write_text("w")
    run.finish(quiet=True)

    assert Path(run.dir) == folder
    assert (folder / "model.pt").read_text() == "w"


@pytest.mark.parametrize(("text", "size"), [("2.5GB", 2_500_000_000), ("2GiB", 2 << 30), ("10", 10)])
def test_sizes_are_read(text: str, size: int) -> None:
    assert torchtrack.util.from_human_size(text) == size


def test_ids_and_names_can_be_made() -> None:
    assert len({torchtrack.util.generate_id() for _ in range(50)}) == 50
    assert torchtrack.util.make_artifact_name_safe("a/b c") == "a_b_c"
