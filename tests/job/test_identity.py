"""Which run a launch belongs to."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchtrack.errors import RunNotFoundError
from torchtrack.job import Identity, Job
from torchtrack.job.identity import Attempt, Keys

ALONE: dict[str, str] = {}


def start(directory: Path, environ: dict[str, str] | None = None, **arguments: str) -> Identity:
    """What init() would have as its identity."""
    project = arguments.pop("project", "p")
    job = Job.start(dir=directory, project=project, environ=dict(environ or {}), ordinal=0, **arguments)  # type: ignore[arg-type]
    job.close()
    return job.identity


def test_without_an_id_the_uid_is_the_id(tmp_path: Path) -> None:
    identity = start(tmp_path)
    assert identity.id == identity.uid
    assert len(bytes.fromhex(identity.uid)) == 8
    assert (identity.attempt, identity.provisional) == (1, False)


def test_two_launches_are_two_runs(tmp_path: Path) -> None:
    assert start(tmp_path).uid != start(tmp_path).uid


@pytest.mark.parametrize("resume", ["auto", "allow", "must"])
def test_an_id_continues_its_run_as_the_next_attempt(tmp_path: Path, resume: str) -> None:
    first = start(tmp_path, id="a")
    second, third = start(tmp_path, id="a", resume=resume), start(tmp_path, id="a", resume=resume)
    assert {first.uid} == {second.uid, third.uid}
    assert (second.attempt, third.attempt) == (2, 3)


def test_a_run_without_an_id_is_resumed_by_its_uid(tmp_path: Path) -> None:
    first = start(tmp_path)
    assert start(tmp_path, id=first.uid, resume="must").uid == first.uid


def test_an_id_is_unique_in_its_project_only(tmp_path: Path) -> None:
    assert start(tmp_path, id="a").uid != start(tmp_path, id="a", project="q").uid


@pytest.mark.parametrize("resume", ["auto", "allow", "never"])
def test_an_id_without_a_run_makes_one(tmp_path: Path, resume: str) -> None:
    identity = start(tmp_path, id="a", resume=resume)
    assert (identity.id, identity.attempt) == ("a", 1)


def test_must_without_a_run_names_the_ids_nearby(tmp_path: Path) -> None:
    for run_id in ("baseline-1", "baseline-2", "other"):
        start(tmp_path, id=run_id)
    with pytest.raises(ValueError, match=r"baseline-[12].*1 more") as raised:
        start(tmp_path, id="baseline", resume="must")
    assert isinstance(raised.value, RunNotFoundError)


def test_must_in_an_empty_project_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no run here"):
        start(tmp_path, id="a", resume="must")


def test_must_without_an_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs id="):
        start(tmp_path, resume="must")


def test_never_refuses_an_id_that_is_taken(tmp_path: Path) -> None:
    uid = start(tmp_path, id="a").uid
    with pytest.raises(ValueError, match=f"already has a run 'a' .uid {uid}"):
        start(tmp_path, id="a", resume="never")


@pytest.mark.parametrize("arguments", [{"resume": "yes"}, {"id": " "}, {"project": ""}])
def test_wrong_arguments_raise_on_every_rank(tmp_path: Path, arguments: dict[str, str]) -> None:
    for environ in (ALONE, {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}):
        with pytest.raises(ValueError):
            start(tmp_path, environ, **arguments)
    assert not list(tmp_path.iterdir())


def test_a_refused_start_does_not_count_as_one(tmp_path: Path) -> None:
    environ = {"TORCHELASTIC_RUN_ID": "refused"}
    with pytest.raises(ValueError):
        Job.start(dir=tmp_path, project="p", resume="must", environ=environ)
    job = Job.start(dir=tmp_path, project="p", environ=environ)
    job.close()
    assert job.ordinal == 0


@pytest.mark.parametrize("resume", ["must", "never"])
def test_other_ranks_leave_it_to_rank_0_to_refuse(tmp_path: Path, resume: str) -> None:
    if resume == "never":
        start(tmp_path, id="a")
    identity = start(tmp_path, {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}, id="a", resume=resume)
    assert identity.provisional


@pytest.mark.parametrize("resume", ["auto", "never", "must"])
def test_a_restart_of_the_launch_is_the_next_attempt(tmp_path: Path, resume: str) -> None:
    launch = {"TORCHELASTIC_RUN_ID": "x"}
    first = start(tmp_path, {**launch, "TORCHELASTIC_RESTART_COUNT": "0"})
    second = start(tmp_path, {**launch, "TORCHELASTIC_RESTART_COUNT": "1"}, resume=resume)
    assert (second.uid, second.attempt) == (first.uid, 2)


def test_a_fresh_launch_with_a_used_job_key_is_a_new_run(tmp_path: Path) -> None:
    launch = {"TORCHELASTIC_RUN_ID": "constant", "TORCHELASTIC_RESTART_COUNT": "0"}
    assert start(tmp_path, launch).uid != start(tmp_path, launch).uid


@pytest.mark.parametrize("arguments", [{"project": "q"}, {"id": "other"}])
def test_a_restart_that_asks_for_another_run_gets_one(tmp_path: Path, arguments: dict[str, str]) -> None:
    first = start(tmp_path, {"TORCHELASTIC_RUN_ID": "x"})
    second = start(tmp_path, {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": "1"}, **arguments)
    assert (second.uid != first.uid, second.attempt) == (True, 1)


def test_a_restart_may_have_another_world_size(tmp_path: Path) -> None:
    def environ(size: int, restart: int) -> dict[str, str]:
        place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(size)}
        return {**place, "TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": str(restart)}

    first, second = start(tmp_path, environ(4, 0)), start(tmp_path, environ(2, 1))
    assert (second.uid, second.attempt, second.world_size) == (first.uid, 2, 2)


@pytest.mark.parametrize("damage", [b'{"uid": "12', b"\xff\x00", b'{"uid": 3, "attempt": 1}\n', b"[1]\n", b"[" * 5000])
def test_a_damaged_line_of_a_key_file_is_ignored(tmp_path: Path, damage: bytes) -> None:
    keys = Keys(tmp_path)
    told = Attempt("ab" * 8, 1, "p", "a")
    keys.append("id", "k", told)
    (path,) = (tmp_path / "keys").iterdir()
    with path.open("ab") as file:
        file.write(damage)
    assert keys.last("id", "k") == told
    keys.append("id", "k", Attempt("cd" * 8, 2, "p", "a"))
    assert keys.last("id", "k") == Attempt("cd" * 8, 2, "p", "a")


def test_a_folder_that_cannot_be_written_costs_only_the_resume(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("in the way")
    assert start(tmp_path).attempt == 1
