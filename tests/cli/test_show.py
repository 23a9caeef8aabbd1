"""`torchtrack show`, and what it draws with."""

from __future__ import annotations

import json
import math
import re
import socket
from pathlib import Path

import numpy as np
import pytest

from tests.api.journals import UID, RankJournal
from tests.cli.conftest import Cli
from tests.runs import begin
from torchtrack.cli import common, draw
from torchtrack.histogram import Histogram
from torchtrack.server.shown import ADDRESS, index_folder


@pytest.mark.parametrize("width", [80, 120, 160])
def test_show_says_what_matters_and_fits_the_terminal(cli: Cli, runs: Path, width: int) -> None:
    result = cli("show", "baseline", width=width)
    assert result.exit_code == 0
    text = result.stdout
    for part in (
        "calm-otter-7  ✓ finished",
        UID,
        "2 ranks on node0",
        "#ablation",
        "Half the warmup.",
        "python train.py",
    ):
        assert part in text
    for part in ("lr", "3e-4", "loss", "watch/grad_norm", "◆ loss_spike", "step 17", "dropped rows: 0 · damaged: none"):
        assert part in text
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text


def test_show_draws_tensors_in_natural_order_with_coverage_only_if_it_is_not_whole(cli: Cli, runs: Path) -> None:
    text = cli("show", "baseline", width=120).stdout
    assert "Gradients  step 10 · 2 samples · pre_clip" in text
    assert text.index("layers.2.weight") < text.index("layers.10.weight")
    assert "cover" not in text
    with RankJournal(runs, "00ff00ff00ff00ff", world_size=2) as rank:
        rank.about(name="half")
        rank.tensor(0, "w", np.ones(5), numel=10, covers=":0-5")
    assert re.search(r"w .*1\.00.* 50%", cli("show", "half", width=120).stdout)


def test_show_marks_what_is_not_finite(cli: Cli, runs: Path) -> None:
    with RankJournal(runs, "00ff00ff00ff00ff") as rank:
        rank.about(name="broken")
        rank.log(0, {"loss": math.nan})
        rank.tensor(0, "w", [1.0, math.nan, math.inf])
        rank.writer.gap(7, "disk full", 0, 1)
    text = cli("show", "broken").stdout
    assert "1 not finite" in text
    assert "non-finite" in text
    assert "dropped rows: 7" in text


def test_params_and_name_choose_the_tensors(cli: Cli, runs: Path) -> None:
    text = cli("show", "baseline", "--params", "1").stdout
    assert "1 more: --params 2 shows all" in text
    assert "layers.10" not in cli("show", "baseline", "--name", "layers.2.*").stdout
    assert "Gradients" not in cli("show", "baseline", "--params", "0").stdout
    result = cli("show", "baseline", "--name", "nothing*")
    assert result.exit_code == 1
    assert "no gradient tensors that match 'nothing*'" in result.stderr


def test_last_is_the_newest_run_and_the_default(cli: Cli, runs: Path) -> None:
    assert "red-fox-1" in cli("show", "last").stdout
    assert "red-fox-1" in cli("show").stdout


def test_show_json_is_strict_json(cli: Cli, runs: Path) -> None:
    shown = json.loads(cli("show", "baseline", "--json").stdout)
    assert shown["config"]["model"] == {"width": 64}
    assert shown["summary"]["loss"] == "NaN"
    assert [tensor["name"] for tensor in shown["tensors"]] == ["layers.2.weight", "layers.10.weight"]
    assert "loss_spike" in [finding["rule"] for finding in shown["findings"]]
    assert shown["attempts"][0]["world_size"] == 2


def test_an_unknown_run_names_the_nearest_without_a_traceback(cli: Cli, runs: Path) -> None:
    result = cli("show", "basline")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: no run 'basline'")
    assert f"{UID}  llm/calm-otter-7" in result.stderr


def test_a_run_that_recorded_nothing_can_be_shown(cli: Cli, tmp_path: Path) -> None:
    with RankJournal(tmp_path / "runs"):
        pass
    result = cli("show")
    assert result.exit_code == 0
    assert "uncategorized" in result.stdout


def test_a_sparkline_has_its_width_and_marks_what_is_not_finite() -> None:
    assert draw.sparkline(np.arange(14.0), 7) == "▁▂▃▄▅▆▇"
    assert draw.sparkline(np.array([1.0, math.nan, 2.0]), 5) == "▁!▇  "
    assert draw.sparkline(np.ones(3), 3) == "▄▄▄"
    assert draw.sparkline(np.zeros(0), 3) == "   "


def test_a_curve_rises_from_the_lower_left_to_the_upper_right() -> None:
    y = np.arange(8.0)
    top, bottom = draw.curve(y, y, y, first=0, last=7, width=4, height=2)
    assert (top, bottom) == ("  ⡠⠊", "⡠⠊  ")


def test_a_spike_in_a_quiet_bucket_is_drawn_and_noise_is_not() -> None:
    mean = np.full(9, 5.0)
    low, high = mean - 1, mean + 1
    high[4] = 50.0
    drawn_low, drawn_high = draw.with_spikes(low, mean, high)
    assert drawn_high.tolist() == [5.0] * 4 + [50.0] + [5.0] * 4
    assert drawn_low.tolist() == [5.0] * 9


def test_bars_show_sizes_of_both_signs_and_keep_what_is_outside_at_the_ends() -> None:
    octaves = draw.octaves(Histogram.of([1.0, -1.5, 4.0, 2.0**-100, -(2.0**30)]).counts)
    assert octaves[56] == 2
    assert octaves[58] == 1
    assert octaves[0] == octaves[-1] == 1
    assert draw.bars(octaves, 56, 59, 3) == "▇ ▅"
    low, high = draw.window([octaves], 24)
    assert (high - low) % 24 == 0
    assert low <= 0 < 80 <= high or (low, high) == (0, 96)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (2.05123, "2.051"),
        (51239.4, "51239"),
        (3e-4, "3.000e-4"),
        (1.5e9, "1.500e9"),
        (7, "7"),
        (True, "True"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        ("adamw", "adamw"),
        (0.05, "0.05000"),
    ],
)
def test_numbers_have_four_significant_digits(value: object, text: str) -> None:
    assert common.number(value) == text


def test_settings_lose_their_trailing_zeros() -> None:
    assert [common.short(value) for value in (3e-4, 0.1, 512, 1.0, 1e10)] == ["3e-4", "0.1", "512", "1", "1e10"]


def test_show_links_to_the_page_while_one_is_there_and_keeps_its_token(
    cli: Cli, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    index_folder(runs).mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        (index_folder(runs) / ADDRESS).write_text(json.dumps({"url": f"{address}#token=tt_secret"}))
        text = cli("show", "baseline").stdout
    assert f"page: {address}#/p/" in text
    assert f"/r/{UID}" in text
    assert "tt_secret" not in text
    assert "page:" not in cli("show", "baseline").stdout


def test_a_metric_is_shown_along_what_define_metric_says(cli: Cli, tmp_path: Path) -> None:
    run = begin(dir=tmp_path / "defined")
    run.define_metric("val/*", step_metric="tokens")
    for step in range(20):
        run.log({"tokens": 1000.0 * step, "val/loss": 1.0 / (step + 1)})
    run.finish(quiet=True)

    assert "along tokens, 0 to 19000" in cli("show", "--dir", str(tmp_path / "defined"), width=120).output


def test_a_metric_that_is_not_synced_is_shown_where_both_were_logged(cli: Cli, tmp_path: Path) -> None:
    run = begin(dir=tmp_path / "defined")
    run.define_metric("loss", step_metric="epoch", step_sync=False)
    run.define_metric("usual/loss", step_metric="epoch")
    for step in range(20):
        run.log({"loss": 1.0 / (step + 1), "usual/loss": 1.0, **({"epoch": step / 2} if step in (4, 8) else {})})
        run.log({"epoch": 100.0 + step})
    run.finish(quiet=True)
    text = cli("show", "--dir", str(tmp_path / "defined"), width=120).output

    assert re.findall(r"along epoch, ([\d.]+) to ([\d.]+)", text) == [("2.000", "4.000"), ("2.000", "118.5")]
