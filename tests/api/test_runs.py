"""The event log of a run, without HTTP."""

import asyncio
import time

import pytest

from app.api import runs as runs_module
from app.api.runs import Runs
from app.domain import Failed, Finished, GeneratorInfo, Stage, TextDelta
from app.errors import Conflict, NotFound, Overloaded, Unavailable

WHO = GeneratorInfo("openai", "fake")


def asking(*events, gate=None):
    """An ask function that yields the events, text last when a gate is given."""

    async def ask():
        for event in events:
            yield event
            await asyncio.sleep(0)
        if gate:
            await gate.wait()

    return ask


async def texts(run, after=0):
    events = [logged async for logged in run.follow(after)]
    return [(id, event.text) for id, event in events if isinstance(event, TextDelta)]


@pytest.fixture
def runs():
    return Runs(max_concurrent=1, max_queued=1)


async def test_text_that_nobody_reads_is_one_event(runs):
    run = runs.open(WHO)
    runs.start(run, asking(*[TextDelta(str(n)) for n in range(1000)]))
    await run._working
    assert await texts(run) == [(1, "".join(str(n) for n in range(1000)))]


async def test_slow_reader_loses_nothing_and_reads_what_came_meanwhile_at_once(runs):
    words = [f"{n} " for n in range(200)]
    run = runs.open(WHO)
    runs.start(run, asking(Stage("writing"), *map(TextDelta, words)))
    read = []
    async for id, event in run.follow(0):
        if isinstance(event, TextDelta):
            read.append((id, event.text))
        await asyncio.sleep(0.003)
    assert "".join(text for _, text in read) == "".join(words)
    assert len(read) < len(words)
    for id, _ in read:
        before = "".join(text for seen, text in read if seen <= id)
        assert before + "".join(text for _, text in await texts(run, id)) == "".join(words)


async def test_reader_that_is_ahead_of_the_log_waits_for_the_end(runs):
    gate = asyncio.Event()
    run = runs.open(WHO)
    runs.start(run, asking(TextDelta("a"), gate=gate))
    following = asyncio.create_task(texts(run, after=99))
    await asyncio.sleep(0.01)
    gate.set()
    assert await following == []


async def test_places_are_limited_and_given_back(runs):
    gate = asyncio.Event()
    first, second = runs.open(WHO), runs.open(WHO)
    for run in (first, second):
        runs.start(run, asking(gate=gate))
    with pytest.raises(Overloaded) as caught:
        runs.open(WHO)
    assert caught.value.retry_after_s > 0
    await runs.stop([second])
    runs.discard(runs.open(WHO))
    runs.discard(runs.open(WHO))


async def test_one_run_a_chat(runs):
    runs.open(WHO, "chat-1")
    with pytest.raises(Conflict):
        runs.open(WHO, "chat-1")


async def test_run_whose_outcome_cannot_be_stored_fails(runs):
    outcomes = []

    async def keep(outcome):
        outcomes.append((outcome.state, outcome.answer.text))
        raise ValueError("the database is away")

    run = runs.open(WHO)
    runs.start(run, asking(TextDelta("x"), gate=asyncio.Event()), keep)
    await asyncio.sleep(0.01)
    await runs.stop([run])
    assert outcomes == [("stopped", "x")]
    *_, (_, last) = [event async for event in run.follow(0)]
    assert isinstance(last, Failed)
    assert last.code == "internal"


async def test_stream_without_an_end_is_a_failure(runs):
    run = runs.open(WHO)
    runs.start(run, asking(TextDelta("a")))
    *_, (_, last) = [event async for event in run.follow(0)]
    assert isinstance(last, Failed)


async def test_finished_runs_are_forgotten_after_a_while(runs, monkeypatch):
    monkeypatch.setattr(runs_module, "KEEP_S", 0.01)
    run = runs.open(WHO)
    runs.start(run, asking(Finished(run.partial_answer())))
    await run._working
    assert runs.get(run.id) is run
    await asyncio.sleep(0.05)
    with pytest.raises(NotFound):
        runs.get(run.id)


async def test_closed_runs_take_no_new_ones(runs):
    run = runs.open(WHO)
    runs.start(run, asking(TextDelta("a"), gate=asyncio.Event()))
    started_at = time.monotonic()
    await runs.close()
    assert run.is_finished
    assert time.monotonic() - started_at < 1
    with pytest.raises(Unavailable):
        runs.open(WHO)
