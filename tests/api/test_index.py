"""The routes of the index over a real builder's records; only models and vectors are fakes."""

import pytest

from app.domain import IndexSpec, IndexState
from app.errors import InvalidInput
from app.rag.index_builder import IndexBuilder, IndexParts
from tests.fakes import FakeEmbedder, FakeRetriever, FakeVectorStore


class Models:
    def names(self):
        return ["old", "new"]

    def multilingual(self):
        return None

    def spec(self, model):
        if model not in self.names():
            raise InvalidInput(f"the embedding model {model!r} is not at hand")
        return IndexSpec(f"folio_{model}", model, 64, "lines-1-0")


class Store(FakeVectorStore):
    def point_alias(self):
        pass

    def drop(self, index_name):
        pass


@pytest.fixture
def used(client, services):
    """The indexes that the appliance was told to use, in order; the builder's thread is not run."""
    used = []
    models = Models()

    def open_parts(spec):
        return IndexParts(spec, FakeEmbedder(), Store(), None, FakeRetriever([]))

    services.index_models = models
    services.records.indexes.serve(models.spec("old"))
    first = open_parts(models.spec("old"))
    services.index_builder = IndexBuilder(services.records.indexes, first, open_parts, used.append)
    return used


def states(reply):
    return {index["embedding_model"]: index["state"] for index in reply.json()["indexes"]}


def test_an_index_is_made_switched_to_and_rolled_back(client, services, used):
    assert states(client.get("/api/index")) == {"old": "serving"}
    reply = client.post("/api/index/rebuild", json={"embedding_model": "new"})
    assert reply.status_code == 202
    assert states(reply) == {"old": "serving", "new": "building"}
    assert client.post("/api/index/switch", json={}).status_code == 409
    services.index_builder._step()
    switched = client.post("/api/index/switch", json={})
    assert states(switched) == {"old": "previous", "new": "serving"}
    assert states(client.post("/api/index/rollback")) == {"old": "serving", "new": "previous"}
    assert [parts.spec.embedding_model for parts in used] == ["new", "old"]
    assert client.delete("/api/index/previous").status_code == 204
    services.index_builder._step()
    assert states(client.get("/api/index")) == {"old": "serving"}


def test_an_index_with_a_warning_is_switched_to_by_force_only(client, services, used):
    client.post("/api/index/rebuild", json={"embedding_model": "new"})
    services.records.indexes.judge("folio_new", IndexState.WARNING, None, "it finds less")
    refused = client.post("/api/index/switch", json={})
    assert refused.status_code == 409
    assert "it finds less" in refused.json()["error"]["message"]
    assert client.post("/api/index/switch", json={"is_forced": True}).status_code == 200


def test_unknown_models_and_absent_indexes_are_refused(client, used):
    reply = client.post("/api/index/rebuild", json={"embedding_model": "../../etc"})
    assert reply.status_code == 422
    assert "not at hand" in reply.json()["error"]["message"]
    assert client.post("/api/index/rollback").status_code == 404
    assert client.delete("/api/index/build").status_code == 404


@pytest.mark.parametrize(
    ("text", "is_unfit"), [("员工每年有十五天带薪年假", True), ("leave", False)]
)
def test_chinese_chunks_under_an_english_model_are_told(
    client, services, used, monkeypatch, text, is_unfit
):
    monkeypatch.setattr(services.embedder, "is_multilingual", False)
    monkeypatch.setattr(
        services.index_builder._records, "sample_texts", lambda name, limit: [("doc", text)]
    )
    reply = client.get("/api/index").json()
    assert reply["is_model_unfit"] is is_unfit
    assert reply["cjk_share"] == float(is_unfit)
    assert reply["multilingual_model"] is None
