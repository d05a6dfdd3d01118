"""The wire models of /v1: OpenAI's shapes, with our sources beside them.

Unlike under /api, fields that we do not know are ignored: clients send many. What would change
the answer's meaning and is not supported is refused.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from app.api.filters import FilterIn
from app.api.schemas import CollectionIds, LanguageCode, SourceOut
from app.api.wire_model import Text, WireModel

MAX_MESSAGE_CHARACTERS = 200_000
MAX_PARTS = 1000


class TextPart(BaseModel):
    """A part of a message; only text is read."""

    type: Literal["text"]
    text: Annotated[Text, Field(max_length=MAX_MESSAGE_CHARACTERS)]


class ChatMessageIn(BaseModel):
    """One turn; the tool and function roles are not supported."""

    role: Literal["system", "developer", "user", "assistant"]
    content: (
        Annotated[Text, Field(max_length=MAX_MESSAGE_CHARACTERS)]
        | Annotated[list[TextPart], Field(max_length=MAX_PARTS)]
        | None
    ) = None

    @property
    def text(self) -> str:
        """The content as one string."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""

    @model_validator(mode="after")
    def limit(self) -> Self:
        """The parts together are as long as one text may be."""
        if (length := len(self.text)) > MAX_MESSAGE_CHARACTERS:
            raise ValueError(f"has {length} characters, the limit is {MAX_MESSAGE_CHARACTERS}")
        return self


class StreamOptions(BaseModel):
    """What a stream carries beside its text."""

    include_usage: bool = False


class RagOptions(WireModel):
    """Ours, through `extra_body={"rag": {…}}`: where to look, the answer's language.

    With `markdown_sources` the text ends with a list of what it cites, for clients that drop the
    other fields.
    """

    collection_ids: Annotated[CollectionIds, Field(default_factory=list)]
    filters: FilterIn | None = None
    markdown_sources: bool = False
    language: LanguageCode | None = None


class ChatCompletionIn(BaseModel):
    """A chat completion. `model` is "folio", a knowledge base, or the language model itself."""

    model_config = ConfigDict(extra="ignore")

    model: str
    messages: Annotated[list[ChatMessageIn], Field(min_length=1, max_length=1000)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    rag: Annotated[RagOptions, Field(default_factory=RagOptions)]
    n: Literal[1] | None = None
    stop: Any = None
    tools: Any = None
    response_format: Any = None
    logprobs: bool | None = None

    @field_validator("stop", "tools", "logprobs")
    @classmethod
    def refuse(cls, value: object) -> None:
        """Say that these are not supported, unless they ask for nothing."""
        if value:
            raise ValueError("is not supported")

    @field_validator("response_format")
    @classmethod
    def refuse_formats(cls, value: object) -> None:
        """Only plain text is written."""
        if value and value != {"type": "text"}:
            raise ValueError("is not supported: answers are text")


class UsageTokens(BaseModel):
    """Token counts under OpenAI's names."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class UrlCitation(BaseModel):
    """The characters of the answer that a source supports, and the source in our viewer."""

    start_index: int
    end_index: int
    title: str
    url: str


class Annotation(BaseModel):
    """OpenAI's wrapping of a citation."""

    type: Literal["url_citation"] = "url_citation"
    url_citation: UrlCitation


class SearchResult(BaseModel):
    """A source in Perplexity's shape."""

    title: str
    url: str
    snippet: str


class Grounding(BaseModel):
    """The sources in every form that clients read; `[n]` in the text is number n of each."""

    citations: list[str]
    search_results: list[SearchResult]
    sources: list[SourceOut]


class AssistantMessage(BaseModel):
    """The answer, or with all fields optional a piece of it."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    annotations: list[Annotation] | None = None


class Choice(BaseModel):
    """The one choice of a completion."""

    index: Literal[0] = 0
    message: AssistantMessage
    finish_reason: Literal["stop", "length"]


class ChatCompletion(Grounding):
    """A whole answer; `is_refusal` when the documents do not hold it."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: UsageTokens
    is_refusal: bool


class ChunkChoice(BaseModel):
    """What a chunk of a stream adds."""

    index: Literal[0] = 0
    delta: AssistantMessage
    finish_reason: Literal["stop", "length"] | None = None


class ChatCompletionChunk(BaseModel):
    """A piece of a streamed answer; fields that are None are left out on the wire."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: UsageTokens | None = None
    is_refusal: bool | None = None
    citations: list[str] | None = None
    search_results: list[SearchResult] | None = None
    sources: list[SourceOut] | None = None


class ModelOut(BaseModel):
    """Something that a client can name as `model`."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    kind: Literal["all knowledge bases", "knowledge base", "language model"]
    collection_id: str | None = None


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[ModelOut]


class OpenAIError(BaseModel):
    """What went wrong, under OpenAI's names."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIErrorOut(BaseModel):
    """The body of every error answer under /v1."""

    error: OpenAIError
