"""Where a start stands: what loads in the background says of itself."""

from dataclasses import dataclass
from typing import Literal

Phase = Literal["starting", "ready", "failed"]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the start stands, in words for the user."""

    phase: Phase
    detail: str
