"""What every Embedder must do: the built-in model and the fake of the tests."""

import numpy as np
import pytest

from app.rag.embeddings import load_embedder
from tests.fakes import FakeEmbedder


@pytest.fixture(scope="module", params=["fake", "built-in"])
def embedder(request):
    if request.param == "fake":
        return FakeEmbedder()
    return load_embedder("sentence-transformers/all-MiniLM-L6-v2", num_threads=1)


TEXTS = ["Where is Normandy?", "", "a", "Milvus stores vectors. " * 200, "并发 concurrency 🕙"]


def test_vectors_are_finite_rows_of_length_one(embedder):
    for embed in (embedder.embed_documents, embedder.embed_queries):
        vectors = embed(TEXTS)
        assert vectors.dtype == np.float32
        assert vectors.shape == (len(TEXTS), embedder.dimension)
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)


def test_rows_stand_in_the_order_of_the_texts_whatever_their_lengths(embedder):
    together = embedder.embed_documents(TEXTS)
    alone = np.concatenate([embedder.embed_documents([text]) for text in TEXTS])
    # In bfloat16, which some CPUs multiply, a row moves a little with the shape of its batch.
    assert (together * alone).sum(axis=1) == pytest.approx(1.0, abs=2e-3)
    assert (together @ alone.T).argmax(axis=1).tolist() == list(range(len(TEXTS)))


def test_no_texts_give_no_rows(embedder):
    assert embedder.embed_documents([]).shape == (0, embedder.dimension)


def test_texts_that_share_words_are_nearer(embedder):
    query = embedder.embed_queries(["Which consistency levels does Milvus support?"])[0]
    near, far = embedder.embed_documents(
        ["Milvus has four consistency levels", "Burgers with cheese and onion"]
    )
    assert query @ near > query @ far + 0.2


def test_counts_grow_with_the_text(embedder):
    assert embedder.count_tokens(["", "one", "one two three"]) == [0, 1, 3]
    assert embedder.max_tokens > 100
