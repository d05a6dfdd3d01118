"""Adds files and folders to the library: `python -m app.scripts.initialize_data PATH…`.

It works by itself on a data folder that no appliance uses; to one that runs it sends the files.
Either way a file is known by its absolute path, so another run adds nothing twice.
Exit codes: 0 all is searchable, 1 a file failed, 2 it could not begin or go on.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from app import log
from app.config import Settings
from app.domain import DocumentStatus
from app.errors import FolioError, InvalidInput, NotFound, Unavailable, UnsupportedFormat
from app.scripts.initialize_data.libraries import Library, Outcome, State, open_library

DEFAULT_COLLECTION = "default"
FINAL = (DocumentStatus.READY, DocumentStatus.FAILED)
POLL_S = 0.3
NUM_POLLED = 20
STALL_TIMEOUT_S = 1800  # without a change of any document: longer than the longest step
CANNOT_GO_ON = 2
console = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file to add; `is_named` when the user named it itself and not a folder above it."""

    path: Path
    is_named: bool


@dataclass(slots=True)
class Report:
    """What happened, by kind, and why."""

    done: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)  # reasons by path
    skipped: Counter[str] = field(default_factory=Counter)  # by suffix
    warnings: list[str] = field(default_factory=list)


def main(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders.", show_default=False)],
    collection: Annotated[
        str, typer.Option(help="Knowledge base; made where there is none of this name.")
    ] = DEFAULT_COLLECTION,
    data_dir: Annotated[
        Path | None, typer.Option(help="Data folder, where not that of the settings.")
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete documents whose files are gone from PATH.")
    ] = False,
    url: Annotated[
        str | None,
        typer.Option(help="Address of a running appliance that gets the files sent."),
    ] = None,
) -> None:
    """Add files and folders to Folio's documents. Files that have not changed are passed over."""
    started = time.monotonic()
    report = Report()
    try:
        settings = read_settings(data_dir)
        roots = [existing(path) for path in paths]
        files = list(find_files(roots))
        if not files:
            report.warnings.append("no files were found")
        with closing(open_library(settings, url, collection, console)) as library:
            Ingest(library, report).run(files)
            if prune:
                delete_gone(library, roots, files, report)
    except FolioError as error:
        console.print(f"init-data: {error}", style="red")
        raise typer.Exit(CANNOT_GO_ON) from error
    except KeyboardInterrupt:
        console.print("Stopped. What is queued goes on at the next start, or run this again.")
        raise typer.Exit(CANNOT_GO_ON) from None
    show(report, time.monotonic() - started)
    if report.failed:
        raise typer.Exit(1)


def existing(path: Path) -> Path:
    """The absolute path, links resolved; InvalidInput when there is nothing."""
    resolved = path.expanduser().resolve()
    if not resolved.exists():
        raise InvalidInput(f"there is no {path}")
    return resolved


def find_files(roots: Sequence[Path]) -> Iterator[FoundFile]:
    """Named files, and all under named folders but hidden ones; each once."""
    seen: set[Path] = set()
    for root in roots:
        for path in walk(root) if root.is_dir() else [root]:
            if path not in seen:
                seen.add(path)
                yield FoundFile(path, is_named=path == root)


def walk(folder: Path) -> Iterator[Path]:
    """Files in order; links to folders are not followed, so that there is an end."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            if not name.startswith(".") and path.is_file():
                yield path


class Ingest:
    """Adds files to a library and waits for them, under a progress bar."""

    def __init__(self, library: Library, report: Report) -> None:
        self._library = library
        self._report = report
        self._pending: dict[str, tuple[Path, Outcome, State]] = {}
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(
            *columns, TextColumn("{task.description}"), console=console, transient=True
        )
        self._task = self._progress.add_task("")

    def run(self, files: Sequence[FoundFile]) -> None:
        """Return when each file is searchable or has failed."""
        self._progress.update(self._task, total=len(files))
        with self._progress:
            for file in files:
                self._tell(f"adding {file.path.name}")
                self._add(file)
            self._wait()

    def _add(self, file: FoundFile) -> None:
        try:
            outcome, state = self._library.add(file.path)
        except Unavailable:
            raise
        except UnsupportedFormat as error:
            if file.is_named:
                self._fail(file.path, str(error))
            else:
                self._report.skipped[file.path.suffix.lower() or "no suffix"] += 1
                self._progress.advance(self._task)
        except FolioError as error:
            self._fail(file.path, str(error))
        else:
            self._pending[state.id] = (file.path, outcome, state)
            self._settle(state)

    def _wait(self) -> None:
        """Ask for the documents that are not final, the oldest first, until none is left."""
        changed_at = time.monotonic()
        while self._pending:
            for document_id in list(self._pending)[:NUM_POLLED]:
                if self._ask(document_id):
                    changed_at = time.monotonic()
            if time.monotonic() - changed_at > STALL_TIMEOUT_S:
                raise Unavailable(
                    f"nothing has happened for {STALL_TIMEOUT_S} s, {len(self._pending)} documents"
                    " are still queued: see the log of the appliance, then run this again"
                )
            if self._pending:
                time.sleep(POLL_S)

    def _ask(self, document_id: str) -> bool:
        """Whether the document has moved on."""
        path, outcome, before = self._pending[document_id]
        try:
            state = self._library.state(document_id)
        except NotFound:
            del self._pending[document_id]
            self._fail(path, "somebody deleted the document meanwhile")
            return True
        if state == before:
            return False
        self._pending[document_id] = (path, outcome, state)
        self._tell(f"{state.stage} {path.name}")
        self._settle(state)
        return True

    def _settle(self, state: State) -> None:
        """Note how a document ended, if it has."""
        if state.status not in FINAL:
            return
        path, outcome, _ = self._pending.pop(state.id)
        if state.status == DocumentStatus.FAILED:
            self._fail(path, state.error or "no reason was given")
        else:
            self._report.done[outcome] += 1
            self._progress.advance(self._task)

    def _fail(self, path: Path, reason: str) -> None:
        self._report.failed[printable(str(path))] = reason
        self._progress.advance(self._task)

    def _tell(self, text: str) -> None:
        self._progress.update(self._task, description=printable(text)[:60].replace("[", r"\["))


def printable(text: str) -> str:
    """A name may hold bytes that are no text, which no terminal takes."""
    return text.encode(errors="replace").decode()


def delete_gone(
    library: Library, roots: Sequence[Path], files: Sequence[FoundFile], report: Report
) -> None:
    """Delete the documents of files that are gone from the named folders.

    A folder without any file is left alone: it may be a disk that is not mounted.
    """
    found = {str(file.path) for file in files}
    for root in roots:
        if root.is_dir() and not any(file.path.is_relative_to(root) for file in files):
            report.warnings.append(f"{root} has no files at all: nothing was deleted for it")
        elif root.is_dir():
            for path, document_id in library.paths().items():
                is_gone = path not in found and not Path(path).exists()
                if is_gone and Path(path).is_relative_to(root):
                    library.delete(document_id)
                    report.done["deleted"] += 1


def show(report: Report, seconds: float) -> None:
    """The summary: what happened, and why."""
    table = Table("documents", f"in {seconds:.1f} s")
    for kind in ("added", "changed", "unchanged", "deleted"):
        if report.done[kind]:
            table.add_row(kind, str(report.done[kind]))
    if report.skipped:
        suffixes = ", ".join(f"{suffix} {n}" for suffix, n in report.skipped.most_common(12))
        table.add_row(
            "skipped", f"{report.skipped.total()} of formats that are not read: {suffixes}"
        )
    if report.failed:
        table.add_row("failed", str(len(report.failed)), style="red")
    console.print(table)
    for path, reason in report.failed.items():
        console.print(f"failed: {path}\n        {reason}", style="red", markup=False)
    for warning in report.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)


def read_settings(data_dir: Path | None) -> Settings:
    """The settings of the appliance; InvalidInput names those that are wrong."""
    given: dict[str, Any] = {"data_dir": data_dir} if data_dir else {}
    try:
        settings = Settings(**given)
    except ValidationError as error:
        problems = (f"FOLIO_{p['loc'][0]}".upper() + f": {p['msg']}" for p in error.errors())
        raise InvalidInput(f"wrong settings: {'; '.join(problems)}") from error
    log.configure("error", settings.log_format)
    return settings


if __name__ == "__main__":
    typer.run(main)
