from contextlib import aclosing

import pytest

from app.domain import GenerationRequest, Message
from app.errors import GeneratorUnavailable, Overloaded, TooLarge
from app.rag.llm import remote
from app.rag.llm.remote import OpenAIGenerator
from tests.fakes import make_sources
from tests.rag.llm_server import ChatServer

REQUEST = GenerationRequest(
    messages=(Message("system", "Rules."), Message("user", "How many days?")),
    question="How many days?",
    sources=make_sources("Fifteen days."),
    language="en",
    max_tokens=100,
    temperature=0.3,
)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.01)


async def write(server, *, api_key=None, model="small", timeout_s=5.0):
    generator = OpenAIGenerator(server.base_url, api_key, model, timeout_s)
    try:
        return [piece async for piece in generator.generate(REQUEST)]
    finally:
        await generator.close()


async def test_the_request_carries_messages_and_options():
    async with ChatServer() as server:
        pieces = await write(server, api_key="secret")
    assert "".join(piece.text for piece in pieces) == "Fifteen days of leave [1]."
    assert (pieces[-1].finish_reason, pieces[-1].usage.num_prompt_tokens) == ("stop", 11)
    [body] = server.requests
    assert body["messages"] == [
        {"role": "system", "content": "Rules."},
        {"role": "user", "content": "How many days?"},
    ]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("small", 100, 0.3)
    assert server.headers[0]["authorization"] == "bearer secret"


@pytest.mark.parametrize("fault", ["500 oops", "503 loading", "429 busy", "cut_before"])
async def test_a_fault_before_the_first_word_is_tried_again(fault):
    async with ChatServer(script=[fault, fault, "complete"]) as server:
        pieces = await write(server)
    assert pieces[-1].finish_reason == "stop"
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("fault", "error", "words", "num_requests"),
    [
        ("500 oops", GeneratorUnavailable, "failed with status 500: oops", 3),
        ("429 slow down", Overloaded, "busy: slow down", 3),
        ("401 no", GeneratorUnavailable, "set LLM_API_KEY", 1),
        ("404 gone", GeneratorUnavailable, "check LLM_MODEL", 1),
        ("400 maximum context length is 5", TooLarge, "lower FOLIO_RETRIEVAL_TOP_K", 1),
        ("400 bad temperature", GeneratorUnavailable, "bad temperature", 1),
        ("cut_before", GeneratorUnavailable, "broke off before the first word", 3),
        ("cut_within", GeneratorUnavailable, "broke off in the middle of the answer", 1),
        ("cut_without_reason", GeneratorUnavailable, "broke off in the middle", 1),
        ("nonsense", GeneratorUnavailable, "no JSON", 3),
        ("fails_within", GeneratorUnavailable, "out of memory", 1),
    ],
)
async def test_a_fault_ends_in_a_reason_within_bounded_tries(fault, error, words, num_requests):
    async with ChatServer(script=[fault]) as server:
        with pytest.raises(error, match=words):
            await write(server)
    assert len(server.requests) == num_requests


@pytest.mark.parametrize("fault", ["silent", "pings"])
async def test_a_silent_server_is_given_up_after_the_timeout(fault):
    async with ChatServer(script=[fault]) as server:
        with pytest.raises(GeneratorUnavailable, match=r"silent for 0\.2 s"):
            await write(server, timeout_s=0.2)
    assert len(server.requests) == 1


async def test_no_server_at_all_names_the_setting():
    async with ChatServer() as server:
        pass
    with pytest.raises(GeneratorUnavailable, match="start it, or correct LLM_BASE_URL"):
        await write(server)


async def test_closing_the_stream_closes_the_connection():
    async with ChatServer(script=["endless"]) as server:
        generator = OpenAIGenerator(server.base_url, None, "small", 5.0)
        async with aclosing(generator.generate(REQUEST)) as pieces:
            async for _ in pieces:
                break
        await server.until_idle()
        assert server.num_gone == 1
        await generator.close()


async def test_an_automatic_model_is_the_first_that_can_chat():
    models = [{"id": "nomic-embed-text"}, {"id": "qwen", "max_model_len": 2048}]
    async with ChatServer(models=models) as server:
        await write(server, model="auto")
    assert server.requests[0]["model"] == "qwen"


async def test_discovery_learns_how_much_the_model_takes():
    async with ChatServer(models=[{"id": "small", "meta": {"n_ctx_train": 2048}}]) as server:
        generator = OpenAIGenerator(server.base_url, None, "auto", 5.0)
        await server.away(generator.discover)
    assert generator.info.model == "small"
    assert generator.max_prompt_tokens == 2048 - 512


async def test_a_model_that_the_server_lacks_is_named_with_what_it_has():
    async with ChatServer() as server:
        generator = OpenAIGenerator(server.base_url, None, "big", 5.0)
        with pytest.raises(GeneratorUnavailable, match=r"model big.*\(small\)"):
            await server.away(generator.discover)
