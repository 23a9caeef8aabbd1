"""What the callbacks of tree libraries share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchtrack.compat.plot import Chart, bar
from torchtrack.compat.tables import Table


def importance(of: Mapping[str, Any]) -> Chart:
    """Features and how much they matter, the most first."""
    rows = sorted(((name, float(value)) for name, value in of.items()), key=lambda row: -row[1])
    table = Table(columns=["Feature", "Importance"], data=[list(row) for row in rows])
    return bar(table, "Feature", "Importance", "Feature Importance")
