"""Domain values to wire models. Fields of the same name are copied, the others are named here."""

import mimetypes
from typing import TypeVar

from app.api import schemas as wire
from app.api.wire_model import WireModel
from app.domain import Chat, ChatMessage, Chunk, Evidence, SearchHit, Source

Out = TypeVar("Out", bound=WireModel)


def out(kind: type[Out], value: object) -> Out:
    """The wire model of a domain value whose fields have the same names."""
    return kind.model_validate(value, from_attributes=True)


def chunk_out(chunk: Chunk) -> wire.ChunkOut:
    """A chunk; its span's fields lie flat on the wire."""
    span = chunk.span
    return wire.ChunkOut(
        id=chunk.id,
        document_id=chunk.document_id,
        index=chunk.index,
        text=span.text,
        start=span.start,
        end=span.end,
        heading_path=list(span.heading_path),
        page=span.page,
        boxes=[out(wire.BoxOut, box) for box in span.boxes],
        num_tokens=span.num_tokens,
    )


def source_out(source: Source) -> wire.SourceOut:
    """A numbered source of an answer."""
    return hit_out(source.hit, source.number)


def hit_out(hit: SearchHit, number: int) -> wire.SourceOut:
    """A search hit under a number."""
    span = hit.chunk.span
    return wire.SourceOut(
        number=number,
        chunk_id=hit.chunk.id,
        document_id=hit.chunk.document_id,
        document_name=hit.document_name,
        document_title=hit.document_title,
        media_type=mimetypes.guess_type(hit.document_name)[0] or "application/octet-stream",
        heading_path=list(span.heading_path),
        page=span.page,
        boxes=[out(wire.BoxOut, box) for box in span.boxes],
        start=span.start,
        end=span.end,
        text=span.text,
        score=hit.score,
        scores=out(wire.ScoresOut, hit.scores),
    )


def search_out(evidence: Evidence, seconds: float) -> wire.SearchOut:
    """What a search found, numbered by rank."""
    return wire.SearchOut(
        query=evidence.query,
        hits=[hit_out(hit, rank) for rank, hit in enumerate(evidence.hits, start=1)],
        confidence=evidence.confidence,
        is_sufficient=evidence.is_sufficient,
        seconds=seconds,
        timings=out(wire.SearchTimingsOut, evidence.timings),
    )


def message_out(message: ChatMessage) -> wire.MessageOut:
    """A message with its sources."""
    generator = message.generator
    return wire.MessageOut(
        id=message.id,
        chat_id=message.chat_id,
        role=message.role,
        content=message.content,
        state=message.state,
        sources=[source_out(source) for source in message.sources],
        citations=[out(wire.CitationOut, citation) for citation in message.citations],
        is_refusal=message.is_refusal,
        query=message.query,
        generator=out(wire.GeneratorOut, generator) if generator else None,
        timings=out(wire.TimingsOut, message.timings),
        usage=out(wire.UsageOut, message.usage),
        run_id=message.run_id,
        error=message.error,
        feedback=message.feedback,
        created_at=message.created_at,
    )


def chat_detail(chat: Chat) -> wire.ChatDetail:
    """A chat with its messages."""
    return wire.ChatDetail(
        **out(wire.ChatOut, chat).model_dump(),
        messages=[message_out(message) for message in chat.messages],
    )
