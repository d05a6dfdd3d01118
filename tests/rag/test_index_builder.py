import threading
from pathlib import Path

import pytest

from app.db.chunks import ChunkRepository
from app.db.documents import DocumentRepository
from app.db.indexes import IndexRepository
from app.db.jobs import JobRepository
from app.db.session import Database
from app.db.stored_files import StoredFileRepository
from app.domain import (
    ChunkSpan,
    IndexSpec,
    IndexState,
    ParsedDocument,
    Question,
)
from app.errors import Conflict, InvalidInput, NotFound
from app.rag.document_processor import (
    DocumentProcessor,
    FileStore,
    IngestRecords,
    ProcessorConfig,
    Stages,
    WorkerConfig,
)
from app.rag.index_builder import IndexBuilder, IndexParts
from app.rag.lexical import term_weights
from app.rag.retriever import HybridRetriever
from app.rag.store import MilvusStore, alias_target
from tests.fakes import FakeEmbedder

PATIENCE_S = 20


class LineParser:
    def parse(self, path, name, media_type, on_progress=None):
        return ParsedDocument(path.read_text(), name, ())

    def interrupt(self, thread_id):
        pass

    def close(self):
        pass


class LineChunker:
    def chunk(self, document):
        spans, start = [], 0
        for line in document.text.splitlines():
            spans.append(ChunkSpan(start, start + len(line), line, (), 1, None, ()))
            start += len(line) + 1
        return spans


class Deaf(FakeEmbedder):
    """Every text means the same: its index finds little."""

    def embed_documents(self, texts):
        return super().embed_documents(["same"] * len(texts))


class Library:
    """Real SQL and Milvus Lite; `restart` is what a new process does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.embedders = {"old": FakeEmbedder(64), "new": FakeEmbedder(32), "deaf": Deaf(16)}
        self.open()

    def open(self):
        self.database = Database(f"sqlite:///{self.folder}/folio.db")
        self.database.migrate()
        self.chunks = ChunkRepository(self.database)
        self.documents = DocumentRepository(self.database)
        self.jobs = JobRepository(self.database)
        self.indexes = IndexRepository(self.database)
        if self.indexes.find(IndexState.SERVING) is None:
            self.indexes.serve(self.spec("old"))
        spec = self.indexes.find(IndexState.SERVING).spec
        embedder = self.embedders[spec.embedding_model]
        self.store = MilvusStore(
            str(self.folder / "index.db"), None, spec.embedding_model, spec.dimension
        )
        self.store.open()
        self.processor = DocumentProcessor(
            self.stages(embedder, self.store),
            IngestRecords(
                self.documents, self.chunks, self.jobs, StoredFileRepository(self.database)
            ),
            FileStore(self.folder / "files"),
            ProcessorConfig(
                lambda name, head: "text/plain", [".txt"], 10_000, WorkerConfig(poll_s=0.02)
            ),
        )
        self.processor.start()
        first = IndexParts(
            spec,
            embedder,
            self.store,
            self.processor.ingestion,
            self.retriever(embedder, self.store, spec),
        )
        self.serving = first
        self.builder = IndexBuilder(self.indexes, first, self.open_parts, self.use, poll_s=0.02)

    def spec(self, model):
        store = MilvusStore("unused.db", None, model, self.embedders[model].dimension)
        return IndexSpec(store.index_name, model, self.embedders[model].dimension, "1")

    def stages(self, embedder, store):
        return Stages(
            parser=LineParser(),
            chunker=LineChunker(),
            embedder=embedder,
            store=store,
            embedded_text=lambda title, span: span.text,
            term_weights=term_weights,
        )

    def retriever(self, embedder, store, spec):
        return HybridRetriever(embedder, store, self.chunks.of(spec.name), 20)

    def open_parts(self, spec):
        embedder = self.embedders[spec.embedding_model]
        store = self.store.beside(
            spec.embedding_model, spec.dimension, chunker_version=spec.chunker
        )
        ingestion = self.processor.ingestion.beside(self.stages(embedder, store))
        return IndexParts(spec, embedder, store, ingestion, self.retriever(embedder, store, spec))

    def use(self, parts):
        self.serving = parts
        self.processor.use(parts.ingestion, parts.store)

    def close(self):
        self.builder.stop(PATIENCE_S)
        self.processor.stop(PATIENCE_S)
        self.store.close()
        self.database.close()

    def restart(self):
        self.close()
        self.open()

    def add(self, name, text):
        file = self.folder / "incoming.txt"
        file.write_text(text)
        document = self.processor.add_file("default", "folder", name, name, file).document
        assert self.processor.wait_until_idle(PATIENCE_S)
        return document

    def build(self):
        """All steps of the builder's thread, on this one."""
        while self.builder._step():
            pass

    def find(self, text):
        hits = self.serving.retriever.retrieve(Question(text), 3).hits
        return [hit.chunk.span.text for hit in hits]

    def state(self, model):
        infos = {info.spec.embedding_model: info for info in self.indexes.all()}
        return infos[model].state if model in infos else None

    def info(self, model):
        return {info.spec.embedding_model: info for info in self.indexes.all()}[model]


@pytest.fixture
def library(tmp_path):
    library = Library(tmp_path)
    library.add("cats.txt", "cats chase grey mice\nthe moon is round")
    library.add("ships.txt", "ships carry cargo\nharbours have cranes")
    yield library
    library.close()


def test_questions_are_answered_by_the_old_index_until_the_switch(library):
    library.builder.rebuild(library.spec("new"), switches_itself=False)
    assert library.find("grey mice")[0] == "cats chase grey mice"
    library.build()
    assert library.state("new") == IndexState.READY
    assert library.serving.spec.embedding_model == "old"
    assert library.find("grey mice")[0] == "cats chase grey mice"
    library.builder.switch(is_forced=False)
    assert library.serving.spec.embedding_model == "new"
    assert library.find("grey mice")[0] == "cats chase grey mice"
    assert (library.state("old"), library.state("new")) == (
        IndexState.PREVIOUS,
        IndexState.SERVING,
    )
    client = library.store._open_client()
    assert alias_target(client, 5) == library.spec("new").name


def test_progress_is_counted_and_recall_is_kept(library):
    library.builder.rebuild(library.spec("new"), switches_itself=False)
    assert library.info("new").num_missing == library.info("new").num_documents == 2
    library.builder._step()
    assert library.info("new").num_missing == 1
    library.build()
    info = library.info("new")
    assert (info.num_missing, info.num_chunks, info.num_failed) == (0, 4, 0)
    assert (info.recall.num_queries, info.recall.built, info.recall.serving) == (4, 1.0, 1.0)


def test_documents_that_change_meanwhile_are_in_both(library):
    library.builder.rebuild(library.spec("new"), switches_itself=False)
    library.build()
    changed = library.add("cats.txt", "cats sleep on sofas")
    gone = library.add("gone.txt", "volcanoes erupt")
    library.processor.delete(gone.id)
    library.add("late.txt", "late trains whistle")
    with pytest.raises(Conflict, match="2 documents were changed"):
        library.builder.switch(is_forced=False)
    library.build()
    library.builder.switch(is_forced=False)
    assert library.find("late trains whistle")[0] == "late trains whistle"
    assert library.find("cats sleep on sofas")[0] == "cats sleep on sofas"
    assert "cats chase grey mice" not in library.find("cats chase grey mice")
    assert "volcanoes erupt" not in library.find("volcanoes erupt")
    assert library.documents.get(changed.id).num_chunks == 1


def test_an_index_that_finds_less_is_switched_to_by_force_only(library, monkeypatch):
    monkeypatch.setattr("app.rag.index_builder.recall_of", recall_by_model)
    library.builder.rebuild(library.spec("deaf"), switches_itself=True)
    library.build()
    info = library.info("deaf")
    assert info.state == IndexState.WARNING
    assert "50%" in info.reason
    with pytest.raises(Conflict, match="warning"):
        library.builder.switch(is_forced=False)
    library.builder.switch(is_forced=True)
    assert library.serving.spec.embedding_model == "deaf"


def recall_by_model(retriever, queries):
    return 0.5 if isinstance(retriever._embedder, Deaf) else 0.9


def test_roll_back_serves_the_old_index_at_once_and_catches_up(library):
    library.builder.rebuild(library.spec("new"), switches_itself=True)
    library.build()
    assert library.serving.spec.embedding_model == "new"
    library.add("late.txt", "late trains whistle")
    library.builder.roll_back()
    assert library.find("grey mice")[0] == "cats chase grey mice"
    assert library.processor.wait_until_idle(PATIENCE_S)
    assert library.find("late trains whistle")[0] == "late trains whistle"
    assert library.serving.spec.embedding_model == "old"


def test_discarding_frees_vectors_and_rows_but_never_the_serving_index(library):
    library.builder.rebuild(library.spec("new"), switches_itself=True)
    library.build()
    old = library.spec("old").name
    (hit, *_) = library.serving.retriever.retrieve(Question("grey mice"), 1).hits
    library.builder.discard(IndexState.PREVIOUS)
    library.build()
    assert library.state("old") is None
    assert not library.store._open_client().has_collection(old)
    assert library.chunks.of(old).num_chunks() == 0
    assert library.chunks.hits([hit.chunk.id])
    with pytest.raises(NotFound):
        library.builder.roll_back()
    with pytest.raises(Conflict, match="serves"):
        library.indexes.discard(library.spec("new").name)


def test_chunks_cited_before_a_switch_can_be_opened_after_it(library):
    (cited, *_) = library.serving.retriever.retrieve(Question("grey mice"), 1).hits
    library.builder.rebuild(library.spec("new"), switches_itself=True)
    library.build()
    assert library.chunks.hits([cited.chunk.id])[cited.chunk.id].chunk == cited.chunk
    shown, _ = library.chunks.list(cited.chunk.document_id)
    assert cited.chunk.id not in {chunk.id for chunk in shown}
    assert len(shown) == 2


def test_a_build_goes_on_after_a_restart_and_a_cancelled_one_is_gone(library):
    library.builder.rebuild(library.spec("new"), switches_itself=False)
    library.builder._step()
    library.restart()
    assert library.info("new").num_missing == 1
    library.build()
    assert library.state("new") == IndexState.READY
    library.builder.discard(IndexState.BUILDING, IndexState.READY)
    library.build()
    assert library.state("new") is None
    assert library.find("grey mice")[0] == "cats chase grey mice"


def test_a_kill_between_sql_and_alias_heals_at_the_next_start(library):
    library.builder.rebuild(library.spec("new"), switches_itself=False)
    library.build()
    new = library.spec("new").name
    library.indexes.switch(new, is_forced=False)  # and the process is gone
    library.restart()
    assert library.serving.spec.name == new
    assert alias_target(library.store._open_client(), 5) == new
    assert library.find("grey mice")[0] == "cats chase grey mice"


def test_one_index_is_made_at_a_time(library):
    library.builder.rebuild(library.spec("new"), switches_itself=False)
    with pytest.raises(Conflict, match="is building"):
        library.builder.rebuild(library.spec("deaf"), switches_itself=False)
    library.builder.discard(IndexState.BUILDING)
    library.build()
    with pytest.raises(Conflict, match="is serving"):
        library.indexes.begin(library.spec("old"), switches_itself=False)


def test_the_thread_builds_and_switches_by_itself(library):
    switched = threading.Event()
    use = library.builder._use
    library.builder._use = lambda parts: (use(parts), switched.set())
    library.builder.start()
    library.builder.rebuild(library.spec("new"), switches_itself=True)
    assert switched.wait(PATIENCE_S)
    assert library.find("grey mice")[0] == "cats chase grey mice"


def test_a_model_that_cannot_be_loaded_is_told(library):
    def fail(spec):
        raise InvalidInput("no such model")

    library.builder._open_parts = fail
    library.builder.rebuild(library.spec("new"), switches_itself=True)
    with pytest.raises(InvalidInput):
        library.build()
    assert library.info("new").reason == "no such model"
    assert library.state("new") == IndexState.BUILDING
