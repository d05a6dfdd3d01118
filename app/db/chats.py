"""Chats, their messages with sources and citations as they were written, and feedback."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal, TypeVar

from sqlalchemy import func, or_, select, update

from app.db.models import ChatRow, MessageRow
from app.db.session import Database, like, new_id, utc_now
from app.domain import (
    Answer,
    Box,
    Chat,
    ChatMessage,
    Chunk,
    ChunkSpan,
    Citation,
    GeneratorInfo,
    HitScores,
    SearchHit,
    Source,
    Timings,
    Usage,
)
from app.errors import NotFound

Row = TypeVar("Row", ChatRow, MessageRow)
FinalState = Literal["done", "stopped", "failed"]
INTERRUPTED = "the appliance stopped while this answer was being written: ask again"


class ChatRepository:
    """Conversations. A message keeps a snapshot of its answer, whatever happens to documents."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, title: str, collection_ids: Sequence[str], owner_id: str = "") -> Chat:
        """A chat without messages; no collections means all of them."""
        now = utc_now()
        row = ChatRow(
            id=new_id(),
            owner_id=owner_id,
            title=title,
            collection_ids=list(collection_ids),
            created_at=now,
            updated_at=now,
        )
        with self._database.session() as session:
            session.add(row)
        return chat_of(row)

    def get(self, chat_id: str) -> Chat:
        """A chat with its messages in order; NotFound for an unknown id."""
        messages = (
            select(MessageRow).where(MessageRow.chat_id == chat_id).order_by(MessageRow.position)
        )
        with self._database.snapshot() as session:
            row = found(session.get(ChatRow, chat_id), "chat", chat_id)
            return chat_of(row, tuple(message_of(message) for message in session.scalars(messages)))

    def rename(self, chat_id: str, title: str) -> Chat:
        """Give a chat another title."""
        with self._database.session() as session:
            row = found(session.get(ChatRow, chat_id), "chat", chat_id)
            row.title = title
            return chat_of(row)

    def delete(self, chat_id: str) -> None:
        """Remove a chat and its messages."""
        with self._database.session() as session:
            session.delete(found(session.get(ChatRow, chat_id), "chat", chat_id))

    def add_question_and_answer(
        self, chat_id: str, text: str, run_id: str
    ) -> tuple[ChatMessage, ChatMessage]:
        """Add a question and the message, still running and empty, that will answer it."""
        with self._database.session() as session:
            chat = found(session.get(ChatRow, chat_id, with_for_update=True), "chat", chat_id)
            chat.updated_at = utc_now()
            position = session.scalar(
                select(func.coalesce(func.max(MessageRow.position) + 1, 0)).where(
                    MessageRow.chat_id == chat_id
                )
            )
            assert position is not None
            question = new_message(chat_id, position, "user", text)
            answer = new_message(chat_id, position + 1, "assistant", "")
            answer.state, answer.run_id = "running", run_id
            session.add_all([question, answer])
            return message_of(question), message_of(answer)

    def finish_message(
        self, message_id: str, answer: Answer | str, state: FinalState, error: str | None = None
    ) -> ChatMessage:
        """Store how a message ended: the whole answer, or the text as far as it came."""
        with self._database.session() as session:
            row = found(session.get(MessageRow, message_id), "message", message_id)
            row.state, row.error = state, error
            if isinstance(answer, Answer):
                row.content, row.answer = answer.text, snapshot_of(answer)
            else:
                row.content = answer
            return message_of(row)

    def owner(self, chat_id: str) -> str:
        """Whose chat it is, empty for nobody's; NotFound for an unknown id."""
        with self._database.snapshot() as session:
            return found(session.get(ChatRow, chat_id), "chat", chat_id).owner_id

    def message(self, message_id: str) -> ChatMessage:
        """Raise NotFound for an unknown id."""
        with self._database.snapshot() as session:
            return message_of(found(session.get(MessageRow, message_id), "message", message_id))

    def set_feedback(self, message_id: str, rating: int, comment: str = "") -> ChatMessage:
        """1 good, -1 poor, 0 takes it back."""
        with self._database.session() as session:
            row = found(session.get(MessageRow, message_id), "message", message_id)
            row.feedback, row.feedback_comment = rating, comment
            return message_of(row)

    def fail_interrupted(self) -> int:
        """After a start, fail messages that a dead process left running; returns how many."""
        statement = (
            update(MessageRow)
            .where(MessageRow.state == "running")
            .values(state="failed", error=INTERRUPTED)
            .returning(MessageRow.id)
            .execution_options(synchronize_session=False)
        )
        with self._database.session() as session:
            return len(session.scalars(statement).all())

    def list(
        self, query: str | None = None, limit: int = 100, owner_id: str | None = None
    ) -> list[Chat]:
        """Without messages, the last used first; `query` is looked for in titles and messages.

        Those of this owner, "" being nobody; None for all.
        """
        statement = select(ChatRow).order_by(ChatRow.updated_at.desc(), ChatRow.id).limit(limit)
        if owner_id is not None:
            statement = statement.where(ChatRow.owner_id == owner_id)
        if query:
            said = select(MessageRow.chat_id).where(
                MessageRow.content.ilike(like(query), escape="\\")
            )
            statement = statement.where(
                or_(ChatRow.title.ilike(like(query), escape="\\"), ChatRow.id.in_(said))
            )
        with self._database.snapshot() as session:
            return [chat_of(row) for row in session.scalars(statement)]


def found(row: Row | None, what: str, wanted: str) -> Row:
    """The row, or NotFound."""
    if row is None:
        raise NotFound(f"there is no {what} {wanted}")
    return row


def new_message(chat_id: str, position: int, role: str, content: str) -> MessageRow:
    """A message that is complete as it is."""
    return MessageRow(
        id=new_id(),
        chat_id=chat_id,
        position=position,
        role=role,
        content=content,
        state="done",
        run_id=None,
        answer=None,
        error=None,
        feedback=0,
        feedback_comment="",
        created_at=utc_now(),
    )


def chat_of(row: ChatRow, messages: tuple[ChatMessage, ...] = ()) -> Chat:
    """The domain's view of a row."""
    return Chat(
        row.id, row.title, tuple(row.collection_ids), row.created_at, row.updated_at, messages
    )


def message_of(row: MessageRow) -> ChatMessage:
    """The domain's view of a row."""
    return ChatMessage(
        id=row.id,
        chat_id=row.chat_id,
        role="user" if row.role == "user" else "assistant",
        content=row.content,
        state=row.state,  # type: ignore[arg-type]  # a plain string column
        created_at=row.created_at,
        run_id=row.run_id,
        error=row.error,
        feedback=row.feedback,
        **(answer_fields(row.answer) if row.answer else {}),
    )


def snapshot_of(answer: Answer) -> dict[str, Any]:  # Any: JSON
    """What is kept of an answer beside its text."""
    return {
        "sources": [asdict(source) for source in answer.sources],
        "citations": [asdict(citation) for citation in answer.citations],
        "is_refusal": answer.is_refusal,
        "generator": asdict(answer.generator),
        "usage": asdict(answer.usage),
        "timings": asdict(answer.timings),
        "query": answer.query,
    }


def answer_fields(snapshot: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
    """The fields of a message that `snapshot_of` kept."""
    return {
        "sources": tuple(source_of(source) for source in snapshot["sources"]),
        "citations": tuple(Citation(**citation) for citation in snapshot["citations"]),
        "is_refusal": snapshot["is_refusal"],
        "generator": GeneratorInfo(**snapshot["generator"]),
        "usage": Usage(**snapshot["usage"]),
        "timings": Timings(**snapshot["timings"]),
        "query": snapshot.get("query", ""),  # older ones have none
    }


def source_of(value: dict[str, Any]) -> Source:  # Any: JSON
    """The inverse of `asdict` for a source."""
    hit, chunk, span = value["hit"], value["hit"]["chunk"], value["hit"]["chunk"]["span"]
    boxes = tuple(Box(**box) for box in span["boxes"])
    span = ChunkSpan(**{**span, "heading_path": tuple(span["heading_path"]), "boxes": boxes})
    scores = HitScores(**hit["scores"])
    return Source(
        value["number"],
        SearchHit(**{**hit, "chunk": Chunk(**{**chunk, "span": span}), "scores": scores}),
    )
