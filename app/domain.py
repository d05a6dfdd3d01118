"""The nouns of the appliance: frozen values that cross module borders.

It imports nothing of ours. Offsets are half-open character offsets into `ParsedDocument.text`,
scores are higher-is-better, ranks and source numbers start at 1, times are UTC.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Literal

Language = Literal["en", "zh"]
MetadataValue = str | float | bool
# Documents that were made from a stored file: their source, and how their path, its id, begins.
STORED_SOURCE = "api"
STORED_PREFIX = "file-"
FACT_PREFIX = "folio."  # of what a filter can ask about the document itself
NO_METADATA: Mapping[str, str] = MappingProxyType({})


class BlockKind(StrEnum):
    """What a stretch of a document's text is, as far as the parser can tell."""

    HEADING = "heading"
    PARAGRAPH = "paragraph"
    LIST_ITEM = "list_item"
    TABLE = "table"
    CODE = "code"
    CAPTION = "caption"


class DocumentStatus(StrEnum):
    """Where a document stands; only `ready` documents are searched."""

    QUEUED = "queued"
    PROCESSING = "processing"
    READY = "ready"
    FAILED = "failed"


class JobStage(StrEnum):
    """The step that an ingestion job is in; the last four are final.

    A quarantined one has failed in a way that costs much each time (it killed its process, or ran
    into a limit): it is tried again only when it is asked for by name.
    """

    QUEUED = "queued"
    PARSING = "parsing"
    CHUNKING = "chunking"
    EMBEDDING = "embedding"
    STORING = "storing"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    QUARANTINED = "quarantined"
    CANCELLED = "cancelled"


class IndexState(StrEnum):
    """Where an index stands: one serves, one may be made beside it, and one was served before.

    `building` becomes `ready` when it holds all documents and finds what the serving one finds,
    `warning` when it does not; `discarded` ones are being deleted.
    """

    BUILDING = "building"
    READY = "ready"
    WARNING = "warning"
    SERVING = "serving"
    PREVIOUS = "previous"
    DISCARDED = "discarded"


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """What makes an index: `name` is that of its collection in the vector store."""

    name: str
    embedding_model: str
    dimension: int
    chunker: str


@dataclass(frozen=True, slots=True)
class Recall:
    """The shares (0 to 1) of test questions whose document each index finds among its best `k`."""

    num_queries: int
    k: int
    tolerance: float
    serving: float
    built: float


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """An index and how far it is: `num_missing` of all documents are not in it yet."""

    spec: IndexSpec
    state: IndexState
    num_documents: int
    num_missing: int
    num_failed: int
    num_chunks: int
    switches_itself: bool
    recall: Recall | None
    reason: str | None
    created_at: datetime
    switched_at: datetime | None


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle on a page, as fractions of its width and height; the origin is the top left."""

    page: int
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True)
class Block:
    """A structural stretch of a document's text.

    `level` is 1–6 for headings and 0 otherwise. `page` starts at 1 and is None where the format
    has no pages. Blocks are in reading order and do not overlap.
    """

    kind: BlockKind
    start: int
    end: int
    level: int = 0
    page: int | None = None
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True, slots=True)
class ParsedDocument:
    """What a parser makes of a file: the text that every offset refers to, and its structure.

    `note` says what of the file could not be read, where the rest could.
    """

    text: str
    title: str
    blocks: tuple[Block, ...]
    num_pages: int | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class ChunkSpan:
    """A chunk as the chunker cuts it: `text == document.text[start:end]`, to the character.

    `heading_path` holds the headings above the chunk, outermost first. `num_tokens` is counted by
    the embedder's tokenizer over the text that is embedded (heading path included).
    """

    start: int
    end: int
    text: str
    heading_path: tuple[str, ...]
    num_tokens: int
    page: int | None = None
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stored chunk. Its id is immutable: new content of a document makes new chunk ids."""

    id: str
    document_id: str
    collection_id: str
    index: int
    span: ChunkSpan


@dataclass(frozen=True, slots=True)
class Collection:
    """A knowledge base: a named set of documents that is searched as one."""

    id: str
    name: str
    created_at: datetime
    num_documents: int = 0
    owner_id: str | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """A document as the library shows it.

    Identity is (collection, source, path); `content_hash` is the SHA-256 of the file's bytes.
    `stage` and `progress` (0–1) are those of its latest job; `error` says what failed and the
    way out; of a ready document, what of its file could not be read. `source` is "upload",
    "folder", "web" or "manual".
    """

    id: str
    collection_id: str
    source: str
    path: str
    name: str
    media_type: str
    content_hash: str
    num_bytes: int
    status: DocumentStatus
    stage: JobStage
    progress: float
    error: str | None
    title: str
    num_pages: int | None
    num_chunks: int
    created_at: datetime
    updated_at: datetime
    metadata: Mapping[str, MetadataValue] = field(default_factory=lambda: NO_METADATA)


@dataclass(frozen=True, slots=True)
class IncomingFile:
    """A file on its way into the library; its bytes lie already under `content_hash`.

    `owner` is whose turn ingesting it takes: a user, or where there are none the source.
    `metadata` replaces what the document has; None leaves that as it is.
    """

    collection_id: str
    source: str
    path: str
    name: str
    media_type: str
    content_hash: str
    num_bytes: int
    metadata: Mapping[str, MetadataValue] | None = None
    owner: str = ""


@dataclass(frozen=True, slots=True)
class RemovedDocument:
    """A document that is gone, and where it was."""

    id: str
    collection_id: str


DocumentChange = Document | RemovedDocument


@dataclass(frozen=True, slots=True)
class AddResult:
    """What adding a file did; "unchanged" queued nothing."""

    document: Document
    outcome: Literal["added", "changed", "unchanged"]


@dataclass(frozen=True, slots=True)
class DocumentCounts:
    """The library in numbers; pending is queued or processing, chunks are those searched."""

    num_documents: int
    num_ready: int
    num_pending: int
    num_failed: int
    num_chunks: int


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that was sent by itself and waits to be put into collections."""

    id: str
    name: str
    media_type: str
    content_hash: str
    num_bytes: int
    created_at: datetime
    owner_id: str = ""


@dataclass(frozen=True, slots=True)
class FileBatch:
    """Files that were put into a collection together."""

    id: str
    collection_id: str
    file_ids: tuple[str, ...]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class CollectionCounts:
    """A collection in numbers."""

    num_bytes: int
    num_pending: int
    num_ready: int
    num_cancelled: int
    num_documents: int

    @property
    def num_failed(self) -> int:
        """What is neither pending, ready nor cancelled."""
        return self.num_documents - self.num_pending - self.num_ready - self.num_cancelled


@dataclass(frozen=True, slots=True)
class Cursor:
    """A page by time: at most `limit`, behind the id `after` or before the id `before`."""

    limit: int
    is_ascending: bool
    after: str | None = None
    before: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A leased ingestion job: the right to work on one document until `lease_until`.

    (`id`, `attempt`) is the fencing token: whoever lost the lease cannot write any more.
    """

    id: str
    document_id: str
    attempt: int
    lease_until: datetime


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """A document's latest job as the queue shows it; `reason` is why it waits or failed."""

    id: str
    document_id: str
    document_name: str
    owner: str
    stage: JobStage
    progress: float
    attempts: int
    reason: str | None
    queued_at: datetime
    heartbeat_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class HitScores:
    """The score of each leg for one hit; None where the leg did not return it."""

    dense: float | None = None
    lexical: float | None = None
    rerank: float | None = None


@dataclass(frozen=True, slots=True)
class SearchHit:
    """A chunk that retrieval found; `score` is the fused one.

    Hits come best first: by the reranker's score where there is one, then by the fused one.
    """

    chunk: Chunk
    document_name: str
    document_title: str
    score: float
    scores: HitScores


@dataclass(frozen=True, slots=True)
class SearchTimings:
    """Seconds that the steps of a search took, dense and lexical side by side.

    None for a step that was not done.
    """

    embed_s: float | None = None
    dense_s: float | None = None
    lexical_s: float | None = None
    rank_s: float | None = None
    rerank_s: float | None = None
    total_s: float | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """What retrieval found for a question, and whether it can carry an answer.

    `confidence` is 0–1, comparable between questions: how well the best chunks cover the
    question. `query` is what was searched (the question, or its rewriting in a conversation).
    """

    query: str
    hits: tuple[SearchHit, ...]
    confidence: float
    is_sufficient: bool
    timings: SearchTimings = field(default_factory=SearchTimings)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """A document's metadata value beside another of the same type; `value` is a tuple for in, nin.

    A document without the key, or with a value of another type, is matched by ne and nin alone.
    Texts are ordered by code points.
    """

    key: str
    operator: Literal["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin"]
    value: MetadataValue | tuple[MetadataValue, ...]


@dataclass(frozen=True, slots=True)
class Combination:
    """Filters of which all (and) or at least one (or) must match."""

    operator: Literal["and", "or"]
    filters: tuple["MetadataFilter", ...]


MetadataFilter = Comparison | Combination


@dataclass(frozen=True, slots=True)
class SearchScope:
    """Where a search may look: None in every collection, an empty tuple in none.

    Documents must match `filter`. A vector store knows no metadata: the retriever writes the
    documents that match into `document_ids`, with the same meaning of None and empty.
    """

    collection_ids: tuple[str, ...] | None = None
    filter: MetadataFilter | None = None
    document_ids: tuple[str, ...] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing can be found."""
        return self.collection_ids == () or self.document_ids == ()


EVERYWHERE = SearchScope()


Role = Literal["admin", "member"]
AccessRole = Literal["reader", "editor", "owner"]
RANKS: Mapping[AccessRole, int] = {"reader": 1, "editor": 2, "owner": 3}


@dataclass(frozen=True, slots=True)
class User:
    """A person with an account."""

    id: str
    name: str
    role: Role
    is_active: bool
    created_at: datetime
    last_seen_at: datetime | None = None
    group_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """Users to whom knowledge bases are shared together."""

    id: str
    name: str
    user_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A user's key for programs: all of it that is known after it was shown."""

    id: str
    name: str
    prefix: str
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class Grant:
    """A right to use a knowledge base; `id` is None for everyone."""

    kind: Literal["user", "group", "everyone"]
    id: str | None
    role: Literal["reader", "editor"]


@dataclass(frozen=True, slots=True)
class Access:
    """Who asks, and what they may use.

    `user_id` is None where there are no accounts, and empty for the holder of FOLIO_API_KEY.
    `roles` are those in single knowledge bases; an administrator is the owner of all.
    """

    user_id: str | None
    is_admin: bool
    roles: Mapping[str, AccessRole] = field(default_factory=dict)

    def role_in(self, collection_id: str) -> AccessRole | None:
        """What may be done in a knowledge base; None where it must look as if it were not there."""
        return "owner" if self.is_admin else self.roles.get(collection_id)

    def may(self, wanted: AccessRole, collection_id: str) -> bool:
        """Whether the role there is this one, or more."""
        role = self.role_in(collection_id)
        return role is not None and RANKS[role] >= RANKS[wanted]

    def collections(self, wanted: AccessRole) -> tuple[str, ...] | None:
        """The knowledge bases with this role or more; None for all there are, empty for none."""
        if self.is_admin:
            return None
        return tuple(sorted(id for id in self.roles if self.may(wanted, id)))

    def scope(self, wanted: Sequence[str], filter: MetadataFilter | None = None) -> SearchScope:
        """Where a search may look that asks for these knowledge bases, or for none in particular.

        What may not be read is left out, and nothing left is nowhere: never everywhere.
        """
        readable = self.collections("reader")
        if not wanted:
            return SearchScope(readable, filter)
        return SearchScope(tuple(id for id in wanted if self.may("reader", id)), filter)


WITHOUT_ACCOUNTS = Access(user_id=None, is_admin=True)


@dataclass(frozen=True, slots=True)
class Question:
    """What a user asks: the last user message, the turns before it, and where to look.

    `language` is the answer's; None follows the question. `tenant` is who shares the engine
    fairly with others: a user, or empty.
    """

    text: str
    history: tuple[Message, ...] = ()
    scope: SearchScope = EVERYWHERE
    language: Language | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """A numbered passage offered to the generator; `number` is fixed before the first token."""

    number: int
    hit: SearchHit


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What a generator gets: the rendered messages, and the pieces they were made from.

    The extractive generator works from `question` and `sources`, language models from `messages`.
    `tenant` is whose it is, see `Question`.
    """

    messages: tuple[Message, ...]
    question: str
    sources: tuple[Source, ...]
    language: Language
    max_tokens: int
    temperature: float
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one generation."""

    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Generation:
    """A piece of generated text; the last piece carries the finish reason and the usage."""

    text: str
    finish_reason: Literal["stop", "length"] | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class GeneratorInfo:
    """Who is speaking, for the status page and under each answer; `note` says how to get more."""

    kind: Literal["engine", "openai", "reader", "extractive"]
    model: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Citation:
    """A verified marker: `answer[start:end]` is the sentence that chunk `chunk_id` supports."""

    number: int
    chunk_id: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds from the question to the end of each stage; None where it was not reached."""

    retrieved_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer.

    When `is_refusal`, nothing relevant was found and nothing was invented; `sources` then hold
    the nearest chunks. `query` is what was searched, empty where nothing was.
    """

    text: str
    sources: tuple[Source, ...]
    citations: tuple[Citation, ...]
    is_refusal: bool
    generator: GeneratorInfo
    usage: Usage
    timings: Timings
    finish_reason: Literal["stop", "length"] = "stop"
    query: str = ""


@dataclass(frozen=True, slots=True)
class Stage:
    """The pipeline entered a stage."""

    name: Literal["retrieving", "reading", "writing"]
    num_sources: int = 0


@dataclass(frozen=True, slots=True)
class Sources:
    """The numbered sources, fixed before the first token."""

    sources: tuple[Source, ...]
    query: str


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the answer's text; markers appear as `[n]` and only for known numbers."""

    text: str


@dataclass(frozen=True, slots=True)
class Cited:
    """A marker was verified against its chunk."""

    citation: Citation


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete; its text is authoritative over the deltas."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer could not be completed; what was streamed stays valid."""

    code: str
    message: str
    retry_after_s: float | None = None


Event = Stage | Sources | TextDelta | Cited | Finished | Failed


@dataclass(frozen=True, slots=True)
class AskedQuestion:
    """A question with what is known of its answer.

    `answers` are wordings that are right, empty where none is known; `sources` name the passages
    or documents that hold it.
    """

    text: str
    answers: tuple[str, ...]
    sources: frozenset[str]
    is_answerable: bool


EvaluationState = Literal["running", "done", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Questions that were asked of the library to measure it; `generator` names who answered."""

    id: str
    name: str
    generator: str
    state: EvaluationState
    num_questions: int
    num_done: int
    figures: Mapping[str, float]
    error: str | None
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """A stored message. An assistant message keeps its sources as they were when it was written.

    `state` is "running" while a run makes it, then "done", "stopped" or "failed".
    `generator` names who wrote it. `feedback` is 1, -1 or 0.
    """

    id: str
    chat_id: str
    role: Literal["user", "assistant"]
    content: str
    state: Literal["running", "done", "stopped", "failed"]
    created_at: datetime
    sources: tuple[Source, ...] = ()
    citations: tuple[Citation, ...] = ()
    is_refusal: bool = False
    generator: GeneratorInfo | None = None
    timings: Timings = field(default_factory=Timings)
    usage: Usage = field(default_factory=Usage)
    run_id: str | None = None
    error: str | None = None
    feedback: int = 0
    query: str = ""


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation; `messages` is filled only when one chat is read."""

    id: str
    title: str
    collection_ids: tuple[str, ...]
    created_at: datetime
    updated_at: datetime
    messages: tuple[ChatMessage, ...] = ()
