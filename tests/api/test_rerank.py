import pytest

from app.errors import Unavailable


class WordReranker:
    """Scores by the share of the query's words."""

    name = "acme/words"

    def score(self, query, texts):
        words = set(query.split())
        return [len(words & set(text.split())) / len(words) for text in texts]

    def rerank(self, query, hits):
        return list(hits)


DOCUMENTS = ["a b", "b c d", {"text": "a b c", "id": 7}]


@pytest.fixture
def rerank(client, services):
    services.reranker = WordReranker()

    def rerank(**options):
        body = {"query": "a b c", "documents": DOCUMENTS} | options
        return client.post("/v1/rerank", json=body)

    return rerank


def test_texts_come_back_best_first_by_their_place(rerank):
    reply = rerank().json()
    assert reply["model"] == "acme/words"
    ranked = [(item["index"], item["relevance_score"]) for item in reply["results"]]
    assert ranked == [(2, 1.0), (0, pytest.approx(2 / 3)), (1, pytest.approx(2 / 3))]
    assert "document" not in reply["results"][0]


def test_the_best_are_returned_with_their_text_where_asked(rerank):
    reply = rerank(top_n=1, return_documents=True, model="words").json()
    assert reply["results"] == [{"index": 2, "relevance_score": 1.0, "document": {"text": "a b c"}}]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"documents": []}, "at least 1 item"),
        ({"documents": ["x"] * 101}, "at most 100"),
        ({"model": "other"}, "the reranker here is acme/words, not 'other'"),
        ({"top_n": 0}, "greater than or equal to 1"),
    ],
)
def test_what_cannot_be_ranked_is_refused(rerank, options, reason):
    reply = rerank(**options)
    assert reply.status_code == 400
    assert reason in reply.json()["error"]["message"]


def test_without_a_reranker_the_way_to_one_is_told(client):
    reply = client.post("/v1/rerank", json={"query": "a", "documents": ["a"]})
    assert reply.status_code == 400
    assert "FOLIO_RERANKER_MODEL" in reply.json()["error"]["message"]


def test_a_reranker_that_takes_too_long_is_unavailable(rerank, services, monkeypatch):
    def fail(query, texts):
        raise Unavailable("read 2 of 3 texts in 30 s")

    monkeypatch.setattr(services.reranker, "score", fail)
    reply = rerank()
    assert reply.status_code == 503
    assert "2 of 3" in reply.json()["error"]["message"]
