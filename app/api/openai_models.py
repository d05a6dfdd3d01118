"""What a client of /v1 can name as `model`, and how each is asked."""

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace

from app import tracing
from app.api.filters import read_filter
from app.api.openai_schemas import ChatCompletionIn, ModelOut
from app.api.permitted import Permitted
from app.api.runs import Ask
from app.api.schemas import MAX_QUESTION_CHARACTERS
from app.domain import (
    Answer,
    Event,
    Finished,
    GenerationRequest,
    Message,
    Question,
    TextDelta,
    Timings,
    Usage,
)
from app.errors import InvalidInput, NotFound
from app.rag.protocols import Generator
from app.services import Services

EVERYTHING = "folio"


class ModelNotFound(NotFound):
    """A `model` that is neither a knowledge base nor the language model."""

    code = "model_not_found"


def list_models(permitted: Permitted) -> list[ModelOut]:
    """All knowledge bases as one, each that may be read, and the language model. Blocks."""
    services, collections = permitted.services, permitted.collections()
    created = min((int(c.created_at.timestamp()) for c in collections), default=0)
    models = [
        ModelOut(id=EVERYTHING, created=created, owned_by="folio", kind="all knowledge bases")
    ]
    models += [
        ModelOut(
            id=collection.name,
            created=int(collection.created_at.timestamp()),
            owned_by="folio",
            kind="knowledge base",
            collection_id=collection.id,
        )
        for collection in collections
    ]
    generator = services.generator
    if generator and _is_language_model(generator):
        info = generator.info
        models.append(
            ModelOut(id=info.model, created=created, owned_by=info.kind, kind="language model")
        )
    return models


def find_model(permitted: Permitted, name: str) -> ModelOut:
    """The model of this name, or the knowledge base of this id. Blocks."""
    models = list_models(permitted)
    for model in models:
        if name in (model.id, model.collection_id):
            return model
    names = ", ".join(repr(model.id) for model in models)
    raise ModelNotFound(f"the model {name!r} does not exist; there are {names}")


def ask_for(permitted: Permitted, model: ModelOut, wanted: ChatCompletionIn) -> Ask:
    """How to answer this request with this model. Blocks."""
    if wanted.messages[-1].role != "user":
        raise InvalidInput("the last message must be the user's: it is the question")
    services = permitted.services
    pipeline = services.require(services.pipeline)
    if model.kind == "language model":
        generator = services.require(services.generator)
        request = replace(_plain_request(services, wanted), tenant=permitted.owner)
        return lambda: _in_turn(pipeline.slot(), _generate(generator, request))
    filter = read_filter(wanted.rag.filters)
    scope = permitted.scope(wanted.rag.collection_ids, filter)  # also where the model names another
    if model.collection_id:
        scope = permitted.scope([model.collection_id], filter)
    question = Question(
        text=_question_text(wanted),
        history=_messages(wanted)[:-1],
        scope=scope,
        language=wanted.rag.language,
        max_tokens=_max_tokens(services, wanted),
        temperature=wanted.temperature,
        tenant=permitted.owner,
    )
    return lambda: pipeline.answer(question)


def _is_language_model(generator: Generator) -> bool:
    return generator.info.kind in ("engine", "openai")


def _question_text(wanted: ChatCompletionIn) -> str:
    text = wanted.messages[-1].text.strip()
    if not text:
        raise InvalidInput("the question is empty")
    if len(text) > MAX_QUESTION_CHARACTERS:
        raise InvalidInput(
            f"the question, the last message, has {len(text)} characters, the limit is "
            f"{MAX_QUESTION_CHARACTERS}"
        )
    return text


def _messages(wanted: ChatCompletionIn) -> tuple[Message, ...]:
    return tuple(
        Message("system" if m.role == "developer" else m.role, m.text) for m in wanted.messages
    )


def _max_tokens(services: Services, wanted: ChatCompletionIn) -> int:
    limit = services.limits.max_answer_tokens
    return min(wanted.max_completion_tokens or wanted.max_tokens or limit, limit)


def _plain_request(services: Services, wanted: ChatCompletionIn) -> GenerationRequest:
    default = services.limits.temperature
    return GenerationRequest(
        messages=_messages(wanted),
        question=_question_text(wanted),
        sources=(),
        language=wanted.rag.language or "en",
        max_tokens=_max_tokens(services, wanted),
        temperature=default if wanted.temperature is None else wanted.temperature,
    )


async def _in_turn(
    turn: AbstractAsyncContextManager[None], events: AsyncGenerator[Event]
) -> AsyncIterator[Event]:
    """The events, once there is a place among the answers."""
    async with turn, aclosing(events):
        async for event in events:
            yield event


async def _generate(generator: Generator, request: GenerationRequest) -> AsyncGenerator[Event]:
    """The language model by itself, as the same stream of events."""
    started_at = time.perf_counter()
    pieces: list[str] = []
    usage, first_token_s, is_cut = Usage(), None, False
    async for piece in tracing.traced("generate", generator.generate(request), "first token"):
        if piece.text:
            first_token_s = first_token_s or time.perf_counter() - started_at
            pieces.append(piece.text)
            yield TextDelta(piece.text)
        usage = piece.usage or usage
        is_cut = piece.finish_reason == "length"
    timings = Timings(None, first_token_s, time.perf_counter() - started_at)
    yield Finished(
        Answer(
            text="".join(pieces),
            sources=(),
            citations=(),
            is_refusal=False,
            generator=generator.info,
            usage=usage,
            timings=timings,
            finish_reason="length" if is_cut else "stop",
        )
    )
