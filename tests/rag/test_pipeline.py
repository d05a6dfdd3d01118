import asyncio
import time
from contextlib import aclosing
from dataclasses import replace

import pytest
from prometheus_client import REGISTRY

from app.domain import (
    Cited,
    Failed,
    Finished,
    Message,
    Question,
    SearchScope,
    Sources,
    Stage,
    TextDelta,
)
from app.errors import GeneratorUnavailable, StoreUnavailable
from app.rag.lexical import terms
from app.rag.pipeline import AnswerOptions, AnswerPipeline
from app.rag.replies import EMPTY_LIBRARY, REFUSAL
from tests.fakes import FakeGenerator, FakeRetriever, make_hit

HITS = (
    make_hit("Each employee has fifteen days of paid leave a year.", document_id="handbook"),
    make_hit("The canteen opens at noon.", document_id="canteen"),
    make_hit("员工每年享有十五天带薪年假。", document_id="zh"),
)
QUESTION = Question("How many days of paid leave does an employee have?")
ANSWER = ("Employees have fifteen days of ", "paid leave [1", "]. The canteen serves soup [2].")


def make_pipeline(generator=None, retriever=None, num_chunks=3, rewriter=None, **options):
    return AnswerPipeline(
        retriever or FakeRetriever(HITS),
        generator or FakeGenerator(ANSWER),
        terms=terms,
        num_chunks=lambda: num_chunks,
        rewriter=rewriter,
        options=AnswerOptions(**options),
    )


async def ask(pipeline, question=QUESTION):
    return [event async for event in pipeline.answer(question)]


def text_of(events):
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def answer_of(events):
    assert isinstance(events[-1], Finished)
    return events[-1].answer


async def test_events_come_in_order():
    events = await ask(make_pipeline())
    kinds = [event.name if isinstance(event, Stage) else type(event).__name__ for event in events]
    assert kinds[:4] == ["retrieving", "Sources", "reading", "writing"]
    assert kinds[4] == "TextDelta"
    assert kinds[-1] == "Finished"
    assert kinds.count("Cited") == 1
    assert events[2].num_sources == len(events[1].sources) == 3


async def test_the_finished_answer_is_what_was_streamed():
    events = await ask(make_pipeline())
    answer = answer_of(events)
    assert answer.text == text_of(events)
    assert answer.text == (
        "Employees have fifteen days of paid leave [1]. The canteen serves soup."
    )
    assert answer.citations == tuple(e.citation for e in events if isinstance(e, Cited))
    assert answer.citations[0].chunk_id == HITS[0].chunk.id
    assert answer.usage.num_completion_tokens == 3
    assert 0 < answer.timings.retrieved_s <= answer.timings.first_token_s
    assert answer.timings.first_token_s <= answer.timings.finished_s
    assert not answer.is_refusal


async def test_the_generator_gets_the_documents_the_turns_and_the_question():
    generator = FakeGenerator()
    history = (Message("user", "Hi, I work here."), Message("assistant", "Good."))
    question = Question(QUESTION.text, history=history, max_tokens=7, temperature=0.9)
    await ask(make_pipeline(generator), question)
    [request] = generator.requests
    assert [m.role for m in request.messages] == ["system", "user", "assistant", "user"]
    assert "fifteen days" in request.messages[0].content
    assert (request.max_tokens, request.temperature) == (7, 0.9)
    assert [source.number for source in request.sources] == [1, 2, 3]


async def test_a_budget_that_drops_documents_drops_their_sources():
    generator = FakeGenerator(max_prompt_tokens=152)
    events = await ask(make_pipeline(generator))
    sources = next(event for event in events if isinstance(event, Sources)).sources
    assert sources == generator.requests[0].sources
    assert len(sources) < 3


async def test_a_follow_up_is_searched_as_rewritten_and_answered_as_asked():
    class Rewriter:
        async def rewrite(self, question):
            return replace(question, text=QUESTION.text, history=())

    history = (Message("user", "What is paid leave?"), Message("assistant", "Time off."))
    generator, retriever = FakeGenerator(), FakeRetriever(HITS)
    events = await ask(
        make_pipeline(generator, retriever, rewriter=Rewriter()),
        Question("How much of it?", history=history),
    )
    [searched] = retriever.questions
    assert (searched.text, searched.history) == (QUESTION.text, ())
    assert next(e for e in events if isinstance(e, Sources)).query == QUESTION.text
    assert answer_of(events).query == QUESTION.text
    [request] = generator.requests
    assert request.messages[-1].content.startswith("How much of it?")
    assert [m.content for m in request.messages[1:3]] == [m.content for m in history]


async def test_without_evidence_nothing_is_generated_and_the_nearest_are_listed():
    generator = FakeGenerator()
    events = await ask(make_pipeline(generator), Question("Who won the tennis final?"))
    answer = answer_of(events)
    assert answer.is_refusal
    assert answer.text.startswith(REFUSAL["en"])
    assert answer.query == "Who won the tennis final?"
    assert len(answer.sources) == 3
    assert generator.requests == []
    assert text_of(events) == answer.text


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("谁赢得了网球决赛？", None, "zh"),
        ("Who won the tennis final?", "zh", "zh"),
        ("谁赢得了网球决赛？", "en", "en"),
    ],
)
async def test_a_refusal_is_in_the_language_asked_for(text, language, expected):
    events = await ask(make_pipeline(), Question(text, language=language))
    assert answer_of(events).text.startswith(REFUSAL[expected])


async def test_a_model_that_refuses_makes_a_refusal():
    generator = FakeGenerator(["The documents do ", "not answer this question."])
    events = await ask(make_pipeline(generator))
    answer = answer_of(events)
    assert answer.is_refusal
    assert answer.text == text_of(events)
    assert "listed as sources" in answer.text


async def test_an_empty_library_says_how_to_add_documents():
    events = await ask(make_pipeline(retriever=FakeRetriever([]), num_chunks=0))
    assert answer_of(events).text == EMPTY_LIBRARY["en"]


async def test_an_empty_collection_in_a_full_library_is_a_plain_refusal():
    question = Question(QUESTION.text, scope=SearchScope(("other",)))
    assert answer_of(await ask(make_pipeline(), question)).text == REFUSAL["en"]


async def test_small_talk_is_answered_without_a_search():
    retriever = FakeRetriever(HITS)
    events = await ask(make_pipeline(retriever=retriever), Question("你好！"))
    assert not answer_of(events).is_refusal
    assert "您好" in text_of(events)
    assert retriever.questions == []


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ({"retriever": FakeRetriever([], error=StoreUnavailable("gone"))}, "store_unavailable"),
        ({"generator": FakeGenerator(error=GeneratorUnavailable("x"))}, "generator_unavailable"),
        ({"generator": FakeGenerator([])}, "generator_unavailable"),
        ({"generator": FakeGenerator(max_prompt_tokens=100)}, "too_large"),
    ],
)
async def test_a_failure_ends_the_stream_with_its_code(parts, code):
    events = await ask(make_pipeline(**parts))
    assert isinstance(events[-1], Failed)
    assert events[-1].code == code


async def test_text_before_a_failure_stays():
    generator = FakeGenerator(["Fifteen days"], error=GeneratorUnavailable("cut"))
    assert text_of(await ask(make_pipeline(generator))) == "Fifteen days"


async def test_a_search_that_hangs_fails_in_time():
    class Stuck(FakeRetriever):
        def retrieve(self, question, limit):
            time.sleep(0.5)
            return super().retrieve(question, limit)

    events = await ask(make_pipeline(retriever=Stuck(HITS), retrieval_timeout_s=0.05))
    assert events[-1].code == "store_unavailable"


async def test_closing_the_stream_stops_the_generator():
    generator = FakeGenerator(["word "] * 1000, delay_s=0.001)
    async with aclosing(make_pipeline(generator).answer(QUESTION)) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                break
    assert (generator.num_running, generator.num_closed) == (0, 1)


async def test_cancelling_the_task_stops_the_generator_and_frees_the_slot():
    generator = FakeGenerator(gate=asyncio.Event())
    pipeline = make_pipeline(generator, max_concurrent=1)
    task = asyncio.create_task(ask(pipeline))
    await generator.has_started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert generator.num_running == 0
    generator.gate.set()
    assert isinstance((await ask(pipeline))[-1], Finished)


async def test_more_questions_than_places_are_told_when_to_come_back():
    generator = FakeGenerator(gate=asyncio.Event())
    pipeline = make_pipeline(generator, max_concurrent=1, max_queued=1)
    first = asyncio.create_task(ask(pipeline))
    await generator.has_started.wait()
    second = asyncio.create_task(ask(pipeline))
    await asyncio.sleep(0.01)
    [_, third] = await ask(pipeline)
    assert (third.code, third.retry_after_s) == ("overloaded", 10.0)
    generator.gate.set()
    assert all(isinstance(events[-1], Finished) for events in await asyncio.gather(first, second))


async def test_nobody_waits_for_ever():
    generator = FakeGenerator(gate=asyncio.Event())
    pipeline = make_pipeline(generator, max_concurrent=1, queue_timeout_s=0.05)
    first = asyncio.create_task(ask(pipeline))
    await generator.has_started.wait()
    assert (await ask(pipeline))[-1].code == "overloaded"
    generator.gate.set()
    await first


async def test_outcomes_are_counted():
    def count(outcome):
        labels = {"generator": "openai", "outcome": outcome}
        return REGISTRY.get_sample_value("folio_answers_total", labels) or 0

    before = count("answered"), count("refused"), count("failed")
    await ask(make_pipeline())
    await ask(make_pipeline(), Question("Who won the tennis final?"))
    await ask(make_pipeline(FakeGenerator([])))
    assert (count("answered"), count("refused"), count("failed")) == tuple(n + 1 for n in before)
