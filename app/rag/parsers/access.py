"""How a file is opened: the passwords to try, and how deep it lies in other files."""

from dataclasses import dataclass, replace
from typing import Self

from app.errors import ParseFailed

MAX_DEPTH = 2  # a ZIP in a mail is read, and what is in that; a file may hold itself without end


@dataclass(frozen=True, slots=True)
class Access:
    """`depth` is 0 for a file itself, and one more for each file around it."""

    passwords: tuple[str, ...] = ()
    depth: int = 0

    @property
    def is_deepest(self) -> bool:
        """Whether files inside this one are only named."""
        return self.depth >= MAX_DEPTH

    def inside(self) -> Self:
        """How a file in this one is opened."""
        return replace(self, depth=self.depth + 1)


def protected(name: str) -> ParseFailed:
    """The error for a file that none of the passwords opens."""
    return ParseFailed(
        f"“{name}” is protected by a password: add the password to FOLIO_DOCUMENT_PASSWORDS and "
        "try again, or save the file without it"
    )
