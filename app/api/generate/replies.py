"""What clients of the engine get, in OpenAI's shapes.

Fields that are None are left out, but for those that OpenAI's API always has.
"""

from typing import Any, Literal

from pydantic import BaseModel

FinishReason = Literal["stop", "length", "tool_calls"]


class PromptTokensDetails(BaseModel):
    """Prompt tokens that were found in the prefix cache."""

    cached_tokens: int


class Usage(BaseModel):
    """Token counts of a request, its n answers together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None


class TopLogprob(BaseModel):
    """A token that might have been chosen; its text and its bytes in UTF-8."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token that was chosen, and its rivals."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log probabilities of a chat's tokens."""

    content: list[TokenLogprob]


class FunctionCallOut(BaseModel):
    """A called function, or in a stream a piece of it; `arguments` is JSON."""

    name: str | None = None
    arguments: str | None = None


class ToolCallOut(BaseModel):
    """A call of a tool; `index` is set in streams."""

    index: int | None = None
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCallOut


class MessageOut(BaseModel):
    """An answer, or in a stream a piece of it."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallOut] | None = None


class ChatChoice(BaseModel):
    """One of the n answers."""

    index: int
    message: MessageOut
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason
    stop_reason: int | str | None = None


class PromptLogprob(BaseModel):
    """vLLM's form of a token's log probability."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[int, PromptLogprob] | None]


class ChatCompletion(BaseModel):
    """A whole chat completion."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | None = None


class ChatChunkChoice(BaseModel):
    """What a chunk adds to one of the answers."""

    index: int
    delta: MessageOut
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


class ChatChunk(BaseModel):
    """A piece of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionLogprobs(BaseModel):
    """Log probabilities of a completion's tokens, in the old form: lists of the same length."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(BaseModel):
    """One of the answers, or in a stream a piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: PromptLogprobs | None = None


class Completion(BaseModel):
    """A completion, or a piece of a streamed one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class EmbeddingOut(BaseModel):
    """One vector: numbers, or float32 in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Token counts of all texts together."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """The vectors, in the order of the texts."""

    object: Literal["list"] = "list"
    id: str
    created: int
    model: str
    data: list[EmbeddingOut]
    usage: EmbeddingUsage


class ModelCard(BaseModel):
    """The model; `max_model_len` is the most tokens of prompt and answer together."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    root: str
    parent: str | None = None
    max_model_len: int


class ModelCards(BaseModel):
    """The models that can be named."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Tokens(BaseModel):
    """A tokenised text."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(BaseModel):
    """The text of tokens."""

    prompt: str


class Version(BaseModel):
    """The version of Folio."""

    version: str


def dump(reply: BaseModel) -> dict[str, Any]:
    """The reply as JSON values, without what is None where OpenAI's API may lack it."""
    values = reply.model_dump(mode="json", exclude_none=True)
    for choice in values.get("choices", ()):
        choice.setdefault("finish_reason", None)
        choice.setdefault("logprobs", None)
        choice.get("message", {}).setdefault("content", None)
    return values
