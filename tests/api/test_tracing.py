"""Traces, read as a collector reads them: whole answers and jobs, decoded from OTLP."""

import asyncio
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from fastapi.testclient import TestClient
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from app import tracing
from app.config import Settings
from app.domain import Message, Question
from app.engine_service import EngineService
from app.errors import Unavailable
from app.generate import create_generate_app
from app.main import create_app
from app.rag.lexical import terms
from app.rag.llm.remote import OpenAIGenerator
from app.rag.pipeline import AnswerPipeline
from app.rag.retriever import is_follow_up
from app.rag.rewriter import QuestionRewriter
from tests.api.conftest import serving
from tests.fakes import FakeGenerator, FakeRetriever, make_hit
from tests.rag.llm_server import ChatServer
from tests.rag.test_document_processor import World
from tests.rag.test_retriever import make_hits, make_retriever

PASSAGE = "Employees receive fifteen days of leave each year."
QUESTION = "How many days of leave do employees receive?"
CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Collector:
    """An OTLP/HTTP endpoint that keeps what it is sent."""

    def __enter__(self):
        kept = self.spans = []
        self.paths = paths = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                paths.append(self.path)
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for scope in resource.scope_spans:
                        kept.extend(scope.spans)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=[0.02], daemon=True).start()
        return self

    def __exit__(self, *_):
        tracing.stop()
        self._server.shutdown()
        self._server.server_close()

    def find(self, name):
        [span] = [span for span in self.spans if span.name == name]
        return span

    def parent_of(self, name):
        by_id = {span.span_id: span.name for span in self.spans}
        return by_id.get(self.find(name).parent_span_id)


@pytest.fixture
def collector():
    with Collector() as collector:
        yield collector


def attributes_of(span):
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


async def ask(url):
    """Ask in a chat as a caller with a trace of its own; until the answer is stored."""
    async with httpx.AsyncClient(base_url=url, timeout=10) as client:
        chat = (await client.post("/api/chats", json={})).json()
        asked = await client.post(
            f"/api/chats/{chat['id']}/messages",
            json={"text": QUESTION},
            headers={"traceparent": CALLER},
        )
        events = await client.get(f"/api/runs/{asked.json()['run_id']}/events")
        return events.text


@pytest.fixture
async def answered(collector, settings, services):
    """A whole answer over a remote language model; returns that server."""
    settings = settings.model_copy(update={"otlp_endpoint": collector.url})
    async with ChatServer() as llm:
        app = create_app(settings, services)
        with serving(app) as url:
            await asyncio.to_thread(services.is_settled.wait, 5)
            generator = OpenAIGenerator(llm.base_url, None, "small", 5.0)
            services.pipeline = AnswerPipeline(
                make_retriever(make_hits(PASSAGE)),
                generator,
                terms=terms,
                num_chunks=lambda: 1,
            )
            text = await ask(url)
            assert "event: done" in text, text
    return llm


async def test_one_answer_is_one_trace_within_the_callers(collector, answered):
    request = collector.find("POST /api/chats/{chat_id}/messages")
    trace_id = CALLER.split("-")[1]
    in_trace = {span.name for span in collector.spans if span.trace_id.hex() == trace_id}
    assert request.parent_span_id.hex() == CALLER.split("-")[2]
    assert in_trace >= {"answer", "queue", "retrieve", "dense", "lexical", "prompt", "generate"}
    assert set(collector.paths) == {"/v1/traces"}


async def test_each_step_has_its_parent(collector, answered):
    expected = {
        "answer": "POST /api/chats/{chat_id}/messages",
        "queue": "answer",
        "retrieve": "answer",
        "embed": "retrieve",
        "dense": "retrieve",
        "lexical": "retrieve",
        "rank": "retrieve",
        "prompt": "answer",
        "generate": "answer",
    }
    assert {name: collector.parent_of(name) for name in expected} == expected
    cites = [span for span in collector.spans if span.name == "cite"]
    assert {span.parent_span_id for span in cites} == {collector.find("answer").span_id}


async def test_the_remote_language_model_gets_the_trace(collector, answered):
    trace_id, span_id = answered.headers[-1]["traceparent"].split("-")[1:3]
    generate = collector.find("generate")
    assert (trace_id, span_id) == (generate.trace_id.hex(), generate.span_id.hex())


async def test_the_first_token_and_the_outcome_are_told(collector, answered):
    generate = collector.find("generate")
    [first] = generate.events
    assert first.name == "first token"
    assert generate.start_time_unix_nano < first.time_unix_nano <= generate.end_time_unix_nano
    told = attributes_of(collector.find("answer"))
    assert told == {"folio.generator": "openai", "folio.outcome": "answered"}


async def test_nothing_that_was_written_is_sent(collector, answered):
    sent = " ".join(str(span) for span in collector.spans).lower()
    assert not [word for word in ("fifteen", "leave", "employees", "many days") if word in sent]


async def test_a_rewritten_question_is_a_step_with_its_own_call(collector):
    tracing.start(collector.url, "all", "test")
    generator = FakeGenerator(["How many days of leave do employees receive?"])
    pipeline = AnswerPipeline(
        FakeRetriever([make_hit(PASSAGE)]),
        generator,
        terms=terms,
        num_chunks=lambda: 1,
        rewriter=QuestionRewriter(generator, is_follow_up, terms),
    )
    history = (Message("user", "Do employees receive leave?"), Message("assistant", "Yes, days."))
    question = Question("And how many days of it?", history=history)
    events = [event async for event in pipeline.answer(question)]
    tracing.stop()
    assert events
    assert collector.parent_of("rewrite") == "answer"


async def test_a_client_that_leaves_ends_every_span(collector):
    tracing.start(collector.url, "all", "test")
    generator = FakeGenerator(["Employees ", "receive ", "leave [1]."])
    pipeline = AnswerPipeline(
        FakeRetriever([make_hit(PASSAGE)]), generator, terms=terms, num_chunks=lambda: 1
    )
    stream = pipeline.answer(Question(QUESTION))
    while type(await anext(stream)).__name__ != "TextDelta":
        pass
    await stream.aclose()
    tracing.stop()
    assert generator.num_running == 0
    assert attributes_of(collector.find("answer"))["folio.outcome"] == "stopped"
    assert collector.parent_of("generate") == "answer"


def test_the_role_generate_goes_on_with_the_trace_and_probes_make_none(collector, tmp_path):
    def load(service):
        raise Unavailable("no model here")

    settings = Settings(
        _env_file=None, role="generate", data_dir=tmp_path, otlp_endpoint=collector.url
    )
    app = create_generate_app(settings, EngineService(load, drain_s=0))
    with TestClient(app) as client:
        assert client.get("/v1/models", headers={"traceparent": CALLER}).status_code == 503
        client.get("/health")
    [request] = collector.spans
    assert (request.name, request.trace_id.hex()) == ("GET /v1/models", CALLER.split("-")[1])
    assert attributes_of(request)["http.response.status_code"] == 503


def test_a_failed_span_tells_the_type_of_the_error_and_not_its_words(collector):
    tracing.start(collector.url, "all", "test")
    with pytest.raises(ValueError), tracing.span("work"):
        raise ValueError("the secret of the document")
    tracing.stop()
    span = collector.find("work")
    assert (span.status.code, span.status.message) == (2, "ValueError")
    assert "secret" not in str(span)


def test_an_ingestion_job_is_a_trace_of_its_stages(collector, tmp_path):
    tracing.start(collector.url, "all", "test")
    world = World(tmp_path)
    world.add("leave fifteen days")
    world.processor.start()
    assert world.processor.wait_until_idle(10)
    world.processor.stop(10)
    tracing.stop()
    world.database.close()
    stages = {span.name for span in collector.spans} - {"ingest"}
    assert stages == {"parsing", "chunking", "embedding", "storing"}
    assert {collector.parent_of(stage) for stage in stages} == {"ingest"}


def test_a_collector_that_does_not_answer_costs_nothing_but_its_spans(monkeypatch):
    monkeypatch.setattr("app.tracing_otlp.CLOSE_TIMEOUT_S", 0.5)
    tracing.start("http://127.0.0.1:9", "all", "test")
    started = time.monotonic()
    for _ in range(10_000):  # more than the queue holds
        with tracing.span("work"):
            pass
    recorded_s = time.monotonic() - started
    tracing.stop()
    assert recorded_s < 5
    assert time.monotonic() - started - recorded_s < 2


def test_without_an_endpoint_no_trace_is_made_and_the_sdk_is_not_imported():
    script = (
        "import sys; from app import tracing; from app.main import create_app\n"
        "stream = object()\n"
        "assert tracing.traced('answer', stream) is stream and tracing.headers() == {}\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry.sdk')]\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
