"""A process that ingests a folder with the real parts, to be killed: `ingest_process DATA FOLDER`.

It says "started" when its workers run, and ends when nothing is left to do.
"""

import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from app.db.chunks import ChunkRepository
from app.db.documents import DocumentRepository
from app.db.jobs import JobRepository
from app.db.session import Database
from app.db.stored_files import StoredFileRepository
from app.rag.chunker import StructureChunker, embedded_text
from app.rag.document_processor import (
    DocumentProcessor,
    FileStore,
    IngestRecords,
    ProcessorConfig,
    Stages,
)
from app.rag.embeddings import load_embedder
from app.rag.lexical import term_weights
from app.rag.parsers import SUPPORTED_SUFFIXES, SubprocessParser, media_type_of
from app.rag.protocols import Embedder
from app.rag.store import MilvusStore

MODEL = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass
class Parts:
    """What an appliance ingests with."""

    database: Database
    documents: DocumentRepository
    chunks: ChunkRepository
    embedder: Embedder
    store: MilvusStore
    processor: DocumentProcessor

    def close(self):
        self.processor.stop(30)
        self.store.close()
        self.database.close()


def build(data: Path) -> Parts:
    """The parts on a data folder, opened but not started."""
    database = Database(f"sqlite:///{data}/folio.db")
    database.migrate()
    documents, chunks = DocumentRepository(database), ChunkRepository(database)
    embedder = load_embedder(MODEL, 1)
    store = MilvusStore(str(data / "index.db"), None, embedder.name, embedder.dimension)
    store.open()
    stages = Stages(
        parser=SubprocessParser(60, 1024),
        chunker=StructureChunker(embedder.count_tokens, 200, 0),
        embedder=embedder,
        store=store,
        embedded_text=embedded_text,
        term_weights=term_weights,
    )
    processor = DocumentProcessor(
        stages,
        IngestRecords(documents, chunks, JobRepository(database), StoredFileRepository(database)),
        FileStore(data / "files"),
        ProcessorConfig(media_type_of, sorted(SUPPORTED_SUFFIXES), 10_000_000),
    )
    return Parts(database, documents, chunks, embedder, store, processor)


def main() -> None:
    data, folder = Path(sys.argv[1]), Path(sys.argv[2])
    with closing(build(data)) as parts:
        parts.processor.start()
        sys.stdout.write("started\n")
        sys.stdout.flush()
        for file in sorted(folder.iterdir()):
            parts.processor.add_file("default", "folder", str(file), file.name, file)
        assert parts.processor.wait_until_idle(300)


if __name__ == "__main__":
    main()
