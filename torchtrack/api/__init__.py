"""Reading runs: `Api("torchtrack-runs").run("llm/baseline").history(["loss"])`."""

from torchtrack.api.facts import Attempt, Event
from torchtrack.api.run import Run
from torchtrack.api.source import Api
from torchtrack.stability import Finding

__all__ = ["Api", "Attempt", "Event", "Finding", "Run"]
