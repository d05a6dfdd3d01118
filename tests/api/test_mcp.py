"""The Model Context Protocol by its own client, over HTTP and over standard input and output."""

import subprocess
import sys
from pathlib import Path

import httpx
import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from tests.api.test_vector_stores import LAW, LEAVE, ingest, processor  # noqa: F401 - a fixture

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def library(services, processor, tmp_path):  # noqa: F811 - the fixture
    law = services.records.collections.create("Law 法律")
    documents = {}
    for name, data, collection_id in (("law.md", LAW, law.id), ("leave.md", LEAVE, "default")):
        path = tmp_path / name
        path.write_bytes(data)
        added = processor.add_file(
            collection_id, "upload", name, name, path, {"kind": name.removesuffix(".md")}
        )
        documents[name] = added.document
    ingest(processor)
    return documents


async def call(server, tool, **arguments):
    async with Client(f"{server}/mcp") as client:
        return await client.call_tool(tool, arguments)


async def test_the_tools_say_what_they_do_and_that_they_only_read(server):
    async with Client(f"{server}/mcp") as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert set(tools) == {"search", "read"}
    assert all(tool.annotations.read_only_hint for tool in tools.values())
    assert set(tools["search"].input_schema["properties"]) == {
        "query",
        "knowledge_base",
        "filters",
        "limit",
    }


async def test_passages_are_found_with_where_they_stand(server, library):
    found = (await call(server, "search", query="notice period")).structured_content
    best = found["passages"][0]
    assert best["text"] == "The notice period is three months"
    assert best["document"] == "law.md"
    assert best["url"] == f"{server}/#/docs/{best['document_id']}?chunk={best['chunk_id']}"
    assert LAW.decode()[best["start"] : best["end"]] == best["text"]


@pytest.mark.parametrize(
    "narrowed",
    [
        {"knowledge_base": "Law 法律"},
        {"filters": {"type": "eq", "key": "kind", "value": "law"}},
    ],
)
async def test_a_search_can_be_narrowed(server, library, narrowed):
    found = await call(server, "search", query="days of leave and notice", **narrowed)
    passages = found.structured_content["passages"]
    assert {passage["document"] for passage in passages} == {"law.md"}


async def test_a_document_is_read_on_from_where_one_stopped(server, library):
    document_id = library["law.md"].id
    first = await call(server, "read", document_id=document_id, max_characters=10)
    first = first.structured_content
    assert (first["start"], first["next_start"]) == (0, 10)
    rest = await call(server, "read", document_id=document_id, start=first["next_start"])
    rest = rest.structured_content
    assert first["text"] + rest["text"] == LAW.decode()
    assert rest["next_start"] is None


@pytest.mark.parametrize(
    ("tool", "arguments", "reason"),
    [
        ("search", {"query": "x", "knowledge_base": "nope"}, "no collection 'nope'"),
        ("search", {"query": ""}, "at least 1 character"),
        ("search", {"query": "x", "limit": 21}, "less than or equal to 20"),
        ("read", {"document_id": "nope"}, "there is no document nope"),
    ],
)
async def test_a_mistake_is_told_in_words(server, library, tool, arguments, reason):
    result = await call(server, tool, **arguments)
    assert result.is_error
    assert reason in result.content[0].text


async def test_reading_behind_the_end_is_told_with_the_length(server, library):
    result = await call(server, "read", document_id=library["law.md"].id, start=9999)
    assert result.is_error
    assert f"has {len(LAW)} characters" in result.content[0].text


async def test_a_key_is_asked_for_and_other_sites_are_refused(app, server):
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    async with httpx.AsyncClient(base_url=server) as http:
        reply = await http.post("/mcp", json=body, headers={"Origin": "https://evil.example"})
        assert reply.status_code == 403
        app.state.api_key = "secret"
        assert (await http.post("/mcp", json=body)).status_code == 401
    async with (
        httpx2.AsyncClient(headers={"Authorization": "Bearer secret"}) as http,
        Client(streamable_http_client(f"{server}/mcp", http_client=http)) as client,
    ):
        assert len((await client.list_tools()).tools) == 2


async def test_agents_reach_the_tools_over_standard_input_and_output(server, library):
    bridge = StdioServerParameters(
        command=sys.executable, args=["-m", "app", "mcp", "--url", server], cwd=ROOT
    )
    async with Client(bridge) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == {"search", "read"}
        found = await client.call_tool("search", {"query": "notice period"})
    assert found.structured_content["passages"][0]["document"] == "law.md"


def test_the_bridge_says_where_it_looked_when_nobody_answers():
    ended = subprocess.run(
        [sys.executable, "-m", "app", "mcp", "--url", "http://127.0.0.1:9"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "no Folio answers at http://127.0.0.1:9" in ended.stderr
    assert "--url" in ended.stderr
