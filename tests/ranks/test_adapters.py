"""The worked example of the guide on optimizers that are not torch's, as it is printed there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torchtrack
from torchtrack.testing import ranks

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "adapters.md"
SIZES = {"0.weight": 128, "0.bias": 16, "2.weight": 48, "2.bias": 3}


def run_guide(folder: Path, steps: int) -> str:
    [code] = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    module: dict[str, Any] = {"__name__": "zero"}
    exec(compile(code, str(GUIDE), "exec"), module)  # noqa: S102  # the guide's own text
    uid: str = module["main"](folder, steps)
    return uid


def test_every_parameter_of_the_guides_optimizer_is_counted_once(tmp_path: Path) -> None:
    uid = ranks(2, init=True).run(run_guide, tmp_path, 40)[0]
    run = torchtrack.Api(tmp_path).run(uid)
    for kind in ("gradient", "parameter"):
        rows = run.tensors(kind).to_pylist()
        assert {row["name"]: row["numel"] for row in rows} == SIZES
        assert sorted({row["sample"] for row in rows}) == list(range(40))
        assert len(rows) == 40 * len(SIZES)
        assert all((row["count"], row["coverage"]) == (row["numel"], 1.0) for row in rows)
        assert max(row["ranks"] for row in rows) == 2
