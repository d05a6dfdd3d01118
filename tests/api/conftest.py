"""A real app over real SQL, with a processor and a pipeline that tests steer."""

import asyncio
import hashlib
import shutil
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.__main__ import Server
from app.config import Settings
from app.db.chats import ChatRepository
from app.db.chunks import ChunkRepository
from app.db.collections import CollectionRepository
from app.db.documents import DocumentRepository
from app.db.evaluations import EvaluationRepository
from app.db.indexes import IndexRepository
from app.db.jobs import JobRepository
from app.db.session import Database
from app.db.stored_files import StoredFileRepository
from app.domain import (
    AddResult,
    Answer,
    Citation,
    Cited,
    Document,
    DocumentChange,
    Event,
    Finished,
    GeneratorInfo,
    IncomingFile,
    MetadataValue,
    Question,
    RemovedDocument,
    Sources,
    Stage,
    TextDelta,
    Timings,
    Usage,
)
from app.main import create_app
from app.rag.pipeline import AnswerOptions, AnswerQueue
from app.services import Limits, Records, Services
from tests.fakes import (
    FakeEmbedder,
    FakeGenerator,
    FakeRetriever,
    FakeVectorStore,
    make_hit,
    make_sources,
)

SUFFIXES = (".md", ".pdf", ".txt", ".html", ".svg")
MEDIA_TYPES = {
    ".md": "text/markdown",
    ".pdf": "application/pdf",
    ".txt": "text/plain",
    ".html": "text/html",
    ".svg": "image/svg+xml",
}


class FakeProcessor:
    """Takes files and queues them in SQL, but never works on them."""

    def __init__(self, records: Records, folder: Path) -> None:
        self.documents = records.documents
        self.jobs = records.jobs
        self.folder = folder
        self.callbacks: list[Callable[[DocumentChange], None]] = []

    def add_file(
        self, collection_id, source, path, name, file, metadata=None, owner=""
    ) -> AddResult:
        data = file.read_bytes()
        content_hash = hashlib.sha256(data).hexdigest()
        shutil.copy(file, self.folder / content_hash)
        result = self.documents.add(
            IncomingFile(
                collection_id=collection_id,
                source=source,
                path=path,
                name=name,
                media_type=MEDIA_TYPES[Path(name).suffix.lower()],
                content_hash=content_hash,
                num_bytes=len(data),
                metadata=metadata,
                owner=owner,
            )
        )
        self.tell(result.document)
        return result

    def reindex(self, document_id: str) -> Document:
        return self.documents.requeue(document_id)

    def set_metadata(self, document_id: str, metadata: Mapping[str, MetadataValue]) -> Document:
        return self.documents.set_metadata(document_id, metadata)

    def cancel(self, document_id: str) -> Document:
        self.jobs.cancel(document_id)
        return self.documents.get(document_id)

    def pause(self, document_id: str) -> Document:
        self.jobs.pause(document_id)
        return self.documents.get(document_id)

    def retry_failed(self, within=None) -> int:
        return len(self.jobs.retry_failed(within))

    def set_paused(self, is_paused: bool) -> None:
        self.jobs.set_paused(is_paused)

    def delete(self, document_id: str) -> None:
        document = self.documents.get(document_id)
        self.documents.delete(document_id)
        self.tell(RemovedDocument(document_id, document.collection_id))

    def delete_collection(self, collection_id: str) -> None:
        for document_id in self.documents.delete_collection(collection_id):
            self.tell(RemovedDocument(document_id, collection_id))

    def file_path(self, document_id: str) -> Path:
        return self.folder / self.documents.served_hash(document_id)

    def subscribe(self, callback: Callable[[DocumentChange], None]) -> Callable[[], None]:
        self.callbacks.append(callback)
        return lambda: self.callbacks.remove(callback)

    def tell(self, change: DocumentChange) -> None:
        for callback in list(self.callbacks):
            callback(change)


class ScriptedPipeline:
    """Answers with the given pieces; a `gate` holds it back before the piece of that index."""

    def __init__(self) -> None:
        self.pieces = ["Leave is ", "fifteen days ", "[1]."]
        self.sources = make_sources("Employees receive fifteen days of leave.", "Ten sick days.")
        self.error: Exception | None = None
        self.ending: Event | None = None
        self.gate: threading.Event | None = None
        self.gate_at = 0
        self.questions: list[Question] = []
        self.num_closed = 0
        self.queue = AnswerQueue(AnswerOptions(max_concurrent=1, queue_timeout_s=5))

    def slot(self) -> AbstractAsyncContextManager[None]:
        return self.queue.slot()

    async def answer(self, question: Question) -> AsyncIterator[Event]:
        self.questions.append(question)
        try:
            yield Stage("retrieving")
            yield Sources(self.sources, question.text)
            yield Stage("writing", len(self.sources))
            for index, piece in enumerate(self.pieces):
                if self.gate and index >= self.gate_at:
                    await self._wait(self.gate)
                yield TextDelta(piece)
                await asyncio.sleep(0)
            if self.error:
                raise self.error
            citation = Citation(1, self.sources[0].hit.chunk.id, 0, 26)
            yield Cited(citation)
            yield self.ending or Finished(self._answer(citation))
        finally:
            self.num_closed += 1

    async def _wait(self, gate: threading.Event) -> None:
        while not gate.is_set():  # noqa: ASYNC110 - the test sets it from another thread
            await asyncio.sleep(0.005)

    def _answer(self, citation: Citation) -> Answer:
        return Answer(
            text="".join(self.pieces),
            sources=self.sources,
            citations=(citation,),
            is_refusal=False,
            generator=GeneratorInfo("openai", "fake"),
            usage=Usage(12, 3),
            timings=Timings(0.1, 0.2, 0.3),
        )


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """A real uvicorn on a free port, in a thread, shut down at the end."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not stop"


@pytest.fixture
def pipeline() -> ScriptedPipeline:
    return ScriptedPipeline()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        _env_file=None, data_dir=tmp_path, frontend_dir=tmp_path / "no-frontend", manual_dir=None
    )


@pytest.fixture
def services(tmp_path: Path, pipeline: ScriptedPipeline) -> Iterator[Services]:
    database = Database(f"sqlite:///{tmp_path / 'folio.db'}")
    database.migrate()
    documents = DocumentRepository(database)
    records = Records(
        database=database,
        documents=documents,
        chunks=ChunkRepository(database),
        chats=ChatRepository(database),
        collections=CollectionRepository(database),
        jobs=JobRepository(database),
        files=StoredFileRepository(database),
        indexes=IndexRepository(database),
        evaluations=EvaluationRepository(database),
    )
    for name in ("files", "uploads"):
        (tmp_path / name).mkdir()

    def load(services: Services) -> None:
        services.embedder = FakeEmbedder()
        services.store = FakeVectorStore()
        services.retriever = FakeRetriever([make_hit("fifteen days of leave"), make_hit("other")])
        services.processor = FakeProcessor(records, tmp_path / "files")
        services.generator = FakeGenerator(["plain ", "words"])
        services.pipeline = pipeline
        services.report("ready", "")

    yield Services(
        records=records,
        limits=Limits(
            max_upload_bytes=1000,
            upload_suffixes=SUFFIXES,
            max_concurrent_answers=2,
            max_queued_answers=1,
            max_answer_tokens=100,
            temperature=0.2,
        ),
        load=load,
        sample_questions=lambda within: {"en": ["What is leave?"], "zh": []},
        upload_dir=tmp_path / "uploads",
    )
    database.close()


@pytest.fixture
def app(settings: Settings, services: Services) -> FastAPI:
    return create_app(settings, services)


@pytest.fixture
def client(app: FastAPI, services: Services) -> Iterator[TestClient]:
    """The app without a socket: for everything that is not streamed."""
    with TestClient(app, raise_server_exceptions=True) as client:
        services.is_settled.wait(5)
        yield client


@pytest.fixture
def server(app: FastAPI, services: Services) -> Iterator[str]:
    """The app behind a real uvicorn; the value is its base URL."""
    with serving(app) as url:
        services.is_settled.wait(5)
        yield url
