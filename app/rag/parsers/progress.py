"""How a parser that needs seconds a page says that it is getting on."""

from collections.abc import Callable

Report = Callable[[int, int], None]  # takes the page that was read, and how many there are


def ignore_progress(_page: int, _num_pages: int) -> None:
    """The report of those who do not ask for one."""
