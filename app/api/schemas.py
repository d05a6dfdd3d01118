"""The wire models of /api: what the frontend and other clients see. Converted in `api/` only.

Server-sent events of an answer (`GET /api/runs/{run_id}/events`, ids count up from 1):

    stage    StageEvent          entering retrieving | reading | writing
    sources  SourcesEvent        the numbered sources, before the first token
    token    TokenEvent          more text
    cited    CitationOut         a marker was verified
    done     MessageOut          the finished message, authoritative over the tokens
    error    ErrorBody           the answer failed; streamed text stays
    stopped  MessageOut          the user stopped it; the text so far is kept

and of the library (`GET /api/documents/events`): `document` DocumentOut at each change,
`removed` RemovedEvent. Every stream sends a comment line each 15 seconds.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    StringConstraints,
)

from app.api.filters import FilterIn, Metadata
from app.api.wire_model import Text, Trimmed, WireModel
from app.domain import DocumentStatus, JobStage


def _distinct(values: list[str]) -> list[str]:
    return list(dict.fromkeys(values))


LanguageCode = Literal["en", "zh"]
Name = Annotated[Trimmed, StringConstraints(min_length=1, max_length=200)]
CollectionIds = Annotated[list[Text], Field(max_length=100), AfterValidator(_distinct)]
MAX_QUESTION_CHARACTERS = 20_000
MAX_EVAL_QUESTIONS = 1000
Short = Annotated[Text, Field(max_length=1000)]


class ErrorBody(WireModel):
    """What went wrong and the way out; `code` is stable."""

    code: str
    message: str
    retry_after_s: float | None = None


class ErrorOut(WireModel):
    """The body of every error answer under /api."""

    error: ErrorBody


class BoxOut(WireModel):
    """A rectangle on a page in fractions of its size, origin top left."""

    page: int
    left: float
    top: float
    right: float
    bottom: float


class DocumentOut(WireModel):
    """A row of the library."""

    id: str
    collection_id: str
    source: str
    path: str
    name: str
    title: str
    media_type: str
    content_hash: str
    num_bytes: int
    status: DocumentStatus
    stage: JobStage
    progress: float
    error: str | None
    num_pages: int | None
    num_chunks: int
    created_at: datetime
    updated_at: datetime
    metadata: Metadata


class DocumentPatch(WireModel):
    """Where the file of a document from a folder lies now, and what its metadata is now.

    What is left out stays as it is; metadata is replaced as a whole.
    """

    path: Annotated[Text, Field(min_length=1, max_length=4096)] | None = None
    metadata: Metadata | None = None


class DocumentPage(WireModel):
    """One page of the library; the totals are those of the whole filter."""

    items: list[DocumentOut]
    total: int
    page: int
    page_size: int
    num_ready: int
    num_pending: int
    num_failed: int


class RejectedFile(WireModel):
    """A file of an upload that was not taken, and why."""

    name: str
    error: ErrorBody


class UploadOut(WireModel):
    """What an upload did: new or changed documents are queued, equal ones are `unchanged`."""

    accepted: list[DocumentOut]
    unchanged: list[DocumentOut]
    rejected: list[RejectedFile]


class RemovedEvent(WireModel):
    """A document left the library."""

    id: str


class DocumentTextOut(WireModel):
    """A document's text, to which chunk offsets refer (code points, not UTF-16 units)."""

    id: str
    name: str
    title: str
    media_type: str
    text: str


class ChunkOut(WireModel):
    """A chunk with its place in the document."""

    id: str
    document_id: str
    index: int
    text: str
    start: int
    end: int
    heading_path: list[str]
    page: int | None
    boxes: list[BoxOut]
    num_tokens: int


class ChunkPage(WireModel):
    """One page of a document's chunks."""

    items: list[ChunkOut]
    total: int
    page: int
    page_size: int


class JobOut(WireModel):
    """A document's latest job; `reason` is why it waits or failed, `owner` whose turn it takes."""

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


class JobPage(WireModel):
    """One page of the queue; while `is_paused`, nothing new is begun."""

    items: list[JobOut]
    total: int
    page: int
    page_size: int
    is_paused: bool


class QueueOut(WireModel):
    """Whether the queue is held."""

    is_paused: bool


class RetriedOut(WireModel):
    """How many documents were queued again."""

    num_queued: int


class CollectionIn(WireModel):
    """A new knowledge base."""

    name: Name


class CollectionOut(WireModel):
    """A knowledge base; `access` is what the caller may do in it."""

    id: str
    name: str
    num_documents: int
    created_at: datetime
    access: Literal["reader", "editor", "owner"]


class ScoresOut(WireModel):
    """Scores of each leg; null where the leg did not return the chunk."""

    dense: float | None
    lexical: float | None
    rerank: float | None


class SourceOut(WireModel):
    """A numbered source of an answer, or a search hit."""

    number: int
    chunk_id: str
    document_id: str
    document_name: str
    document_title: str
    media_type: str
    heading_path: list[str]
    page: int | None
    boxes: list[BoxOut]
    start: int
    end: int
    text: str
    score: float
    scores: ScoresOut


class SearchIn(WireModel):
    """A retrieval without an answer."""

    query: Annotated[Trimmed, StringConstraints(min_length=1, max_length=4000)]
    collection_ids: Annotated[CollectionIds, Field(default_factory=list)]
    filters: FilterIn | None = None
    limit: int = Field(default=10, ge=1, le=100)


class SearchTimingsOut(WireModel):
    """Seconds of each step, dense and lexical side by side; null where it was not done."""

    embed_s: float | None
    dense_s: float | None
    lexical_s: float | None
    rank_s: float | None
    rerank_s: float | None
    total_s: float | None


class SearchOut(WireModel):
    """Hits best first; `is_sufficient` says whether an answer would be attempted.

    `score` of a hit is the fused one, `scores` are those it was fused from and the reranker's.
    """

    query: str
    hits: list[SourceOut]
    confidence: float
    is_sufficient: bool
    seconds: float
    timings: SearchTimingsOut


class CitationOut(WireModel):
    """`text[start:end]` (code points) is the sentence that the chunk supports."""

    number: int
    chunk_id: str
    start: int
    end: int


class GeneratorOut(WireModel):
    """Who writes the answers; `note` says how to get a better one."""

    kind: Literal["engine", "openai", "reader", "extractive"]
    model: str
    note: str


class TimingsOut(WireModel):
    """Seconds since the question."""

    retrieved_s: float | None
    first_token_s: float | None
    finished_s: float | None


class UsageOut(WireModel):
    """Token counts."""

    num_prompt_tokens: int
    num_completion_tokens: int


class MessageOut(WireModel):
    """A message of a chat. While `state` is "running", follow `run_id`.

    `query` is what was searched for an answer, a follow-up question as it was rewritten.
    """

    id: str
    chat_id: str
    role: Literal["user", "assistant"]
    content: str
    state: Literal["running", "done", "stopped", "failed"]
    sources: list[SourceOut]
    citations: list[CitationOut]
    is_refusal: bool
    query: str
    generator: GeneratorOut | None
    timings: TimingsOut
    usage: UsageOut
    run_id: str | None
    error: str | None
    feedback: int
    created_at: datetime


class ChatIn(WireModel):
    """A new chat; no collections means all of them."""

    title: Text = Field(default="", max_length=200)
    collection_ids: Annotated[CollectionIds, Field(default_factory=list)]


class ChatPatch(WireModel):
    """A new title."""

    title: Name


class ChatOut(WireModel):
    """A chat in the list."""

    id: str
    title: str
    collection_ids: list[str]
    created_at: datetime
    updated_at: datetime


class ChatDetail(ChatOut):
    """A chat with its messages in order."""

    messages: list[MessageOut]


class MessageIn(WireModel):
    """A question. `language` fixes the answer's language; null follows the question.

    Only documents whose metadata match `filters` are searched.
    """

    text: Annotated[
        Trimmed,
        StringConstraints(min_length=1, max_length=MAX_QUESTION_CHARACTERS),
    ]
    language: LanguageCode | None = None
    filters: FilterIn | None = None


class RunOut(WireModel):
    """An answer is being made: both messages, and the run whose events to follow."""

    run_id: str
    question: MessageOut
    answer: MessageOut


class FeedbackIn(WireModel):
    """1 good, -1 poor, 0 takes it back."""

    rating: Literal[-1, 0, 1]
    comment: Text = Field(default="", max_length=2000)


class StageEvent(WireModel):
    """The answer entered a stage."""

    name: Literal["retrieving", "reading", "writing"]
    num_sources: int


class SourcesEvent(WireModel):
    """The sources, and what was searched."""

    query: str
    sources: list[SourceOut]


class TokenEvent(WireModel):
    """More of the answer's text."""

    text: str


class CheckOut(WireModel):
    """One dependency: whether it works and what it says."""

    name: str
    is_ok: bool
    detail: str


class EmbedderOut(WireModel):
    """The embedding model of the index."""

    name: str
    dimension: int
    is_multilingual: bool


class StatusOut(WireModel):
    """What the UI shows about the appliance. `phase` is "starting" until models are loaded."""

    version: str
    phase: Literal["starting", "ready", "failed"]
    detail: str
    checks: list[CheckOut]
    generator: GeneratorOut | None
    embedder: EmbedderOut | None
    num_documents: int
    num_ready: int
    num_pending: int
    num_failed: int
    num_chunks: int
    is_queue_paused: bool
    max_upload_bytes: int
    upload_suffixes: list[str]
    sample_questions: dict[LanguageCode, list[str]]


class HealthOut(WireModel):
    """The process answers."""

    status: Literal["ok"]


class ReadyOut(WireModel):
    """Whether questions can be answered, and what each dependency says."""

    status: Literal["ready", "not_ready"]
    detail: str
    checks: list[CheckOut]


class EvalQuestionIn(WireModel):
    """A question, and of its answer what is known: wordings, file names, or that there is none."""

    question: Annotated[Trimmed, StringConstraints(min_length=1, max_length=4000)]
    answers: Annotated[list[Short], Field(max_length=50, default_factory=list)]
    documents: Annotated[list[Short], Field(max_length=50, default_factory=list)]
    answerable: bool = True


class EvalIn(WireModel):
    """Questions to ask; the name is how you find it again."""

    name: Annotated[Trimmed, StringConstraints(min_length=1, max_length=200)]
    questions: Annotated[list[EvalQuestionIn], Field(min_length=1, max_length=MAX_EVAL_QUESTIONS)]


class EvalOut(WireModel):
    """An evaluation; `figures` are averages over the questions that allow the measure."""

    id: str
    name: str
    generator: str
    state: Literal["running", "done", "failed", "cancelled"]
    num_questions: int
    num_done: int
    figures: dict[str, float]
    error: str | None
    created_at: datetime
    finished_at: datetime | None


class JudgedOut(WireModel):
    """One question, judged; null where it does not allow the measure."""

    question: str
    is_answerable: bool
    is_refusal: bool
    exact_match: float | None
    f1: float | None
    holds_answer: float | None
    citation_precision: float | None
    citation_recall: float | None
    confidence: float | None
    first_token_s: float | None
    seconds: float


class EvalDetail(EvalOut):
    """An evaluation with its questions, once it has ended."""

    questions: list[JudgedOut]
