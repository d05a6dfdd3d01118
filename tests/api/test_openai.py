"""The OpenAI face, tried with OpenAI's own client over a real server."""

import asyncio
import contextlib
import threading

import httpx
import openai
import pytest

from app.domain import Failed, GeneratorInfo, Message, SearchScope
from app.errors import GeneratorUnavailable
from app.rag.pipeline import AnswerOptions, AnswerQueue
from app.scripts.evaluate.asking import http_asker
from tests.api.test_chats import wait_for

QUESTION = [{"role": "user", "content": "How much leave?"}]


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def law(services):
    return services.records.collections.create("Law 法律")


def test_models_are_knowledge_bases_and_the_language_model(client, law):
    models = {model.id: model.kind for model in client.models.list()}
    assert models == {
        "folio": "all knowledge bases",
        "default": "knowledge base",
        "Law 法律": "knowledge base",
        "fake": "language model",
    }
    assert client.models.retrieve("folio").owned_by == "folio"


def test_extractive_answerer_is_no_language_model(client, services):
    services.generator.info = GeneratorInfo("extractive", "extractive")
    assert "extractive" not in [model.id for model in client.models.list()]


def test_completion_carries_the_answer_usage_and_sources_in_every_form(client, server):
    answer = client.chat.completions.create(model="folio", messages=QUESTION)
    choice = answer.choices[0]
    assert choice.message.content == "Leave is fifteen days [1]."
    assert (choice.message.role, choice.finish_reason) == ("assistant", "stop")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (12, 3)
    source = answer.sources[0]
    url = f"{server}/#/docs/{source['document_id']}?chunk={source['chunk_id']}"
    (annotation,) = choice.message.annotations
    assert annotation.url_citation.url == url
    assert choice.message.content[
        annotation.url_citation.start_index : annotation.url_citation.end_index
    ].startswith("Leave is fifteen")
    assert answer.citations[0] == url
    assert answer.search_results[0] == {
        "title": source["document_title"],
        "url": url,
        "snippet": source["text"],
    }
    assert [source["number"] for source in answer.sources] == [1, 2]


def test_stream_brings_sources_first_then_text_then_the_end(client):
    stream = client.chat.completions.create(
        model="folio", messages=QUESTION, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    has_sources = [bool(getattr(chunk, "sources", None)) for chunk in chunks]
    texts = [chunk.choices[0].delta.content if chunk.choices else None for chunk in chunks]
    assert has_sources.index(True) < texts.index(next(text for text in texts if text))
    assert "".join(text or "" for text in texts) == "Leave is fifteen days [1]."
    closing, usage = chunks[-2:]
    assert closing.choices[0].finish_reason == "stop"
    assert closing.choices[0].delta.annotations[0]["type"] == "url_citation"
    assert usage.choices == []
    assert usage.usage.total_tokens == 15
    assert len({chunk.id for chunk in chunks}) == 1


def test_stream_without_include_usage_has_none_and_ends_with_done(server):
    body = {"model": "folio", "messages": QUESTION, "stream": True}
    reply = httpx.post(f"{server}/v1/chat/completions", json=body)
    assert reply.text.endswith("data: [DONE]\n\n")
    assert '"usage"' not in reply.text


def test_knowledge_base_is_asked_by_name_or_id(client, pipeline, law):
    for model in (law.name, law.id):
        client.chat.completions.create(model=model, messages=QUESTION)
    assert [q.scope for q in pipeline.questions] == [SearchScope((law.id,))] * 2


def test_options_and_history_reach_the_pipeline(client, pipeline):
    client.chat.completions.create(
        model="folio",
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Leave?"},
            {"role": "assistant", "content": "Fifteen."},
            {"role": "user", "content": [{"type": "text", "text": "And in May?"}]},
        ],
        temperature=0,
        max_tokens=7,
        extra_body={"rag": {"collection_ids": ["default"], "language": "zh"}},
    )
    (question,) = pipeline.questions
    assert question.text == "And in May?"
    assert question.history == (
        Message("system", "Be brief."),
        Message("user", "Leave?"),
        Message("assistant", "Fifteen."),
    )
    assert (question.temperature, question.max_tokens, question.language) == (0, 7, "zh")
    assert question.scope == SearchScope(("default",))


def test_answers_are_never_longer_than_the_setting(client, pipeline):
    client.chat.completions.create(model="folio", messages=QUESTION, max_completion_tokens=10**6)
    assert pipeline.questions[0].max_tokens == 100


def test_language_model_by_itself_answers_without_documents(client, pipeline, services):
    answer = client.chat.completions.create(model="fake", messages=QUESTION)
    assert answer.choices[0].message.content == "plain words"
    assert (answer.sources, pipeline.questions) == ([], [])
    assert services.generator.requests[0].messages == (Message("user", "How much leave?"),)
    assert answer.usage.completion_tokens == 2


def test_language_model_by_itself_waits_for_its_turn(client, pipeline, services):
    pipeline.queue = AnswerQueue(AnswerOptions(max_concurrent=1, queue_timeout_s=0.2))
    asyncio.run(pipeline.queue._slots.acquire())  # an answer is being made
    with pytest.raises(openai.RateLimitError, match=r"could be started within 0\.2 s"):
        client.chat.completions.create(model="fake", messages=QUESTION)
    assert services.generator.requests == []


def test_unknown_model_names_those_that_exist(client):
    with pytest.raises(openai.NotFoundError, match="'gpt-4o' does not exist; there are 'folio'"):
        client.chat.completions.create(model="gpt-4o", messages=QUESTION)


@pytest.mark.parametrize(
    "options",
    [
        {"n": 2},
        {"stop": ["\n"]},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"response_format": {"type": "json_object"}},
        {"logprobs": True},
        {"temperature": 3},
        {"messages": []},
        {"messages": [{"role": "assistant", "content": "no question"}]},
        {"messages": [{"role": "user", "content": "  "}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        {"extra_body": {"rag": {"colection_ids": []}}},
    ],
)
def test_what_is_not_supported_is_refused(client, options):
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**{"model": "folio", "messages": QUESTION} | options)
    assert caught.value.status_code == 400
    assert caught.value.body["type"] == "invalid_request_error"
    assert caught.value.body["message"]


def text_parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


@pytest.mark.parametrize(
    ("content", "limit"),
    [
        ("x" * 20_001, "20000"),
        (text_parts("x" * 10_000, "x" * 10_000), "20000"),
        (text_parts("x" * 200_001), "200000"),
        (text_parts("x" * 100_000, "x" * 100_000), "200000"),
        (text_parts(*["x"] * 1001), "1000"),
    ],
)
def test_questions_are_limited(client, pipeline, content, limit):
    with pytest.raises(openai.BadRequestError, match=limit) as caught:
        client.chat.completions.create(
            model="folio", messages=[{"role": "user", "content": content}]
        )
    assert caught.value.body["type"] == "invalid_request_error"
    assert pipeline.questions == []


def test_earlier_messages_may_be_longer_than_the_question(client, pipeline):
    earlier = [{"role": "user", "content": "x" * 200_000}, {"role": "assistant", "content": "y"}]
    question = [{"role": "user", "content": "x" * 20_000}]
    client.chat.completions.create(model="folio", messages=earlier + question)
    assert len(pipeline.questions[0].text) == 20_000
    earlier[0]["content"] += "x"
    with pytest.raises(openai.BadRequestError, match="200000"):
        client.chat.completions.create(model="folio", messages=earlier + question)


def test_nul_in_a_question_is_left_out(client, pipeline):
    client.chat.completions.create(model="folio", messages=[{"role": "user", "content": "a\0b"}])
    assert pipeline.questions[0].text == "ab"


def test_run_of_this_face_has_no_events_under_api(client, server, pipeline, app):
    pipeline.gate = threading.Event()
    stream = client.chat.completions.create(model="folio", messages=QUESTION, stream=True)
    (run,) = app.state.runs.unfinished()
    assert httpx.get(f"{server}/api/runs/{run.id}/events").status_code == 404
    pipeline.gate.set()
    list(stream)


def test_clients_that_ask_for_nothing_special_explicitly_are_served(client):
    answer = client.chat.completions.create(
        model="folio",
        messages=QUESTION,
        n=1,
        tools=[],
        response_format={"type": "text"},
        logprobs=False,
        user="me",
        seed=1,
    )
    assert answer.choices[0].message.content


def test_failure_of_a_whole_answer_has_its_status(client, pipeline):
    pipeline.error = GeneratorUnavailable("the model is away")
    with pytest.raises(openai.InternalServerError, match="the model is away") as caught:
        client.chat.completions.create(model="folio", messages=QUESTION)
    assert caught.value.status_code == 503
    assert caught.value.body["code"] == "generator_unavailable"


def test_failure_in_a_stream_is_raised_by_the_client(client, pipeline):
    pipeline.ending = Failed("generator_unavailable", "the model is away")
    stream = client.chat.completions.create(model="folio", messages=QUESTION, stream=True)
    with pytest.raises(openai.APIError, match="the model is away"):
        list(stream)


def test_too_many_requests_get_429_with_retry_after(client, pipeline):
    pipeline.gate = threading.Event()
    asking = [
        threading.Thread(
            target=client.chat.completions.create, kwargs={"model": "folio", "messages": QUESTION}
        )
        for _ in range(3)
    ]
    for thread in asking:
        thread.start()
    wait_for(lambda: len(pipeline.questions) == 3)
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model="folio", messages=QUESTION)
    assert int(caught.value.response.headers["retry-after"]) >= 1
    pipeline.gate.set()
    for thread in asking:
        thread.join(10)


@pytest.mark.parametrize("stream", [True, False])
def test_work_stops_when_the_client_leaves(server, pipeline, stream):
    pipeline.gate = threading.Event()
    body = {"model": "folio", "messages": QUESTION, "stream": stream}
    with contextlib.suppress(httpx.ReadTimeout):
        httpx.post(f"{server}/v1/chat/completions", json=body, timeout=0.3)
    wait_for(lambda: pipeline.num_closed == 1)


def test_stream_says_that_it_is_alive_and_the_client_does_not_mind(client, pipeline, monkeypatch):
    monkeypatch.setattr("app.api.sse.HEARTBEAT_S", 0.02)
    pipeline.gate = threading.Event()
    stream = client.chat.completions.create(model="folio", messages=QUESTION, stream=True)
    threading.Timer(0.2, pipeline.gate.set).start()
    texts = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(texts) == "Leave is fifteen days [1]."


def test_evaluation_asks_a_running_appliance(server):
    ask = http_asker(server, None, "folio")
    answer = ask("How much leave?")
    assert answer.text == "Leave is fifteen days [1]."
    assert len(answer.cited) == 1
    assert not answer.is_refusal
    assert 0 < answer.first_token_s <= answer.seconds


def test_cited_sources_are_listed_in_the_text_where_that_is_asked(client, server, pipeline):
    options = {"model": "folio", "messages": QUESTION}
    options["extra_body"] = {"rag": {"markdown_sources": True}}
    text = client.chat.completions.create(**options).choices[0].message.content
    chunk = pipeline.sources[0].hit.chunk
    url = f"{server}/#/docs/{chunk.document_id}?chunk={chunk.id}"
    name = pipeline.sources[0].hit.document_name
    assert text == f"Leave is fifteen days [1].\n\n- [1] [{name}]({url})"
    streamed = client.chat.completions.create(**options, stream=True)
    pieces = [piece.choices[0].delta.content or "" for piece in streamed if piece.choices]
    assert "".join(pieces) == text
