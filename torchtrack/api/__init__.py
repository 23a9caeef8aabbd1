"""Reading runs: `Api("torchtrack-runs").run("llm/baseline").history(["loss"])`."""

from torchtrack.api.run import Attempt, Event, Run
from torchtrack.api.source import Api

__all__ = ["Api", "Attempt", "Event", "Run"]
