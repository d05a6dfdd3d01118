"""The Model Context Protocol over standard input and output: hands all on to a running appliance.

Agents that start their servers themselves run this; the tools are the appliance's.
"""

from typing import Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp_types import (
    CallToolRequestParams,
    CallToolResult,
    InputRequiredResult,
    ListToolsResult,
    PaginatedRequestParams,
)

from app import __version__
from app.errors import InvalidInput, Unavailable

TIMEOUT_S = 120.0
UNAUTHORIZED = 401


async def bridge(url: str, api_key: str | None) -> None:
    """Serve until standard input ends. Raises Unavailable or InvalidInput before it begins."""
    url = url.rstrip("/")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    async with httpx2.AsyncClient(headers=headers, timeout=TIMEOUT_S, trust_env=False) as http:
        await require_appliance(http, url)
        async with Client(streamable_http_client(f"{url}/mcp", http_client=http)) as client:
            await serve(client)


async def require_appliance(http: httpx2.AsyncClient, url: str) -> None:
    """Say what is wrong before an agent waits for answers that cannot come."""
    try:
        reply = await http.get(f"{url}/api/status")
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise Unavailable(
            f"no Folio answers at {url} ({error}): start it, or give its address with --url"
        ) from error
    if reply.status_code == UNAUTHORIZED:
        raise InvalidInput(f"Folio at {url} wants another key: set FOLIO_API_KEY to its key")
    if reply.is_error:
        raise Unavailable(f"Folio at {url} answers with status {reply.status_code}")


async def serve(client: Client) -> None:
    """Offer on standard input and output what the client reaches."""

    async def list_tools(context: Any, params: PaginatedRequestParams | None) -> ListToolsResult:
        return await client.list_tools()

    async def call_tool(
        context: Any, params: CallToolRequestParams
    ) -> CallToolResult | InputRequiredResult:
        return await client.call_tool(params.name, params.arguments)

    server: Server[Any] = Server(
        "folio", version=__version__, on_list_tools=list_tools, on_call_tool=call_tool
    )
    async with stdio_server() as (reader, writer):
        await server.run(reader, writer, server.create_initialization_options())
