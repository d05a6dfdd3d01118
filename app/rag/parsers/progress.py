"""How a parser that needs seconds a page says that it is getting on."""

from collections.abc import Callable

Report = Callable[[str], None]  # takes where it is, as "page 3 of 40"


def ignore_progress(_: str) -> None:
    """The report of those who do not ask for one."""
