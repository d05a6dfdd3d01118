"""Measures parsers: the share of known strings found in a folder of files, by format."""

import json
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path, PurePath

from app.domain import ParsedDocument
from app.errors import FolioError
from app.rag.protocols import Parser

EXPECTED = "expected.json"


@dataclass(frozen=True, slots=True)
class FileResult:
    """What became of one file: how many of its strings were found, or why it was not read."""

    name: str
    num_expected: int
    misses: tuple[str, ...]
    num_pages: int
    seconds: float
    error: str | None = None

    @property
    def num_found(self) -> int:
        return self.num_expected - len(self.misses)


@dataclass(frozen=True, slots=True)
class FormatsReport:
    """The results of a folder."""

    files: tuple[FileResult, ...]

    @property
    def share(self) -> float:
        """Found strings of all expected ones, 0–1."""
        return _share(self.files)

    @property
    def share_by_suffix(self) -> dict[str, float]:
        suffixes = sorted({PurePath(file.name).suffix.lower() for file in self.files})
        return {
            suffix: _share([f for f in self.files if PurePath(f.name).suffix.lower() == suffix])
            for suffix in suffixes
        }

    @property
    def misses(self) -> list[str]:
        """Each string that was not found, with its file and the reason where there is one."""
        return [
            f"{file.name}: {miss!r}" + (f" ({file.error})" if file.error else "")
            for file in self.files
            for miss in file.misses
        ]

    @property
    def pages_per_s(self) -> float:
        seconds = sum(file.seconds for file in self.files)
        return sum(file.num_pages for file in self.files) / seconds if seconds else 0.0


def evaluate_formats(folder: Path, parser: Parser) -> FormatsReport:
    """Parse each file that `expected.json` names (its `_rule` says how strings are compared)."""
    expected = json.loads((folder / EXPECTED).read_text("utf-8"))["files"]
    return FormatsReport(
        tuple(
            _evaluate(folder / name, entry["strings"], parser) for name, entry in expected.items()
        )
    )


def parse_as_stored(path: Path, parser: Parser) -> ParsedDocument:
    """Parse a copy whose path says nothing of its name, as files lie in the library."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copyfile(path, Path(folder, "stored")))
        return parser.parse(copy, path.name, "")


def _evaluate(path: Path, strings: list[str], parser: Parser) -> FileResult:
    start = time.perf_counter()
    error, document = None, ParsedDocument("", "", ())
    try:
        document = parse_as_stored(path, parser)
    except FolioError as failure:
        error = str(failure)
    seconds = time.perf_counter() - start
    text = _squeezed(document.text)
    misses = tuple(string for string in strings if _squeezed(string) not in text)
    return FileResult(path.name, len(strings), misses, document.num_pages or 1, seconds, error)


def _squeezed(text: str) -> str:
    return "".join(text.replace("\u00ad", "").split())


def _share(files: "list[FileResult] | tuple[FileResult, ...]") -> float:
    num_expected = sum(file.num_expected for file in files)
    return sum(file.num_found for file in files) / num_expected if num_expected else 0.0
