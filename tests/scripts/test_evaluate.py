import json
import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from app.domain import EVERYWHERE
from app.rag.embeddings import load_embedder
from app.rag.lexical import query_terms
from app.scripts.evaluate.__main__ import app
from app.scripts.evaluate.claims import QaRow, make_claims, measure_support
from app.scripts.evaluate.demo import holds, measure_demo
from app.scripts.evaluate.measures import auroc, fit_logistic, ndcg, recall, reciprocal_rank
from app.scripts.evaluate.runs import (
    choose_threshold,
    cut,
    make_benches,
    measure_abstention,
    measure_retrieval,
)
from app.scripts.evaluate.sets import Passage, QuestionSet, read_set, read_sets
from tests.fakes import FakeEmbedder

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no test data in {DATA}")

PASSAGES = [
    ("p1", "Consistency", "Milvus supports four consistency levels: strong, bounded, session."),
    ("p2", "Burgers", "A burger is eaten with onion, cheese and a little mustard."),
    ("p3", "证书", "Let's Encrypt 是 Linux 基金会的一个项目，它免费提供证书。"),
    ("p4", "Trains", "Trains from Paris to Lyon take two hours and leave each hour."),
]
QUESTIONS = [
    ("q1", "Which consistency levels are there?", {"p1": 1}),
    ("q2", "What is a burger eaten with?", {"p2": 2, "p4": 1}),
    ("q3", "Let's Encrypt 是谁的项目？", {"p3": 1}),
    ("q4", "Has no grade", {}),
]


@pytest.fixture
def folder(tmp_path):
    one = tmp_path / "tiny"
    one.mkdir()
    corpus = [{"_id": id, "title": title, "text": text} for id, title, text in PASSAGES]
    queries = [{"_id": id, "text": text} for id, text, _ in QUESTIONS]
    rows = [f"{id}\t{p}\t{grade}" for id, _, grades in QUESTIONS for p, grade in grades.items()]
    (one / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)), "utf-8")
    (one / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)), "utf-8")
    (one / "qrels.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]), "utf-8")
    return tmp_path


def nothing(name, num_done):
    pass


def test_ndcg_discounts_by_rank_and_normalises_by_the_ideal():
    assert ndcg(["a", "b", "c"], {"a": 2, "c": 1}) == pytest.approx(
        (2 + 1 / math.log2(4)) / (2 + 1 / math.log2(3))
    )
    assert ndcg(["x"] * 10 + ["a"], {"a": 1}) == 0
    assert ndcg(["a"], {"a": 3}) == 1


def test_recall_and_reciprocal_rank():
    assert recall(["a", "b", "c"], {"a": 1, "z": 1}) == 0.5
    assert reciprocal_rank(["x", "a"], {"a": 1}) == 0.5
    assert reciprocal_rank(["x"], {"a": 1}) == 0


def test_auroc_is_the_chance_that_a_positive_scores_higher():
    assert auroc([3, 2], [1, 0]) == 1
    assert auroc([1, 0], [1, 0]) == 0.5
    assert auroc([2, 0], [1]) == 0.5


def test_the_logistic_fit_finds_the_weights_that_made_the_data():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(20_000, 2))
    chances = 1 / (1 + np.exp(-(features @ [2.0, -1.0] + 0.5)))
    weights = fit_logistic(features, (rng.random(20_000) < chances).astype(float))
    assert weights == pytest.approx([2.0, -1.0, 0.5], abs=0.1)


def test_sets_are_read_with_the_questions_that_have_an_answer(folder):
    [one] = read_sets(folder, 0)
    assert (one.name, len(one.passages), len(one.questions)) == ("tiny", 4, 3)
    assert one.questions[1].relevant == {"p2": 2, "p4": 1}
    assert len(read_set(folder / "tiny", 1).questions) == 1


def test_long_documents_are_cut_into_chunks_of_the_document():
    text = "\n\n".join(f"Paragraph {n} about topic {n}. " + "Words follow here. " * 20
                       for n in range(30))  # fmt: skip
    group = QuestionSet("long", (Passage("d", "Title", text),), ())
    hits = list(cut(group, FakeEmbedder()))
    assert len(hits) > 5
    assert {hit.chunk.document_id for hit in hits} == {"d"}
    assert all(h.chunk.span.text == text[h.chunk.span.start : h.chunk.span.end] for h in hits)


def test_retrieval_is_measured_by_leg_and_hybrid(folder):
    embedder = FakeEmbedder()
    [bench] = make_benches(read_sets(folder, 0), embedder, False, nothing)
    figures = measure_retrieval(bench, nothing)["tiny"]
    assert set(figures) == {"dense", "lexical", "hybrid"}
    assert figures["lexical"].recall == pytest.approx((1 + 0.5 + 1) / 3)  # p4 shares no word
    assert (figures["hybrid"].recall, figures["hybrid"].mrr) == (1, 1)


def test_a_question_whose_documents_are_taken_out_has_less_confidence(folder):
    [bench] = make_benches(read_sets(folder, 0), FakeEmbedder(), False, nothing)
    result = measure_abstention(bench, nothing)["tiny"]
    assert result.auroc == 1
    assert result.refused == 1
    assert [threshold for threshold, _, _ in result.curve][:2] == [0.0, 0.05]


def test_hidden_documents_come_back(folder):
    [bench] = make_benches(read_sets(folder, 0), FakeEmbedder(), False, nothing)
    bench.index.hide(["p2"])
    assert bench.index.search_sparse(query_terms("burger"), 9, EVERYWHERE) == []
    bench.index.hide([])
    assert [
        h.chunk_id for h in bench.index.search_sparse(query_terms("burger"), 9, EVERYWHERE)
    ] == ["p2"]


def test_the_command_prints_a_table_and_writes_json(folder, tmp_path):
    out = tmp_path / "figures.json"
    result = CliRunner().invoke(app, ["retrieval", str(folder), "--merged", "--json", str(out)])
    assert result.exit_code == 0, result.output
    assert "one merged collection" in result.output
    assert json.loads(out.read_text())["tiny"]["hybrid"]["recall"] > 0.8


ROWS = [
    QaRow("When was the Normandy abbey built?", ("1050",), "n1",
          "The Normandy abbey was built in 1050 by Robert Guiscard. It is near Rouen.", "Abbey",
          "en"),
    QaRow("What does the Paris train carry?", ("coal",), "p1",
          "Every morning the Paris train carries coal from Lyon. It takes 2 hours.", "Trains",
          "en"),
]  # fmt: skip


def test_claims_of_known_truth_are_made_of_a_question_and_its_passage():
    made = {
        claim.kind: claim.text for claim in make_claims(ROWS) if claim.passage == ROWS[0].passage
    }
    assert made["restated"] == "1050 was the Normandy abbey built"
    assert made["number changed"] == "The Normandy abbey was built in 1053 by Robert Guiscard."
    assert made["negated"].startswith("The Normandy abbey was not built")
    assert "Lyon" in made["name swapped"] or "Paris" in made["name swapped"]


def test_the_check_passes_what_is_supported_and_not_what_was_changed():
    support = measure_support(ROWS, None)
    assert support.recall == 1
    assert support.precision >= 0.8
    assert support.passed["sentence"] == 1
    assert support.passed["number changed"] == support.passed["negated"] == 0


def test_a_passage_is_found_whatever_mark_up_was_around_it():
    assert holds(
        "You can set Proxy.maxDimension to 65536.", "set [`Proxy.maxDimension`](https://x/y)"
    )
    assert not holds("Something else altogether.", "set `Proxy.maxDimension`")


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_data
@pytest.mark.parametrize("name", ["cmrc2018_zh", "cranfield_en"])
def test_the_hybrid_is_at_least_as_good_as_its_better_leg(name):
    group = read_set(DATA / "retrieval" / name, 300)
    [bench] = make_benches([group], load_embedder("all-MiniLM-L6-v2", 0), False, nothing)
    figures = measure_retrieval(bench, nothing)[name]
    assert figures["hybrid"].ndcg >= max(figures["dense"].ndcg, figures["lexical"].ndcg)


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_data
def test_demo_questions_are_found_and_the_unanswerable_refused():
    results = measure_demo(DATA / "sample_docs", load_embedder("all-MiniLM-L6-v2", 0))
    answerable = [result for result in results if result.is_answerable]
    assert sum(0 < result.rank <= 5 for result in answerable) >= 17
    assert sum(result.is_right for result in answerable) >= 17
    assert [r.is_sufficient for r in results if not r.is_answerable] == [False, False]


def test_the_threshold_is_the_lowest_that_costs_little_more_than_the_best():
    present = [0.2] * 5 + [0.9] * 95
    absent = [0.1] * 50 + [0.3] * 50
    # From 0.35 on nothing unfounded is answered, and 5 % of what could be answered is refused.
    assert choose_threshold(present, absent) == 0.35
    assert choose_threshold([0.9], [0.9]) == 0.0
