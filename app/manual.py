"""Folio's own manual as the first knowledge base, and the questions that the UI suggests."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Collection as AnyOf
from pathlib import Path

from app.db.collections import CollectionRepository
from app.db.documents import DocumentRepository
from app.domain import Language
from app.errors import FolioError, NotFound
from app.rag.document_processor import DocumentProcessor

logger = logging.getLogger(__name__)
COLLECTION = "Folio manual"
SOURCE = "manual"
MARKER = "manual-added"
QUESTIONS_FILE = "sample_questions.json"
# For operators and developers, in two languages and full of commands that name Folio: they would
# come first where somebody asks in the browser what Folio is.
LEFT_OUT = frozenset({QUESTIONS_FILE, "kubernetes.md", "reader.md", "scaling.md"})
NUM_TITLES = 4
TITLE_QUESTIONS: Mapping[Language, str] = {
    "en": "What does “{title}” say?",
    "zh": "《{title}》讲了什么？",
}


def add_manual(
    processor: DocumentProcessor,
    collections: CollectionRepository,
    folder: Path,
    suffixes: AnyOf[str],
    data_dir: Path,
    publish: Callable[[], None] | None = None,
) -> int:
    """Add the manual on the first start, and what changed in it later; returns how many files.

    `publish` is called when its knowledge base was made.
    A manual that the user deleted stays deleted: the marker in the data folder remembers it.
    """
    marker = data_dir / MARKER
    try:
        collection = collections.by_name(COLLECTION)
    except NotFound:
        if marker.exists() or not folder.is_dir():
            return 0
        collection = collections.create(COLLECTION)
        if publish:
            publish()
    marker.touch()
    num_queued = 0
    for file in _pages(folder, suffixes):
        path = file.relative_to(folder).as_posix()
        try:
            added = processor.add_file(collection.id, SOURCE, path, file.name, file)
        except FolioError as error:
            logger.warning("manual file not added path=%s reason=%s", path, error)
            continue
        num_queued += added.outcome != "unchanged"
    return num_queued


def sample_questions(
    documents: DocumentRepository,
    collections: CollectionRepository,
    folder: Path | None,
    within: Sequence[str] | None = None,
) -> Mapping[Language, Sequence[str]]:
    """The manual's own questions where it can be asked, else questions about document titles.

    Only collections in `within` are told of; None for all.
    """
    if folder and _manual_is_ready(documents, collections, within):
        try:
            questions = json.loads((folder / QUESTIONS_FILE).read_text(encoding="utf-8"))
            return {language: list(questions[language]) for language in TITLE_QUESTIONS}
        except (OSError, ValueError, KeyError) as error:
            logger.warning("manual has no sample questions reason=%r", error)
    titles = documents.sample_titles(NUM_TITLES, within=within)
    return {
        language: [template.format(title=title) for title in titles]
        for language, template in TITLE_QUESTIONS.items()
    }


def _pages(folder: Path, suffixes: AnyOf[str]) -> list[Path]:
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in suffixes and path.name not in LEFT_OUT
    ]


def _manual_is_ready(
    documents: DocumentRepository,
    collections: CollectionRepository,
    within: Sequence[str] | None,
) -> bool:
    try:
        manual = collections.by_name(COLLECTION)
    except NotFound:
        return False
    if within is not None and manual.id not in within:
        return False
    counts = documents.counts(manual.id)
    return counts.num_ready > 0 and counts.num_pending == 0
