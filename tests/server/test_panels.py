"""What the page asks for the panels of a report, read off the same blocks."""

from __future__ import annotations

from typing import Any

import pytest

from torchtrack.server import panels

UID, OTHER = "0123456789abcdef", "fedcba9876543210"
RUN = {"uid": UID, "last_step": 999, "world_size": 4}


def test_panels_are_found_wherever_a_block_may_stand() -> None:
    text = f"""
```panel
metric: loss: train
runs: {UID}
```
```python
metric: no panel
```
> ~~~~ panel
> show: layers
> ~~~
> kind: update
> ~~~~

- ```panel
  metric: in a list
  ```
``` panel
metric: never closed"""
    found = [dict(panel) for panel in panels.panels(text)]

    assert found == [
        {"metric": "loss: train", "runs": UID},
        {"show": "layers", "kind": "update"},
        {"metric": "in a list"},
        {"metric": "never closed"},
    ]


def test_runs_are_named_by_uid_alone() -> None:
    panel = {"runs": f'{UID}, nonsense, {UID}, "]{OTHER}, {OTHER}', "group": "config.lr"}
    ((path, body),) = panels.about_runs(panel)

    assert panels.runs_of(panel) == [UID, OTHER]
    assert (path, body["filter"]) == ("projects/-/runs/query", f'uid in ["{UID}", "{OTHER}"]')
    assert body["columns"][-1] == "config.lr"
    assert panels.about_runs({"runs": "nonsense"}) == []


def test_more_runs_than_a_filter_takes_are_asked_for_in_parts() -> None:
    panel = {"runs": ",".join(f"{n:016x}" for n in range(500))}
    asked = panels.about_runs(panel)

    assert sum(body["filter"].count(", ") + 1 for _, body in asked) == panels.MAX_RUNS
    assert max(len(body["filter"]) for _, body in asked) < 1000


@pytest.mark.parametrize(
    ("panel", "expected"),
    [
        ({}, {"x": {"from": None, "to": None}, "smooth": None}),
        ({"from": "10.2", "to": "20.2"}, {"x": {"from": 10, "to": 22}}),
        ({"from": "10.2"}, {"x": {"from": None, "to": None}}),
        ({"x": "relative", "from": "0.5", "to": "1.5"}, {"x": {"mode": "relative", "from": 0.5, "to": 1.5}}),
        (
            {"x": "metric:tokens: all"},
            {"x": {"mode": "metric", "metric": "tokens: all", "from": None, "to": None}},
        ),
        ({"smooth": "60"}, {"smooth": {"kind": "ema", "tau": 50}}),
        ({"smooth": "0.5"}, {"smooth": None}),
        ({"ranks": "all"}, {"items": [{"run": UID, "metric": "loss", "rank": n} for n in range(4)]}),
    ],
)
def test_curves_ask_what_their_fields_say(panel: dict[str, str], expected: dict[str, Any]) -> None:
    ((path, body),) = panels.of_panel({"metric": "loss", **panel}, [RUN])

    assert path == "series"
    assert {name: body[name] for name in expected} == expected


def test_a_logarithmic_axis_is_asked_for_in_parts_that_follow_each_other() -> None:
    asked = [body["x"] for _, body in panels.of_panel({"metric": "loss", "logx": "1"}, [RUN])]

    assert [(x["from"], x["to"]) for x in asked] == [(0, 64), (64, 512), (512, 1000)]


def test_other_panels_ask_for_the_first_run() -> None:
    runs = [RUN, {**RUN, "uid": OTHER}]
    asked = [
        panels.of_panel({"show": show, "kind": "update", "tensor": "a.*", "mode": "zeros"}, runs)
        for show in ("layers", "ranks", "distribution")
    ]

    assert [(path, body.get("run"), body.get("stat"), body.get("name")) for ((path, body),) in asked] == [
        ("heatmap", UID, "zeros", None),
        ("series", None, None, None),
        ("histogram", UID, None, "a.*"),
    ]
    assert panels.of_panel({"metric": "loss"}, []) == []


@pytest.mark.parametrize(("last_step", "tau"), [(None, 0), (99, 0), (100, 1), (19_999, 100), (50_000, 500)])
def test_a_run_is_smoothed_over_about_a_hundredth_of_its_steps(last_step: int | None, tau: int) -> None:
    assert panels.default_tau(last_step) == tau


def test_curves_of_a_run_lie_along_what_define_metric_said_and_those_of_stability_along_steps_too() -> None:
    run = {**RUN, "world_size": 1, "definitions": {"acc": {"step_metric": "epoch"}, "loss": {"step_metric": "epoch"}}}
    asked = [
        (body["items"][0]["metric"], body["x"].get("metric")) for _, body in panels.of_run(run, ["acc", "loss", "lr"])
    ]

    assert asked == [("acc", "epoch"), ("loss", "epoch"), ("loss", None), ("lr", None)]
