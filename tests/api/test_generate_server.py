"""The engine's own server, tried with OpenAI's client against a tiny random model."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest

from app.api.generate.chat import prompt_of
from app.api.generate.schemas import ChatIn
from app.config import Settings
from app.generate import create_generate_app, create_generate_routes
from tests.api.conftest import serving
from tests.engine import tiny

SNAPSHOT = Path(__file__).parent.parent / "snapshots" / "openapi_generate.json"
NAME = "tiny"
ASKED = [{"role": "user", "content": "Why?"}]
GREEDY = {"temperature": 0, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen2")
    tiny.make_checkpoint(folder, "qwen2")
    return folder


def make_settings(model, **options):
    return Settings(
        _env_file=None,
        role="generate",
        llm_model=str(model),
        served_model_name=NAME,
        engine_dtype="float32",
        engine_tool_parser="hermes",
        engine_reasoning_parser="think",
        engine_kv_cache_mb=8,
        num_threads=1,
        **options,
    )


@contextlib.contextmanager
def running(settings):
    app = create_generate_app(settings)
    with serving(app) as url:
        assert app.state.services.is_settled.wait(60)
        app.state.url = url
        yield app


@pytest.fixture(scope="module")
def app(model):
    with running(make_settings(model)) as app:
        yield app
        stats = app.state.services.served.llm.stats()
        assert stats.num_free_blocks == stats.num_blocks


@pytest.fixture(scope="module")
def url(app):
    return app.state.url


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def llm(app):
    return app.state.services.served.llm


def test_openapi_document_is_the_kept_one():
    assert create_generate_routes().openapi() == json.loads(SNAPSHOT.read_text()), (
        "where the change is meant: "
        "python -m app openapi --role generate > tests/snapshots/openapi_generate.json"
    )


def test_the_role_imports_neither_milvus_nor_sql_nor_an_embedding_model():
    code = (
        "import sys, app.__main__, app.generate; bad = {'pymilvus', 'sqlalchemy', 'app.db', "
        "'app.rag.embeddings', 'transformers'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=110)


def wait_until(condition, timeout_s=20):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


def chat(client, **options):
    return client.chat.completions.create(
        **{"model": NAME, "messages": ASKED, "max_tokens": 8} | options
    )


def complete(client, **options):
    return client.completions.create(
        **{"model": NAME, "prompt": "The pages", "max_tokens": 8} | options
    )


def test_models_are_the_one_that_is_served(client):
    [model] = client.models.list()
    assert (model.id, model.owned_by, model.max_model_len) == (NAME, "folio", 512)
    assert client.models.retrieve(NAME).id == NAME


def test_chat_answers_with_usage_and_a_finish_reason(client, llm):
    answer = chat(client, **GREEDY)
    [choice] = answer.choices
    assert (choice.message.role, choice.finish_reason) == ("assistant", "length")
    assert choice.message.content
    prompt = llm.tokenizer.apply_chat_template(ASKED)
    assert answer.usage.prompt_tokens == len(prompt)
    assert (answer.usage.completion_tokens, answer.usage.total_tokens) == (8, len(prompt) + 8)


def test_stream_brings_the_same_text_in_pieces_then_usage(client):
    # Long enough that no reader, however slow, gets all of it as one piece.
    wanted = {"max_tokens": 200} | GREEDY
    whole = chat(client, **wanted)
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}, **wanted))
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(texts) == whole.choices[0].message.content
    assert sum(map(bool, texts)) > 1
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
    )
    assert len({chunk.id for chunk in chunks}) == 1


def test_stream_without_include_usage_has_none_and_ends_with_done(url):
    body = {"model": NAME, "messages": ASKED, "stream": True, "max_tokens": 2}
    reply = httpx.post(f"{url}/v1/chat/completions", json=body)
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.text.endswith("data: [DONE]\n\n")
    assert '"usage"' not in reply.text


def test_several_answers_are_numbered_also_in_a_stream(client):
    options = {"n": 3, "seed": 5, "temperature": 1, "extra_body": {"ignore_eos": True}}
    whole = chat(client, **options)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in whole.choices}) == 3
    streamed = ["", "", ""]
    for chunk in chat(client, stream=True, **options):
        [choice] = chunk.choices
        streamed[choice.index] += choice.delta.content or ""
    assert streamed == [choice.message.content for choice in whole.choices]


def test_a_seed_gives_the_same_text_again(client):
    texts = {chat(client, seed=seed).choices[0].message.content for seed in (7, 7, 7)}
    assert len(texts) == 1
    assert chat(client, seed=8).choices[0].message.content not in texts


def test_stop_strings_end_the_answer(client):
    text = chat(client, **GREEDY).choices[0].message.content
    stop = text[2:4]
    choice = chat(client, stop=[stop], **GREEDY).choices[0]
    assert (choice.message.content, choice.finish_reason) == (text[: text.index(stop)], "stop")
    assert choice.stop_reason == stop


def test_logprobs_name_each_token_and_its_rivals(client):
    choice = chat(client, logprobs=True, top_logprobs=2, **GREEDY).choices[0]
    entries = choice.logprobs.content
    assert "".join(entry.token for entry in entries) == choice.message.content
    assert all(len(entry.top_logprobs) == 2 for entry in entries)
    assert all(entry.top_logprobs[0].logprob == entry.logprob for entry in entries)
    assert bytes(entries[0].bytes).decode() == entries[0].token
    streamed = [
        entry
        for chunk in chat(client, logprobs=True, top_logprobs=2, stream=True, **GREEDY)
        for entry in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else [])
    ]
    assert [entry.logprob for entry in streamed] == [entry.logprob for entry in entries]


def test_bias_penalties_and_vllms_extras_reach_the_sampler(client, llm):
    favourite = llm.tokenizer.encode("x")[0]
    answer = chat(client, logit_bias={str(favourite): 100}, max_tokens=3, presence_penalty=1)
    assert answer.choices[0].message.content == "xxx"
    first = chat(client, **GREEDY).choices[0].message.content
    extra = {"top_k": 1, "ignore_eos": True, "min_tokens": 2, "repetition_penalty": 1.0}
    assert chat(client, temperature=1, extra_body=extra).choices[0].message.content == first


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather somewhere.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Paris", "北京"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}},
}


def check_weather(function):
    assert function.name == "get_weather"
    arguments = json.loads(function.arguments)
    assert arguments.keys() == {"city", "days"}
    assert arguments["city"] in ("Paris", "北京")
    assert 1 <= arguments["days"] <= 9


def test_named_tool_is_called(client):
    choice = {"type": "function", "function": {"name": "get_weather"}}
    answer = chat(client, tools=[CLOCK, WEATHER], tool_choice=choice, max_tokens=100, seed=1)
    [call] = answer.choices[0].message.tool_calls
    check_weather(call.function)
    assert call.id.startswith("call_")
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (None, "stop")


def test_required_tool_is_called_also_in_a_stream(client):
    options = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    options |= {"max_tokens": 100, "seed": 1}
    whole = chat(client, **options).choices[0]
    assert whole.finish_reason == "tool_calls"
    [call] = whole.message.tool_calls
    check_weather(call.function)
    chunks = list(chat(client, stream=True, **options))
    [piece] = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert (piece.index, piece.function.name) == (0, call.function.name)
    assert piece.function.arguments == call.function.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_answer_that_calls_a_tool_of_itself_is_read(client):
    call = r'Well\. <tool_call>\n\{"name": "get_time", "arguments": \{\}\}\n</tool_call>'
    extra = {"structured_outputs": {"regex": call}}
    choice = chat(client, tools=[CLOCK], max_tokens=100, extra_body=extra).choices[0]
    assert choice.message.content == "Well."
    assert [c.function.name for c in choice.message.tool_calls] == ["get_time"]
    assert choice.finish_reason == "tool_calls"
    unread = chat(client, tools=[CLOCK], tool_choice="none", max_tokens=100, extra_body=extra)
    assert unread.choices[0].message.tool_calls is None
    assert "<tool_call>" in unread.choices[0].message.content


def test_tool_results_and_calls_go_back_into_the_prompt(client):
    called = {"id": "call_1", "type": "function"}
    called["function"] = {"name": "get_time", "arguments": "{}"}
    messages = [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
    ]
    assert chat(client, messages=messages, tools=[CLOCK]).choices
    called["function"]["arguments"] = "{"
    with pytest.raises(openai.BadRequestError, match="the arguments of a tool call are no JSON"):
        chat(client, messages=messages, tools=[CLOCK])


def test_thoughts_are_kept_apart(client):
    extra = {"structured_outputs": {"regex": "<think>[a-z]{5}</think>[A-Z]{4}"}}
    message = chat(client, max_tokens=60, seed=2, extra_body=extra).choices[0].message
    assert len(message.reasoning_content) == 5
    assert len(message.content) == 4
    chunks = list(chat(client, max_tokens=60, seed=2, stream=True, extra_body=extra))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    thoughts = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert thoughts == message.reasoning_content
    assert "".join(delta.content or "" for delta in deltas) == message.content
    hidden = chat(client, max_tokens=60, extra_body=extra | {"include_reasoning": False})
    assert not hasattr(hidden.choices[0].message, "reasoning_content")


def test_forms_hold_after_thoughts_that_the_prompt_opened(app):
    opened = [*ASKED, {"role": "assistant", "content": "<think>"}]
    options = {"continue_final_message": True, "add_generation_prompt": False}
    wanted = ChatIn(messages=opened, response_format={"type": "json_object"}, **options)
    params = prompt_of(app.state.services.served, wanted).params
    assert params.structured_outputs.thoughts_end == "</think>"
    asked = ChatIn(messages=ASKED, response_format={"type": "json_object"})
    params = prompt_of(app.state.services.served, asked).params
    assert params.structured_outputs.thoughts_end is None


def test_answers_follow_a_json_schema(client):
    schema = {"name": "weather", "schema": WEATHER["function"]["parameters"], "strict": True}
    answer = chat(
        client, response_format={"type": "json_schema", "json_schema": schema}, max_tokens=100
    )
    value = json.loads(answer.choices[0].message.content)
    assert value["city"] in ("Paris", "北京")
    assert answer.choices[0].finish_reason == "stop"


def test_answers_are_json_objects_where_that_is_asked(client):
    answer = chat(client, response_format={"type": "json_object"}, max_tokens=20)
    assert answer.choices[0].message.content.startswith("{")


def test_completions_choose_among_given_answers(client):
    extra = {"structured_outputs": {"choice": ["yes", "no"]}}
    assert complete(client, extra_body=extra).choices[0].text in ("yes", "no")


def test_tools_and_a_format_exclude_each_other(client):
    with pytest.raises(openai.BadRequestError, match="cannot be both a tool call and"):
        chat(
            client,
            tools=[CLOCK],
            tool_choice="required",
            response_format={"type": "json_object"},
        )


def test_an_assistants_message_can_be_continued(client, llm):
    messages = [*ASKED, {"role": "assistant", "content": "The pages"}]
    extra = {"add_generation_prompt": False, "continue_final_message": True, "echo": True}
    answer = chat(client, messages=messages, temperature=0, extra_body=extra)
    assert answer.choices[0].message.content.startswith("The pages")


def test_completion_takes_texts_and_tokens(client, llm):
    tokens = llm.tokenizer.encode("The pages")
    forms = ["The pages", tokens, ["The pages"], [tokens]]
    answers = {complete(client, prompt=form, **GREEDY).choices[0].text for form in forms}
    assert len(answers) == 1
    several = complete(client, prompt=["The pages", "分块"], n=2, seed=3)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.usage.completion_tokens <= 4 * 8


def test_completion_streams_all_prompts(client):
    prompts = ["The pages", "分块"]
    whole = complete(client, prompt=prompts, **GREEDY)
    texts = ["", ""]
    for chunk in complete(client, prompt=prompts, stream=True, **GREEDY):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]


def test_echo_repeats_the_prompt_with_its_logprobs(client, llm):
    choice = complete(client, echo=True, logprobs=1, max_tokens=2, **GREEDY).choices[0]
    assert choice.text.startswith("The pages")
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.token_logprobs[0] is None
    assert len(choice.logprobs.tokens) == len(llm.tokenizer.encode("The pages")) + 2
    offsets = choice.logprobs.text_offset
    assert [choice.text[offset] for offset in offsets] == [t[0] for t in choice.logprobs.tokens]
    scored = complete(client, echo=True, logprobs=1, max_tokens=0)
    assert scored.choices[0].text == "The pages"
    assert scored.choices[0].logprobs.token_logprobs == choice.logprobs.token_logprobs[:-2]
    assert scored.usage.completion_tokens == 0


def test_prompt_logprobs_come_in_vllms_form(client, llm):
    answer = complete(client, extra_body={"prompt_logprobs": 0}, max_tokens=1)
    first, *others = answer.choices[0].prompt_logprobs
    tokens = llm.tokenizer.encode("The pages")
    assert first is None
    assert [list(entry) for entry in others] == [[str(token)] for token in tokens[1:]]


def test_embeddings_are_vectors_of_length_one(client):
    texts = ["The pages", "分块管理"]
    plain = client.embeddings.create(model=NAME, input=texts, encoding_format="float")
    packed = client.embeddings.create(model=NAME, input=texts)  # the client asks for base64
    for one, other in zip(plain.data, packed.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
        assert sum(x * x for x in one.embedding) == pytest.approx(1)
    assert plain.usage.total_tokens == plain.usage.prompt_tokens > 0
    short = client.embeddings.create(model=NAME, input="The pages", dimensions=8)
    assert len(short.data[0].embedding) == 8


def test_tokens_and_back(url, llm):
    asked = {"model": NAME, "prompt": "The pages 分块", "return_token_strs": True}
    reply = httpx.post(f"{url}/tokenize", json=asked).json()
    assert reply["tokens"] == llm.tokenizer.encode("The pages 分块")
    assert (reply["count"], reply["max_model_len"]) == (len(reply["tokens"]), 512)
    assert reply["token_strs"][0] == "The"
    back = httpx.post(f"{url}/detokenize", json={"model": NAME, "tokens": reply["tokens"]})
    assert back.json() == {"prompt": "The pages 分块"}
    chatted = httpx.post(f"{url}/tokenize", json={"messages": ASKED}).json()
    assert chatted["tokens"] == llm.tokenizer.apply_chat_template(ASKED)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"messages": [{"role": "user", "content": "x " * 2000}]}, "the model takes 512"),
        ({"temperature": -1}, "temperature is -1.0, it must be between 0 and 100"),
        ({"max_tokens": 0}, "max_tokens is 0, it must be at least 1"),
        ({"n": 100}, "n is 100, above max_num_seqs 32"),
        ({"messages": []}, "messages"),
        ({"top_logprobs": 2}, "top_logprobs needs logprobs"),
        ({"tool_choice": "required"}, "tool_choice required needs tools"),
        ({"response_format": {"type": "json_schema"}}, "json_schema"),
        (
            {"extra_body": {"structured_outputs": {"regex": "a", "choice": ["b"]}}},
            "structured_outputs has regex, choice: give exactly one",
        ),
        ({"extra_body": {"structured_outputs": {"regex": "("}}}, "regex"),
        ({"extra_body": {"chat_template": "{{ 1 }}"}}, "chat_template"),
        ({"logit_bias": {"100000": 1}}, "token id 100000"),
        ({"extra_body": {"continue_final_message": True}}, "last message of the assistant"),
    ],
)
def test_wrong_requests_are_told_what_is_wrong(client, options, message):
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=message) as caught:
            chat(client, stream=stream, **options)
        assert caught.value.body["type"] == "invalid_request_error"


def test_half_a_surrogate_pair_is_no_text(url):
    # JSON can escape it, Python's strings hold it, UTF-8 cannot write it
    message = r'{"messages": [{"role": "user", "content": "\ud800"}]}'
    for path, body in (
        ("/v1/chat/completions", message),
        ("/v1/completions", r'{"prompt": "\ud800"}'),
        ("/v1/embeddings", r'{"input": "\ud800"}'),
        ("/tokenize", message),
    ):
        headers = {"content-type": "application/json"}
        reply = httpx.post(f"{url}{path}", content=body, headers=headers)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_request")


def test_arguments_nested_too_deep_are_refused(client):
    call = {"id": "call_1", "type": "function"}
    call["function"] = {"name": "get_time", "arguments": "[" * 100_000}
    messages = [*ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}]
    with pytest.raises(openai.BadRequestError, match="the arguments of a tool call are no JSON"):
        chat(client, messages=messages)


def test_fields_that_may_be_null_are_there_all_the_same(url):
    """Clients in stricter languages than Python ask for them."""
    body = {"messages": ASKED, "tools": [WEATHER], "tool_choice": "required", "seed": 1}
    body |= {"parallel_tool_calls": False}
    [choice] = httpx.post(f"{url}/v1/chat/completions", json=body).json()["choices"]
    assert (choice["message"]["content"], choice["logprobs"]) == (None, None)
    asked = {"messages": ASKED, "prompt": "a", "stream": True, "max_tokens": 2}
    for path in ("chat/completions", "completions"):
        lines = httpx.post(f"{url}/v1/{path}", json=asked).text.splitlines()
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines if "{" in line]
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        # a slow reader may get both tokens, and so the end, in one chunk
        assert [choice["finish_reason"] for choice in choices][:-1] == [None] * (len(choices) - 1)
        assert all(choice["logprobs"] is None for choice in choices)


def test_completions_refuse_what_they_cannot_do(client):
    for options in ({"suffix": "x"}, {"best_of": 3}, {"max_tokens": 0}):
        with pytest.raises(openai.BadRequestError):
            complete(client, **options)
    with pytest.raises(openai.BadRequestError, match="dimensions is 99"):
        client.embeddings.create(model=NAME, input="a", dimensions=99)


def test_more_prompts_than_can_ever_wait_are_refused_for_good(client):
    for user, limit in ((openai.omit, 256), ("ann", 128)):
        prompts = ["a"] * (limit + 1)
        with pytest.raises(openai.BadRequestError, match=f"queue takes {limit}: send fewer"):
            complete(client, prompt=prompts, user=user)


def test_other_models_do_not_exist(client):
    with pytest.raises(openai.NotFoundError, match="'gpt-4o' does not exist; there is 'tiny'"):
        chat(client, model="gpt-4o")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


def test_client_that_closes_its_stream_frees_the_blocks(client, llm):
    stream = chat(client, stream=True, max_tokens=400, **GREEDY)
    next(iter(stream))
    wait_until(lambda: llm.stats().num_requests_running == 1)
    stream.close()
    wait_until(lambda: llm.stats().num_free_blocks == llm.stats().num_blocks, timeout_s=2)
    assert llm.stats().num_requests_running == 0


def test_client_that_hangs_up_before_its_answer_frees_the_blocks(url, llm):
    body = {"model": NAME, "messages": ASKED, "max_tokens": 450, "ignore_eos": True}
    with contextlib.suppress(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/chat/completions", json=body, timeout=0.15)
    wait_until(lambda: not llm.is_busy, timeout_s=2)
    assert llm.stats().num_free_blocks == llm.stats().num_blocks


def test_block_is_free_within_one_step_after_the_socket_closed(url, llm):
    """Over a bare socket: no client library in between."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"messages": ASKED, "max_tokens": 450, "ignore_eos": True, "stream": True})
    steps = []
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json"
            f"\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        connection.recv(65536)
        wait_until(lambda: llm.stats().num_requests_running == 1)
        abort = llm._core.abort

        def watched(request_id):
            steps.append(llm.stats().num_generation_tokens)
            output = abort(request_id)
            steps.append(llm.stats().num_free_blocks)
            return output

        llm._core.abort = watched
    wait_until(lambda: len(steps) == 2, timeout_s=2)
    llm._core.abort = abort
    assert steps[1] == llm.stats().num_blocks
    assert llm.stats().num_generation_tokens == steps[0]  # no step followed


def test_probes_and_version(url):
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{url}/ready").json()["status"] == "ready"
    assert httpx.get(f"{url}/version").json()["version"]


def test_health_asks_for_a_restart_when_the_engine_died(url, llm, monkeypatch):
    monkeypatch.setattr(llm, "_stop_reason", "the engine died of an unexpected SystemExit: lost")
    response = httpx.get(f"{url}/health")
    assert response.status_code == 503
    assert "the engine died" in response.json()["error"]["message"]
    assert httpx.get(f"{url}/ready").status_code == 503
    monkeypatch.undo()
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}


def test_metrics_bear_vllms_names(client, url):
    chat(client, **GREEDY)
    text = httpx.get(f"{url}/metrics").text
    for line in (
        'vllm:num_requests_running{model_name="tiny"} 0.0',
        'vllm:num_requests_waiting{model_name="tiny"} 0.0',
        'vllm:kv_cache_usage_perc{model_name="tiny"} 0.0',
        'vllm:prompt_tokens_total{model_name="tiny"}',
        'vllm:generation_tokens_total{model_name="tiny"}',
        'vllm:prefix_cache_queries_total{model_name="tiny"}',
        'vllm:prefix_cache_hits_total{model_name="tiny"}',
        'vllm:num_preemptions_total{model_name="tiny"}',
        'vllm:spec_decode_num_drafts_total{model_name="tiny"}',
        'vllm:spec_decode_num_draft_tokens_total{model_name="tiny"}',
        'vllm:spec_decode_num_accepted_tokens_total{model_name="tiny"}',
        'folio_engine_kv_cache_waste_ratio{model_name="tiny"} 0.0',
        'folio_engine_swapped_out_bytes_total{model_name="tiny"}',
        'vllm:request_success_total{finished_reason="length",model_name="tiny"}',
        'vllm:time_to_first_token_seconds_count{model_name="tiny"}',
        'vllm:inter_token_latency_seconds_count{model_name="tiny"}',
        'vllm:e2e_request_latency_seconds_count{model_name="tiny"}',
        'vllm:request_queue_time_seconds_count{model_name="tiny"}',
        'vllm:request_prompt_tokens_sum{model_name="tiny"}',
        'vllm:request_generation_tokens_sum{model_name="tiny"}',
        'vllm:iteration_tokens_total_count{model_name="tiny"}',
    ):
        assert line in text


def test_full_queue_answers_429_with_retry_after(model):
    settings = make_settings(model, engine_max_num_seqs=1, engine_max_num_queued=1)
    with running(settings) as app:
        url, llm = app.state.url, app.state.services.served.llm
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
        with client:
            streams = [chat(client, stream=True, max_tokens=480, **GREEDY)]
            wait_until(lambda: llm.stats().num_requests_running == 1)
            streams.append(chat(client, stream=True, max_tokens=480, **GREEDY))
            for stream in (False, True):
                with pytest.raises(openai.RateLimitError, match="1 requests are waiting") as caught:
                    chat(client, stream=stream)
                assert int(caught.value.response.headers["retry-after"]) >= 1
            for stream in streams:
                stream.close()


def test_key_is_asked_for_where_one_is_set(model):
    with running(make_settings(model, api_key="geheim")) as app:
        url = app.state.url
        with openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError):
                chat(client)
            assert chat(client.with_options(api_key="geheim")).choices
        assert httpx.post(f"{url}/tokenize", json={"prompt": "a"}).status_code == 401
        assert httpx.get(f"{url}/ready").status_code == 200


def test_running_streams_end_before_the_server_does(model):
    texts = []
    with running(make_settings(model)) as app:
        client = openai.OpenAI(base_url=f"{app.state.url}/v1", api_key="any", max_retries=0)
        stream = chat(client, stream=True, max_tokens=60, **GREEDY)
        reader = threading.Thread(target=lambda: texts.extend(stream))
        reader.start()
        wait_until(lambda: app.state.services.served.llm.stats().num_requests_running == 1)
    reader.join(5)
    client.close()
    assert texts[-1].choices[0].finish_reason == "length"


def test_streams_that_take_too_long_fail_when_the_server_stops(model):
    with running(make_settings(model, drain_timeout_s=0)) as app:
        client = openai.OpenAI(base_url=f"{app.state.url}/v1", api_key="any", max_retries=0)
        stream = iter(chat(client, stream=True, max_tokens=480, **GREEDY))
        next(stream)
        wait_until(lambda: app.state.services.served.llm.stats().num_requests_running == 1)
        failures = []

        def read():
            try:
                list(stream)
            except openai.APIError as error:
                failures.append(str(error))

        reader = threading.Thread(target=read)
        reader.start()
    reader.join(5)
    client.close()
    assert "shut down" in failures[0]


def test_dead_engine_fails_its_requests_and_is_not_ready(model):
    with running(make_settings(model)) as app:
        url, llm = app.state.url, app.state.services.served.llm

        def die():
            raise SystemExit("lost")  # no Exception: it ends the thread

        llm._core.step = die
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
        with client, pytest.raises(openai.InternalServerError, match="the engine died") as caught:
            chat(client)
        assert caught.value.status_code == 503
        reply = httpx.get(f"{url}/ready")
        assert reply.status_code == 503
        assert "the engine died" in reply.json()["checks"][0]["detail"]
