"""Finding runs, and what a run says of itself."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.api.journals import START_US, UID, RankJournal
from torchtrack.api import Api
from torchtrack.errors import RunNotFoundError, TorchtrackError
from torchtrack.journal.gather import Gatherer
from torchtrack.naming import name_of

Make = Callable[..., RankJournal]
OTHER = "ffee000011112222"


def test_a_url_that_is_no_servers_says_what_one_is() -> None:
    with pytest.raises(ValueError, match="http:// or https:// address"):
        Api("s3://bucket/team")


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Api(tmp_path / "typo")


def test_runs_are_listed_newest_first_and_by_project(runs: Path, journal: Make) -> None:
    with journal(UID, start_us=START_US) as rank:
        rank.about(project="llm")
    with journal(OTHER, start_us=START_US + 10) as rank:
        rank.about(project="vision")
    api = Api(runs)
    assert [run.uid for run in api.runs()] == [OTHER, UID]
    assert [run.uid for run in api.runs("llm")] == [UID]
    assert api.runs("nothing") == []


@pytest.mark.parametrize(
    ("filters", "matches"),
    [
        ({"state": "finished"}, True),
        ({"state": "failed"}, False),
        ({"config.lr": 3e-4}, True),
        ({"config.lr": lambda lr: lr < 1e-4}, False),
        ({"config.model.width": 64}, True),
        ({"config.nothing": 1}, False),
        ({"summary.loss": lambda loss: loss < 1}, True),
        ({"tags": "ablation"}, True),
        ({"tags": "abl"}, False),
        ({"tags": ("ablation", "x")}, True),
        ({"state": "finished", "world_size": 2}, False),
    ],
)
def test_filters_must_all_hold(runs: Path, journal: Make, filters: dict[str, Any], matches: bool) -> None:
    with journal() as rank:
        rank.about(tags=["ablation", "x"])
        rank.event("config", {"lr": 3e-4, "model": {"width": 64}})
        rank.log(0, {"loss": 0.5})
    assert bool(Api(runs).runs(filters=filters)) == matches


def test_an_unknown_filter_field_is_an_error(runs: Path, journal: Make) -> None:
    with journal() as rank:
        rank.about()
    with pytest.raises(ValueError, match="no field 'stat' to filter by"):
        Api(runs).runs(filters={"stat": "x"})


@pytest.mark.parametrize("name", ["llm/baseline", "baseline", UID, UID[:4], "calm-otter-7", "llm/calm-otter-7"])
def test_a_run_is_found_by_project_and_id_by_id_uid_its_beginning_and_name(
    runs: Path, journal: Make, name: str
) -> None:
    with journal() as rank:
        rank.about(id="baseline")
    with journal(OTHER) as rank:
        rank.about(id="another", name="red-fox-1")
    assert Api(runs).run(name).uid == UID


def test_a_run_that_is_not_there_names_the_nearest_and_what_to_type(runs: Path, journal: Make) -> None:
    with journal() as rank:
        rank.about(id="baseline")
    with pytest.raises(RunNotFoundError, match=rf"no run 'basline'.*nearest.*give a uid(.|\n)*{UID}  llm/calm-otter-7"):
        Api(runs).run("basline")
    with pytest.raises(RunNotFoundError, match="no run 'a1b'"):
        Api(runs).run(UID[:3])


def test_a_name_of_two_runs_asks_for_the_uid(runs: Path, journal: Make) -> None:
    for uid in (UID, OTHER):
        with journal(uid) as rank:
            rank.about(name="twin")
    with pytest.raises(RunNotFoundError, match=rf"is 2 runs; give the uid of one:(.|\n)*{UID}"):
        Api(runs).run("twin")


def test_streams_belong_where_their_newest_record_says_and_the_provisional_uid_stays_an_alias(
    runs: Path, journal: Make
) -> None:
    with journal(UID, world_size=2) as rank:
        rank.about()
        rank.log(0, {"x": 1.0})
    with journal(OTHER, rank=0) as rank:
        rank.joined(UID, rank=1, world_size=2)
        rank.log(0, {"x": 3.0})
    api = Api(runs)
    (run,) = api.runs()
    assert run.uid == UID
    assert run.aliases == (OTHER,)
    assert run.history(ranks="all").column("rank").to_pylist() == [0, 1]
    assert api.run(OTHER).uid == api.run(OTHER[:6]).uid == UID
    assert run.world_size == 2


def test_a_run_that_is_held_follows_its_streams_when_they_join(runs: Path, journal: Make) -> None:
    rank = journal(OTHER)
    rank.about()
    run = Api(runs).run(OTHER)
    rank.joined(UID)
    rank.log(0, {"x": 1.0})
    assert run.uid == UID
    assert run.keys() == ["x"]


def test_a_child_forked_before_the_ranks_agreed_belongs_where_its_rank_does(runs: Path, journal: Make) -> None:
    with journal(UID, world_size=2) as zero:
        zero.log(0, {"x": 1.0})
    rank = journal(OTHER)
    child = journal(OTHER, parent=rank.stream)
    grandchild = journal(OTHER, parent=child.stream)
    for number, process in enumerate((rank, child, grandchild)):
        process.log(number, {"x": 3.0})
    rank.joined(UID, rank=1, world_size=2)
    (run,) = Api(runs).runs()
    assert run.uid == UID
    assert run.history(ranks=1).column("step").to_pylist() == [0, 1, 2]
    assert (run.world_size, run.attempts[0].ranks) == (2, (0, 1))


def test_journals_that_call_each_other_parent_are_read(runs: Path, journal: Make) -> None:
    rank = journal()
    one = journal(parent=rank.stream + 2)
    two = journal(parent=one.stream)
    own = journal(parent=rank.stream + 3)
    assert (two.stream, own.stream) == (rank.stream + 2, rank.stream + 3)
    for step, stream in enumerate((one, two, own)):
        stream.log(step, {"x": 1.0})
    assert Api(runs).run(UID).history().num_rows == 3


def test_a_single_run_folder_and_a_single_file_are_sources_too(runs: Path, journal: Make) -> None:
    with journal() as rank:
        rank.about()
        path = rank.writer.path
    with journal(OTHER) as rank:
        rank.about()
    assert [run.uid for run in Api(runs / UID).runs()] == [UID]
    assert [run.uid for run in Api(path).runs()] == [UID]


def test_a_run_whose_journals_are_gathered_reads_the_same_before_meanwhile_and_after(runs: Path, journal: Make) -> None:
    ranks = [journal(rank=rank, world_size=3) for rank in range(3)]
    for rank in ranks:
        rank.about(id="large")
        for step in range(5):
            rank.log(step, {"loss": float(rank.rank + step)})
        rank.close()
    held = Api(runs).run(UID)
    before = held.history(ranks="all")
    gatherer = Gatherer(runs / UID / "nodes", {"role": "gathered"})
    for rank in ranks:
        assert gatherer.take(rank.writer.path, rank.stream, ended=True) == 1
        for run in (held, Api(runs).run(UID), Api(runs / UID).run("large")):
            assert run.history(ranks="all").equals(before)
            assert (run.state, run.world_size, run.damages) == ("finished", 3, [])
    assert Api(gatherer.path).run("large").history(ranks="all").equals(before)
    gatherer.close()
    assert Api(runs).unread == {}


def test_a_foreign_file_and_a_torn_tail_stop_nothing(runs: Path, journal: Make) -> None:
    with journal() as rank:
        rank.about()
        rank.log(0, {"x": 1.0})
        rank.log(1, {"x": 2.0})
        path = rank.writer.path
    (runs / OTHER / "000").mkdir(parents=True)
    foreign = runs / OTHER / "000" / "0-0000000000000001.ttj"
    foreign.write_bytes(b"not a journal at all" * 20)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 30])
    api = Api(runs)
    (run,) = api.runs()
    assert run.history().num_rows == 2
    assert foreign in api.unread


def test_a_damaged_frame_is_reported_and_the_rest_is_read(runs: Path, journal: Make) -> None:
    rank = journal()
    rank.about()
    rank.log(0, {"x": 1.0})
    before = rank.writer.path.stat().st_size
    rank.log(1, {"x": 2.0})
    rank.log(2, {"x": 3.0})
    rank.close()
    data = bytearray(rank.writer.path.read_bytes())
    data[before + 60] ^= 0xFF
    rank.writer.path.write_bytes(data)
    run = Api(runs).run(UID)
    assert run.history().column("step").to_pylist() == [0, 2]
    assert len(run.damages) == 1


def test_a_frame_that_is_no_table_is_reported(runs: Path, journal: Make) -> None:
    from torchtrack.journal.frame import Kind
    from torchtrack.records import Table

    with journal() as rank:
        rank.writer.append(Kind.DATA, b"no arrow", table=Table.SCALARS)
        rank.writer.append(Kind.DATA, b"no arrow", table=99)
        rank.log(0, {"x": 1.0})
    run = Api(runs).run(UID)
    assert run.history().num_rows == 1
    reasons = " ".join(damage.reason for damage in run.damages)
    assert "scalars frame does not decode" in reasons
    assert "unknown table 99" in reasons


def test_config_is_rank_0s_with_later_updates_and_differences_stay_events(runs: Path, journal: Make) -> None:
    with journal(rank=1, world_size=2) as rank:
        rank.event("config", {"lr": 9.0, "seed": 1})
        rank.event("config_difference", {"rank": 1, "keys": {"seed": 1}})
    with journal(rank=0, world_size=2) as rank:
        rank.event("config", {"lr": 1.0, "seed": 0})
        rank.event("config", {"lr": 2.0})
    run = Api(runs).run(UID)
    assert run.config == {"lr": 2.0, "seed": 0}
    assert [event.data for event in run.events("config_difference")] == [{"rank": 1, "keys": {"seed": 1}}]


def test_the_newest_run_event_of_the_lowest_rank_says_what_the_run_is_called(runs: Path, journal: Make) -> None:
    with journal(rank=0) as rank:
        rank.about(name="first", notes="n", group="g", job_type="eval", tags=["a"])
        rank.about(name="second", notes="n", group="g", job_type="eval", tags=["a"])
    with journal(rank=1) as rank:
        rank.about(name="of rank 1")
    run = Api(runs).run(UID)
    assert (run.name, run.notes, run.group, run.job_type, run.tags) == ("second", "n", "g", "eval", ("a",))


def test_a_run_that_said_nothing_of_itself_has_defaults(runs: Path, journal: Make) -> None:
    with journal():
        pass
    run = Api(runs).run(UID)
    assert (run.id, run.name, run.project, run.tags, run.notes) == (UID, name_of(UID), "uncategorized", (), None)
    assert (run.config, run.summary, run.keys(), run.damages, run.dropped) == ({}, {}, [], [], 0)


def test_summary_is_the_last_of_the_mean_unless_the_metric_was_defined_otherwise(runs: Path, journal: Make) -> None:
    with journal(rank=0, world_size=2) as rank:
        rank.event("metric", {"name": "val/loss", "summary": "best"})
        for name, how in (
            ("acc", {"summary": "max"}),
            ("val/*", {"summary": "best", "goal": "maximize"}),
            ("hid", {"summary": "none"}),
        ):
            rank.event("metric", {"name": name, **how})
        rank.event("metric", {"name": "m", "summary": "mean"})
        rank.event("summary", {"set": "by hand", "lr": 7})
        for step, value in enumerate([2.0, 5.0, 1.0]):
            names = ["loss", "acc", "val/f1", "val/loss", "hid", "m", "lr"]
            rank.log(step, dict.fromkeys(names, value))
        rank.log(9, {"_tt/dropped_rows": 0.0})
    with journal(rank=1, world_size=2) as rank:
        rank.log(2, {"loss": 3.0})
    expected = {"loss": 2.0, "acc": 5.0, "val/f1": 5.0, "val/loss": 1.0, "m": 8 / 3, "lr": 7, "set": "by hand"}
    assert Api(runs).run(UID).summary == pytest.approx(expected)


def test_attempts_say_when_where_and_how_wide(runs: Path, journal: Make) -> None:
    for number in range(2):
        with journal(rank=number, attempt=1, world_size=2, host=f"node{number}") as rank:
            rank.log(0, {"x": 1.0})
    with journal(rank=0, attempt=2, world_size=1) as rank:
        rank.log(1, {"x": 1.0})
    run = Api(runs).run(UID)
    first, second = run.attempts
    assert (first.number, first.world_size, first.ranks, first.hosts) == (1, 2, (0, 1), ("node0", "node1"))
    assert (second.number, second.world_size, second.state) == (2, 1, "finished")
    assert second.start - first.start == timedelta(hours=1)
    assert run.created == first.start
    assert run.duration == first.duration + second.duration
    assert run.state == "finished"


def test_what_forked_children_do_is_not_the_attempts(runs: Path, journal: Make) -> None:
    with journal(world_size=2, host="node0") as rank:
        rank.about(name="of the rank")
        rank.log(0, {"x": 1.0})
    with journal(world_size=64, host="elsewhere", parent=rank.stream) as child:
        child.about(name="of the child")
        child.writer.meta({"type": "ended", "reason": "exception", "error": "boom", "time_ns": 1})
    run = Api(runs).run(UID)
    (attempt,) = run.attempts
    assert (attempt.world_size, attempt.hosts, attempt.ranks, run.state) == (2, ("node0",), (0,), "finished")
    assert run.name == "of the rank"


def test_what_a_rank_said_last_counts_even_if_the_clock_was_set_back(runs: Path, journal: Make) -> None:
    with journal() as rank:
        rank.about(name="first")
        rank.event("config", {"lr": 1.0})
        rank.now_us -= 3_600_000_000
        rank.about(name="second")
        rank.event("config", {"lr": 2.0})
    run = Api(runs).run(UID)
    assert (run.name, run.config) == ("second", {"lr": 2.0})
    assert [event.data["lr"] for event in run.events("config")] == [2.0, 1.0]


def test_dropped_rows_are_those_of_the_gaps_and_never_counted_twice(runs: Path, journal: Make) -> None:
    with journal() as rank:
        rank.writer.gap(5, "disk full", 0, 1)
        rank.log(0, {"_tt/dropped_rows": 5.0})
    with journal(rank=1) as rank:
        rank.log(0, {"_tt/dropped_rows": 2.0})
        rank.log(0, {"_tt/dropped_rows": 3.0})
    assert Api(runs).run(UID).dropped == 8


def test_texts_logs_and_findings_come_with_rank_and_attempt(runs: Path, journal: Make) -> None:
    with journal(rank=3, attempt=2) as rank:
        rank.text(4, "prompt", "hello")
        rank.line("stdout", "epoch 1")
        rank.event("finding", {"rule": "spike", "severity": "warning"}, step=4)
    run = Api(runs).run(UID)
    text = run.texts().to_pylist()[0]
    assert (text["step"], text["name"], text["text"], text["rank"], text["attempt"]) == (4, "prompt", "hello", 3, 2)
    assert run.logs().column("line").to_pylist() == ["epoch 1"]
    (finding,) = run.findings()
    assert (finding.first_step, finding.severity, finding.rule) == (4, "warning", "spike")
    assert run.media().num_rows == 0


def test_a_rank_that_died_by_a_signal_makes_the_run_killed_or_failed(runs: Path, journal: Make) -> None:
    rank = journal()
    rank.log(0, {"x": 1.0})
    rank.abandon()
    node = journal(role="node")
    node.writer.meta(
        {"type": "exit", "stream": f"{rank.stream:016x}", "pid": 1000, "code": 1, "signal": None, "time_ns": 1}
    )
    node.close()
    assert Api(runs).run(UID).state == "failed"


def test_the_errors_are_torchtrack_errors() -> None:
    assert issubclass(RunNotFoundError, TorchtrackError)
    assert issubclass(RunNotFoundError, KeyError)
