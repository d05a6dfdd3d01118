"""What somebody may not read is nowhere: real Milvus Lite, the real pipeline, agents, streams."""

import json
import threading
from contextlib import suppress
from dataclasses import replace

import httpx
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from app.domain import Access, SearchScope
from app.rag.lexical import term_weights, terms
from app.rag.pipeline import AnswerPipeline
from app.rag.retriever import HybridRetriever
from app.rag.store import MilvusStore
from tests.api.test_accounts import PASSWORD, accounts, app, people  # noqa: F401 - fixtures
from tests.api.test_chats import wait_for
from tests.api.test_vector_stores import ingest, processor  # noqa: F401 - a fixture
from tests.fakes import FakeGenerator

SECRET = b"The codename of the merger is Bluebird"
OPEN_FACT = b"The canteen serves lunch at noon"
QUESTION = "What is the codename of the merger?"


@pytest.fixture
def visit(server, people):  # noqa: F811 - the fixture
    visitors = []

    def open_client(name):
        visitor = httpx.Client(base_url=server, timeout=20)
        visitors.append(visitor)
        visitor.post("/api/login", json={"name": name, "password": PASSWORD}).raise_for_status()
        return visitor

    yield open_client
    for visitor in visitors:
        visitor.close()


@pytest.fixture
def library(visit, people, services, processor, tmp_path):  # noqa: F811 - fixtures
    """Eve's secret, which Rob may read, and what everyone may read; searched in Milvus Lite."""
    store = MilvusStore(
        str(tmp_path / "milvus.db"), None, services.embedder.name, services.embedder.dimension
    )
    store.open()
    services.store = store
    stages = replace(processor.ingestion._stages, store=store, term_weights=term_weights)
    processor.use(processor.ingestion.beside(stages), store)
    services.retriever = HybridRetriever(
        services.embedder, store, services.records.chunks.of(store.index_name), 20
    )
    services.generator = FakeGenerator(["It is so [1]."])
    services.pipeline = AnswerPipeline(
        services.retriever,
        services.generator,
        terms=terms,
        num_chunks=services.records.chunks.num_chunks,
    )
    eve = visit("eve")
    made = {}
    for name, data, grants in (
        ("secret", SECRET, [{"kind": "user", "id": people["rob"].id, "role": "reader"}]),
        ("canteen", OPEN_FACT, [{"kind": "everyone", "id": None, "role": "reader"}]),
    ):
        base = eve.post("/api/collections", json={"name": name}).json()["id"]
        wanted = {"owner_id": people["eve"].id, "grants": grants}
        eve.put(f"/api/collections/{base}/access", json=wanted).raise_for_status()
        sent = eve.post(
            "/api/documents", data={"collection_id": base}, files={"files": (f"{name}.md", data)}
        ).raise_for_status()
        made[name] = {"base": base, "document": sent.json()["accepted"][0]["id"]}
    ingest(processor)
    yield made
    processor.stop(5)
    store.close()


def found(visitor, **wanted):
    hits = visitor.post("/api/search", json={"query": QUESTION} | wanted).json()["hits"]
    return {hit["document_name"] for hit in hits}


@pytest.mark.parametrize(
    "filters", [None, {"type": "ne", "key": "year", "value": 1}], ids=["plain", "filtered"]
)
def test_search_finds_only_what_may_be_read(visit, library, filters):
    assert found(visit("rob"), filters=filters) == {"secret.md", "canteen.md"}
    assert found(visit("out"), filters=filters) == {"canteen.md"}
    assert found(visit("ada"), filters=filters) == {"secret.md", "canteen.md"}


def test_nobody_with_whom_nothing_is_shared_finds_anything(visit, library, people):  # noqa: F811
    alone = {"owner_id": people["eve"].id, "grants": []}
    for made in library.values():
        visit("eve").put(f"/api/collections/{made['base']}/access", json=alone)
    assert found(visit("out")) == set()
    assert found(visit("rob")) == set()


def test_prompts_and_answers_hold_nothing_that_may_not_be_read(visit, library, services):
    asked = {"model": "folio", "messages": [{"role": "user", "content": QUESTION}]}
    right = visit("rob").post("/v1/chat/completions", json=asked).text
    assert "Bluebird" in right
    assert "Bluebird" in str(services.generator.requests)
    services.generator.requests.clear()
    assert "Bluebird" not in visit("out").post("/v1/chat/completions", json=asked).text
    assert "Bluebird" not in str(services.generator.requests)


def test_answer_in_a_chat_holds_nothing_that_may_not_be_read(visit, library):
    out = visit("out")
    chat = out.post("/api/chats", json={}).json()["id"]
    out.post(f"/api/chats/{chat}/messages", json={"text": QUESTION}).raise_for_status()

    def answered():
        messages = out.get(f"/api/chats/{chat}").json()["messages"]
        return messages if messages[-1]["state"] != "running" else None

    wait_for(answered, 20)
    assert "Bluebird" not in json.dumps(answered())


def test_what_a_chat_has_stays_but_opening_it_is_judged_anew(visit, library, people):  # noqa: F811
    rob = visit("rob")
    chat = rob.post("/api/chats", json={}).json()["id"]
    rob.post(f"/api/chats/{chat}/messages", json={"text": QUESTION}).raise_for_status()

    def last():
        return rob.get(f"/api/chats/{chat}").json()["messages"][-1]

    wait_for(lambda: last()["state"] == "done", 20)
    source = next(s for s in last()["sources"] if s["document_name"] == "secret.md")
    url = f"/api/documents/{source['document_id']}/chunks/{source['chunk_id']}"
    assert rob.get(url).status_code == 200
    alone = {"owner_id": people["eve"].id, "grants": []}
    visit("eve").put(f"/api/collections/{library['secret']['base']}/access", json=alone)
    assert rob.get(url).status_code == 404
    assert "Bluebird" in json.dumps(last()["sources"])


@pytest.fixture
def agent(server, visit):
    async def call(name, tool, **arguments):
        key = visit(name).post("/api/me/keys", json={"name": "agent"}).json()["key"]
        async with (
            httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}) as http,
            Client(streamable_http_client(f"{server}/mcp", http_client=http)) as client,
        ):
            return await client.call_tool(tool, arguments)

    return call


async def test_agents_find_and_read_what_their_user_may(agent, library):
    names = {}
    for name in ("rob", "out"):
        result = await agent(name, "search", query=QUESTION)
        names[name] = {p["document"] for p in result.structured_content["passages"]}
    assert names == {"rob": {"secret.md", "canteen.md"}, "out": {"canteen.md"}}
    document_id = library["secret"]["document"]
    assert not (await agent("rob", "read", document_id=document_id)).is_error
    for tool, arguments, reason in (
        ("read", {"document_id": document_id}, f"there is no document {document_id}"),
        ("search", {"query": "x", "knowledge_base": "secret"}, "there is no collection 'secret'"),
    ):
        refused = await agent("out", tool, **arguments)
        assert refused.is_error
        assert refused.content[0].text.endswith(reason)


class Listener:
    """Reads the library's events on a thread."""

    def __init__(self, visitor):
        self.names = []
        self.is_open = threading.Event()
        self.has_ended = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(visitor,), daemon=True)
        self._thread.start()
        assert self.is_open.wait(10)

    def _read(self, visitor):
        with suppress(httpx.HTTPError, httpx.StreamError, OSError):  # the test closes the client
            self._listen(visitor)
        self.has_ended.set()

    def _listen(self, visitor):
        with visitor.stream("GET", "/api/documents/events") as answer:
            self.is_open.set()
            kind = ""
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    kind = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    data = json.loads(line.removeprefix("data: "))
                    self.names.append((kind, data.get("name", data["id"])))


def test_events_tell_of_what_may_be_read_also_of_what_was_shared_later(visit, library, people):  # noqa: F811
    eve, base = visit("eve"), library["secret"]["base"]
    rob, out = Listener(visit("rob")), Listener(visit("out"))

    def send(name, into):
        data = {"collection_id": into}
        eve.post("/api/documents", data=data, files={"files": (name, b"x")}).raise_for_status()

    send("hidden.md", base)
    send("open.md", library["canteen"]["base"])
    wait_for(lambda: ("document", "open.md") in out.names, 10)
    wait_for(lambda: ("document", "hidden.md") in rob.names, 10)
    removed = library["secret"]["document"]
    eve.delete(f"/api/documents/{removed}").raise_for_status()
    grants = [{"kind": "user", "id": people["out"].id, "role": "reader"}]
    wanted = {"owner_id": people["eve"].id, "grants": grants}
    eve.put(f"/api/collections/{base}/access", json=wanted).raise_for_status()
    send("later.md", base)
    wait_for(lambda: ("document", "later.md") in out.names, 10)
    assert {name for _, name in out.names} == {"open.md", "later.md"}
    assert ("removed", removed) in rob.names
    assert ("document", "later.md") not in rob.names


def test_events_end_where_somebody_is_shut_out(visit, library, people, accounts):  # noqa: F811
    listener = Listener(visit("rob"))
    accounts.change(people["rob"].id, None, False, None)
    data = {"collection_id": library["secret"]["base"]}
    visit("eve").post("/api/documents", data=data, files={"files": ("new.md", b"x")})
    assert listener.has_ended.wait(10)
    assert listener.names == []


def test_no_knowledge_base_is_never_every_knowledge_base():
    nothing = Access("somebody", is_admin=False)
    assert nothing.scope([]) == SearchScope(())
    assert nothing.scope(["a"]).is_empty
    one = Access("somebody", is_admin=False, roles={"a": "reader"})
    assert one.scope([]) == SearchScope(("a",))
    assert one.scope(["a", "b"]) == SearchScope(("a",))
    assert Access(None, is_admin=True).scope([]) == SearchScope(None)
