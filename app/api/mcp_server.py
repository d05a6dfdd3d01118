"""The Model Context Protocol: agents search the documents and read on around what they find.

Two tools over the same retrieval as the chats. They write nothing, and their output is bounded.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.types import ASGIApp

from app import __version__
from app.api.filters import FilterIn, read_filter
from app.api.permitted import Permitted
from app.domain import Access, Question, SearchHit
from app.errors import FolioError, InvalidInput
from app.services import Services

MAX_HITS = 20
MAX_CHARACTERS = 20_000
INSTRUCTIONS = (
    "Folio holds the user's own documents. Search them for passages, read on around a passage"
    " where it is not enough, and cite the url of what you use."
)
Reply = TypeVar("Reply")
READ_ONLY = ToolAnnotations(read_only_hint=True, open_world_hint=False)

Query = Annotated[
    str, Field(min_length=1, max_length=4000, description="A question or words, in any language.")
]
KnowledgeBase = Annotated[
    str | None, Field(max_length=200, description="Name of one knowledge base; all without it.")
]
Filters = Annotated[
    FilterIn | None,
    Field(description='By metadata: {"type": "eq", "key": "year", "value": 2024}, or and/or.'),
]


class Passage(BaseModel):
    """A chunk of a document, best first; `start` and `end` are offsets into its text."""

    chunk_id: str
    document_id: str
    document: str
    headings: list[str]
    page: int | None
    start: int
    end: int
    text: str
    score: float
    url: str


class Found(BaseModel):
    """Passages, and whether they are likely to hold the answer."""

    query: str
    is_sufficient: bool
    passages: list[Passage]


class Stretch(BaseModel):
    """A stretch of a document's text; `next_start` is where it goes on, null at its end."""

    document_id: str
    document: str
    start: int
    end: int
    num_characters: int
    next_start: int | None
    text: str
    url: str


def make_mcp_server(services: Services) -> MCPServer[Any]:  # Any: no lifespan state
    """The server with its tools, not yet on any transport."""
    server: MCPServer[Any] = MCPServer(
        "folio", title="Folio", version=__version__, instructions=INSTRUCTIONS, log_level="WARNING"
    )

    async def search(
        query: Query,
        context: Context[Any, Any],
        knowledge_base: KnowledgeBase = None,
        filters: Filters = None,
        limit: Annotated[int, Field(ge=1, le=MAX_HITS)] = 8,
    ) -> Found:
        """Find the passages of the user's documents that answer a question or hold its words."""
        scope, permitted = (knowledge_base, filters), _permitted(services, context)
        return await _asked(_search, permitted, query, scope, limit, _base_url(context))

    async def read(
        document_id: Annotated[str, Field(description="As search gives it.")],
        context: Context[Any, Any],
        start: Annotated[int, Field(ge=0, description="Offset of the first character.")] = 0,
        max_characters: Annotated[int, Field(ge=1, le=MAX_CHARACTERS)] = 6000,
    ) -> Stretch:
        """Read a document's text from an offset on: around a passage, or from its beginning."""
        permitted, base_url = _permitted(services, context), _base_url(context)
        return await _asked(_read, permitted, document_id, start, max_characters, base_url)

    server.add_tool(search, annotations=READ_ONLY)
    server.add_tool(read, annotations=READ_ONLY)
    return server


@asynccontextmanager
async def serve_http(services: Services) -> AsyncIterator[ASGIApp]:
    """The server behind HTTP, without sessions: each request stands by itself."""
    server = make_mcp_server(services)
    # Names and origins are checked by our own guards.
    server.streamable_http_app(stateless_http=True, json_response=True)
    async with server.session_manager.run():
        yield server.session_manager.handle_request


async def _asked(ask: Callable[..., Reply], *args: object) -> Reply:
    """Ask on a thread; our errors are told to the agent in words."""
    try:
        return await asyncio.to_thread(ask, *args)
    except FolioError as error:
        raise ToolError(str(error)) from error


def _search(
    permitted: Permitted,
    query: str,
    scope: tuple[str | None, Any],
    limit: int,
    base_url: str,
) -> Found:
    name, filters = scope
    services = permitted.services
    ids = [] if name is None else [permitted.collection_named(name).id]
    question = Question(query, scope=permitted.scope(ids, read_filter(filters)))
    evidence = services.require(services.retriever).retrieve(question, limit)
    return Found(
        query=evidence.query,
        is_sufficient=evidence.is_sufficient,
        passages=[_passage(hit, base_url) for hit in evidence.hits],
    )


def _read(
    permitted: Permitted, document_id: str, start: int, max_characters: int, base_url: str
) -> Stretch:
    document = permitted.document(document_id)
    text = permitted.services.records.documents.text(document_id)
    if start >= len(text):
        raise InvalidInput(
            f"“{document.name}” has {len(text)} characters, nothing begins at {start}"
        )
    end = min(len(text), start + max_characters)
    return Stretch(
        document_id=document.id,
        document=document.name,
        start=start,
        end=end,
        num_characters=len(text),
        next_start=end if end < len(text) else None,
        text=text[start:end],
        url=f"{base_url}#/docs/{document.id}",
    )


def _passage(hit: SearchHit, base_url: str) -> Passage:
    span = hit.chunk.span
    return Passage(
        chunk_id=hit.chunk.id,
        document_id=hit.chunk.document_id,
        document=hit.document_name,
        headings=list(span.heading_path),
        page=span.page,
        start=span.start,
        end=span.end,
        text=span.text,
        score=hit.score,
        url=f"{base_url}#/docs/{hit.chunk.document_id}?chunk={hit.chunk.id}",
    )


def _permitted(services: Services, context: Context[Any, Any]) -> Permitted:
    """The library as the agent may use it: its request came through the guards of the route."""
    request = context.request_context.request
    access = getattr(request.state, "access", None) if isinstance(request, Request) else None
    if not isinstance(access, Access):
        raise ToolError("nobody is known to ask: the request did not come through Folio's routes")
    return Permitted(services, access)


def _base_url(context: Context[Any, Any]) -> str:
    request = context.request_context.request
    return str(request.base_url) if isinstance(request, Request) else ""
