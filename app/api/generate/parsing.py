"""From generated text to an answer's parts: what is said, thought and called."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from app.api.generate.replies import FunctionCallOut, MessageOut, ToolCallOut
from app.api.generate.schemas import ChatIn, NamedTool
from app.engine import (
    ChatParser,
    ContentDelta,
    InvalidRequest,
    ReasoningDelta,
    SamplingParams,
    ToolCallDelta,
    force_tool_calls,
)
from app.engine.chat_format import TOOL_FORMATS
from app.engine_service import ServedModel

Delta = ContentDelta | ReasoningDelta | ToolCallDelta
BARE_FORMAT = TOOL_FORMATS["llama3_json"]  # of forced calls where a model has no way of its own
MAX_CALLS = 128  # of one answer, as OpenAI has it
PROMPT_END_TOKENS = 32


def is_forced(wanted: ChatIn) -> bool:
    """Whether the answer has to be tool calls."""
    return wanted.tool_choice == "required" or isinstance(wanted.tool_choice, NamedTool)


def with_tools(served: ServedModel, wanted: ChatIn, params: SamplingParams) -> SamplingParams:
    """The params under which calls and thoughts can be read, and forced where that is asked.

    Their tags may be special tokens, so these are shown.
    """
    chat_format = served.chat_format
    if chat_format.reasoning or (chat_format.tools and wanted.offers_tools):
        params = replace(params, skip_special_tokens=False)
    if not is_forced(wanted):
        return params
    if params.structured_outputs is not None:
        raise InvalidRequest(
            "the answer cannot be both a tool call and what response_format asks for: "
            "leave one of tool_choice and response_format out"
        )
    choice = wanted.tool_choice
    grammar = force_tool_calls(
        wanted.tool_dicts,
        chat_format.tools,
        served.llm.tokenizer.token_id,
        name=choice.function.name if isinstance(choice, NamedTool) else None,
        is_parallel=wanted.parallel_tool_calls is not False,
    )
    return replace(params, structured_outputs=grammar, skip_special_tokens=False)


def with_thoughts(
    served: ServedModel, params: SamplingParams, prompt_token_ids: Sequence[int]
) -> SamplingParams:
    """The params under which an answer's form holds after thoughts that the template opened."""
    structured, tags = params.structured_outputs, served.chat_format.reasoning
    ending = prompt_ending(served, prompt_token_ids).rstrip()
    if structured is None or tags is None or not ending.endswith(tags.start):
        return params
    return replace(params, structured_outputs=replace(structured, thoughts_end=tags.end))


def make_parser(served: ServedModel, wanted: ChatIn, prompt_token_ids: Sequence[int]) -> ChatParser:
    """The parser for an answer to this request."""
    chat_format = served.chat_format
    if is_forced(wanted):
        chat_format = replace(chat_format, tools=chat_format.tools or BARE_FORMAT)
    names = [tool.function.name for tool in wanted.tools or []] if wanted.offers_tools else []
    prompt = prompt_ending(served, prompt_token_ids)
    return ChatParser(chat_format, prompt=prompt, tool_names=names)


def prompt_ending(served: ServedModel, token_ids: Sequence[int]) -> str:
    """The prompt's end as text, where a template may have opened the thoughts."""
    ending = token_ids[-PROMPT_END_TOKENS:]
    return served.llm.tokenizer.decode(ending, skip_special_tokens=False)


def message_of(deltas: Iterable[Delta], wanted: ChatIn) -> MessageOut:
    """The parts as one message, without the thoughts and further calls that are not wanted."""
    message, max_calls = MessageOut(), 1 if wanted.parallel_tool_calls is False else MAX_CALLS
    for delta in deltas:
        match delta:
            case ContentDelta(text):
                message.content = (message.content or "") + text
            case ReasoningDelta(text) if wanted.include_reasoning:
                message.reasoning_content = (message.reasoning_content or "") + text
            case ToolCallDelta(index, id, name, arguments) if index < max_calls:
                call = ToolCallOut(
                    index=index,
                    id=id,
                    type="function",
                    function=FunctionCallOut(name=name, arguments=arguments),
                )
                message.tool_calls = [*(message.tool_calls or []), call]
    return message
