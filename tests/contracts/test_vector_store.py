"""What every VectorStore must do: the fake of the tests, Milvus Lite, and a Milvus server.

The server is opt-in: `FOLIO_TEST_MILVUS_URI=http://127.0.0.1:19530 pytest -m milvus`.
"""

import os
import re
import socket
import time
import uuid

import numpy as np
import pytest
from milvus_lite.server_manager import server_manager_instance

from app.domain import EVERYWHERE, SearchScope
from app.errors import StoreUnavailable
from app.rag.protocols import ChunkVectors
from app.rag.store import MilvusStore, conditions
from tests.fakes import FakeVectorStore

DIMENSION = 8


def unit(*weights: float) -> np.ndarray:
    vector = np.zeros(DIMENSION, dtype=np.float32)
    vector[: len(weights)] = weights
    return vector / np.linalg.norm(vector)


def chunk(id: str, dense=(1.0,), sparse=None, document_id="doc-1", collection_id="col-1"):
    sparse = {1: 1.0} if sparse is None else sparse
    return ChunkVectors(id, document_id, collection_id, unit(*dense), sparse)


def settled(search, expected: list[str]) -> list[str]:
    """Search until a delete is seen: a server may take a moment, no store more than 5 s."""
    deadline = time.monotonic() + 5
    while (found := ids(search())) != expected and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def ids(hits) -> list[str]:
    return [hit.chunk_id for hit in hits]


@pytest.fixture(scope="module")
def lite(tmp_path_factory):
    store = MilvusStore(str(tmp_path_factory.mktemp("lite") / "index.db"), None, "m", DIMENSION)
    store.open()
    yield store
    store.close()


@pytest.fixture(scope="module")
def server():
    uri = os.environ.get("FOLIO_TEST_MILVUS_URI")
    if not uri:
        pytest.skip("FOLIO_TEST_MILVUS_URI is not set")
    store = MilvusStore(uri, None, f"contract-{uuid.uuid4().hex}", DIMENSION)
    store.open()
    yield store
    store._client.drop_alias("folio")
    store._client.drop_collection(store.collection)
    store.close()


@pytest.fixture(params=["fake", "lite", pytest.param("server", marks=pytest.mark.milvus)])
def store(request):
    if request.param == "fake":
        return FakeVectorStore()
    store = request.getfixturevalue(request.param)
    store.delete_documents(["doc-1", "doc-2", HOSTILE])
    assert settled(lambda: store.search_dense(unit(1), 5, EVERYWHERE), []) == []
    return store


@pytest.fixture
def sparse_store(store):
    if not getattr(store, "has_sparse", True):
        pytest.skip("this server has no sparse vectors")
    return store


HOSTILE = '"] or chunk_id != "\\\' 中文'


def test_dense_search_orders_by_cosine(store):
    store.upsert([chunk("a", (1, 0)), chunk("b", (1, 1)), chunk("c", (0, 1))])
    hits = store.search_dense(unit(1, 0.1), 2, EVERYWHERE)
    assert ids(hits) == ["a", "b"]
    assert hits[0].score == pytest.approx(float(unit(1, 0.1) @ unit(1, 0)), abs=1e-4)


def test_sparse_search_orders_by_inner_product_and_leaves_out_zero(sparse_store):
    big_term = 0x7FFF_FFFF
    sparse_store.upsert(
        [
            chunk("a", sparse={5: 1.0, big_term: 2.0}),
            chunk("b", sparse={5: 0.5, 9: 3.0}),
            chunk("c", sparse={7: 1.0}),
        ]
    )
    hits = sparse_store.search_sparse({5: 2.0, big_term: 1.0}, 10, EVERYWHERE)
    assert [(hit.chunk_id, pytest.approx(hit.score)) for hit in hits] == [("a", 4.0), ("b", 1.0)]


def test_sparse_scores_do_not_change_when_other_chunks_come(sparse_store):
    sparse_store.upsert([chunk("a", sparse={5: 1.5})])
    before = sparse_store.search_sparse({5: 2.0}, 1, EVERYWHERE)
    sparse_store.upsert([chunk(f"other-{n}", sparse={5: 0.1, 6: 1.0}) for n in range(20)])
    assert sparse_store.search_sparse({5: 2.0}, 1, EVERYWHERE) == before


def test_a_chunk_without_terms_is_stored_and_found_by_meaning(store):
    store.upsert([chunk("a", sparse={}), chunk("b", (0, 1))])
    assert ids(store.search_dense(unit(1, 0.1), 5, EVERYWHERE)) == ["a", "b"]


def test_an_empty_query_vector_finds_nothing(store):
    store.upsert([chunk("a")])
    assert store.search_sparse({}, 5, EVERYWHERE) == []


def test_chunks_are_searchable_as_soon_as_upsert_returns(store):
    store.upsert([chunk("a")])
    assert store.count() == 1
    assert ids(store.search_dense(unit(1), 5, EVERYWHERE)) == ["a"]


def test_a_second_upsert_replaces_the_first(store):
    store.upsert([chunk("a", (1, 0))])
    store.upsert([chunk("a", (0, 1))])
    assert store.count() == 1
    assert store.search_dense(unit(0, 1), 5, EVERYWHERE)[0].score == pytest.approx(1.0, abs=1e-4)


def test_upserting_nothing_is_no_error(store):
    store.upsert([])
    assert store.count() == 0


def test_search_in_an_empty_store_finds_nothing(store):
    assert store.search_dense(unit(1), 5, EVERYWHERE) == []
    assert store.search_sparse({1: 1.0}, 5, EVERYWHERE) == []


def test_search_stays_in_the_collections_asked_for(store):
    store.upsert([chunk("a", collection_id="col-1"), chunk("b", collection_id="col-2")])
    assert ids(store.search_dense(unit(1), 5, SearchScope(("col-2",)))) == ["b"]
    assert set(ids(store.search_dense(unit(1), 5, SearchScope(("col-1", "col-2"))))) == {"a", "b"}
    assert store.search_dense(unit(1), 5, SearchScope(("col-3",))) == []
    assert store.search_dense(unit(1), 5, SearchScope(())) == []


def test_sparse_search_stays_in_the_collections_asked_for(sparse_store):
    sparse_store.upsert([chunk("a", collection_id="col-1"), chunk("b", collection_id="col-2")])
    assert ids(sparse_store.search_sparse({1: 1.0}, 5, SearchScope(("col-2",)))) == ["b"]


def test_search_stays_in_the_documents_asked_for_however_many_they_are(sparse_store):
    sparse_store.upsert(
        [
            chunk("a", dense=(1,)),
            chunk("b", document_id="doc-2", dense=(1, 0.5)),
            chunk("c", document_id=HOSTILE, collection_id="col-2", dense=(1, 0.2)),
        ]
    )

    def found(*document_ids, collection_ids=None):
        scope = SearchScope(collection_ids, document_ids=document_ids)
        dense = ids(sparse_store.search_dense(unit(1), 5, scope))
        assert set(ids(sparse_store.search_sparse({1: 1.0}, 5, scope))) == set(dense)
        return dense

    assert found("doc-2") == ["b"]
    assert found() == []
    assert found("doc-2", HOSTILE) == ["c", "b"]
    assert found("doc-2", HOSTILE, collection_ids=("col-2",)) == ["c"]
    many = [f"unknown-{n}" for n in range(2500)]
    assert found("doc-2", *many, "doc-1", HOSTILE) == ["a", "c", "b"]


def test_values_in_filters_are_data_whatever_they_hold(store):
    store.upsert([chunk("a", collection_id=HOSTILE), chunk("b", document_id=HOSTILE)])
    assert ids(store.search_dense(unit(1), 5, SearchScope((HOSTILE,)))) == ["a"]
    store.delete_documents([HOSTILE])
    assert settled(lambda: store.search_dense(unit(1), 5, EVERYWHERE), ["a"]) == ["a"]
    store.delete_chunks([HOSTILE])
    assert store.count() == 1


def test_deleting_documents_takes_all_their_chunks_and_no_others(store):
    store.upsert([chunk("a"), chunk("b"), chunk("c", document_id="doc-2")])
    store.delete_documents(["doc-1", "unknown"])
    assert settled(lambda: store.search_dense(unit(1), 5, EVERYWHERE), ["c"]) == ["c"]
    assert store.count() == 1


def test_deleting_chunks_leaves_the_rest_of_the_document(store):
    store.upsert([chunk("a"), chunk("b")])
    store.delete_chunks(["a", "unknown"])
    assert settled(lambda: store.search_dense(unit(1), 5, EVERYWHERE), ["b"]) == ["b"]


def test_a_deleted_chunk_can_come_back(store):
    store.upsert([chunk("a")])
    store.delete_chunks(["a"])
    store.upsert([chunk("a")])
    assert ids(store.search_dense(unit(1), 5, EVERYWHERE)) == ["a"]


def test_check_says_what_answered(store):
    store.upsert([chunk("a")])
    assert re.match(r"(fake store|Milvus( Lite)? v?\d)", store.check())


def test_check_of_a_store_that_does_not_answer_gives_up_soon(tmp_path, monkeypatch):
    monkeypatch.setattr("app.rag.store.CHECK_TIMEOUT_S", 0.3)
    store_timeout_s = 5
    path = str(tmp_path / "index.db")
    store = MilvusStore(path, None, "m", DIMENSION, timeout_s=store_timeout_s)
    store.open()
    port = int(server_manager_instance.start_and_get_uri(store.uri).rpartition(":")[2])
    server_manager_instance.release_server(store.uri)
    with socket.create_server(("127.0.0.1", port)):
        started_at = time.monotonic()
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match=re.escape(store.uri)):
                store.check()
        assert time.monotonic() - started_at < store_timeout_s
    store.close()


def test_lite_keeps_everything_over_a_restart(tmp_path):
    path = str(tmp_path / "index.db")
    store = MilvusStore(path, None, "m", DIMENSION)
    store.open()
    store.upsert([chunk("a", sparse={3: 2.0}), chunk("b")])
    store.delete_chunks(["b"])
    store.close()
    again = MilvusStore(path, None, "m", DIMENSION)
    again.open()
    assert again.count() == 1
    assert ids(again.search_sparse({3: 1.0}, 5, EVERYWHERE)) == ["a"]
    again.close()
    again.close()


def test_another_embedding_model_gets_a_collection_of_its_own(tmp_path):
    path = str(tmp_path / "index.db")
    old = MilvusStore(path, None, "model-a", DIMENSION)
    old.open()
    old.upsert([chunk("a")])
    old.close()
    new = MilvusStore(path, None, "model-b", 4)
    new.open()
    assert new.collection != old.collection
    assert new.count() == 0
    new.close()
    old.open()
    assert old.count() == 1
    old.close()


def test_names_that_differ_only_in_forbidden_letters_get_different_collections():
    names = {MilvusStore("x.db", None, name, 4).collection for name in ("a/b", "a_b", "a b", "中")}
    assert len(names) == 4
    assert all(name.isascii() and name.replace("_", "").isalnum() for name in names)


def test_a_store_that_is_not_open_says_so():
    with pytest.raises(StoreUnavailable, match="not open"):
        MilvusStore("x.db", None, "m", DIMENSION).count()


@pytest.mark.parametrize(
    "version, supported",
    [("v2.3.5", False), ("2.3.5-lite", False), ("v2.4.0", True), ("v2.6.18", True), ("3.0", True)],
)
def test_sparse_support_is_told_by_the_version(version, supported):
    from app.rag.store import supports_sparse

    assert supports_sparse(version) is supported


def test_every_filter_of_a_scope_is_short_enough_for_milvus():
    collections = tuple(f"{number:032}" for number in range(1200))
    documents = tuple(f"{number:032}" for number in range(5000, 6300))
    for scope in (
        SearchScope(collections),
        SearchScope(None, document_ids=documents),
        SearchScope(collections, document_ids=documents),
    ):
        filters = conditions(scope)
        assert max(map(len, filters)) < 65_535
        wanted = (*(scope.collection_ids or ()), *(scope.document_ids or ()))
        text = " ".join(filters)
        assert all(id in text for id in wanted)


def test_collections_beyond_one_filter_are_searched_all_the_same(store):
    store.upsert([chunk("a", collection_id="col-1"), chunk("b", collection_id="col-2")])
    many = tuple(f"{number:032}" for number in range(700))
    found = store.search_dense(unit(1), 5, SearchScope((*many, "col-2")))
    assert ids(found) == ["b"]
    assert store.search_dense(unit(1), 5, SearchScope(many)) == []
