"""transformers.Trainer and Accelerate on two real ranks: one run, with the rows of a plain loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import torchtrack
from tests.integrations.huggingface.programs import python
from tests.integrations.huggingface.scripts.models import ACCUMULATE, BATCH, LR, SAVED_AT, STEPS

SCRIPT = Path(__file__).parent / "scripts" / "train.py"
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("huggingface")
    done = python(*LAUNCH, str(SCRIPT), str(folder / "runs"), str(folder / "checkpoints"))
    assert done.returncode == 0, done.stderr
    found = torchtrack.Api(folder / "runs").runs()
    assert len(found) == 9  # whatever the number of ranks, attempts and trackers
    return {run.project: run for run in found}


def counts(run: Any, kind: str) -> dict[tuple[int, str], tuple[list[int], list[int], float]]:
    rows = run.tensors(kind=kind).to_pylist()
    found = {(row["step"], row["name"]): (row["buckets"], row["counts"], row["norm"]) for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.parametrize("project", ["trainer", "compiled", "finding", "fsdp1", "fsdp2", "accelerate"])
@pytest.mark.parametrize("kind", ["gradient", "parameter"])
def test_histograms_are_those_of_the_plain_loop(runs: dict[str, Any], project: str, kind: str) -> None:
    truth, found = counts(runs["plain"], kind), counts(runs[project], kind)

    assert set(found) == set(truth)
    assert {step for step, _ in truth} == set(range(1, STEPS + 1))
    for key, (buckets, numbers, norm) in truth.items():
        assert found[key][:2] == (buckets, numbers), key
        assert found[key][2] == pytest.approx(norm, rel=1e-6)


def curve(run: Any, key: str) -> dict[int, float]:
    return {row["step"]: row[key] for row in run.history([key]).to_pylist() if row[key] is not None}


@pytest.mark.parametrize(
    ("project", "key"),
    [(project, "train/grad_norm") for project in ("trainer", "fsdp1", "fsdp2", "accelerate")]
    + [("trainer", "watch/grad_norm")],
)
def test_curves_are_those_of_the_plain_loop(runs: dict[str, Any], project: str, key: str) -> None:
    assert curve(runs[project], key) == pytest.approx(curve(runs["plain"], key), rel=1e-5)


@pytest.mark.parametrize("project", ["trainer", "compiled", "finding", "accelerate"])
def test_each_rank_tells_of_its_own_gradients(runs: dict[str, Any], project: str) -> None:
    key = "watch/local_grad_norm"
    truth, found = (
        {(row["rank"], row["step"]): row[key] for row in runs[name].history([key], ranks="all").to_pylist()}
        for name in ("plain", project)
    )

    assert len(truth) == 2 * STEPS
    assert found == pytest.approx(truth, rel=1e-6)


def test_what_is_computed_anew_is_seen_once(runs: dict[str, Any]) -> None:
    run = runs["checkpointed"]

    assert (run.world_size, {step for step, _ in counts(run, "gradient")}) == (2, {1, 2})
    assert curve(run, "watch/grad_norm") == pytest.approx(curve(run, "train/grad_norm"), rel=1e-5)


def test_the_loss_is_the_mean_over_ranks_at_the_trainers_step(runs: dict[str, Any]) -> None:
    assert curve(runs["trainer"], "train/loss") == pytest.approx(curve(runs["plain"], "train/loss"), abs=1e-4)


def test_a_restart_is_the_next_attempt_of_the_same_run(runs: dict[str, Any]) -> None:
    run = runs["trainer"]

    assert run.id == "trainer"
    assert (len(run.attempts), run.world_size, run.state) == (2, 2, "finished")
    assert [event.data["text"] for event in run.events("mark") if event.rank == 0] == [
        f"checkpoint-{SAVED_AT}",
        f"checkpoint-{STEPS}",
    ]


def test_evaluation_and_prediction_go_into_the_run_of_the_training(runs: dict[str, Any]) -> None:
    run = runs["trainer"]

    assert set(curve(run, "eval/loss")) == set(range(1, STEPS + 1))
    assert curve(run, "eval/loss")[STEPS] == pytest.approx(curve(run, "test/loss")[STEPS])


def test_each_step_tells_where_its_time_went(runs: dict[str, Any]) -> None:
    for phase in ("data", "training", "optimizer", "validation"):
        assert min(curve(runs["trainer"], f"phase/{phase}_s").values()) > 0
    assert {SAVED_AT, STEPS} <= {
        step for step, took in curve(runs["trainer"], "phase/checkpoint_s").items() if took > 0
    }


def test_config_has_the_arguments_of_the_training(runs: dict[str, Any]) -> None:
    config = runs["trainer"].config

    assert (config["max_grad_norm"], config["batch_size"]) == (0.5, BATCH * ACCUMULATE * 2)
    assert runs["finding"].config["batch_size"] == BATCH * ACCUMULATE * 2  # the one that fitted
    assert runs["accelerate"].config["lr"] == LR
    assert runs["checkpointed"].config["model"]["n_embd"] == 8


def test_the_best_checkpoint_is_in_the_summary(runs: dict[str, Any]) -> None:
    summary, evaluated = runs["trainer"].summary, curve(runs["trainer"], "eval/loss")

    assert Path(summary["best_model_checkpoint"]).name in (f"checkpoint-{SAVED_AT}", f"checkpoint-{STEPS}")
    assert summary["best_metric"] == pytest.approx(min(evaluated.values()))


def test_every_process_may_record_through_the_tracker_and_one_through_accelerate(runs: dict[str, Any]) -> None:
    rows = runs["accelerate"].history(["process"], ranks="all").to_pylist()
    through_accelerate = runs["accelerate"].history(["train/grad_norm"], ranks="all")

    assert {(row["rank"], row["process"]) for row in rows} == {(0, 0.0), (1, 1.0)}
    assert len(rows) == 2 * STEPS
    assert through_accelerate["rank"].to_pylist() == [0] * STEPS


def test_report_to_uses_the_run_that_the_script_has_begun(runs: dict[str, Any]) -> None:
    run = runs["report_to"]

    assert set(curve(run, "train/loss")) == {1, 2}
    assert {step for step, _ in counts(run, "gradient")} == {1}  # the default frequency
