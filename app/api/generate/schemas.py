"""What clients of the engine send: OpenAI's shapes, with what vLLM adds.

Unknown fields are ignored, as OpenAI's server does: clients send many. Ranges are the engine's
business; its refusals name them.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_PROMPTS = 1024
TokenId = Annotated[int, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
# a text, its tokens, or several of either
Texts = (
    str
    | TokenIds
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
)


class StreamOptions(BaseModel):
    """What a stream carries beside its text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class QuoteSourceIn(BaseModel):
    """A source's number, its sentences that may be quoted, and a prior for each of them."""

    model_config = ConfigDict(extra="forbid")

    number: int
    sentences: list[str]
    priors: list[float] = []


class QuoteOnly(BaseModel):
    """An answer of sentences of the sources, each followed by its source's number in brackets.

    The refusal, if given, is the only other answer. Priors are added to the model's logits,
    `prior_weight` times, where a choice is made.
    """

    model_config = ConfigDict(extra="forbid")

    sources: list[QuoteSourceIn]
    refusal: str | None = None
    max_sentences: int = 3
    prior_weight: float = 1.0
    refusal_prior: float = 0.0
    end_prior: float = 0.0


class StructuredOutputs(BaseModel):
    """vLLM's `structured_outputs`, and `quote_only` of our own: one of them."""

    model_config = ConfigDict(extra="forbid")

    json_: Annotated[dict[str, Any] | str | None, Field(alias="json")] = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    quote_only: QuoteOnly | None = None


class JsonSchema(BaseModel):
    """OpenAI's wrapping of a JSON schema."""

    name: str
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """How the answer is to be written."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def has_schema(self) -> Self:
        """A format that is a schema brings it."""
        has_schema = self.json_schema is not None and self.json_schema.schema_ is not None
        if self.type == "json_schema" and not has_schema:
            raise ValueError("type json_schema needs json_schema.schema")
        return self


class GenerationIn(BaseModel):
    """What chats and completions have in common. None: as the model's makers recommend."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[TokenId, float] | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    max_tokens: int | None = None
    user: str | None = None
    # from here on vLLM's
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[TokenId] | None = None
    bad_words: list[str] | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    prompt_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    echo: bool = False
    add_special_tokens: bool | None = None
    priority: int = 0
    cache_salt: str = ""

    @property
    def has_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def has_usage_in_chunks(self) -> bool:
        """Whether each chunk has the token counts so far."""
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)


class TextPart(BaseModel):
    """A part of a message; only text is read."""

    type: Literal["text"]
    text: str


class FunctionCall(BaseModel):
    """What an assistant called; `arguments` is JSON."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call of a tool in an assistant's message."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(BaseModel):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    @property
    def text(self) -> str:
        """The content as one string."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


class FunctionDefinition(BaseModel):
    """A function that the model may call."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """A tool that the model may call."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(BaseModel):
    """The name of a function."""

    name: str


class NamedTool(BaseModel):
    """The tool that is to be called."""

    type: Literal["function"] = "function"
    function: NamedFunction


class ConversationIn(BaseModel):
    """Messages, and how the model's template is to write them."""

    messages: list[ChatMessage] | None = None
    tools: list[Tool] | None = None
    chat_template: None = None  # refused: a stranger's program; the model's own is used
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False

    @model_validator(mode="after")
    def can_continue(self) -> Self:
        """Only the assistant's own message can be gone on with."""
        if self.continue_final_message and self.last_role != "assistant":
            raise ValueError("continue_final_message needs a last message of the assistant")
        return self

    @property
    def offers_tools(self) -> bool:
        """Whether the model may call a tool."""
        return bool(self.tools)

    @property
    def tool_dicts(self) -> list[dict[str, Any]]:
        """The tools as templates read them."""
        return [tool.model_dump(exclude_none=True) for tool in self.tools or []]

    @property
    def last_role(self) -> str | None:
        """Who spoke last."""
        return self.messages[-1].role if self.messages else None


class ChatIn(GenerationIn, ConversationIn):
    """A chat completion."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    include_reasoning: bool = True  # vLLM's

    @property
    def offers_tools(self) -> bool:
        """Whether the model may call a tool."""
        return bool(self.tools) and self.tool_choice != "none"

    @model_validator(mode="after")
    def fits_together(self) -> Self:
        """What one field asks of another."""
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        names = [tool.function.name for tool in self.tools or []]
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(
                f"tool_choice names {self.tool_choice.function.name}, tools have "
                f"{', '.join(names) or 'none'}"
            )
        if self.tool_choice in ("required", "auto") and not names:
            raise ValueError(f"tool_choice {self.tool_choice} needs tools")
        return self


class CompletionIn(GenerationIn):
    """A text completion: a prompt, several, or their tokens."""

    prompt: Texts
    logprobs: int | None = None
    suffix: None = None  # refused: the models are not trained to fill in
    best_of: int | None = None

    @model_validator(mode="after")
    def takes_all(self) -> Self:
        """Choosing the best of more answers than are returned is not supported."""
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError(f"best_of is {self.best_of}, not supported: ask for n answers")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is 0: that needs echo")
        return self


class EmbeddingIn(BaseModel):
    """Texts, or their tokens, to make vectors of."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    input: Texts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None
    pooling_type: Literal["last", "mean"] = "last"
    normalize: bool = True
    priority: int = 0
    cache_salt: str = ""


class TokenizeIn(ConversationIn):
    """A text, or a conversation, to tokenise."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    prompt: str | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False

    @model_validator(mode="after")
    def has_one(self) -> Self:
        """Either a text or a conversation."""
        if (self.prompt is None) == (not self.messages):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeIn(BaseModel):
    """Tokens to make a text of."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    tokens: list[TokenId]
