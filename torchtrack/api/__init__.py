"""Reading runs: `Api("torchtrack-runs").run("llm/baseline").history(["loss"])`."""

from torchtrack.api.facts import Attempt, Event
from torchtrack.api.run import Run
from torchtrack.api.source import Api

__all__ = ["Api", "Attempt", "Event", "Run"]
