import random
import string
import threading
from dataclasses import replace

import pytest

from app.db.collections import CollectionRepository
from app.db.documents import DocumentRepository
from app.db.jobs import JobRepository
from app.domain import DocumentStatus, IncomingFile
from app.errors import Conflict, InvalidInput, NotFound
from app.rag.document_processor.processor import MAX_PATH_BYTES


@pytest.fixture
def documents(database):
    return DocumentRepository(database)


def incoming(path="a.txt", content_hash="h1", collection_id="default", name=None):
    name = name or path.rpartition("/")[2]
    return IncomingFile(collection_id, "folder", path, name, "text/plain", content_hash, 3)


def test_added_document_is_queued(documents):
    result = documents.add(incoming("folder/a.txt"))
    assert result.outcome == "added"
    document = documents.get(result.document.id)
    assert document == result.document
    assert (document.status, document.name, document.path) == (
        DocumentStatus.QUEUED,
        "a.txt",
        "folder/a.txt",
    )


def test_identity_is_collection_source_and_path(documents, database):
    other = CollectionRepository(database).create("other")
    first = documents.add(incoming()).document
    assert documents.add(incoming()).outcome == "unchanged"
    assert documents.add(incoming(content_hash="h2")).document.id == first.id
    assert documents.add(incoming(collection_id=other.id)).outcome == "added"
    assert documents.add(incoming("b.txt")).outcome == "added"
    assert documents.list()[1] == 3


def test_metadata_come_with_a_file_or_later_and_stay_until_they_are_replaced(documents):
    facts = {"year": 2024.0, "author": "李雷", "is_draft": False}
    document = documents.add(replace(incoming(), metadata=facts)).document
    assert document.metadata == facts
    assert documents.add(incoming(content_hash="h2")).document.metadata == facts
    same = documents.add(replace(incoming(content_hash="h2"), metadata={"year": 2025.0}))
    assert (same.outcome, same.document.metadata) == ("unchanged", {"year": 2025.0})
    changed = documents.set_metadata(document.id, {"year": "MMXXV"})
    assert changed.metadata == documents.get(document.id).metadata == {"year": "MMXXV"}
    assert documents.set_metadata(document.id, {}).metadata == {}
    documents.set_metadata(document.id, facts)
    documents.delete(document.id)
    assert documents.add(incoming()).document.metadata == {}


def test_metadata_of_an_unknown_document_are_refused(documents):
    with pytest.raises(NotFound, match="nope"):
        documents.set_metadata("nope", {})


def test_moved_document_stays_the_same_under_its_new_path(documents):
    document = documents.add(incoming("old/a.txt")).document
    moved = documents.move(document.id, "new/b.txt")
    assert (moved.id, moved.path, moved.name) == (document.id, "new/b.txt", "b.txt")
    assert documents.add(incoming("new/b.txt")).outcome == "unchanged"
    assert documents.add(incoming("old/a.txt")).outcome == "added"


def test_document_cannot_move_onto_another_and_uploads_do_not_move(documents):
    document = documents.add(incoming("a.txt")).document
    documents.add(incoming("b.txt"))
    with pytest.raises(Conflict, match=r"another document has the path b\.txt"):
        documents.move(document.id, "b.txt")
    assert documents.get(document.id).path == "a.txt"
    upload = documents.add(uploaded("h9")).document
    with pytest.raises(Conflict, match="only files of folders move"):
        documents.move(upload.id, "c.txt")
    with pytest.raises(NotFound):
        documents.move("missing", "c.txt")


def uploaded(content_hash, path="sub/report.pdf"):
    return replace(incoming(path, content_hash), source="upload")


def test_upload_of_other_bytes_under_the_same_name_becomes_a_second_document(documents):
    outcomes = [documents.add(uploaded(h)) for h in ("h1", "h2", "h3", "h1", "h2", "h3")]
    assert [r.outcome for r in outcomes] == ["added"] * 3 + ["unchanged"] * 3
    assert [(r.document.path, r.document.name) for r in outcomes[:3]] == [
        ("sub/report.pdf", "report.pdf"),
        ("sub/report (2).pdf", "report (2).pdf"),
        ("sub/report (3).pdf", "report (3).pdf"),
    ]
    documents.delete(outcomes[1].document.id)
    assert documents.add(uploaded("h3")).outcome == "unchanged"
    assert documents.add(uploaded("h4")).document.name == "report (2).pdf"
    assert documents.add(uploaded("h5", "report.pdf")).document.path == "report.pdf"


def test_upload_replaces_a_file_of_its_name_that_failed(documents, database):
    failed = documents.add(uploaded("h1")).document
    jobs = JobRepository(database)
    jobs.fail(jobs.claim(60), "damaged")
    again = documents.add(uploaded("h2"))
    assert (again.outcome, again.document.id) == ("changed", failed.id)
    assert documents.list()[1] == 1


def test_threads_that_upload_other_files_of_one_name_lose_none(documents):
    def add(number):
        documents.add(uploaded(f"h{number}"))

    threads = [threading.Thread(target=add, args=[n]) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {d.content_hash for d in documents.list()[0]} == {"h0", "h1", "h2", "h3"}


def test_threads_that_add_the_same_file_make_one_document(documents):
    outcomes = []

    def add():
        outcomes.append(documents.add(incoming()).outcome)

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(outcomes) == ["added"] + ["unchanged"] * 7


def test_unknown_ids_are_not_found(documents):
    for call in (
        documents.get,
        documents.text,
        documents.delete,
        documents.requeue,
        documents.served_hash,
    ):
        with pytest.raises(NotFound):
            call("nope")
    with pytest.raises(NotFound, match="collection"):
        documents.add(incoming(collection_id="nope"))


def test_list_filters_and_pages_newest_first(documents, database):
    for n in range(5):
        documents.add(incoming(f"{n}.txt"))
    jobs = JobRepository(database)
    jobs.fail(jobs.claim(60), "damaged")
    items, total = documents.list(page=2, page_size=2)
    assert ([d.path for d in items], total) == (["2.txt", "1.txt"], 5)
    assert [d.path for d in documents.list(status="failed")[0]] == ["0.txt"]
    assert documents.list(status="pending")[1] == 4
    assert documents.list(status="ready")[1] == 0
    assert documents.list(collection_id="nope") == ([], 0)


@pytest.mark.parametrize("query, found", [("100%", 1), ("REPORT", 2), ("a_b", 0), ("年假", 1)])
def test_list_searches_names_literally_in_any_case(documents, query, found):
    for path in ("report 100%.txt", "Report 1000.txt", "axb.txt", "员工年假.txt"):
        documents.add(incoming(path))
    assert documents.list(query=query)[1] == found


def test_counts_follow_the_jobs(documents, database):
    for n in range(3):
        documents.add(incoming(f"{n}.txt"))
    jobs = JobRepository(database)
    jobs.fail(jobs.claim(60), "damaged")
    counts = documents.counts()
    assert (counts.num_documents, counts.num_pending, counts.num_failed) == (3, 2, 1)
    assert documents.counts("nope").num_documents == 0


def test_collection_names_are_unique(database):
    collections = CollectionRepository(database)
    created = collections.create("Handbook")
    assert collections.by_name("Handbook") == created
    with pytest.raises(Conflict, match="Handbook"):
        collections.create("Handbook")


def test_collections_count_their_documents(documents, database):
    documents.add(incoming())
    assert [(c.id, c.num_documents) for c in CollectionRepository(database).list()] == [
        ("default", 1)
    ]


def test_deleted_collection_takes_its_documents_along(documents, database):
    collections = CollectionRepository(database)
    other = collections.create("other")
    gone = documents.add(incoming(collection_id=other.id)).document
    kept = documents.add(incoming()).document
    assert documents.delete_collection(other.id) == [gone.id]
    assert [d.id for d in documents.list()[0]] == [kept.id]
    with pytest.raises(NotFound):
        documents.delete_collection(other.id)
    with pytest.raises(Conflict, match="default"):
        documents.delete_collection("default")


def test_id_that_no_database_takes_is_the_callers_fault(documents):
    with pytest.raises((NotFound, InvalidInput)):
        documents.get("a\0b")


def test_the_longest_path_that_is_let_in_has_room_in_the_index(documents):
    path = "/" + "".join(random.Random(1).choices(string.ascii_letters, k=MAX_PATH_BYTES - 1))
    assert documents.add(incoming(path)).outcome == "added"
