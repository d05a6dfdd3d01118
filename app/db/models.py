"""The tables. SQLite and Postgres read the same schema; `migrations/` creates it."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC, also on SQLite, which stores no time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        assert value is None or value.tzinfo is not None, "times must be aware"
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    """Constraint names are fixed so that migrations can name them on every database."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: UtcDateTime}  # noqa: RUF012 - SQLAlchemy reads it so


class CollectionRow(Base):
    """A knowledge base; without an owner it is the administrators'."""

    __tablename__ = "collections"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime]
    owner_id: Mapped[str | None] = mapped_column(index=True)


class GrantRow(Base):
    """Who may use a knowledge base beside its owner; `principal_id` is empty for everyone."""

    __tablename__ = "grants"

    collection_id: Mapped[str] = mapped_column(
        ForeignKey("collections.id", ondelete="CASCADE"), primary_key=True
    )
    kind: Mapped[str] = mapped_column(primary_key=True)
    principal_id: Mapped[str] = mapped_column(primary_key=True, index=True)
    role: Mapped[str]


class UserRow(Base):
    """A person; `name_key` is the name by which it is found, without case."""

    __tablename__ = "users"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    name_key: Mapped[str] = mapped_column(unique=True)
    password_hash: Mapped[str]
    role: Mapped[str]
    is_active: Mapped[bool]
    created_at: Mapped[datetime]
    last_seen_at: Mapped[datetime | None]


class GroupRow(Base):
    """Users to whom knowledge bases are shared together."""

    __tablename__ = "user_groups"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    name_key: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime]


class MembershipRow(Base):
    """That a user is in a group."""

    __tablename__ = "memberships"

    group_id: Mapped[str] = mapped_column(
        ForeignKey("user_groups.id", ondelete="CASCADE"), primary_key=True
    )
    user_id: Mapped[str] = mapped_column(
        ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, index=True
    )


class SessionRow(Base):
    """A browser that is logged in; the token itself is known to the browser alone."""

    __tablename__ = "sessions"

    token_hash: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime]
    seen_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)


class ApiKeyRow(Base):
    """A user's key for programs; the key itself is known to the user alone."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    prefix: Mapped[str]
    key_hash: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime]
    last_used_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]


class DocumentRow(Base):
    """`content_hash` is the newest file; `indexed_hash` the one whose chunks are searched.

    `indexed_by` names the index whose chunks are shown; None when there are none.
    """

    __tablename__ = "documents"
    __table_args__ = (UniqueConstraint("collection_id", "source", "path"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    collection_id: Mapped[str] = mapped_column(ForeignKey("collections.id"))
    source: Mapped[str]
    path: Mapped[str]
    name: Mapped[str]
    media_type: Mapped[str]
    content_hash: Mapped[str] = mapped_column(index=True)
    indexed_hash: Mapped[str | None] = mapped_column(index=True)
    indexed_by: Mapped[str | None]
    num_bytes: Mapped[int] = mapped_column(BigInteger)
    title: Mapped[str]
    num_pages: Mapped[int | None]
    num_chunks: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(index=True)
    updated_at: Mapped[datetime]
    metadata_rows: Mapped[list["MetadataRow"]] = relationship(
        lazy="selectin",
        cascade="all, delete-orphan",
        passive_deletes=True,
        order_by="MetadataRow.key",
    )


class MetadataRow(Base):
    """One value of a document's metadata, in the column of its type; the others are None."""

    __tablename__ = "document_metadata"
    __table_args__ = (Index(None, "key", "text"), Index(None, "key", "number"))

    document_id: Mapped[str] = mapped_column(
        ForeignKey("documents.id", ondelete="CASCADE"), primary_key=True
    )
    key: Mapped[str] = mapped_column(primary_key=True)
    # By code points on both databases, as SQLite orders anyway.
    text: Mapped[str | None] = mapped_column(
        String().with_variant(String(collation="C"), "postgresql")
    )
    number: Mapped[float | None] = mapped_column(Float)
    flag: Mapped[bool | None]


class IndexRow(Base):
    """An index in the vector store: what made it and where it stands, see `IndexState`.

    `recall` is a JSON snapshot of how it was compared with the one that serves.
    """

    __tablename__ = "indexes"

    name: Mapped[str] = mapped_column(primary_key=True)
    embedding_model: Mapped[str]
    dimension: Mapped[int]
    chunker: Mapped[str]
    state: Mapped[str] = mapped_column(index=True)
    recall: Mapped[dict[str, Any] | None] = mapped_column(JSON)  # Any: JSON has no closed type
    reason: Mapped[str | None]
    created_at: Mapped[datetime]
    switched_at: Mapped[datetime | None]
    switches_itself: Mapped[bool]


class IndexedDocumentRow(Base):
    """Which file of a document an index holds, and the text that its chunks' offsets refer to.

    `content_hash` is empty where the vectors are lost; `reason` says why nothing is held.
    """

    __tablename__ = "indexed_documents"

    document_id: Mapped[str] = mapped_column(
        ForeignKey("documents.id", ondelete="CASCADE"), primary_key=True
    )
    index_name: Mapped[str] = mapped_column(primary_key=True, index=True)
    content_hash: Mapped[str] = mapped_column(index=True)
    num_chunks: Mapped[int]
    text: Mapped[str]
    reason: Mapped[str | None]


class JobRow(Base):
    """The latest job of a document: exactly one row each, so its stage is the document's."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index(None, "stage", "attempts", "queued_at"),
        Index(None, "owner", "stage", "attempts", "queued_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    document_id: Mapped[str] = mapped_column(
        ForeignKey("documents.id", ondelete="CASCADE"), unique=True
    )
    owner: Mapped[str]
    stage: Mapped[str]
    progress: Mapped[float] = mapped_column(Float)
    attempts: Mapped[int]
    reason: Mapped[str | None]
    queued_at: Mapped[datetime]
    not_before: Mapped[datetime]
    lease_until: Mapped[datetime | None]
    heartbeat_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class JobOwnerRow(Base):
    """When a job of this owner was last claimed: the one who has waited longest is next."""

    __tablename__ = "job_owners"

    owner: Mapped[str] = mapped_column(primary_key=True)
    served_at: Mapped[datetime]


class ChunkRow(Base):
    """`term_ids` are the chunk's lexical terms as packed little-endian uint32.

    Each index has chunks of its own: ids never change and are never shared.
    """

    __tablename__ = "chunks"
    __table_args__ = (UniqueConstraint("document_id", "index_name", "position"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    document_id: Mapped[str] = mapped_column(ForeignKey("documents.id", ondelete="CASCADE"))
    index_name: Mapped[str] = mapped_column(index=True)
    position: Mapped[int]
    start: Mapped[int]
    end: Mapped[int]
    text: Mapped[str]
    heading_path: Mapped[list[str]] = mapped_column(JSON)
    num_tokens: Mapped[int]
    page: Mapped[int | None]
    boxes: Mapped[list[list[float]]] = mapped_column(JSON)
    term_ids: Mapped[bytes] = mapped_column(LargeBinary)


class TermRow(Base):
    """In how many chunks of an index a term occurs; always exactly what `chunks` says."""

    __tablename__ = "index_terms"

    index_name: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    num_chunks: Mapped[int]


class StaleVectorRow(Base):
    """A chunk id whose vector may lie in an index without a row in `chunks`."""

    __tablename__ = "stale_vectors"

    chunk_id: Mapped[str] = mapped_column(primary_key=True)
    index_name: Mapped[str] = mapped_column(index=True)
    document_id: Mapped[str] = mapped_column(index=True)


class StoredFileRow(Base):
    """A file that was sent by itself, to be put into collections later.

    `owner_id` is the user who sent it, or empty.
    """

    __tablename__ = "stored_files"

    id: Mapped[str] = mapped_column(primary_key=True)
    owner_id: Mapped[str] = mapped_column(index=True)
    name: Mapped[str]
    media_type: Mapped[str]
    content_hash: Mapped[str] = mapped_column(index=True)
    num_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(index=True)


class FileBatchRow(Base):
    """Files that were put into a collection together."""

    __tablename__ = "file_batches"

    id: Mapped[str] = mapped_column(primary_key=True)
    collection_id: Mapped[str] = mapped_column(ForeignKey("collections.id", ondelete="CASCADE"))
    file_ids: Mapped[list[str]] = mapped_column(JSON)
    created_at: Mapped[datetime]


class UnusedFileRow(Base):
    """The hash of a file that may lie in the data folder without a document that refers to it."""

    __tablename__ = "unused_files"

    content_hash: Mapped[str] = mapped_column(primary_key=True)


class InstallationRow(Base):
    """One row: the data folder of the same id holds the files of these documents.

    `setup_code_hash` is of the code that makes the first account, while there is none.
    """

    __tablename__ = "installation"

    id: Mapped[str] = mapped_column(primary_key=True)
    is_queue_paused: Mapped[bool]
    configured_index: Mapped[str | None]
    setup_code_hash: Mapped[str | None]


class EvaluationRow(Base):
    """`figures` are averages, `questions` what was judged of each."""

    __tablename__ = "evaluations"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    generator: Mapped[str]
    state: Mapped[str]
    num_questions: Mapped[int]
    num_done: Mapped[int]
    figures: Mapped[dict[str, float]] = mapped_column(JSON)
    questions: Mapped[list[dict[str, Any]]] = mapped_column(JSON)  # Any: JSON has no closed type
    error: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(index=True)
    finished_at: Mapped[datetime | None]


class ChatRow(Base):
    """A conversation; its messages are ordered by `position`.

    `owner_id` is the user whose it is, or empty.
    """

    __tablename__ = "chats"

    id: Mapped[str] = mapped_column(primary_key=True)
    owner_id: Mapped[str] = mapped_column(index=True)
    title: Mapped[str]
    collection_ids: Mapped[list[str]] = mapped_column(JSON)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime] = mapped_column(index=True)


class MessageRow(Base):
    """`answer` is a JSON snapshot of sources, citations, generator, timings and usage."""

    __tablename__ = "messages"
    __table_args__ = (UniqueConstraint("chat_id", "position"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    chat_id: Mapped[str] = mapped_column(ForeignKey("chats.id", ondelete="CASCADE"))
    position: Mapped[int]
    role: Mapped[str]
    content: Mapped[str]
    state: Mapped[str] = mapped_column(index=True)
    run_id: Mapped[str | None] = mapped_column(index=True)
    answer: Mapped[dict[str, Any] | None] = mapped_column(JSON)  # Any: JSON has no closed type
    error: Mapped[str | None]
    feedback: Mapped[int]
    feedback_comment: Mapped[str]
    created_at: Mapped[datetime]
