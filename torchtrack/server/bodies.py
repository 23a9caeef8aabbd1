"""What the bodies and paths of requests have in common."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Path
from pydantic import BaseModel, ConfigDict

HEX16: Final = "^[0-9a-f]{16}$"
"""The pattern of uids, of streams, and of ids that the server gives."""
Id = Annotated[str, Path(pattern=HEX16, description="Its id.")]


class Body(BaseModel):
    """A body that has no fields but those that are said."""

    model_config = ConfigDict(extra="forbid")
