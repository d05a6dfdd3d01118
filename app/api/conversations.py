"""Asking a question in a chat: the place among the runs, the stored messages, the answer."""

import asyncio
from collections.abc import Sequence
from itertools import pairwise

from app.api.filters import read_filter
from app.api.permitted import Permitted
from app.api.runs import Outcome, Runs
from app.api.schemas import MessageIn
from app.domain import Chat, ChatMessage, Message, MetadataFilter, Question, SearchScope
from app.errors import NotFound
from app.services import Services

MAX_HISTORY_MESSAGES = 20
MAX_TITLE_CHARACTERS = 60


async def ask(
    permitted: Permitted, runs: Runs, chat: Chat, wanted: MessageIn
) -> tuple[ChatMessage, ChatMessage]:
    """Store the question and its running answer, and start the run that writes it."""
    services = permitted.services
    pipeline = services.require(services.pipeline)
    scope = await asyncio.to_thread(_scope, permitted, chat, read_filter(wanted.filters))
    generator = services.require(services.generator).info
    run = runs.open(generator, chat.id, permitted.owner)
    chats = services.records.chats
    try:
        asked, answer = await asyncio.to_thread(
            _store_question, services, chat, wanted.text, run.id
        )
    except BaseException:
        runs.discard(run)
        raise
    question = Question(
        text=wanted.text,
        history=history_of(chat.messages),
        scope=scope,
        language=wanted.language,
        tenant=permitted.owner,
    )

    async def keep(outcome: Outcome) -> ChatMessage:
        return await asyncio.to_thread(
            chats.finish_message,
            answer.id,
            outcome.answer,
            outcome.state,
            outcome.failure.message if outcome.failure else None,
        )

    runs.start(run, lambda: pipeline.answer(question), keep)
    return asked, answer


def history_of(messages: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """The latest questions with their answers; a question without an answer is left out.

    Chat templates of some models insist that the roles alternate.
    """
    turns: list[Message] = []
    for asked, answer in pairwise(messages):
        if (asked.role, answer.role) == ("user", "assistant") and answer.content:
            turns += Message("user", asked.content), Message("assistant", answer.content)
    return tuple(turns[-MAX_HISTORY_MESSAGES:])


def title_of(question: str) -> str:
    """The question's first line, cut at a word where it is long."""
    line = next((line.strip() for line in question.splitlines() if line.strip()), "")
    if len(line) <= MAX_TITLE_CHARACTERS:
        return line
    cut = line[:MAX_TITLE_CHARACTERS]
    at_word = cut.rsplit(" ", 1)[0]
    return (at_word if len(at_word) > MAX_TITLE_CHARACTERS / 2 else cut).rstrip() + "…"


def _store_question(
    services: Services, chat: Chat, text: str, run_id: str
) -> tuple[ChatMessage, ChatMessage]:
    if not chat.title:
        services.records.chats.rename(chat.id, title_of(text))
    return services.records.chats.add_question_and_answer(chat.id, text, run_id)


def _scope(permitted: Permitted, chat: Chat, filter: MetadataFilter | None) -> SearchScope:
    try:
        return permitted.scope(chat.collection_ids, filter)
    except NotFound as error:
        raise NotFound(
            f"this chat asks a knowledge base that was deleted or is not shared with you any more "
            f"({error}): start a new chat"
        ) from error
