"""The routes that answer questions, over a socket."""

from __future__ import annotations

import csv
import io
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.api.journals import UID
from tests.server.samples import OTHER, Make, bits, facts, write_runs
from tests.server.serving import Client, serving
from torchtrack import Api
from torchtrack.api.remote import Server
from torchtrack.api.run import Run
from torchtrack.errors import RunNotFoundError, ServerError
from torchtrack.server.answers import read_frame, read_frames
from torchtrack.server.metrics import MetricsStore
from torchtrack.server.reading import Reader

JOINED = "c1c2c3c4c5c6c7c8"
NEW = "d1d2d3d4d5d6d7d8"


@pytest.fixture
def client(runs: Path, journal: Make, store: MetricsStore) -> Iterator[Client]:
    write_runs(journal)
    with serving(store, runs) as client:
        yield client


def test_a_run_over_the_network_is_the_run_in_the_folder(runs: Path, client: Client) -> None:
    there, here = Api(runs), Api(client.url)
    assert [run.uid for run in here.runs()] == [run.uid for run in there.runs()]
    for run in there.runs():
        mine = dict(facts(here.run(run.uid), findings=True))
        for what, expected in facts(run, findings=True):
            assert mine[what] == expected, what
    assert here.run("vision/late-comer-1").uid == JOINED
    assert here.unread == {}
    with pytest.raises(RunNotFoundError, match="no run 'nope' in http://"):
        here.run("nope")


def test_a_history_comes_combined_and_without_the_rows(
    runs: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    get = Server.get

    def noted(self: Server, path: str, *pairs: Any, **query: Any) -> bytes:
        fetched.append(path)
        return get(self, path, *pairs, **query)

    monkeypatch.setattr(Server, "get", noted)
    here, there = Api(client.url).run(UID), Api(runs).run(UID)
    fetched.clear()
    ways: list[dict[str, Any]] = [{}, {"ranks": "all"}, {"start": 2, "stop": 7}]
    for how in ways:
        assert bits(here.history(["loss", "odd", "part"], **how)) == bits(there.history(["loss", "odd", "part"], **how))
    assert here.series("loss", 4).equals(there.series("loss", 4))
    assert {path for path in fetched if path != "streams"} == {f"runs/{UID}/history"}
    with pytest.raises(ValueError, match=r"no metric 'los'.*loss"):
        here.history("los")


def test_a_script_sees_what_a_run_logs_meanwhile(runs: Path, journal: Make, client: Client) -> None:
    run = Api(client.url).run(UID)
    before = run.history("loss").num_rows
    more = journal(rank=0, attempt=3, world_size=1)
    more.log(100, {"loss": 1.0})
    client.indexer.poll(everything=True)

    assert run.history("loss").num_rows == before + 1


def test_the_table_of_runs_is_filtered_sorted_and_cut_into_pages(client: Client) -> None:
    def ask(**query: Any) -> Any:
        return client.json("POST", "/projects/-/runs/query", query)

    both = ask(sort=["name"], columns=["uid", "name", "summary.loss", "config.lr"])
    assert both["n"] == 2
    assert both["columns"]["name"] == ["late-comer-1", "two-ranks-2"]
    assert both["columns"]["config.lr"] == [None, 3e-4]
    assert both["columns"]["summary.loss"][0] == 2.0
    assert ask(sort=["-config.lr"])["columns"]["uid"] == [UID, JOINED]
    assert ask(sort=["config.lr"])["columns"]["uid"] == [UID, JOINED]  # what has none comes last either way
    assert ask(filter="config.deep.er and a in tags")["columns"]["uid"] == [UID]
    first = ask(sort=["name"], limit=1)
    assert (first["cursor"], first["columns"]["uid"]) == (1, [JOINED])
    second = ask(sort=["name"], limit=1, cursor=first["cursor"])
    assert (second["cursor"], second["columns"]["uid"]) == (None, [UID])
    grouped = ask(group=["project"], columns=["world_size"], agg="max")
    assert [(g["values"], g["n"], g["columns"]) for g in grouped["groups"]] == [
        (["llm"], 1, {"world_size": 2}),
        (["vision"], 1, {"world_size": 1}),
    ]
    only = client.json("POST", "/projects/vision/runs/query", {})
    assert only["columns"]["uid"] == [JOINED]


def test_projects_keys_and_differences(client: Client) -> None:
    assert [(p["project"], p["runs"]) for p in client.json("GET", "/projects")] == [("llm", 1), ("vision", 1)]
    keys = client.json("GET", "/projects/llm/keys", q="o")
    assert {"key": "tokens", "runs": 1} in keys["metric"]
    assert not any("o" not in each["key"] for each in keys["metric"])
    every = client.json("GET", "/projects/llm/keys")
    assert {"key": "gradient", "runs": 1} in every["kind"]
    assert {"kind": "gradient", "key": "w", "runs": 1} in every["tensor"]
    assert every["log"] == [{"key": "stdout", "runs": 1}]
    assert {"key": "deep.er", "runs": 1} in every["config"]
    different = client.json("GET", "/compare", runs=f"{UID},{JOINED}")
    assert different["config"]["lr"] == [3e-4, None]


def test_what_is_not_synced_lies_along_x_only_at_the_steps_that_have_both(
    store: MetricsStore, runs: Path, journal: Make
) -> None:
    rank = journal(UID)
    rank.about(project="llm")
    for name, synced in (("own", False), ("usual", None), ("elsewhere", False)):
        along = "epoch" if name == "elsewhere" else "tokens"
        rank.event("metric", {"name": name, "step_metric": along, **({} if synced is None else {"step_sync": synced})})
    for step, more in enumerate(({"tokens": 10.0}, {}, {"tokens": 30.0}, {})):
        rank.log(step, {**dict.fromkeys(("own", "usual", "elsewhere"), float(step)), **more})
    rank.close()
    with serving(store, runs) as client:
        lines = {}
        for name in ("own", "usual", "elsewhere"):
            x = {"mode": "metric", "metric": "tokens"}
            body = {"items": [{"run": UID, "metric": name}], "x": x, "px": 100}
            _, content = client.ask("POST", "/series", body)
            _, columns = read_frame(content)
            there = columns["count.0"] > 0
            lines[name] = [columns["x"][there].tolist(), columns["last.0"][there].tolist()]

    assert lines["own"] == [[10.0, 30.0], [0.0, 2.0]]
    assert lines["usual"] == lines["elsewhere"] == [[10.0, 30.0], [1.0, 3.0]]


def test_keys_say_what_define_metric_puts_along_x(store: MetricsStore, runs: Path, journal: Make) -> None:
    for uid, project, metric in ((UID, "llm", "tokens"), (JOINED, "vision", "epoch")):
        rank = journal(uid, project=project)
        rank.about(project=project)
        rank.event("metric", {"name": "val/*", "step_metric": metric, "summary": None, "goal": None})
        rank.log(0, {"val/loss": 1.0, "loss": 2.0, metric: 3.0})
        rank.close()
    with serving(store, runs) as client:
        along = [client.json("GET", f"/projects/{project}/keys")["along"] for project in ("llm", "vision", "-")]

    assert along == [{"val/loss": "tokens"}, {"val/loss": "epoch"}, {"val/loss": "epoch"}]


def test_what_a_run_is_and_what_it_printed(runs: Path, client: Client) -> None:
    run = Api(runs).run(UID)
    about = client.json("GET", f"/runs/{UID}")
    assert (about["name"], about["world_size"], about["keys"]) == (run.name, 2, run.keys())
    assert [attempt["number"] for attempt in about["attempts"]] == [1, 2]
    assert client.json("GET", f"/runs/{UID}/findings") == [
        json.loads(json.dumps(finding.as_dict())) for finding in run.findings()
    ]
    logs = client.json("GET", f"/runs/{UID}/logs", rank=1, q="ell", limit=1)
    assert (logs["n"], logs["after"], logs["lines"][0]["line"], logs["lines"][0]["rank"]) == (2, 1, "hello", 1)


def test_one_chart_in_every_format(runs: Path, client: Client) -> None:
    body = {"items": [{"run": UID, "metric": "loss"}, {"run": OTHER, "metric": "loss"}], "px": 4}
    header, columns = read_frame(client.ask("POST", "/series", body)[1])
    assert [item["run"] for item in header["items"]] == [UID, JOINED]
    points = int(columns["count.0"].sum()), int(columns["count.1"].sum())
    assert points == (Api(runs).run(UID).history("loss").num_rows, 2)
    as_json = client.json("POST", "/series?format=json", body)
    np.testing.assert_array_equal(np.array(as_json["columns"]["max.0"], float), columns["max.0"])
    arrow = pa.ipc.open_stream(client.ask("POST", "/series?format=arrow", body)[1]).read_all()
    parquet = pq.read_table(io.BytesIO(client.ask("POST", "/series?format=parquet", body)[1]))
    assert bits(parquet) == bits(arrow)
    lines = list(csv.DictReader(io.StringIO(client.ask("POST", "/series?format=csv", body)[1].decode())))
    assert [float(line["max"]) for line in lines if line["max"]] == arrow["max"].drop_null().to_pylist()
    everyone = client.json("POST", "/series?format=json", {"items": [{"run": UID, "metric": "loss", "rank": "all"}]})
    assert [item["rank"] for item in everyone["items"]] == [0, 1]


def test_maps_of_tensors(runs: Path, client: Client) -> None:
    run = Api(runs).run(UID)
    header, columns = read_frame(client.ask("POST", "/heatmap", {"run": UID, "px": 100})[1])
    assert header["rows"] == ["shard", "w"]
    assert np.isfinite(columns["cells"]).sum() == run.tensors("gradient").num_rows
    step = run.tensors("gradient", "w")["step"].to_pylist()[-1]
    header, columns = read_frame(client.ask("POST", "/histogram", {"run": UID, "name": "w", "at": step})[1])
    assert columns["counts"].tolist() == run.histogram("gradient", "w", step).counts.tolist()
    header, columns = read_frame(client.ask("POST", "/histogram", {"run": UID, "name": "*", "px": 2})[1])
    assert int(columns["counts"].sum()) == sum(run.tensors("gradient")["count"].to_pylist())
    rows = pa.ipc.open_stream(client.ask("GET", f"/runs/{UID}/tensors", kind="gradient", format="arrow")[1]).read_all()
    assert rows.num_rows == run.tensors("gradient").num_rows
    history = client.json("GET", f"/runs/{UID}/history", keys="loss", ranks="all")
    assert history["columns"]["loss"] == run.history("loss", ranks="all")["loss"].to_pylist()


WRONG = [
    ("GET", "/runs/nope", None, 404, "no run 'nope'"),
    ("POST", "/projects/-/runs/query", {"filter": "stat = running"}, 422, "no field 'stat'"),
    ("POST", "/projects/-/runs/query", {"filter": "state ="}, 422, "at its end"),
    ("POST", "/projects/-/runs/query", {"fliter": "x"}, 422, "fliter"),
    ("POST", "/series", {"items": [{"run": UID, "metric": "x"}], "px": 0}, 422, "greater than or equal to 1"),
    ("POST", "/series", {"items": [{"run": "nope", "metric": "x"}]}, 404, "no run 'nope'"),
    ("POST", "/series", {"items": [{"run": UID, "metric": "\ud800"}]}, 422, "unicode"),
    ("GET", f"/runs/{UID}/history?keys=los", None, 400, "no metric 'los'.*loss"),
    ("GET", "/streams/xyz/scalars", None, 422, "pattern"),
    ("GET", f"/runs/{UID}/logs?limit=0", None, 422, "greater than or equal to 1"),
]


def test_a_wrong_question_is_told_what_is_wrong_with_it(client: Client) -> None:
    for method, path, body, status, says in WRONG:
        got, data = client.ask(method, path, body)
        assert (got, set(json.loads(data))) == (status, {"error"}), data
        assert re.search(says, data.decode()), data


def test_odd_words_reach_the_engine_as_words(client: Client) -> None:
    for odd in ("'; DROP TABLE scalars; --", "\\", "{x:String}", "a\nb\t\x00", "日本", "%s", "*[", "`"):
        assert client.ask("POST", "/series", {"items": [{"run": UID, "metric": odd}]})[0] == 200, odd
        assert client.ask("POST", "/heatmap", {"run": UID, "name": odd, "kind": odd})[0] == 200, odd
    header, _ = read_frame(client.ask("POST", "/series", {"items": [{"run": UID, "metric": "loss"}]})[1])
    assert header["cursor"] is not None


def test_changes_are_told_as_they_come_and_from_where_a_client_left_off(
    runs: Path, journal: Make, client: Client
) -> None:
    cursor = client.json("GET", "/live", poll=0)
    assert (cursor["cursor"], cursor["runs"]) == (client.indexer.batch, sorted([UID, JOINED]))
    assert cursor["changes"] == {UID: ["points", "logs"], JOINED: ["points"]}
    assert cursor["states"][UID] == "finished"
    rank = journal(NEW, rank=3)
    rank.log(0, {"loss": 1.0})
    client.indexer.poll(everything=True)
    news = client.json("GET", "/live", poll=cursor["cursor"])
    assert (news["runs"], news["changes"]) == ([NEW], {NEW: ["points"]})
    rank.line("stdout", "hello")
    rank.event("finding", {"rule": "spike"})
    client.indexer.poll()
    later = client.json("GET", "/live", poll=news["cursor"])
    assert later["changes"] == {NEW: ["points", "logs", "findings"]}
    headers = {"Last-Event-ID": str(cursor["cursor"])}
    with client.pool.request("GET", f"{client.url}/api/v1/live", headers=headers, preload_content=False) as stream:
        text = b""
        while b"event: findings" not in text or not text.endswith(b"\n\n"):
            text += stream.read1()
        stream.close()
    told = re.findall(r"event: (\w+)\ndata: (.*)", text.decode())
    assert [kind for kind, _ in told] == ["run", "points", "logs", "findings"]
    place = {"run": NEW, "upto": client.indexer.batch}
    assert [json.loads(data) for _, data in told] == [{**place, "state": news["states"][NEW]}, place, place, place]


def test_many_ask_at_once_and_each_gets_its_own_answer(client: Client) -> None:
    found: dict[int, int] = {}

    def ask(px: int) -> None:
        header, columns = read_frame(
            client.ask("POST", "/series", {"items": [{"run": UID, "metric": "loss"}], "px": px})[1]
        )
        found[px] = len(columns["x"]) if header["raw"] or len(columns["x"]) <= px else -1

    threads = [threading.Thread(target=ask, args=(px,)) for px in range(1, 13)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(found) == list(range(1, 13))
    assert min(found.values()) > 0


def test_a_server_that_is_not_there_is_said_to_be() -> None:
    with pytest.raises(ServerError, match="does not answer"):
        Api("http://127.0.0.1:9").runs()


def test_charts_of_a_page_come_in_one_answer_as_each_does_alone(client: Client) -> None:
    bodies: list[dict[str, Any]] = [
        {"items": [{"run": UID, "metric": "loss", "rank": "all"}], "px": 3, "smooth": {"tau": 2}},
        {"items": [{"run": UID, "metric": "lr"}, {"run": JOINED, "metric": "loss"}], "px": 3, "smooth": {"tau": 2}},
        {"items": [{"run": UID, "metric": "tokens"}], "x": {"from": 2, "to": 9}, "px": 100},
    ]
    status, together = client.ask("POST", "/series/batch", {"charts": bodies})
    alone = [client.ask("POST", "/series", body)[1] for body in bodies]

    assert status == 200
    assert together == b"".join(alone)
    assert [header["items"][0]["metric"] for header, _ in read_frames(together)] == ["loss", "lr", "tokens"]
    status, error = client.ask("POST", "/series/batch", {"charts": [{"items": [bodies[0]["items"][0]] * 501}] * 2})
    assert (status, json.loads(error)["error"]["code"]) == (422, "too_many")


def test_a_question_about_many_lines_looks_each_run_up_once(
    client: Client, store: MetricsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    named = Reader._named

    def noted(self: Reader, name: str, deleted: frozenset[str]) -> Run:
        looked.append(name)
        return named(self, name, deleted)

    monkeypatch.setattr(Reader, "_named", noted)
    charts = [{"items": [{"run": uid, "metric": metric} for uid in (UID, JOINED)]} for metric in ("loss", "lr", "part")]
    assert client.ask("POST", "/series/batch", {"charts": charts})[0] == 200

    assert sorted(looked) == sorted([UID, JOINED])
