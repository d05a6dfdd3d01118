"""Builds the stages that write nothing, for processes that only read documents."""

from pathlib import Path

from app.config import Settings
from app.domain import IndexSpec
from app.rag.document_processor import FileStore, Reading
from app.rag.parsers import SubprocessParser
from app.rag.store import MilvusStore
from app.wiring.indexes import load_fitting, make_stages


def load_reading(settings: Settings, spec: IndexSpec, files: FileStore) -> Reading:
    """Load the embedding model of an index; the index itself is named, and not opened."""
    embedder = load_fitting(settings, spec.embedding_model, spec.chunker)
    parser = SubprocessParser(
        settings.parse_timeout_s, settings.parse_memory_mb, settings.passwords
    )
    unopened = MilvusStore(
        str(Path(files.folder, "unopened.db")),
        None,
        spec.embedding_model,
        spec.dimension,
        chunker_version=spec.chunker,
    )
    return Reading(make_stages(parser, embedder, unopened, spec.chunker), files)
