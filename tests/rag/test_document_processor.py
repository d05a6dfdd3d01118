import threading
import time
from dataclasses import replace

import pytest

from app.db.chunks import ChunkRepository
from app.db.collections import CollectionRepository
from app.db.documents import DocumentRepository
from app.db.jobs import JobRepository
from app.db.session import Database
from app.db.stored_files import StoredFileRepository
from app.domain import (
    Block,
    BlockKind,
    ChunkSpan,
    Document,
    DocumentStatus,
    JobStage,
    ParsedDocument,
    RemovedDocument,
)
from app.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    ParseFailed,
    ParseLimitExceeded,
    StoreUnavailable,
    TooLarge,
    UnsupportedFormat,
)
from app.rag.document_processor import (
    DocumentProcessor,
    FileStore,
    IngestRecords,
    ProcessorConfig,
    Stages,
    WorkerConfig,
    ingestion,
)
from tests.fakes import FakeEmbedder, FakeVectorStore, sparse_of

PATIENCE_S = 20


class LineParser:
    """Text files; the first line is the title. What a test puts into `failures` is raised."""

    def __init__(self):
        self.failures = []
        self.gate = threading.Event()
        self.gate.set()
        self.has_begun = threading.Event()
        self.names = []
        self.pages_s = []
        self.interrupted = []

    def parse(self, path, name, media_type, on_progress=None):
        self.names.append(name)
        self.thread_id = threading.get_ident()
        self.has_begun.set()
        assert self.gate.wait(PATIENCE_S)
        for number, seconds in enumerate(self.pages_s, start=1):
            time.sleep(seconds)
            on_progress(number / len(self.pages_s))
        if self.failures:
            raise self.failures.pop(0)
        text = path.read_text(errors="surrogateescape")
        block = Block(BlockKind.PARAGRAPH, 0, len(text))
        return ParsedDocument(text, text.split("\n")[0], (block,))

    def interrupt(self, thread_id):
        self.interrupted.append(thread_id)

    def close(self):
        """A real one interrupts its call; this one can be used again."""


class LineChunker:
    """A chunk a line."""

    def chunk(self, document):
        spans, start = [], 0
        for line in document.text.split("\n"):
            if line.strip():
                spans.append(ChunkSpan(start, start + len(line), line, (), len(line.split())))
            start += len(line) + 1
        return spans


class FlakyStore(FakeVectorStore):
    """Is down for as many calls as `num_outages` says."""

    num_outages = 0

    def upsert(self, chunks):
        self._work()
        super().upsert(chunks)

    def delete_chunks(self, chunk_ids):
        self._work()
        super().delete_chunks(chunk_ids)

    def _work(self):
        if self.num_outages:
            self.num_outages -= 1
            raise StoreUnavailable("the vector store does not answer")


def media_type_of(name, head):
    return "text/plain" if name.endswith(".txt") else "application/octet-stream"


class World:
    """A processor on a real database, with fakes for the heavy stages."""

    def __init__(self, folder, store=None):
        self.folder = folder
        self.database = Database(f"sqlite:///{folder}/folio.db")
        self.database.migrate()
        self.documents = DocumentRepository(self.database)
        self.chunks = ChunkRepository(self.database)
        self.jobs = JobRepository(self.database)
        self.parser = LineParser()
        self.embedder = FakeEmbedder()
        self.store = store if store is not None else FlakyStore()
        self.processor = self.new_processor()

    def new_processor(self, **config):
        quick = WorkerConfig(
            poll_s=0.05, report_s=0, first_backoff_s=0.01, max_backoff_s=0.05, max_attempts=4
        )
        stages = Stages(
            parser=self.parser,
            chunker=LineChunker(),
            embedder=self.embedder,
            store=self.store,
            embedded_text=lambda title, span: f"{title}\n{span.text}",
            term_weights=sparse_of,
        )
        return DocumentProcessor(
            stages,
            IngestRecords(
                self.documents, self.chunks, self.jobs, StoredFileRepository(self.database)
            ),
            FileStore(self.folder / "files"),
            ProcessorConfig(media_type_of, [".txt"], 1000, replace(quick, **config)),
        )

    def add(self, text, path="a.txt", collection_id="default"):
        file = self.folder / "given.txt"
        file.write_text(text)
        return self.processor.add_file(collection_id, "folder", path, path, file)

    def ingest(self):
        assert self.processor.wait_until_idle(PATIENCE_S)
        self.processor.stop(PATIENCE_S)
        self.processor.start()
        assert self.processor.wait_until_idle(PATIENCE_S)

    def found(self, document_id):
        return [chunk.span.text for chunk in self.chunks.list(document_id)[0]]

    def files(self):
        return sorted(path.name for path in (self.folder / "files").glob("??/*"))

    def assert_consistent(self):
        """SQL and the vector store hold the same chunks, and the statistics are exact.

        Stale vectors are swept between jobs, so a moment after the last one.
        """
        wait_until(lambda: not self.chunks.stale_vectors(self.store.index_name))
        with self.database.snapshot() as session:
            from sqlalchemy import text

            ids = set(session.scalars(text("SELECT id FROM chunks")))
            terms = dict(session.execute(text("SELECT id, num_chunks FROM index_terms")).all())
        assert ids == set(self.store.chunks)
        counted = {}
        for chunk in self.store.chunks.values():
            for term in chunk.sparse:
                counted[term] = counted.get(term, 0) + 1
        assert terms == counted


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.parser.gate.set()
    world.processor.stop(PATIENCE_S)
    world.database.close()


def test_added_file_becomes_searchable(world):
    world.processor.start()
    result = world.add("Title\nfirst line\nsecond line")
    assert result.outcome == "added"
    assert world.processor.wait_until_idle(PATIENCE_S)
    document = world.documents.get(result.document.id)
    assert (document.status, document.stage) == (DocumentStatus.READY, JobStage.DONE)
    assert (document.title, document.num_chunks, document.progress) == ("Title", 3, 1.0)
    assert world.found(document.id) == ["Title", "first line", "second line"]
    assert world.processor.file_path(document.id).read_text() == "Title\nfirst line\nsecond line"
    world.assert_consistent()


def test_same_bytes_are_unchanged(world):
    world.processor.start()
    world.add("one")
    assert world.processor.wait_until_idle(PATIENCE_S)
    assert world.add("one").outcome == "unchanged"
    assert world.jobs.num_pending() == 0


def test_changed_file_serves_old_chunks_until_new_are_ready(world):
    world.processor.start()
    document = world.add("old").document
    assert world.processor.wait_until_idle(PATIENCE_S)
    world.parser.gate.clear()
    assert world.add("new\nnewer").outcome == "changed"
    world.parser.has_begun.wait(PATIENCE_S)
    assert world.found(document.id) == ["old"]
    assert world.documents.text(document.id) == "old"
    assert world.processor.file_path(document.id).read_text() == "old"
    world.parser.gate.set()
    assert world.processor.wait_until_idle(PATIENCE_S)
    world.ingest()
    assert world.found(document.id) == ["new", "newer"]
    assert len(world.files()) == 1
    world.assert_consistent()


def test_content_changed_while_being_read_ends_as_the_newest(world):
    world.processor.start()
    world.parser.gate.clear()
    document = world.add("first").document
    world.parser.has_begun.wait(PATIENCE_S)
    world.add("second")
    world.parser.gate.set()
    assert world.processor.wait_until_idle(PATIENCE_S)
    world.ingest()
    assert world.found(document.id) == ["second"]
    world.assert_consistent()


def test_old_content_that_comes_back_is_found(world):
    world.processor.start()
    document = world.add("one\ntwo").document
    assert world.processor.wait_until_idle(PATIENCE_S)
    for text in ("three", "one\ntwo"):
        world.add(text)
        assert world.processor.wait_until_idle(PATIENCE_S)
    world.ingest()
    assert world.found(document.id) == ["one", "two"]
    world.assert_consistent()


def test_delete_removes_chunks_vectors_and_file(world):
    world.processor.start()
    document = world.add("one\ntwo").document
    assert world.processor.wait_until_idle(PATIENCE_S)
    world.processor.delete(document.id)
    with pytest.raises(NotFound):
        world.documents.get(document.id)
    assert world.files() == []
    assert world.store.chunks == {}
    world.assert_consistent()


def test_file_stays_while_another_document_has_the_same_bytes(world):
    world.processor.start()
    first = world.add("same", "a.txt").document
    second = world.add("same", "b.txt").document
    assert world.processor.wait_until_idle(PATIENCE_S)
    assert len(world.files()) == 1
    world.processor.delete(first.id)
    assert world.processor.file_path(second.id).read_text() == "same"
    assert world.found(second.id) == ["same"]


def test_document_deleted_while_being_read_leaves_nothing(world):
    world.processor.start()
    world.parser.gate.clear()
    document = world.add("one").document
    world.parser.has_begun.wait(PATIENCE_S)
    world.processor.delete(document.id)
    world.parser.gate.set()
    world.ingest()
    assert world.store.chunks == {}
    world.assert_consistent()


def test_deleted_collection_takes_its_documents_along(world):
    collections = CollectionRepository(world.database)
    other = collections.create("other")
    world.processor.start()
    kept = world.add("kept").document
    world.add("gone", collection_id=other.id)
    assert world.processor.wait_until_idle(PATIENCE_S)
    world.processor.delete_collection(other.id)
    assert [c.name for c in collections.list()] == ["default"]
    assert world.documents.list()[0][0].id == kept.id
    assert len(world.files()) == 1
    world.assert_consistent()
    with pytest.raises(Conflict):
        world.processor.delete_collection("default")


def test_vectors_of_a_deleted_document_go_when_the_store_is_back(world):
    world.processor.start()
    document = world.add("one").document
    assert world.processor.wait_until_idle(PATIENCE_S)
    world.processor.stop(PATIENCE_S)
    world.store.num_outages = 1
    world.processor.delete(document.id)
    assert len(world.store.chunks) == 1
    world.processor = world.new_processor()
    world.processor.start()
    assert world.store.chunks == {}
    world.assert_consistent()


def test_vectors_written_in_vain_are_deleted(world):
    write = world.store.upsert

    def write_and_break(chunks):
        write(chunks)
        raise StoreUnavailable("the connection broke after the write")

    world.store.upsert = write_and_break
    world.processor.start()
    document = world.add("one").document
    assert world.processor.wait_until_idle(PATIENCE_S)
    assert world.documents.get(document.id).status == DocumentStatus.FAILED
    world.ingest()
    assert world.store.chunks == {}
    world.assert_consistent()


def test_vectors_written_just_after_their_document_was_deleted_are_deleted(world):
    announce = world.chunks.announce_vectors
    deleted = []

    def announce_and_delete(document_id, index_name, chunk_ids):
        announce(document_id, index_name, chunk_ids)
        if not deleted:
            deleted.append(document_id)
            world.processor.delete(document_id)

    world.chunks.announce_vectors = announce_and_delete
    world.processor.start()
    document = world.add("one").document
    assert world.processor.wait_until_idle(PATIENCE_S)
    world.ingest()
    assert deleted == [document.id]
    assert world.store.chunks == {}
    world.assert_consistent()


def test_outage_of_the_store_is_waited_out(world):
    world.store.num_outages = 2
    world.processor.start()
    document = world.add("one").document
    assert world.processor.wait_until_idle(PATIENCE_S)
    assert world.documents.get(document.id).status == DocumentStatus.READY
    assert world.documents.get(document.id).error is None


def test_outage_without_end_fails_with_the_reason(world):
    world.store.num_outages = 1000
    world.processor.start()
    document = world.add("one").document
    assert world.processor.wait_until_idle(PATIENCE_S)
    document = world.documents.get(document.id)
    assert document.status == DocumentStatus.FAILED
    assert document.error == "the vector store does not answer (tried 4 times)"


def test_unreadable_file_fails_once_and_others_go_on(world):
    world.parser.failures = [ParseFailed("“a.txt” is damaged")]
    world.processor.start()
    bad = world.add("bad", "a.txt").document
    good = world.add("good", "b.txt").document
    assert world.processor.wait_until_idle(PATIENCE_S)
    assert world.documents.get(bad.id).error == "“a.txt” is damaged"
    assert world.documents.get(good.id).status == DocumentStatus.READY
    assert world.parser.names.count("a.txt") == 1


def test_file_that_kills_its_parser_is_given_up_after_a_few_times(world):
    world.parser.failures = [ParseLimitExceeded("took too long")] * 5
    world.processor.start()
    document = world.add("bad").document
    assert world.processor.wait_until_idle(PATIENCE_S)
    assert world.documents.get(document.id).error == "took too long (tried 2 times)"
    assert len(world.parser.names) == 2


def test_unexpected_error_fails_the_document_only(world, caplog):
    world.parser.failures = [ZeroDivisionError("division by zero")]
    world.processor.start()
    bad = world.add("bad", "a.txt").document
    good = world.add("good", "b.txt").document
    assert world.processor.wait_until_idle(PATIENCE_S)
    assert "ZeroDivisionError" in world.documents.get(bad.id).error
    assert world.documents.get(good.id).status == DocumentStatus.READY


def test_failed_document_can_be_retried(world):
    world.parser.failures = [ParseFailed("damaged")]
    world.processor.start()
    document = world.add("text").document
    assert world.processor.wait_until_idle(PATIENCE_S)
    world.processor.reindex(document.id)
    assert world.processor.wait_until_idle(PATIENCE_S)
    assert world.documents.get(document.id).status == DocumentStatus.READY


def test_adding_the_bytes_of_a_failed_document_tries_again(world):
    world.parser.failures = [ParseFailed("damaged")]
    world.processor.start()
    document = world.add("text").document
    assert world.processor.wait_until_idle(PATIENCE_S)
    assert world.add("text").outcome == "changed"
    assert world.processor.wait_until_idle(PATIENCE_S)
    assert world.documents.get(document.id).status == DocumentStatus.READY


def test_changed_file_that_cannot_be_read_leaves_the_old_chunks(world):
    world.processor.start()
    document = world.add("old").document
    assert world.processor.wait_until_idle(PATIENCE_S)
    world.parser.failures = [ParseFailed("damaged")]
    world.add("new")
    assert world.processor.wait_until_idle(PATIENCE_S)
    assert world.documents.get(document.id).status == DocumentStatus.FAILED
    assert world.found(document.id) == ["old"]
    world.ingest()
    world.assert_consistent()


def test_reindex_replaces_chunks_with_the_same_ids(world):
    world.processor.start()
    document = world.add("one\ntwo").document
    assert world.processor.wait_until_idle(PATIENCE_S)
    before = [chunk.id for chunk in world.chunks.list(document.id)[0]]
    world.processor.reindex(document.id)
    assert world.processor.wait_until_idle(PATIENCE_S)
    assert [chunk.id for chunk in world.chunks.list(document.id)[0]] == before
    world.assert_consistent()


def test_stop_gives_the_job_back_without_counting_it(world):
    world.processor.start()
    world.parser.gate.clear()
    document = world.add("one").document
    world.parser.has_begun.wait(PATIENCE_S)
    threading.Timer(0.1, world.parser.gate.set).start()
    world.processor.stop(PATIENCE_S)
    assert world.documents.get(document.id).stage == JobStage.QUEUED
    assert world.jobs.claim(1).attempt == 1


def test_parse_that_the_stop_interrupts_is_no_failure(world):
    def interrupt():
        world.parser.failures = [ParseFailed("the parser is closed")]
        world.parser.gate.set()

    world.parser.close = interrupt
    world.parser.gate.clear()
    world.processor.start()
    document = world.add("one").document
    world.parser.has_begun.wait(PATIENCE_S)
    world.processor.stop(PATIENCE_S)
    document = world.documents.get(document.id)
    assert (document.stage, document.error) == (JobStage.QUEUED, None)


def test_stop_does_not_wait_for_a_long_step(world):
    world.processor.start()
    world.parser.gate.clear()
    document = world.add("one").document
    world.parser.has_begun.wait(PATIENCE_S)
    started = time.monotonic()
    world.processor.stop(0.2)
    assert time.monotonic() - started < 2
    assert world.documents.get(document.id).stage == JobStage.QUEUED
    world.parser.gate.set()
    world.processor.start()
    assert world.processor.wait_until_idle(PATIENCE_S)
    assert world.found(document.id) == ["one"]


def test_stuck_thread_is_replaced_and_its_document_fails_with_the_reason(world):
    world.processor = world.new_processor(lease_s=0.3, step_timeout_s=0.2)
    world.parser.gate.clear()
    world.processor.start()
    document = world.add("one").document
    world.parser.has_begun.wait(PATIENCE_S)
    stuck = world.parser.thread_id
    assert world.processor.wait_until_idle(PATIENCE_S)
    error = world.documents.get(document.id).error
    assert error.startswith("parsing got no further within 0 s and was given up")
    wait_until(lambda: world.parser.interrupted == [stuck])
    world.parser.gate.set()
    other = world.add("two", "b.txt").document
    assert world.processor.wait_until_idle(PATIENCE_S)
    assert world.documents.get(other.id).status == DocumentStatus.READY
    assert world.documents.get(document.id).error == error
    assert world.parser.names == ["a.txt", "b.txt"]


def test_parse_that_reports_pages_may_take_longer_than_a_step(world, monkeypatch):
    monkeypatch.setattr(ingestion, "PARSE_REPORT_S", 0.05)
    world.parser.pages_s = [0.1] * 15
    world.processor = world.new_processor(lease_s=0.4, step_timeout_s=0.6)
    shares = []
    world.processor.subscribe(lambda d: shares.append(d.progress) if d.stage == "parsing" else None)
    world.processor.start()
    document = world.add("one").document
    assert world.processor.wait_until_idle(PATIENCE_S)
    assert world.documents.get(document.id).status == DocumentStatus.READY
    assert world.parser.names == ["a.txt"]
    assert shares == sorted(shares)
    assert len(set(shares)) > 10
    assert max(shares) <= ingestion.BEGIN[JobStage.CHUNKING]


def wait_until(is_true):
    deadline = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_long_step_keeps_its_lease(world):
    world.processor = world.new_processor(lease_s=0.3, step_timeout_s=60)
    world.parser.gate.clear()
    world.processor.start()
    world.add("one")
    world.parser.has_begun.wait(PATIENCE_S)
    time.sleep(0.8)
    assert world.jobs.claim(1) is None
    world.parser.gate.set()
    assert world.processor.wait_until_idle(PATIENCE_S)
    assert world.parser.names == ["a.txt"]


def test_job_of_a_dead_process_is_taken_up_at_the_start(world):
    document = world.add("one").document
    world.jobs.claim(3600)
    world.processor.start()
    assert world.processor.wait_until_idle(PATIENCE_S)
    assert world.documents.get(document.id).status == DocumentStatus.READY


def test_file_that_kills_the_process_is_given_up(world):
    document = world.add("one").document
    for _ in range(4):
        world.jobs.claim(3600)
        world.jobs.recover()
    world.processor.start()
    assert world.processor.wait_until_idle(PATIENCE_S)
    document = world.documents.get(document.id)
    assert document.status == DocumentStatus.FAILED
    assert "gave up after 4 attempts" in document.error


def test_lost_vectors_are_made_again(world):
    world.processor.start()
    document = world.add("one\ntwo").document
    assert world.processor.wait_until_idle(PATIENCE_S)
    world.processor.stop(PATIENCE_S)
    world.store.chunks.clear()
    world.processor.start()
    assert world.found(document.id) == ["one", "two"]
    assert world.processor.wait_until_idle(PATIENCE_S)
    world.assert_consistent()


def test_another_index_gets_exactly_the_documents_that_it_lacks(world):
    world.processor.start()
    first = world.add("one\ntwo", "a.txt").document
    second = world.add("three\nfour\nfive", "b.txt").document
    failing = world.add("old", "c.txt").document
    assert world.processor.wait_until_idle(PATIENCE_S)
    world.parser.failures = [ParseFailed("damaged")]
    world.add("new", "c.txt")
    assert world.processor.wait_until_idle(PATIENCE_S)
    world.processor.stop(PATIENCE_S)

    world.store = FlakyStore()
    world.store.index_name = "another"
    world.processor = world.new_processor()
    world.parser.names.clear()
    world.processor.recover()
    assert world.jobs.num_pending() == 3
    world.processor.start()  # queued already: nothing is queued twice
    assert world.processor.wait_until_idle(PATIENCE_S)
    assert sorted(world.parser.names) == ["a.txt", "b.txt", "c.txt"]
    assert world.found(first.id) == ["one", "two"]
    assert world.found(second.id) == ["three", "four", "five"]
    assert world.documents.get(failing.id).status == DocumentStatus.READY
    world.assert_consistent()

    world.ingest()
    assert len(world.parser.names) == 3


def test_restart_in_the_middle_of_a_rebuild_queues_only_the_rest(world):
    world.processor.start()
    for name in "abcde":
        world.add(f"{name}\n{name}{name}", f"{name}.txt")
    assert world.processor.wait_until_idle(PATIENCE_S)
    world.processor.stop(PATIENCE_S)
    world.store.chunks.clear()
    world.parser.names.clear()
    world.processor = world.new_processor()
    world.processor.recover()
    while world.jobs.num_pending() > 2:  # three of five are done before the restart
        world.processor._workers._work_once()
    world.processor.stop(PATIENCE_S)
    world.processor = world.new_processor()
    world.processor.start()
    assert world.processor.wait_until_idle(PATIENCE_S)
    assert sorted(world.parser.names) == [f"{name}.txt" for name in "abcde"]
    world.assert_consistent()


def test_document_that_cannot_be_read_again_does_not_bring_the_others_back(world):
    world.processor.start()
    world.add("one", "a.txt")
    bad = world.add("old", "b.txt").document
    assert world.processor.wait_until_idle(PATIENCE_S)
    world.processor.stop(PATIENCE_S)
    world.store = FlakyStore()
    world.store.index_name = "another"
    world.processor = world.new_processor()
    parse = world.parser.parse

    def fail_b(path, name, media_type, on_progress=None):
        if name == "b.txt":
            world.parser.failures = [ParseFailed("damaged")]
        return parse(path, name, media_type, on_progress)

    world.parser.parse = fail_b
    world.parser.names.clear()
    world.processor.start()
    assert world.processor.wait_until_idle(PATIENCE_S)
    world.ingest()
    assert sorted(world.parser.names) == ["a.txt", "b.txt", "b.txt"]
    assert world.documents.get(bad.id).error == "damaged"


def test_second_process_on_the_same_data_is_refused(world):
    world.processor.start()
    other = World(world.folder, store=world.store)
    with pytest.raises(Conflict, match="works on"):
        other.processor.start()
    other.database.close()


def test_subscribers_see_each_stage_and_the_removal(world):
    changes = []
    unsubscribe = world.processor.subscribe(changes.append)
    world.processor.start()
    document = world.add("one").document
    assert world.processor.wait_until_idle(PATIENCE_S)
    world.processor.stop(PATIENCE_S)
    world.processor.delete(document.id)
    stages = list(dict.fromkeys(c.stage for c in changes if isinstance(c, Document)))
    assert stages == ["queued", "parsing", "chunking", "embedding", "storing", "done"]
    assert changes[-1] == RemovedDocument(document.id, "default")
    unsubscribe()
    num_changes = len(changes)
    world.add("two")
    assert len(changes) == num_changes


def test_what_cannot_be_taken_is_refused(world):
    file = world.folder / "given.bin"
    file.write_bytes(b"\x00" * 10)
    with pytest.raises(UnsupportedFormat, match=r"given.bin.*\.txt"):
        world.processor.add_file("default", "folder", "given.bin", "given.bin", file)
    with pytest.raises(TooLarge, match=r"given\.txt is larger"):
        world.add("x" * 1001)
    with pytest.raises(NotFound, match="collection"):
        world.add("x", collection_id="nowhere")
    with pytest.raises(InvalidInput, match="No such file"):
        world.processor.add_file("default", "folder", "no.txt", "no.txt", world.folder / "no.txt")


def test_name_that_is_not_text_is_refused(world):
    with pytest.raises(InvalidInput, match="rename"):
        world.add("x", "bad\udcff.txt")


def test_characters_that_a_database_refuses_are_replaced_in_place(world):
    file = world.folder / "given.txt"
    file.write_bytes(b"a\x00b\nc\xffd")
    world.processor.start()
    document = world.processor.add_file("default", "folder", "a.txt", "a.txt", file).document
    assert world.processor.wait_until_idle(PATIENCE_S)
    assert world.documents.text(document.id) == "a\ufffdb\nc\ufffdd"
    assert world.found(document.id) == ["a\ufffdb", "c\ufffdd"]


def test_leftovers_of_a_killed_process_are_discarded(world):
    world.processor.start()
    world.add("kept")
    assert world.processor.wait_until_idle(PATIENCE_S)
    world.processor.stop(PATIENCE_S)
    (world.folder / "files" / "incoming-x").write_text("half")
    world.documents.add = killed
    with pytest.raises(SystemError):
        world.add("copied, never added", "b.txt")
    assert len(world.files()) == 2
    world.processor = world.new_processor()
    world.processor.start()
    assert len(world.files()) == 1
    assert not (world.folder / "files" / "incoming-x").exists()


def killed(*_):
    raise SystemError("the process is killed here")


def test_files_outlive_a_start_with_another_database(world, tmp_path, caplog):
    world.processor.start()
    world.add("first", "a.txt")
    world.add("second", "b.txt")
    assert world.processor.wait_until_idle(PATIENCE_S)
    world.processor.stop(PATIENCE_S)
    kept = world.files()
    world.database.close()
    (world.folder / "folio.db").unlink()
    other = World(world.folder, store=world.store)
    other.processor.start()
    elsewhere = CollectionRepository(other.database).create("elsewhere")
    other.add("third", "c.txt", collection_id=elsewhere.id)
    other.processor.delete_collection(elsewhere.id)
    other.processor.stop(PATIENCE_S)
    other.database.close()
    assert other.files() == kept
    assert "num_files=2" in caplog.text


def test_file_that_was_replaced_before_it_was_read_goes(world):
    world.add("first")
    world.add("second")
    world.processor.start()
    assert world.processor.wait_until_idle(PATIENCE_S)
    world.ingest()
    assert len(world.files()) == 1


def test_file_of_a_document_deleted_just_before_a_kill_goes_at_the_start(world):
    document = world.add("one").document
    world.documents.delete(document.id)
    assert len(world.files()) == 1
    world.processor.start()
    assert world.files() == []


def test_cancelling_ends_a_parse_in_the_middle_and_the_next_file_is_unharmed(world):
    world.parser.gate.clear()
    world.processor.start()
    slow = world.add("slow", "a.txt").document
    assert world.parser.has_begun.wait(PATIENCE_S)
    assert world.processor.cancel(slow.id).stage == JobStage.CANCELLED
    assert world.parser.interrupted == [world.parser.thread_id]
    world.parser.gate.set()
    good = world.add("good", "b.txt").document
    assert world.processor.wait_until_idle(PATIENCE_S)
    assert world.documents.get(slow.id).stage == JobStage.CANCELLED
    assert world.documents.get(good.id).status == DocumentStatus.READY
    assert world.parser.interrupted == [world.parser.thread_id]
    world.processor.reindex(slow.id)
    assert world.processor.wait_until_idle(PATIENCE_S)
    assert world.documents.get(slow.id).status == DocumentStatus.READY
    world.assert_consistent()


@pytest.mark.parametrize("is_collection", [False, True])
def test_deleting_ends_a_parse_in_the_middle(world, is_collection):
    elsewhere = CollectionRepository(world.database).create("elsewhere")
    world.parser.gate.clear()
    world.processor.start()
    slow = world.add("slow", "a.txt", collection_id=elsewhere.id).document
    assert world.parser.has_begun.wait(PATIENCE_S)
    if is_collection:
        world.processor.delete_collection(elsewhere.id)
    else:
        world.processor.delete(slow.id)
    assert world.parser.interrupted == [world.parser.thread_id]
    world.parser.gate.set()
    assert world.processor.wait_until_idle(PATIENCE_S)


def test_a_new_version_ends_the_parse_of_the_old_one(world):
    world.parser.gate.clear()
    world.processor.start()
    document = world.add("old", "a.txt").document
    assert world.parser.has_begun.wait(PATIENCE_S)
    world.add("new", "a.txt")
    assert world.parser.interrupted == [world.parser.thread_id]
    world.parser.gate.set()
    assert world.processor.wait_until_idle(PATIENCE_S)
    assert world.found(document.id) == ["new"]
    assert world.parser.interrupted == [world.parser.thread_id]


def test_a_path_too_long_for_an_index_is_refused(world):
    with pytest.raises(InvalidInput, match="2500 is the most"):
        world.add("text", f"/{'中' * 900}.txt")


def test_cancelling_a_new_version_keeps_the_one_that_is_searched(world):
    world.processor.start()
    document = world.add("first").document
    assert world.processor.wait_until_idle(PATIENCE_S)
    world.processor.set_paused(True)
    world.add("second")
    world.processor.cancel(document.id)
    world.processor.set_paused(False)
    assert world.found(document.id) == ["first"]


def test_a_paused_document_waits_and_a_held_queue_waits_over_a_restart(world):
    world.processor.set_paused(True)
    world.processor.start()
    paused, other = world.add("one", "a.txt").document, world.add("two", "b.txt").document
    assert world.processor.pause(paused.id).stage == JobStage.PAUSED
    world.processor.stop(PATIENCE_S)
    world.processor.start()
    assert world.documents.get(other.id).stage == JobStage.QUEUED
    world.processor.set_paused(False)
    assert world.processor.wait_until_idle(PATIENCE_S)
    assert world.documents.get(other.id).status == DocumentStatus.READY
    assert world.documents.get(paused.id).stage == JobStage.PAUSED
    world.processor.reindex(paused.id)
    assert world.processor.wait_until_idle(PATIENCE_S)
    assert world.documents.get(paused.id).status == DocumentStatus.READY


def test_a_file_that_runs_into_the_limits_goes_into_quarantine_and_stays_there(world):
    world.parser.failures = [ParseLimitExceeded("took more than 512 MB")] * 2
    world.processor.start()
    harmful = world.add("bomb", "a.txt").document
    assert world.processor.wait_until_idle(PATIENCE_S)
    document = world.documents.get(harmful.id)
    assert (document.status, document.stage) == (DocumentStatus.FAILED, JobStage.QUARANTINED)
    assert document.error == "took more than 512 MB (tried 2 times)"
    assert world.processor.retry_failed() == 0
    assert world.add("bomb", "b.txt").document.stage == JobStage.QUARANTINED
    assert len(world.parser.names) == 2


def test_everything_that_failed_is_tried_again_at_once(world):
    world.parser.failures = [ParseFailed("damaged")] * 3
    world.processor.start()
    failed = [world.add(f"text {n}", f"{n}.txt").document.id for n in range(3)]
    assert world.processor.wait_until_idle(PATIENCE_S)
    assert world.processor.retry_failed() == 3
    assert world.processor.wait_until_idle(PATIENCE_S)
    assert {world.documents.get(id).status for id in failed} == {DocumentStatus.READY}
