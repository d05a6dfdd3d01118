"""Follow-up questions, and a model that rewrites them well, badly, late or not at all."""

import asyncio

import pytest
from prometheus_client import REGISTRY

from app.domain import Message, Question, SearchScope
from app.errors import GeneratorUnavailable, Overloaded
from app.rag.lexical import terms
from app.rag.retriever import is_follow_up
from app.rag.rewriter import QuestionRewriter, first_line
from tests.fakes import FakeGenerator

HISTORY = (
    Message("user", "Which consistency levels does Milvus support?"),
    Message("assistant", "Four: strong, bounded, session and eventually [1]."),
)
CHINESE = (Message("user", "Let's Encrypt 是谁的项目？"), Message("assistant", "Linux 基金会的。"))
SCOPE = SearchScope(("manuals",))
QUESTION = Question("Is it the default one?", history=HISTORY, scope=SCOPE)
REWRITTEN = "Is strong consistency the default level of Milvus?"
FOREVER_S = 60.0


def make_rewriter(generator, timeout_s=FOREVER_S):
    return QuestionRewriter(generator, is_follow_up, terms, timeout_s)


def count(outcome):
    return REGISTRY.get_sample_value("folio_rewrites_total", {"outcome": outcome}) or 0.0


@pytest.mark.parametrize(
    ("question", "written", "expected"),
    [
        (QUESTION, (REWRITTEN,), REWRITTEN),
        (QUESTION, ("Rewritten ques", f'tion: "{REWRITTEN}"'), REWRITTEN),
        (QUESTION, (f"\n{REWRITTEN}\n\nThe default", " is bounded."), REWRITTEN),
        (
            Question("它收费吗？", history=CHINESE),
            ("改写后的问题：Let's Encrypt 收费吗？",),
            "Let's Encrypt 收费吗？",
        ),
    ],
)
async def test_a_follow_up_is_rewritten_to_stand_alone(question, written, expected):
    before = count("rewritten")
    rewritten = await make_rewriter(FakeGenerator(written)).rewrite(question)
    assert (rewritten.text, rewritten.history) == (expected, ())
    assert rewritten.scope == question.scope
    assert count("rewritten") == before + 1


@pytest.mark.parametrize(
    "written",
    [
        "Which port does PostgreSQL listen on after installation?",
        "Yes, bounded staleness is what Milvus uses by default since 2.0.",
        "Which consistency levels does Milvus support?",
        "Milvus 支持哪些一致性级别？默认是哪个？",
        "it",
        "",
    ],
    ids=["elsewhere", "an answer", "the question before", "other language", "no terms", "empty"],
)
async def test_what_is_no_rewriting_leaves_the_question(written):
    before = count("rejected")
    assert await make_rewriter(FakeGenerator((written,))).rewrite(QUESTION) is QUESTION
    assert count("rejected") == before + 1


@pytest.mark.parametrize(
    "question",
    [
        Question("Is it the default one?"),
        Question("Is it the default one?", history=(Message("system", "Be kind."),)),
        Question("What does the nprobe parameter determine?", history=HISTORY),
    ],
    ids=["no turns before", "only instructions", "stands alone"],
)
async def test_a_question_that_needs_it_not_costs_nothing(question):
    generator = FakeGenerator((REWRITTEN,))
    assert await make_rewriter(generator).rewrite(question) is question
    assert generator.requests == []


@pytest.mark.parametrize("error", [GeneratorUnavailable("gone"), Overloaded("full", 1.0)])
async def test_a_model_that_fails_leaves_the_question(error):
    before = count("failed")
    generator = FakeGenerator((), error=error)
    assert await make_rewriter(generator).rewrite(QUESTION) is QUESTION
    assert count("failed") == before + 1


async def test_a_slow_model_is_stopped_and_leaves_the_question():
    before = count("late")
    generator = FakeGenerator((REWRITTEN,), gate=asyncio.Event())
    assert await make_rewriter(generator, timeout_s=0.05).rewrite(QUESTION) is QUESTION
    assert (generator.num_running, generator.num_closed) == (0, 1)
    assert count("late") == before + 1


async def test_the_model_is_asked_for_few_tokens_without_sampling():
    generator = FakeGenerator((REWRITTEN,))
    await make_rewriter(generator).rewrite(QUESTION)
    [request] = generator.requests
    assert (request.max_tokens, request.temperature, request.sources) == (64, 0.0, ())
    assert [m.role for m in request.messages] == ["system", "user"]
    assert "Is it the default one?" in request.messages[1].content


async def test_nothing_is_read_beyond_the_first_line():
    generator = FakeGenerator((REWRITTEN, "\n", "More", " and more"))
    await make_rewriter(generator).rewrite(QUESTION)
    assert generator.num_closed == 1


@pytest.mark.parametrize(
    ("written", "expected"),
    [("“年假有几天？”\n因为", "年假有几天？"), ("Question: Why?", "Why?"), ("  \n ", ""), ("", "")],
)
def test_first_line(written, expected):
    assert first_line(written) == expected
