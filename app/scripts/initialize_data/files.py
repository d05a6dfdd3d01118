"""Finding the files that are to be added."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file to add; `is_named` when the user named it itself and not a folder or list above it.

    A page from the web has an address, and lies at `path` for the moment.
    """

    path: Path
    is_named: bool
    url: str = ""

    @property
    def place(self) -> str:
        """What it is known by: its address, or the path."""
        return self.url or str(self.path)


def ignore(problem: str) -> None:
    """For callers who do not tell of folders that cannot be read."""


def find_files(roots: Sequence[Path], warn: Callable[[str], None] = ignore) -> Iterator[FoundFile]:
    """Named files, and all under named folders but hidden ones; each once.

    `warn` is told of folders that cannot be read.
    """
    seen: set[Path] = set()
    for root in roots:
        for path in walk(root, warn) if root.is_dir() else [root]:
            if path not in seen:
                seen.add(path)
                yield FoundFile(path, is_named=path == root)


def walk(folder: Path, warn: Callable[[str], None] = ignore) -> Iterator[Path]:
    """Files in order; links to folders are not followed, so that there is an end."""

    def on_error(error: OSError) -> None:
        warn(f"the folder {error.filename} cannot be read: {error.strerror}")

    for parent, folders, names in os.walk(folder, onerror=on_error):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            if not name.startswith(".") and path.is_file():
                yield path


def changed_files(roots: Sequence[Path], changed: Iterable[Path]) -> list[FoundFile]:
    """Those of the changed paths that are files to add; all under a folder that is new."""
    wanted = sorted(
        path for path in changed if path.exists() and any(is_inside(path, root) for root in roots)
    )
    return [FoundFile(file.path, is_named=file.path in roots) for file in find_files(wanted)]


def is_inside(path: Path, root: Path) -> bool:
    """Whether walking the root would come by this path: it is the root, or under it and shown."""
    if not path.is_relative_to(root):
        return False
    return not any(part.startswith(".") for part in path.relative_to(root).parts)
