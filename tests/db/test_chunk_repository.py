import random
import threading
from collections import Counter

import pytest
from sqlalchemy import text

from app.db.chunks import ChunkRepository
from app.db.documents import DocumentRepository
from app.db.jobs import JobRepository
from app.domain import (
    Box,
    Chunk,
    ChunkSpan,
    Combination,
    Comparison,
    DocumentStatus,
    HitScores,
    IncomingFile,
    ParsedDocument,
    SearchScope,
)
from app.errors import InvalidInput, LeaseLost, NotFound
from app.rag.protocols import IndexedChunk


class Library:
    """Documents and chunks without a processor."""

    def __init__(self, database):
        self.database = database
        self.documents = DocumentRepository(database)
        self.chunks = ChunkRepository(database)
        self.jobs = JobRepository(database)

    def add(self, path="a.txt", content_hash="h"):
        file = IncomingFile("default", "folder", path, path, "text/plain", content_hash, 1)
        return self.documents.add(file).document

    def index(self, document_id, chunks, title="Title", text="a text"):
        """Claim the document's job and finish it."""
        self.documents.requeue(document_id)
        job = self.jobs.claim(60)
        assert job.document_id == document_id
        self.chunks.replace(job, ParsedDocument(text, title, (), 7), chunks, "index")

    def terms(self):
        with self.database.snapshot() as session:
            return dict(session.execute(text("SELECT id, num_chunks FROM index_terms")).all())


@pytest.fixture
def library(database):
    return Library(database)


def indexed(document_id, index, terms=(), key="k"):
    span = ChunkSpan(
        start=index,
        end=index + 5,
        text=f"text {index} 中文",
        heading_path=("Outer", "Inner"),
        num_tokens=3,
        page=2,
        boxes=(Box(2, 0.1, 0.25, 0.5, 0.75), Box(3, 0.0, 0.0, 1.0, 0.125)),
    )
    chunk = Chunk(f"{key}-{document_id}-{index}", document_id, "default", index, span)
    return IndexedChunk(chunk, tuple(terms))


def test_hits_are_the_chunks_as_they_were_written(library):
    document = library.add()
    one = indexed(document.id, 0)
    library.index(document.id, [one])
    hits = library.chunks.hits([one.chunk.id, "unknown"])
    assert list(hits) == [one.chunk.id]
    hit = hits[one.chunk.id]
    assert hit.chunk == one.chunk
    assert (hit.document_name, hit.document_title) == ("a.txt", "Title")
    assert (hit.score, hit.scores) == (0.0, HitScores())


def test_replaced_document_is_ready_with_text_and_counts(library):
    document = library.add()
    library.index(document.id, [indexed(document.id, n) for n in range(3)])
    document = library.documents.get(document.id)
    assert (document.status, document.num_chunks, document.num_pages) == (
        DocumentStatus.READY,
        3,
        7,
    )
    assert library.documents.text(document.id) == "a text"
    assert library.chunks.num_chunks() == library.documents.counts().num_chunks == 3
    assert library.documents.sample_titles(5) == ["Title"]


def test_a_ready_document_says_what_of_its_file_was_not_read(library):
    document = library.add()
    job = library.jobs.claim(60)
    parsed = ParsedDocument("a text", "Title", (), 9, note="1 of 9 pages are damaged: 7")
    library.chunks.replace(job, parsed, [indexed(document.id, 0, [1])], "index")

    found = library.documents.get(document.id)
    assert (found.status, found.error) == (DocumentStatus.READY, "1 of 9 pages are damaged: 7")


def test_replace_without_the_lease_changes_nothing(library):
    document = library.add()
    old = library.jobs.claim(60)
    library.add(content_hash="changed")
    with pytest.raises(LeaseLost):
        library.chunks.replace(
            old, ParsedDocument("", "", ()), [indexed(document.id, 0, [1])], "index"
        )
    assert library.chunks.num_chunks() == 0
    assert library.terms() == {}


def test_chunks_come_in_pages(library):
    document = library.add()
    library.index(document.id, [indexed(document.id, n) for n in range(5)])
    chunks, total = library.chunks.list(document.id, page=2, page_size=2)
    assert ([chunk.index for chunk in chunks], total) == ([2, 3], 5)


def test_more_ids_than_one_statement_takes(library):
    document = library.add()
    chunks = [indexed(document.id, n, [n]) for n in range(1200)]
    library.index(document.id, chunks)
    assert len(library.chunks.hits([c.chunk.id for c in chunks])) == 1200
    assert len(library.chunks.of("index").document_frequencies(range(1200))) == 1200


def test_document_frequencies_count_chunks_and_take_all_32_bits(library):
    document = library.add()
    highest = 2**32 - 1
    library.index(
        document.id, [indexed(document.id, 0, [1, highest]), indexed(document.id, 1, [1])]
    )
    assert library.chunks.of("index").document_frequencies([1, highest, 5]) == {1: 2, highest: 1}


def test_document_frequencies_stay_exact_through_random_changes(library):
    random.seed(7)
    ids = [library.add(f"{n}.txt").id for n in range(4)]
    for id in ids:
        library.index(library.documents.get(id).id, [])
    truth = {}
    for step in range(40):
        id = random.choice(ids)
        if random.random() < 0.2:
            library.documents.delete(id)
            truth.pop(id, None)
            ids[ids.index(id)] = new = library.add(f"new{step}.txt").id
            library.index(new, [])
            continue
        terms = [random.sample(range(10), random.randint(0, 5)) for _ in range(4)]
        library.index(id, [indexed(id, n, t, key=f"{step}") for n, t in enumerate(terms)])
        truth[id] = terms
    expected = Counter(term for terms in truth.values() for chunk in terms for term in chunk)
    assert library.terms() == dict(expected)


def test_documents_finished_at_once_count_every_term(library):
    ids = [library.add(f"{n}.txt").id for n in range(12)]
    claimed = [library.jobs.claim(60) for _ in ids]

    def finish(job, order):
        terms = list(range(50))[::order]
        chunks = [indexed(job.document_id, n, terms) for n in range(3)]
        library.chunks.replace(job, ParsedDocument("t", "t", ()), chunks, "index")

    threads = [
        threading.Thread(target=finish, args=(job, 1 if n % 2 else -1))
        for n, job in enumerate(claimed)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert library.terms() == dict.fromkeys(range(50), 36)


def test_announced_vectors_are_stale_once_their_job_ends_without_them(library):
    document = library.add()
    job = library.jobs.claim(60)
    library.chunks.announce_vectors(document.id, "index", ["x"])
    assert library.chunks.stale_vectors("index") == []  # the job may still make them chunks
    library.jobs.fail(job, "damaged")
    (stale,) = library.chunks.stale_vectors("index")
    assert (stale.document_id, stale.job_id, stale.chunk_ids) == (document.id, job.id, ("x",))
    library.chunks.forget_stale(stale)
    assert library.chunks.stale_vectors("index") == []


def test_announced_vectors_that_become_chunks_are_not_stale(library):
    document = library.add()
    one = indexed(document.id, 0)
    library.chunks.announce_vectors(document.id, "index", [one.chunk.id])
    library.index(document.id, [one])
    assert library.chunks.stale_vectors("index") == []
    library.chunks.announce_vectors(document.id, "index", [one.chunk.id])
    assert library.chunks.stale_vectors("index") == []


def test_vectors_of_replaced_and_deleted_chunks_are_stale(library):
    document = library.add()
    old, new = indexed(document.id, 0, key="old"), indexed(document.id, 0, key="new")
    library.index(document.id, [old])
    library.index(document.id, [new])
    assert [s.chunk_ids for s in library.chunks.stale_vectors("index")] == [(old.chunk.id,)]
    library.documents.delete(document.id)
    (stale,) = library.chunks.stale_vectors("index")
    assert (stale.job_id, set(stale.chunk_ids)) == (None, {old.chunk.id, new.chunk.id})


def test_document_that_got_a_job_while_vectors_were_deleted_is_queued_anew(library):
    document = library.add()
    old, new = indexed(document.id, 0, key="old"), indexed(document.id, 0, key="new")
    library.index(document.id, [old])
    library.index(document.id, [new])
    (stale,) = library.chunks.stale_vectors("index")
    library.index(document.id, [old])  # the old content came back before we deleted its vectors
    library.chunks.forget_stale(stale)
    assert library.documents.get(document.id).status == DocumentStatus.QUEUED


def test_deleted_document_leaves_no_rows(library):
    document = library.add()
    library.index(document.id, [indexed(document.id, 0, [1])])
    library.documents.delete(document.id)
    assert library.chunks.num_chunks() == 0
    assert library.terms() == {}
    with pytest.raises(NotFound):
        library.documents.text(document.id)


HOSTILE = """x' OR 1=1 -- "] or true \\ 中文%_"""
METADATA = {
    "a": {"year": 2023.0, "tag": "law", "ok": True},
    "b": {"year": 2024.0, "tag": "Law"},
    "c": {"year": "2024", "tag": "法律", "ok": False},
    "d": {HOSTILE: HOSTILE, "tag": ""},
    "e": {},
}


@pytest.fixture
def described(library):
    for name, metadata in METADATA.items():
        library.documents.set_metadata(library.add(name, f"hash-{name}").id, metadata)
    return library


def compare(key, operator, value):
    return Comparison(key, operator, value)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (compare("year", "eq", 2024.0), "b"),
        (compare("year", "eq", "2024"), "c"),
        (compare("year", "ne", 2024.0), "acde"),
        (compare("year", "gt", 2023.0), "b"),
        (compare("year", "gte", 2023.0), "ab"),
        (compare("year", "lt", 2024.0), "a"),
        (compare("year", "lte", 1.0), ""),
        (compare("year", "gte", "2020"), "c"),
        (compare("tag", "in", ("law", "法律", 3.0)), "ac"),
        (compare("tag", "nin", ("law", "")), "bce"),
        (compare("tag", "lt", "a"), "bd"),
        (compare("tag", "eq", ""), "d"),
        (compare("ok", "eq", True), "a"),
        (compare("ok", "ne", True), "bcde"),
        (compare("ok", "eq", 1.0), ""),
        (compare(HOSTILE, "eq", HOSTILE), "d"),
        (compare("tag", "eq", HOSTILE), ""),
        (compare(HOSTILE, "ne", "x"), "abcde"),
        (compare("tag", "in", ()), ""),
        (
            Combination("and", (compare("tag", "eq", "law"), compare("year", "gt", 2000.0))),
            "a",
        ),
        (
            Combination(
                "or",
                (
                    compare("ok", "eq", False),
                    Combination("and", (compare("year", "eq", 2024.0), compare("ok", "ne", True))),
                ),
            ),
            "bc",
        ),
    ],
)
def test_documents_are_found_by_their_metadata(described, wanted, found):
    ids = described.chunks.documents_in(SearchScope(filter=wanted))
    assert sorted(described.documents.get(id).name for id in ids) == list(found)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (compare("folio.name", "eq", "a"), "a"),
        (compare("folio.name", "in", ("a", "c", 1.0)), "ac"),
        (compare("folio.name", "nin", ("a", "c")), "bde"),
        (compare("folio.name", "eq", HOSTILE), ""),
        (compare("folio.name", "eq", 1.0), ""),
        (compare("folio.source", "ne", "nowhere"), "abcde"),
        (compare("folio.num_pages", "gt", 0.0), ""),
        (compare("folio.num_pages", "ne", 3.0), "abcde"),
        (compare("folio.num_bytes", "gte", 0.0), "abcde"),
        (compare("folio.num_bytes", "eq", True), ""),
        (compare("folio.created_at", "gt", 0.0), "abcde"),
        (compare("folio.created_at", "lt", -1e300), ""),
        (compare("folio.created_at", "gt", 1e300), ""),
    ],
)
def test_documents_are_found_by_what_folio_knows_of_them(described, wanted, found):
    ids = described.chunks.documents_in(SearchScope(filter=wanted))
    assert sorted(described.documents.get(id).name for id in ids) == list(found)


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (compare("folio.author", "eq", "a"), r"asks for folio\.author, documents have folio\.cre"),
        (compare("folio.name", "gt", "a"), "by eq, ne, in and nin only, not by gt"),
    ],
)
def test_facts_that_no_document_has_are_refused(described, wanted, reason):
    with pytest.raises(InvalidInput, match=reason):
        described.chunks.documents_in(SearchScope(filter=wanted))


def test_filters_stay_in_the_documents_of_the_scope(described):
    every = described.chunks.documents_in(SearchScope())
    assert len(every) > 1
    wanted = Comparison("no-such-key", "ne", "x")
    assert described.chunks.documents_in(SearchScope(None, wanted)) == every
    assert described.chunks.documents_in(SearchScope(None, wanted, every[1:])) == every[1:]
    assert described.chunks.documents_in(SearchScope(None, wanted, ("unknown",))) == ()
    assert described.chunks.documents_in(SearchScope(None, wanted, ())) == ()


def test_filters_stay_in_the_collections_of_the_scope(described):
    wanted = compare("year", "eq", 2024.0)
    assert len(described.chunks.documents_in(SearchScope(("default",), wanted))) == 1
    assert described.chunks.documents_in(SearchScope(("other",), wanted)) == ()
    assert described.chunks.documents_in(SearchScope((), wanted)) == ()
