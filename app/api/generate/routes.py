"""The routes of the generate role: OpenAI's, and vLLM's for tokens."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from app import __version__
from app.api.errors import CLIENT_LEFT
from app.api.generate import chat, completions, embeddings, replies
from app.api.generate.deps import ServedDep, with_model
from app.api.generate.running import Running, events, unless_client_leaves
from app.api.generate.schemas import ChatIn, CompletionIn, DetokenizeIn, EmbeddingIn, TokenizeIn
from app.api.sse import EventStream
from app.engine_service import ServedModel

router = APIRouter(tags=["generate"])


@router.get("/v1/models")
async def list_models(served: ServedDep) -> replies.ModelCards:
    """The model and its adapters."""
    adapted = [replace(served, adapter=adapter) for adapter in served.adapters]
    return replies.ModelCards(data=[_card(one) for one in (served, *adapted)])


@router.get("/v1/models/{name:path}")
async def get_model(name: str, served: ServedDep) -> replies.ModelCard:
    """The model, or an adapter, by its name."""
    return _card(with_model(served, name))


@router.post("/v1/chat/completions", response_model=replies.ChatCompletion)
async def complete_chat(wanted: ChatIn, request: Request, served: ServedDep) -> Response:
    """Answer a conversation."""
    served = with_model(served, wanted.model)
    prompt = await asyncio.to_thread(chat.prompt_of, served, wanted)
    reply = chat.ChatReply(served, wanted, prompt)
    running = await Running.start(served, [prompt])
    if wanted.stream:
        return EventStream(events(reply.chunks(running)), on_close=running.aclose)
    return await _whole(request, running, reply.whole)


@router.post("/v1/completions", response_model=replies.Completion)
async def complete(wanted: CompletionIn, request: Request, served: ServedDep) -> Response:
    """Go on with a text, or several."""
    served = with_model(served, wanted.model)
    prompts = await asyncio.to_thread(completions.prompts_of, served, wanted)
    reply = completions.CompletionReply(served, wanted)
    running = await Running.start(served, prompts)
    if wanted.stream:
        return EventStream(events(reply.chunks(running)), on_close=running.aclose)
    return await _whole(request, running, reply.whole)


@router.post("/v1/embeddings", response_model=replies.EmbeddingList)
async def embed(wanted: EmbeddingIn, request: Request, served: ServedDep) -> Response:
    """Vectors of texts, pooled from the model's final hidden states."""
    served = with_model(served, wanted.model)
    outputs = await unless_client_leaves(request, embeddings.outputs_of(served, wanted))
    if outputs is None:
        return Response(status_code=CLIENT_LEFT)
    return JSONResponse(replies.dump(embeddings.reply_of(served, wanted, outputs)))


@router.post("/tokenize", response_model=replies.Tokens)
async def tokenize(wanted: TokenizeIn, served: ServedDep) -> Response:
    """The tokens of a text, or of a conversation as the model's template writes it."""
    served = with_model(served, wanted.model)
    return JSONResponse(replies.dump(await asyncio.to_thread(_tokens, served, wanted)))


@router.post("/detokenize")
async def detokenize(wanted: DetokenizeIn, served: ServedDep) -> replies.Detokenized:
    """The text of tokens."""
    served = with_model(served, wanted.model)
    served.llm.check_token_ids(wanted.tokens)
    text = await asyncio.to_thread(
        served.llm.tokenizer.decode, wanted.tokens, skip_special_tokens=False
    )
    return replies.Detokenized(prompt=text)


@router.get("/version")
async def get_version() -> replies.Version:
    """The version of Folio."""
    return replies.Version(version=__version__)


async def _whole(
    request: Request, running: Running, reply: Callable[[Running], Awaitable[BaseModel]]
) -> Response:
    """The reply once it is complete; a client that leaves ends the work."""
    try:
        result = await unless_client_leaves(request, reply(running))
    finally:
        await running.aclose()
    if result is None:
        return Response(status_code=CLIENT_LEFT)
    return JSONResponse(replies.dump(result))


def _tokens(served: ServedModel, wanted: TokenizeIn) -> replies.Tokens:
    tokenizer = served.llm.tokenizer
    if wanted.prompt is not None:
        token_ids = tokenizer.encode(wanted.prompt, add_special_tokens=wanted.add_special_tokens)
    else:
        token_ids = chat.chat_tokens(served, wanted)
    texts = None
    if wanted.return_token_strs:
        texts = [tokenizer.decode([one], skip_special_tokens=False) for one in token_ids]
    return replies.Tokens(
        count=len(token_ids),
        max_model_len=served.llm.max_model_len,
        tokens=token_ids,
        token_strs=texts,
    )


def _card(served: ServedModel) -> replies.ModelCard:
    return replies.ModelCard(
        id=served.asked_name,
        created=served.created,
        owned_by="folio",
        root=served.name,
        parent=served.name if served.adapter else None,
        max_model_len=served.llm.max_model_len,
    )
