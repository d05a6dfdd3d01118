import json

import pytest
from typer.testing import CliRunner

from app.domain import AskedQuestion
from app.errors import InvalidInput
from app.rag.evaluation import Given, exact_match, f1, figures_of, holds, judge
from app.rag.lexical import terms
from app.rag.llm.extractive import ExtractiveGenerator
from app.scripts.evaluate.__main__ import app
from app.scripts.evaluate.answers import measure_answers, read_questions, separation
from app.scripts.evaluate.asking import pipeline_asker
from app.scripts.evaluate.comparing import compare
from tests.fakes import FakeEmbedder, make_hit

LEAVE = make_hit("Every employee has fifteen days of leave.", document_id="leave.md", id="1")
TRAVEL = make_hit("Trains are booked in second class.", document_id="travel.md", id="2")


def write_lines(path, *rows):
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    return path


def given(text="x", cited=(), is_refusal=False, confidence=0.5):
    return Given(text, tuple(cited), is_refusal, confidence, 0.1, 0.2)


def asked(*answers, sources=("a",), is_answerable=True):
    return AskedQuestion("q", answers, frozenset(sources), is_answerable)


@pytest.mark.parametrize(
    ("text", "answer", "exact", "f_score", "held"),
    [
        ("The Normans!", "normans", 1, 1.0, 1),
        ("in the 10th century", "10th century", 0, 0.8, 1),
        ("光荣和ω-force", "光荣和ω-force", 1, 1.0, 1),
        ("是光荣开发的。", "光荣", 0, 0.5, 1),
        ("Paris", "Lyon", 0, 0.0, 0),
        ("", "Lyon", 0, 0.0, 0),
    ],
)
def test_texts_are_compared_without_articles_punctuation_and_case(
    text, answer, exact, f_score, held
):
    assert exact_match(text, answer) == exact
    assert f1(text, answer) == pytest.approx(f_score)
    assert holds(text, answer) == held


def test_markers_do_not_count_and_the_best_wording_does():
    judged = judge(asked("no", "fifteen days"), given("Fifteen days [1].", ["a"]))
    assert (judged.exact_match, judged.f1) == (1.0, 1.0)


def test_citations_are_right_when_their_source_holds_the_answer():
    judged = judge(asked("x", sources=("a", "b")), given("x", ["a", "c", "b", "c"]))
    assert (judged.citation_precision, judged.citation_recall) == (0.5, 1.0)
    judged = judge(asked("x"), given("x", []))
    assert (judged.citation_precision, judged.citation_recall) == (None, 0.0)


def test_a_refused_answer_is_wrong_and_cites_nothing():
    judged = judge(asked("x"), given("It does not say x", ["a"], is_refusal=True))
    assert (judged.exact_match, judged.f1, judged.holds_answer) == (0.0, 0.0, 0.0)
    assert (judged.citation_precision, judged.citation_recall) == (None, None)


def test_figures_are_averages_over_what_can_be_measured():
    judged = [
        judge(asked("x"), given("x", ["a"], confidence=0.9)),
        judge(asked("x"), given("y", ["b"], is_refusal=True, confidence=0.4)),
        judge(asked(is_answerable=False), given(is_refusal=True, confidence=0.1)),
        judge(asked(is_answerable=False), given(confidence=0.6)),
    ]
    figures = figures_of(judged) | separation(judged)
    assert figures["exact_match"] == 0.5
    assert figures["answered"] == 0.5
    assert figures["refused_unanswerable"] == 0.5
    assert figures["abstention_auroc"] == 0.75
    assert figures["citation_precision"] == 1.0
    assert figures["median_s"] == 0.2
    assert separation(judged[:2]) == {}


def test_question_files_of_users_and_of_the_sets_are_read(tmp_path):
    path = write_lines(
        tmp_path / "q.jsonl",
        {"question": "A?", "answers": ["a"], "documents": ["a.pdf"]},
        {"question": "B?", "evidence_ids": ["p1"], "answerable": False},
        {"question": "C?"},
    )
    first, second, third = read_questions(path)
    assert first == AskedQuestion("A?", ("a",), frozenset({"a.pdf"}), True)
    assert second == AskedQuestion("B?", (), frozenset({"p1"}), False)
    assert third == AskedQuestion("C?", (), frozenset(), True)
    with pytest.raises(InvalidInput, match="line 2: there is no text"):
        read_questions(write_lines(tmp_path / "bad.jsonl", {"question": "A"}, {"text": "B"}))


def test_the_pipeline_is_asked_over_passages():
    generator = ExtractiveGenerator(terms)
    ask = pipeline_asker([LEAVE, TRAVEL], FakeEmbedder(), generator, lambda *_: None)
    questions = [
        AskedQuestion("How many days of leave?", ("fifteen days",), frozenset({"leave.md"}), True)
    ]
    report = measure_answers(questions, ask, lambda *_: None)
    assert report.figures["holds_answer"] == 1.0
    assert report.figures["citation_precision"] == 1.0
    assert 0 < report.questions[0].confidence <= 1


def report(path, *f1s):
    questions = [
        {
            "question": f"q{number}",
            "is_answerable": True,
            "is_refusal": False,
            "exact_match": None,
            "f1": value,
            "holds_answer": None,
            "citation_precision": None,
            "citation_recall": None,
        }
        for number, value in enumerate(f1s)
    ]
    path.write_text(json.dumps({"questions": questions}))
    return path


def test_reports_are_compared_question_by_question(tmp_path):
    before = report(tmp_path / "a.json", *[0.2, 0.4] * 20)
    after = report(tmp_path / "b.json", *[0.5, 0.7] * 20)
    differences = {item.measure: item for item in compare(before, after)}
    change = differences["f1"]
    assert (change.num_questions, change.before, change.after) == pytest.approx((40, 0.3, 0.6))
    assert change.low == pytest.approx(change.high) == pytest.approx(0.3)
    assert change.is_certain
    assert not differences["is_right_to_speak"].is_certain
    uncertain = compare(before, report(tmp_path / "c.json", *[0.4, 0.2] * 20))
    assert not {item.measure: item for item in uncertain}["f1"].is_certain
    other = tmp_path / "other.json"
    other.write_text('{"questions": []}')
    with pytest.raises(InvalidInput, match="no question in common"):
        compare(before, other)
    with pytest.raises(InvalidInput, match="is no report"):
        compare(before, write_lines(tmp_path / "x.json", {"a": 1}))


def test_wrong_options_are_named(tmp_path):
    path = write_lines(tmp_path / "q.jsonl", {"question": "A?"})
    result = CliRunner().invoke(app, ["answers", str(path)])
    assert result.exit_code == 2
    assert "one of --corpus, --documents and --url" in result.output


@pytest.mark.slow
def test_the_gate_holds_and_says_what_it_measured(tmp_path):
    file = tmp_path / "gate.json"
    result = CliRunner().invoke(app, ["gate", "docs", "--json", str(file)])
    assert result.exit_code == 0, result.output
    report = json.loads(file.read_text())
    assert report["num_questions"] == 30
    assert report["figures"]["citation_recall"] > 0.85
