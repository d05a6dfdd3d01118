"""Routes of conversations: chats, questions, feedback."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Response

from app.api.conversations import ask
from app.api.convert import chat_detail, message_out, out
from app.api.deps import PermittedDep, RunsDep
from app.api.errors import ACCEPTED, CREATED, NO_CONTENT
from app.api.schemas import (
    ChatDetail,
    ChatIn,
    ChatOut,
    ChatPatch,
    FeedbackIn,
    MessageIn,
    MessageOut,
    RunOut,
)
from app.api.wire_model import Text

router = APIRouter(prefix="/api", tags=["chats"])


@router.get("/chats")
def list_chats(
    permitted: PermittedDep,
    q: Annotated[Text | None, Query(max_length=200, description="Words to find.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
) -> list[ChatOut]:
    """The caller's conversations, the latest first."""
    chats = permitted.services.records.chats.list(q, limit, permitted.chats_owner())
    return [out(ChatOut, chat) for chat in chats]


@router.post("/chats", status_code=CREATED)
def create_chat(new: ChatIn, permitted: PermittedDep) -> ChatOut:
    """A new conversation; without a title it takes its first question's words."""
    permitted.scope(new.collection_ids)
    chats = permitted.services.records.chats
    chat = chats.create(new.title.strip(), tuple(new.collection_ids), permitted.owner)
    return out(ChatOut, chat)


@router.get("/chats/{chat_id}")
def get_chat(chat_id: str, permitted: PermittedDep) -> ChatDetail:
    """A conversation with its messages."""
    return chat_detail(permitted.chat(chat_id))


@router.patch("/chats/{chat_id}")
def rename_chat(chat_id: str, patch: ChatPatch, permitted: PermittedDep) -> ChatOut:
    """Give a conversation another title."""
    permitted.require_chat(chat_id)
    return out(ChatOut, permitted.services.records.chats.rename(chat_id, patch.title))


@router.delete("/chats/{chat_id}", status_code=NO_CONTENT, response_class=Response)
async def delete_chat(chat_id: str, permitted: PermittedDep, runs: RunsDep) -> None:
    """Delete a conversation; an answer that is being made in it is stopped."""
    await asyncio.to_thread(permitted.require_chat, chat_id)
    await runs.stop([run for run in runs.unfinished() if run.chat_id == chat_id])
    await asyncio.to_thread(permitted.services.records.chats.delete, chat_id)


@router.post("/chats/{chat_id}/messages", status_code=ACCEPTED)
async def ask_question(
    chat_id: str, message: MessageIn, permitted: PermittedDep, runs: RunsDep
) -> RunOut:
    """Ask: the answer is made by a run, whose events are at /api/runs/{run_id}/events."""
    chat = await asyncio.to_thread(permitted.chat, chat_id)
    asked, answer = await ask(permitted, runs, chat, message)
    assert answer.run_id is not None
    return RunOut(run_id=answer.run_id, question=message_out(asked), answer=message_out(answer))


@router.post("/messages/{message_id}/feedback")
def give_feedback(message_id: str, feedback: FeedbackIn, permitted: PermittedDep) -> MessageOut:
    """Rate an answer."""
    permitted.message(message_id)
    chats = permitted.services.records.chats
    return message_out(chats.set_feedback(message_id, feedback.rating, feedback.comment))
