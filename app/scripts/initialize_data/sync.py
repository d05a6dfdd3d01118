"""Brings a library in step with files: adds, follows, deletes, and waits for the end."""

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from app.domain import DocumentStatus
from app.errors import FolioError, NotFound, Unavailable, UnsupportedFormat
from app.scripts.initialize_data.files import FoundFile, walk
from app.scripts.initialize_data.libraries import FOLDER, Known, Library, Outcome, State
from app.scripts.initialize_data.report import Report, printable

FINAL = (DocumentStatus.READY, DocumentStatus.FAILED)
POLL_S = 0.3
NUM_POLLED = 20
STALL_TIMEOUT_S = 1800  # without a change of any document: longer than the longest step


def synchronise(
    library: Library,
    roots: Sequence[Path],
    files: Sequence[FoundFile],
    console: Console,
    *,
    delete: bool,
) -> Report:
    """One pass: documents follow moved files, others are added, and with `delete` deleted."""
    report = Report()
    follow_moved(library, roots, files, report)
    Ingest(library, report, console).run(files, len(files))
    if delete:
        delete_gone(library, roots, report)
    return report


class Ingest:
    """Adds files to a library and waits for them, under a progress bar."""

    def __init__(self, library: Library, report: Report, console: Console) -> None:
        self._library = library
        self._report = report
        self._pending: dict[str, tuple[FoundFile, Outcome, State]] = {}
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(
            *columns, TextColumn("{task.description}"), console=console, transient=True
        )
        self._task = self._progress.add_task("")

    def run(self, files: Iterable[FoundFile | None], total: int) -> None:
        """Return when each file is searchable or has failed; None is one with nothing to add."""
        self._progress.update(self._task, total=total)
        with self._progress:
            for file in files:
                if file is None:
                    self._progress.advance(self._task)
                    continue
                self._tell(f"adding {file.path.name}")
                self._add(file)
            self._wait()

    def _add(self, file: FoundFile) -> None:
        try:
            outcome, state = self._library.add(file)
        except Unavailable:
            raise
        except UnsupportedFormat as error:
            if file.is_named:
                self._fail(file, str(error))
            else:
                self._report.skipped[file.path.suffix.lower() or "no suffix"] += 1
                self._progress.advance(self._task)
        except FolioError as error:
            self._fail(file, str(error))
        else:
            self._pending[state.id] = (file, outcome, state)
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
        file, outcome, before = self._pending[document_id]
        try:
            state = self._library.state(document_id)
        except NotFound:
            del self._pending[document_id]
            self._fail(file, "somebody deleted the document meanwhile")
            return True
        if state == before:
            return False
        self._pending[document_id] = (file, outcome, state)
        self._tell(f"{state.stage} {file.path.name}")
        self._settle(state)
        return True

    def _settle(self, state: State) -> None:
        """Note how a document ended, if it has."""
        if state.status not in FINAL:
            return
        file, outcome, _ = self._pending.pop(state.id)
        if state.status == DocumentStatus.FAILED:
            self._fail(file, state.error or "no reason was given")
        else:
            self._report.note(file.place, outcome)
            if state.error:
                self._report.warnings.append(f"{printable(file.place)}: {state.error}")
            self._progress.advance(self._task)

    def _fail(self, file: FoundFile, reason: str) -> None:
        self._report.fail(file.place, reason)
        self._progress.advance(self._task)

    def _tell(self, text: str) -> None:
        self._progress.update(self._task, description=printable(text)[:60].replace("[", r"\["))


def delete_gone(library: Library, roots: Sequence[Path], report: Report) -> None:
    """Delete the documents of files that are gone from the named folders.

    A folder without any file is left alone: it may be a disk that is not mounted.
    """
    gone = gone_documents(library.known(FOLDER), roots)
    for root in roots:
        if root.is_dir() and next(walk(root), None) is None:
            report.warnings.append(f"{root} has no files at all: nothing was deleted for it")
        elif root.is_dir():
            for path in [path for path in gone if Path(path).is_relative_to(root)]:
                library.delete(gone.pop(path).id)
                report.places["deleted"].append(path)


def follow_moved(
    library: Library, roots: Sequence[Path], files: Sequence[FoundFile], report: Report
) -> None:
    """Let documents follow their files: gone from one place, the same bytes at a new one.

    The document keeps its id, its chunks and the citations of earlier answers.
    """
    known = library.known(FOLDER)
    gone = gone_documents(known, roots)
    sizes = {document.num_bytes for document in gone.values()}
    for file in files:
        if not gone or str(file.path) in known or size_of(file.path) not in sizes:
            continue
        content_hash = hash_of(file.path)
        old = next((p for p, d in gone.items() if d.content_hash == content_hash), None)
        if old is not None:
            library.move(gone.pop(old).id, str(file.path))
            report.places["moved"].append(str(file.path))


def gone_documents(known: Mapping[str, Known], roots: Sequence[Path]) -> dict[str, Known]:
    """The documents of the named folders whose files are not there any more, by path."""
    return {
        path: document
        for path, document in known.items()
        if any(Path(path).is_relative_to(root) for root in roots) and is_gone(Path(path))
    }


def is_gone(path: Path) -> bool:
    """Whether there is certainly no such file: one that may not be looked at may be there."""
    try:
        return not path.exists()
    except OSError:
        return False


def size_of(path: Path) -> int:
    """In bytes; -1 for a file that went away meanwhile, which adding it will say."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def hash_of(path: Path) -> str:
    """SHA-256 of a file's bytes; empty when it cannot be read, which adding it will say."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
