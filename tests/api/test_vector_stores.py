"""Files, vector stores and embeddings by OpenAI's own client; only the models are fakes."""

import base64
import itertools

import numpy as np
import openai
import pytest

from app.rag.document_processor import (
    DocumentProcessor,
    FileStore,
    IngestRecords,
    ProcessorConfig,
    Stages,
    WorkerConfig,
)
from app.rag.retriever import HybridRetriever
from tests.fakes import FakeEmbedder, FakeVectorStore, sparse_of
from tests.rag.test_document_processor import PATIENCE_S, LineChunker, LineParser

LAW = b"Law\nThe notice period is three months"
LEAVE = b"Leave\nThere are fifteen days of leave"


def media_type_of(name, head):
    return "text/plain" if name.endswith(".md") else "application/octet-stream"


@pytest.fixture
def processor(services, server, tmp_path):
    """Ingestion as it is, but for the models; it is not started."""
    services.store, services.embedder = FakeVectorStore(), FakeEmbedder()
    stages = Stages(
        parser=LineParser(),
        chunker=LineChunker(),
        embedder=services.embedder,
        store=services.store,
        embedded_text=lambda title, span: f"{title}\n{span.text}",
        term_weights=sparse_of,
    )
    records = services.records
    services.processor = DocumentProcessor(
        stages,
        IngestRecords(records.documents, records.chunks, records.jobs, records.files),
        FileStore(tmp_path / "files"),
        ProcessorConfig(media_type_of, [".md"], 1000, WorkerConfig(poll_s=0.02)),
    )
    services.retriever = HybridRetriever(
        services.embedder, services.store, records.chunks.of("fake"), 20
    )
    yield services.processor
    services.processor.stop(PATIENCE_S)


@pytest.fixture
def client(server, processor):
    with openai.OpenAI(base_url=f"{server}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def store(client):
    return client.vector_stores.create(name="Law 法律")


def send(client, name, data):
    return client.files.create(file=(name, data), purpose="assistants")


def ingest(processor):
    processor.start()
    assert processor.wait_until_idle(PATIENCE_S)


def test_a_file_is_kept_listed_read_and_deleted(client):
    file = send(client, "合同.md", LAW)
    assert (file.filename, file.bytes, file.purpose) == ("合同.md", len(LAW), "assistants")
    assert client.files.retrieve(file.id).id == file.id
    assert client.files.content(file.id).content == LAW
    other = send(client, "b.md", b"text")
    assert [item.id for item in client.files.list()] == [other.id, file.id]
    assert [item.id for item in client.files.list(order="asc", limit=1)] == [file.id, other.id]
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError, match=file.id):
        client.files.retrieve(file.id)


def test_a_kept_file_outlives_tidying_until_it_is_deleted(client, processor, tmp_path):
    file, twin = send(client, "a.md", LAW), send(client, "b.md", LAW)
    processor.recover()
    assert client.files.content(file.id).content == LAW
    client.files.delete(file.id)
    assert client.files.content(twin.id).content == LAW
    client.files.delete(twin.id)
    assert list((tmp_path / "files").glob("??/*")) == []


@pytest.mark.parametrize(
    ("name", "purpose", "reason"),
    [
        ("a.exe", "assistants", "cannot be read; these can: .*md"),
        ("big.md", "assistants", "larger than"),
        ("a.md", "batch", "purpose is 'batch'"),
    ],
)
def test_files_that_cannot_be_taken_are_refused_with_the_reason(client, name, purpose, reason):
    data = b"x" * (1001 if name == "big.md" else 3)
    with pytest.raises(openai.APIStatusError, match=reason):
        client.files.create(file=(name, data), purpose=purpose)
    assert list(client.files.list()) == []


def test_files_in_a_store_become_searchable(client, store, processor):
    law, leave = send(client, "law.md", LAW), send(client, "leave.md", LEAVE)
    added = client.vector_stores.files.create(
        vector_store_id=store.id, file_id=law.id, attributes={"year": 2024, "tag": "法律"}
    )
    assert (added.id, added.status, added.attributes) == (
        law.id,
        "in_progress",
        {"year": 2024, "tag": "法律"},
    )
    client.vector_stores.files.create(vector_store_id=store.id, file_id=leave.id)
    assert client.vector_stores.retrieve(store.id).status == "in_progress"
    ingest(processor)
    counted = client.vector_stores.retrieve(store.id)
    assert (counted.status, counted.file_counts.completed) == ("completed", 2)
    assert counted.usage_bytes == len(LAW) + len(LEAVE)
    found = client.vector_stores.search(store.id, query="notice period")
    best = found.data[0]
    assert (best.file_id, best.filename) == (law.id, "law.md")
    assert best.content[0].text == "The notice period is three months"
    assert best.attributes == {"year": 2024, "tag": "法律"}
    content = client.vector_stores.files.content(law.id, vector_store_id=store.id)
    assert content.data[0].text == LAW.decode()


def test_a_search_stays_in_its_store_and_its_filter(client, store, processor):
    law, leave = send(client, "law.md", LAW), send(client, "leave.md", LEAVE)
    files = client.vector_stores.files
    files.create(vector_store_id=store.id, file_id=law.id, attributes={"year": 2024})
    files.create(vector_store_id=store.id, file_id=leave.id, attributes={"year": 2020})
    elsewhere = client.vector_stores.create(name="other", file_ids=[law.id])
    ingest(processor)

    def found(store_id, **options):
        result = client.vector_stores.search(store_id, query="period of leave", **options)
        return {item.file_id for item in result.data}

    assert found(store.id) == {law.id, leave.id}
    assert found(elsewhere.id) == {law.id}
    after = {"type": "gt", "key": "year", "value": 2022}
    assert found(store.id, filters=after) == {law.id}
    files.update(leave.id, vector_store_id=store.id, attributes={"year": 2025})
    assert found(store.id, filters=after) == {law.id, leave.id}
    assert found(store.id, max_num_results=1, filters=after) <= {law.id, leave.id}
    assert found(store.id, ranking_options={"score_threshold": 1.0}) == set()


def test_a_file_taken_out_of_a_store_stays_and_one_deleted_leaves_its_stores(
    client, store, processor
):
    law = send(client, "law.md", LAW)
    files = client.vector_stores.files
    files.create(vector_store_id=store.id, file_id=law.id)
    ingest(processor)
    assert files.delete(law.id, vector_store_id=store.id).deleted
    assert client.files.retrieve(law.id).id == law.id
    files.create(vector_store_id=store.id, file_id=law.id)
    assert processor.wait_until_idle(PATIENCE_S)
    client.files.delete(law.id)
    assert list(files.list(store.id)) == []
    assert client.vector_stores.search(store.id, query="notice period").data == []


def test_documents_that_came_otherwise_are_files_of_their_store(client, store, processor, tmp_path):
    path = tmp_path / "given.md"
    path.write_bytes(LAW)
    document = processor.add_file(store.id, "upload", "given.md", "given.md", path).document
    assert [file.id for file in client.vector_stores.files.list(store.id)] == [document.id]
    assert client.files.retrieve(document.id).filename == "given.md"
    assert client.files.content(document.id).content == LAW


def test_store_files_are_paged_in_both_directions_and_filtered(client, store, processor):
    sent = [send(client, f"{n}.md", b"line %d" % n).id for n in range(5)]
    for file_id in sent:
        client.vector_stores.files.create(vector_store_id=store.id, file_id=file_id)
    files = client.vector_stores.files
    assert [file.id for file in files.list(store.id, limit=2)] == sent[::-1]
    page = files.list(store.id, order="asc", before=sent[3], limit=2)
    assert ([file.id for file in page.data], page.has_more) == (sent[1:3], True)
    assert list(files.list(store.id, filter="completed")) == []
    assert len(list(files.list(store.id, filter="in_progress"))) == 5
    with pytest.raises(openai.NotFoundError, match="nope"):
        files.list(store.id, after="nope")


def test_a_batch_is_followed_to_its_end(client, store, processor):
    good, empty = send(client, "a.md", LAW), send(client, "b.md", b"\n")
    batch = client.vector_stores.file_batches.create(store.id, file_ids=[good.id, empty.id])
    assert (batch.status, batch.file_counts.in_progress) == ("in_progress", 2)
    ingest(processor)
    batch = client.vector_stores.file_batches.retrieve(batch.id, vector_store_id=store.id)
    counts = batch.file_counts
    assert (batch.status, counts.completed, counts.failed, counts.total) == ("completed", 1, 1, 2)
    files = client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id)
    errors = {file.id: file.last_error for file in files}
    assert errors[good.id] is None
    assert "holds no text" in errors[empty.id].message


def test_a_batch_is_cancelled(client, store, processor):
    ids = [send(client, f"{n}.md", b"line %d" % n).id for n in range(2)]
    batches = client.vector_stores.file_batches
    batch = batches.create(store.id, file_ids=ids)
    cancelled = batches.cancel(batch.id, vector_store_id=store.id)
    assert (cancelled.status, cancelled.file_counts.cancelled) == ("cancelled", 2)


def test_a_batch_with_an_unknown_file_puts_nothing_anywhere(client, store):
    known = send(client, "a.md", LAW)
    with pytest.raises(openai.NotFoundError, match="file-nope"):
        client.vector_stores.file_batches.create(store.id, file_ids=[known.id, "file-nope"])
    assert list(client.vector_stores.files.list(store.id)) == []


def test_stores_are_the_knowledge_bases(client, store, services):
    assert {item.name for item in client.vector_stores.list()} == {"default", "Law 法律"}
    pages = [client.vector_stores.list(limit=1, order="asc")]
    pages.append(pages[0].get_next_page())
    assert [item.name for item in itertools.chain(*(page.data for page in pages))] == [
        "default",
        "Law 法律",
    ]
    assert client.vector_stores.update(store.id, name="Rules").name == "Rules"
    assert services.records.collections.by_name("Rules").id == store.id
    with pytest.raises(openai.ConflictError, match="'default' exists"):
        client.vector_stores.update(store.id, name="default")
    assert client.vector_stores.delete(store.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.retrieve(store.id)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"expires_after": {"anchor": "last_active_at", "days": 7}}, "expires_after"),
        ({"metadata": {"a": "b"}}, "metadata"),
        (
            {
                "chunking_strategy": {
                    "type": "static",
                    "static": {"max_chunk_size_tokens": 800, "chunk_overlap_tokens": 400},
                }
            },
            "FOLIO_CHUNK_SIZE_TOKENS",
        ),
    ],
)
def test_what_a_store_cannot_do_is_refused(client, options, reason):
    with pytest.raises(openai.BadRequestError, match=reason):
        client.vector_stores.create(name="x", **options)


def test_embeddings_are_those_of_the_index(client, services):
    texts = ["notice period", "假期"]
    reply = client.embeddings.create(model="fake", input=texts, encoding_format="float")
    expected = services.embedder.embed_documents(texts)
    assert np.array([item.embedding for item in reply.data]) == pytest.approx(expected)
    assert reply.usage.prompt_tokens == sum(services.embedder.count_tokens(texts))
    packed = client.embeddings.create(model="fake", input=texts[0], encoding_format="base64")
    vector = np.frombuffer(base64.b64decode(packed.data[0].embedding), "<f4")
    assert vector == pytest.approx(expected[0])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model": "other"}, "the embedding model here is fake"),
        ({"model": "fake", "dimensions": 8}, "has 64 dimensions, not 8"),
        ({"model": "fake", "input": []}, "at least 1 item"),
    ],
)
def test_embeddings_of_another_kind_are_refused(client, options, reason):
    with pytest.raises(openai.BadRequestError, match=reason):
        client.embeddings.create(**({"input": "x"} | options))
