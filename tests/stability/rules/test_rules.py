"""Each rule: what it sees, and what looks like it and is not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.stability import steps
from torchtrack.stability import Facts, Step
from torchtrack.stability.rules import default_rules
from torchtrack.stability.step import Seen

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(0, 0.1, 400)


def rules_of(found: list[Any], severity: str = "") -> list[str]:
    return [one.rule for one in found if severity in ("", one.severity)]


def samples(kind: str, values: list[dict[str, Any]], facts: Facts | None = None, **more: Any) -> list[Step]:
    """A sample a step."""
    return [
        Step(at, tensors={kind: steps.tensors(held, **more)}, facts=facts or Facts()) for at, held in enumerate(values)
    ]


@pytest.mark.parametrize("name", ["watch/grad_norm", "grad_norm", "train/grad_norm"])
def test_a_gradient_norm_eight_times_its_median_is_a_spike(name: str) -> None:
    norms = [*steps.noise(40), 8.0, *steps.noise(10)]
    (one,) = steps.run(steps.scalars(name, norms))
    assert (one.rule, one.first_step, one.is_open) == ("gradient_spike", 40, False)


@pytest.mark.parametrize("factors", [steps.noise(200, 0.3), np.linspace(1, 0.01, 200), np.geomspace(0.1, 2, 200)])
def test_a_norm_that_is_noisy_falls_or_warms_up_is_no_spike(factors: Any) -> None:
    assert steps.run(steps.scalars("watch/grad_norm", factors)) == []


def test_a_spike_names_the_tensors_that_rose_most() -> None:
    rows = [
        Step(at, {"watch/grad_norm": 50.0 if at == 30 else 1.0}, tensors={"gradient": steps.tensors(held)})
        for at in range(32)
        for held in [{"a": WEIGHT, "b": WEIGHT * (50.0 if at == 30 else 1.0), "c": WEIGHT}]
    ]
    (one,) = steps.run(rows)
    assert one.names == ("b",)


def test_a_loss_that_jumps_and_comes_back_is_a_spike_alone() -> None:
    losses = [*np.linspace(2, 1, 60), *np.full(20, 1.0), 4.0, 3.0, *np.full(60, 1.0)]
    assert rules_of(steps.run(steps.scalars("loss", losses))) == ["loss_spike"]


def test_ripples_of_a_loss_near_zero_are_nothing() -> None:
    losses = [*np.geomspace(2, 1e-3, 100), *1e-3 * steps.noise(300, 1.0)]
    assert steps.run(steps.scalars("loss", losses)) == []


def test_a_loss_that_rises_for_good_above_its_start_is_critical() -> None:
    losses = [*np.linspace(2, 1, 100), *np.linspace(1, 6, 100)]
    found = steps.run(steps.scalars("train/loss", losses))
    assert [(one.rule, one.severity) for one in found] == [("loss_divergence", "critical")]


def test_a_part_of_a_loss_may_go_either_way() -> None:
    assert steps.run(steps.scalars("d_loss", [*np.linspace(2, 1, 100), *np.linspace(1, 6, 100)])) == []


def test_overfitting_is_never_critical() -> None:
    found = steps.run(steps.scalars("val/loss", [*np.linspace(2, 1, 100), *np.linspace(1, 6, 100)]))
    assert [(one.rule, one.severity) for one in found] == [("loss_divergence", "warning")]


def test_a_loss_that_stays_is_a_note() -> None:
    losses = [*np.linspace(2, 1, 64), *steps.noise(700, 0.005)]
    assert [(one.rule, one.severity) for one in steps.run(steps.scalars("loss", losses))] == [("loss_plateau", "info")]


def test_gradients_that_compound_are_a_trend_and_warm_up_is_none() -> None:
    growing = [{"a": WEIGHT * factor} for factor in [*steps.noise(20), *np.geomspace(1, 1e4, 40)]]
    assert rules_of(steps.run(samples("gradient", growing))) == ["exploding_trend"]
    assert steps.run(samples("gradient", [{"a": WEIGHT * min(at / 8, 1.0)} for at in range(1, 60)])) == []


@pytest.mark.parametrize("kind", ["gradient", "activation"])
def test_a_layer_that_goes_to_zero_is_dead_after_two_samples(kind: str) -> None:
    rows = [{"a": WEIGHT, "b": WEIGHT * (at < 10)} for at in range(12)]
    (one,) = steps.run(samples(kind, rows))
    assert (one.rule, one.first_step, one.names, one.kind) == ("dead_layer", 10, ("b",), kind)
    assert steps.run(samples(kind, rows[:-1])) == []


def test_a_layer_that_never_had_a_gradient_is_not_dead() -> None:
    assert steps.run(samples("gradient", [{"a": WEIGHT, "b": WEIGHT * 0} for _ in range(12)])) == []


def test_a_gradient_that_vanishes_beside_others_is_found_and_one_that_all_share_is_not() -> None:
    alone = [{"a": WEIGHT, "b": WEIGHT, "c": WEIGHT * (1.0 if at < 10 else 1e-5)} for at in range(14)]
    (one,) = steps.run(samples("gradient", alone))
    assert (one.rule, one.names) == ("dead_layer", ("c",))
    everywhere = [dict.fromkeys("abc", WEIGHT * (1.0 if at < 10 else 1e-05)) for at in range(14)]
    assert steps.run(samples("gradient", everywhere)) == []


@pytest.mark.parametrize(("coefficient", "severity"), [(0.5, None), (0.05, "info"), (0.001, "warning")])
def test_clipping_that_cuts_all_away_is_said(coefficient: float, severity: str | None) -> None:
    found = steps.run(steps.scalars("watch/clip_coef", coefficient * steps.noise(40)))
    assert [one.severity for one in found] == ([] if severity is None else [severity])


@pytest.mark.parametrize(("ratio", "severity"), [(1e-5, "info"), (1e-3, None), (3e-2, "info"), (0.5, "warning")])
def test_steps_of_the_wrong_size_are_said(ratio: float, severity: str | None) -> None:
    rows = {"update": steps.tensors({"a": WEIGHT * ratio}), "parameter": steps.tensors({"a": WEIGHT})}
    found = steps.run(Step(at, tensors=rows) for at in range(10))
    assert [(one.rule, one.severity) for one in found] == ([] if severity is None else [("update_ratio", severity)])


def test_what_starts_at_zero_has_no_ratio_yet() -> None:
    rows = {"update": steps.tensors({"a": WEIGHT * 1e-4}), "parameter": steps.tensors({"a": WEIGHT * 1e-4})}
    assert steps.run(Step(at, tensors=rows) for at in range(10)) == []


@pytest.mark.parametrize(("low", "severity"), [(2.0**14, None), (2.0**4, "warning"), (2.0**-4, "critical")])
def test_a_loss_scale_that_collapses_is_found(low: float, severity: str | None) -> None:
    falling = 2.0 ** np.arange(16, math.log2(low) - 1, -1)
    found = steps.run(steps.scalars("amp/loss_scale", [*np.full(50, 2.0**16), *falling]))
    assert [one.severity for one in found] == ([] if severity is None else [severity])


def test_a_nan_names_the_last_layer_of_the_forward_pass_first() -> None:
    broken = np.where(np.arange(400) == 7, np.nan, WEIGHT)
    order = Facts(order=("a", "b", "c"))
    rows = [{"a": WEIGHT, "b": WEIGHT, "c": WEIGHT}, {"a": broken, "b": broken, "c": WEIGHT}]
    (one,) = steps.run(samples("gradient", rows, order))
    assert (one.rule, one.severity, one.first_step, one.names) == ("non_finite", "critical", 1, ("b", "a"))
    assert one.evidence["elements"] == {"b": 1, "a": 1}


def test_a_step_that_a_scaler_left_out_is_a_note() -> None:
    rows = samples("gradient", [{"a": WEIGHT + np.inf}], stage="skipped")
    assert [one.severity for one in steps.run(rows)] == ["info"]


def test_a_loss_that_is_nan_is_critical_and_names_the_rank() -> None:
    (one,) = steps.run([Step(3, {"loss": math.nan}, {"loss": {0: 1.0, 1: math.nan}})])
    assert (one.rule, one.severity, one.first_step, one.ranks) == ("non_finite", "critical", 3, (1,))


@pytest.mark.parametrize(("scale", "found"), [(1.0, False), (2.0**-20, True)])
def test_gradients_too_small_for_their_format_are_found_in_one_sample(scale: float, found: bool) -> None:
    facts = Facts(formats={"a": "fp16"})
    rows = samples("gradient", [{"a": WEIGHT * scale, "b": WEIGHT * scale}], facts)
    assert [(one.rule, one.names) for one in steps.run(rows)] == [("format_headroom", ("a",))] * found


def test_a_loss_scale_lifts_gradients_out_of_underflow() -> None:
    rows = {"gradient": steps.tensors({"a": WEIGHT * 2.0**-20})}
    assert rules_of(steps.run([Step(0, {"loss_scale": 1.0}, tensors=rows)])) == ["format_headroom"]
    assert steps.run([Step(0, {"loss_scale": 65536.0}, tensors=rows)]) == []


def by_rank(name: str, values: Any) -> list[Step]:
    """Values [steps, ranks] of one metric."""
    return [Step(at, {}, {name: dict(enumerate(own.tolist()))}) for at, own in enumerate(values)]


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_a_rank_with_twice_the_loss_is_named_with_the_step_it_began(ranks: int) -> None:
    losses = np.exp(RNG.normal(0, 0.2, (60, ranks)))
    losses[30:, 1] *= 2
    (one,) = steps.run(by_rank("loss", losses[:50]))
    assert (one.rule, one.ranks) == ("rank_skew", (1,))
    assert abs(one.first_step - 30) <= 3


def test_a_rank_whose_own_gradients_are_larger_is_named_from_their_norm_before_the_average() -> None:
    norms = np.exp(RNG.normal(0, 0.2, (60, 4)))
    norms[20:, 2] *= 3
    (one,) = steps.run(by_rank("watch/local_grad_norm", norms))
    assert (one.rule, one.severity, one.ranks) == ("rank_skew", "warning", (2,))


@pytest.mark.parametrize("name", ["tokens", "train/num_tokens", "tokens_per_second", "samples"])
def test_a_rank_that_has_more_of_the_data_is_noted(name: str) -> None:
    tokens = np.full((40, 4), 4096.0)
    tokens[10:, 3] = 6000.0
    (one,) = steps.run(by_rank(name, tokens))
    assert (one.rule, one.severity, one.ranks) == ("rank_skew", "info", (3,))


def memory(values: Any) -> list[Step]:
    """[rounds, ranks] of memory: each rank tells its own at a step of its own."""
    places = [(at, rank) for at in range(len(values)) for rank in range(len(values[0]))]
    name = "system/process/memory_rss_bytes"
    return [Step(step, {}, {name: {rank: values[at][rank]}}) for step, (at, rank) in enumerate(places)]


def test_a_rank_that_takes_twice_the_memory_of_the_others_is_noted_although_each_tells_at_another_step() -> None:
    used = np.full((40, 3), 2e9)
    assert steps.run(memory(used)) == []
    used[5:, 1] = 5e9
    (one,) = steps.run(memory(used))
    assert (one.rule, one.severity, one.ranks, one.names) == (
        "rank_skew", "info", (1,), ("system/process/memory_rss_bytes",)
    )  # fmt: skip


def test_a_rank_with_less_memory_than_the_others_is_none() -> None:
    used = np.full((40, 3), 2e9)
    used[5:, 1] = 5e8
    assert steps.run(memory(used)) == []


@pytest.mark.parametrize("spread", [0.1, 0.5, 1.5])
def test_ranks_that_differ_by_chance_are_alike(spread: float) -> None:
    assert steps.run(by_rank("loss", np.exp(RNG.normal(0, spread, (400, 4))))) == []


def phases(slow: int | None, ranks: int, phase: str, count: int = 40) -> list[Step]:
    """Steps in which one rank is slow in a phase and the others wait for it in the backward pass."""
    made = []
    for at in range(count):
        seconds = {
            name: 0.01 * np.exp(RNG.normal(0, 0.2, ranks)) for name in ("data", "forward", "backward", "optimizer")
        }
        if slow is not None:
            seconds[phase][slow] += 0.03
            seconds["backward"][[rank for rank in range(ranks) if rank != slow]] += 0.03
        made.append(Step(at, {}, {f"phase/{name}_s": dict(enumerate(own.tolist())) for name, own in seconds.items()}))
    return made


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("phase", ["data", "forward", "optimizer"])
def test_the_slow_rank_is_told_from_those_that_wait(ranks: int, phase: str) -> None:
    (one,) = steps.run(phases(1, ranks, phase))
    assert (one.rule, one.ranks, one.names) == ("straggler", (1,), (f"phase/{phase}_s",))
    assert one.evidence["wait"] == "backward"


def test_ranks_of_equal_speed_have_no_straggler() -> None:
    assert steps.run(phases(None, 4, "data", 300)) == []


def test_every_rule_says_what_it_is_based_on() -> None:
    for rule in default_rules():
        page = __import__(type(rule).__module__, fromlist=["_"]).__doc__ or ""
        assert all(f"{word}:" in page or f"{word}," in page for word in ("Reference", "Default", "Evidence")), rule.name


def test_a_nan_is_blamed_on_the_rank_that_had_it_before_the_average() -> None:
    bad = {"a": np.full(4, math.nan), "b": np.full(4, math.nan), "c": WEIGHT}
    seen = [Seen(3, "nonfinite", {"kind": "gradient", "first": "b", "names": ["b"], "count": 1})]
    (one,) = steps.run([Step(5, tensors={"gradient": steps.tensors(bad)}, seen=seen)])

    assert (one.rule, one.first_step, one.ranks) == ("non_finite", 5, (3,))
    assert one.names[0] == "b"
    assert "before the average they were those of rank 3" in one.why


def test_a_step_that_was_left_out_between_two_samples_is_a_warning_and_one_that_was_stopped_is_critical() -> None:
    rows = samples("gradient", [{"a": WEIGHT, "b": WEIGHT}] * 4)
    for action, severity in (("skip", "warning"), ("raise", "critical")):
        seen = [Seen(0, "nonfinite_step", {"action": action, "first": "b", "names": ["b"], "count": 1, "ranks": [1]})]
        (one,) = steps.run([*rows, Step(5, seen=seen)])
        told = (one.rule, one.severity, one.first_step, one.names, one.ranks)
        assert told == ("non_finite", severity, 5, ("b",), (1,))


@pytest.mark.parametrize(("odd", "named"), [([2], (2,)), ([], (0, 1))])
def test_replicas_that_part_are_a_critical_finding_with_the_odd_rank(odd: list[int], named: tuple[int, ...]) -> None:
    said = {"tensor": "a", "kind": "parameter", "ranks": [0, 1], "odd_ranks": odd, "text": "a differs."}
    (one,) = steps.run([Step(7, seen=[Seen(0, "replica_divergence", said)]), Step(8), Step(9)])

    assert (one.rule, one.severity, one.first_step) == ("replica_divergence", "critical", 7)
    assert (one.names, one.ranks, one.why) == (("a",), named, "a differs.")
