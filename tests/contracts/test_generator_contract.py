"""What the pipeline may expect of any generator, tried on all three and on the tests' fake."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace

import pytest

from app.domain import GenerationRequest, GeneratorInfo, Message
from app.engine import AsyncLLM
from app.rag.lexical import terms
from app.rag.llm import EngineGenerator, ExtractiveGenerator, OpenAIGenerator, ReaderGenerator
from app.rag.llm.reader import ReaderWeights
from app.rag.protocols import Generator
from app.rag.replies import REFUSAL
from tests.engine import tiny
from tests.fakes import FakeGenerator, make_sources
from tests.rag.llm_server import ChatServer

SOURCES = make_sources(
    "Each employee has fifteen days of paid leave a year. Leave is asked for in writing.",
    "The canteen opens at noon.",
)
REQUEST = GenerationRequest(
    messages=(Message("system", "Answer."), Message("user", "How many days of leave?")),
    question="How many days of leave does an employee have?",
    sources=SOURCES,
    language="en",
    max_tokens=40,
    temperature=0.0,
)


@dataclass
class Case:
    generator: Generator
    num_running: Callable[[], int]


@pytest.fixture(scope="session")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-qwen2")
    tiny.make_checkpoint(folder, "qwen2")
    llm = AsyncLLM(
        model=str(folder),
        dtype="float32",
        kv_cache_memory_bytes=1 << 22,
        num_threads=1,
        speculative_config={"method": "ngram"},
    )
    yield llm
    llm.shutdown()


@pytest.fixture(params=["fake", "extractive", "openai", "engine", "reader"])
async def case(request):
    async with AsyncExitStack() as stack:
        if request.param == "fake":
            fake = FakeGenerator(["word "] * 50)
            yield Case(fake, lambda: fake.num_running)
        elif request.param == "extractive":
            yield Case(ExtractiveGenerator(terms), lambda: 0)
        elif request.param == "openai":
            words = tuple("word " for _ in range(50))
            server = await stack.enter_async_context(ChatServer(words=words))
            generator = OpenAIGenerator(server.base_url, None, "small", 5.0)
            stack.push_async_callback(generator.close)
            yield Case(generator, lambda: server.num_open)
        else:
            llm = request.getfixturevalue("engine")
            stats = llm.stats
            ranker = ExtractiveGenerator(terms)
            reader = ReaderGenerator(llm, ranker, REFUSAL, ReaderWeights(False, 1.0, -9.0, 0.0))
            yield Case(
                EngineGenerator(llm, "tiny") if request.param == "engine" else reader,
                lambda: stats().num_requests_running + stats().num_requests_waiting,
            )


async def pieces_of(case, request=REQUEST):
    return [piece async for piece in case.generator.generate(request)]


async def test_only_the_last_piece_says_why_it_ended_and_what_it_took(case):
    *pieces, last = await pieces_of(case)
    assert pieces
    assert all(piece.finish_reason is None and piece.usage is None for piece in pieces)
    assert last.finish_reason in ("stop", "length")
    assert last.usage.num_completion_tokens > 0


async def test_the_text_comes_in_pieces(case):
    pieces = await pieces_of(case)
    assert sum(bool(piece.text) for piece in pieces) >= 2


async def test_no_more_tokens_are_written_than_asked_for(case):
    pieces = await pieces_of(case, replace(REQUEST, max_tokens=3))
    assert pieces[-1].finish_reason == "length"
    assert pieces[-1].usage.num_completion_tokens == 3


async def test_a_closed_iterator_stops_the_work(case):
    async with aclosing(case.generator.generate(REQUEST)) as pieces:
        async for _ in pieces:
            break
    async with asyncio.timeout(5):
        while case.num_running():  # noqa: ASYNC110  the engine and the server are elsewhere
            await asyncio.sleep(0.01)


async def test_several_answers_are_made_at_a_time(case):
    answers = await asyncio.gather(*(pieces_of(case) for _ in range(4)))
    assert all(pieces[-1].finish_reason for pieces in answers)


async def test_it_says_who_it_is_and_how_much_it_reads(case):
    assert isinstance(case.generator.info, GeneratorInfo)
    assert case.generator.info.model
    assert case.generator.max_prompt_tokens > 0


async def test_longer_texts_count_more_tokens(case):
    count = case.generator.count_tokens
    assert 0 < count("fifteen days") < count("fifteen days of paid leave a year, 员工每年享有年假")


async def test_users_share_the_engine_as_tenants_and_no_prefixes(engine, monkeypatch):
    asked = []
    generate = engine.generate

    def spy(*arguments, **options):
        asked.append((options["tenant"], options["cache_salt"]))
        return generate(*arguments, **options)

    monkeypatch.setattr(engine, "generate", spy)
    generator = EngineGenerator(engine, "tiny")
    for request in (REQUEST, replace(REQUEST, tenant="eve")):
        assert [piece async for piece in generator.generate(request)]
    assert asked == [("", ""), ("eve", "eve")]
