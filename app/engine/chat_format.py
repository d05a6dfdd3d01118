"""How families of models write thoughts and tool calls, and the grammars that force a call."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.engine.errors import InvalidRequest
from app.engine.sampling_params import StructuredOutputsParams

Tool = Mapping[str, Any]  # {"type": "function", "function": {"name": …, "parameters": schema}}

# As Python's `json.dumps` writes, which is what templates show and models have learnt.
_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """What stands around a model's thoughts."""

    start: str
    end: str


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a family writes tool calls.

    A call, or an array of calls, follows one of the tags `starts` and may be followed by one of
    `ends`. `is_bare`: an answer that begins with `{` may be a call too. `may_name_first`: the
    name may stand before the arguments. `id_length`: what the template wants, 0 for anything.
    """

    name: str
    starts: tuple[str, ...]
    ends: tuple[str, ...] = ()
    is_array: bool = False
    is_bare: bool = False
    may_name_first: bool = False
    arguments_key: str = "arguments"
    id_length: int = 0


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How a model writes what is not content; None where it does not."""

    tools: ToolFormat | None = None
    reasoning: ReasoningTags | None = None


THINK_TAGS = ReasoningTags("<think>", "</think>")
REASONING_FORMATS = {"think": THINK_TAGS}
TOOL_FORMATS = {
    tool_format.name: tool_format
    for tool_format in (
        ToolFormat("hermes", ("<tool_call>",), ("</tool_call>",)),
        ToolFormat("llama3_json", ("<|python_tag|>",), is_bare=True, arguments_key="parameters"),
        ToolFormat("mistral", ("[TOOL_CALLS]",), is_array=True, may_name_first=True, id_length=9),
        ToolFormat(
            "granite",
            ("<|tool_call|>", "<tool_call>"),
            ("<|/tool_call|>", "</tool_call>"),
            is_array=True,
        ),
        ToolFormat(
            "phi4_mini_json", ("functools", "<|tool_call|>"), ("<|/tool_call|>",), is_array=True
        ),
    )
}
# The first sign that a chat template holds tells the family.
_SIGNS = (
    ("[TOOL_CALLS]", "mistral"),
    ("<|/tool|>", "phi4_mini_json"),
    ("functools", "phi4_mini_json"),
    ("<|tool_call|>", "granite"),
    ("<tool_call>", "hermes"),
    ("<|python_tag|>", "llama3_json"),
    ('"parameters": dictionary of argument name', "llama3_json"),
)


def detect_chat_format(template: str | None) -> ChatFormat:
    """What a chat template says of its model."""
    source = template or ""
    tools = next((TOOL_FORMATS[name] for sign, name in _SIGNS if sign in source), None)
    return ChatFormat(tools, THINK_TAGS if THINK_TAGS.end in source else None)


def named_chat_format(
    detected: ChatFormat, tool_parser: str | None, reasoning_parser: str | None
) -> ChatFormat:
    """What was detected, with formats that are set by name in place of it."""
    tools, reasoning = detected.tools, detected.reasoning
    if tool_parser is not None:
        tools = _by_name("tool_parser", tool_parser, TOOL_FORMATS)
    if reasoning_parser is not None:
        reasoning = _by_name("reasoning_parser", reasoning_parser, REASONING_FORMATS)
    return ChatFormat(tools, reasoning)


def force_tool_calls(
    tools: Sequence[Tool],
    tool_format: ToolFormat | None,
    token_id: Callable[[str], int | None],
    *,
    name: str | None = None,
    is_parallel: bool = True,
) -> StructuredOutputsParams:
    """The grammar of an answer that calls tools and says nothing else.

    With `name` it calls that tool. The calls are written as the model's family writes them, or
    as bare JSON where it has no way of its own. `token_id` finds tags that are single tokens.
    """
    offered = [tool["function"] for tool in tools]
    chosen = [function for function in offered if name in (None, function["name"])]
    if not chosen:
        names = ", ".join(function["name"] for function in offered) or "none"
        raise InvalidRequest(f"tool_choice names {name}, the tools are: {names}")
    written = tool_format or TOOL_FORMATS["llama3_json"]
    rules = [_start_rule(written, token_id, is_parallel=is_parallel and name is None)]
    rules.append("call: " + " | ".join(f"call_{index}" for index in range(len(chosen))))
    for index, function in enumerate(chosen):
        parameters = {"type": "object", **(function.get("parameters") or {})}
        head = f'{{"name": {json.dumps(function["name"], ensure_ascii=False)}, '
        head += f'"{written.arguments_key}": '
        schema = json.dumps({**parameters, "x-guidance": _JSON_STYLE})
        rules.append(f'call_{index}: {json.dumps(head)} args_{index} "}}"')
        rules.append(f"args_{index}: %json {schema}")
    return StructuredOutputsParams(grammar="\n".join(rules))


def _start_rule(
    tool_format: ToolFormat, token_id: Callable[[str], int | None], *, is_parallel: bool
) -> str:
    def tag(text: str) -> str:
        number = token_id(text)
        return json.dumps(text) if number is None else f"<[{number}]>"

    if tool_format.is_bare:
        more = ' ("; " call)*' if is_parallel else ""
        return f"start: call{more}"
    start = tag(tool_format.starts[0])
    if tool_format.is_array:
        more = ' (", " call)*' if is_parallel else ""
        return f'start: {start} "[" call{more} "]"'
    one = f'{start} "\\n" call "\\n" {tag(tool_format.ends[0])}'
    more = ' ("\\n" one)*' if is_parallel else ""
    return f"start: one{more}\none: {one}"


def _by_name(setting: str, name: str, known: Mapping[str, Any]) -> Any:
    if name not in known:
        raise InvalidRequest(f"{setting} is {name}, known: {', '.join(known)}")
    return known[name]
