"""Chat templates: a conversation becomes a prompt, as Hugging Face's templates write it.

A template is a stranger's code, so it runs in Jinja2's sandbox, and its loops, its repetitions and
its output are bounded. No tokens here.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import count
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from app.engine.errors import InvalidRequest, ModelNotFound

ChatMessage = Mapping[str, Any]  # role, content, and what a template knows besides
Options = Mapping[str, Any]

MAX_PROMPT_CHARS = 16_000_000
MAX_LOOP_STEPS = 2_000_000
MAX_REPEATED = 1_000_000  # characters or items that one multiplication may make
MAX_EXPONENT = 64
MAX_INTEGER_BITS = 4096
_TICK = "_tick"


class ChatTemplate:
    """A model's template, or its several, by name; safe from several threads."""

    def __init__(self, sources: Mapping[str, str], named_tokens: Mapping[str, str]) -> None:
        self._templates = {name: compile_template(source) for name, source in sources.items()}
        self.named_tokens = named_tokens
        self.source = "\n".join(sources.values())

    def render(
        self, messages: Sequence[ChatMessage], options: Options, *, is_continued: bool = False
    ) -> str:
        """The prompt of a conversation; raise InvalidRequest where the template refuses.

        `options` are what the template reads besides the messages: tools, documents,
        add_generation_prompt, enable_thinking, … With `is_continued` the prompt ends within the
        last message, for the model to go on.
        """
        prepared = [prepare_message(message) for message in messages]
        tools = options.get("tools")
        variables = {**self.named_tokens, "documents": None, **options, "tools": tools or None}
        text = self._render(self._choose(has_tools=bool(tools)), prepared, variables)
        return _cut_after(text, prepared) if is_continued else text

    def _choose(self, *, has_tools: bool) -> Template:
        wanted = "tool_use" if has_tools and "tool_use" in self._templates else "default"
        return self._templates.get(wanted) or next(iter(self._templates.values()))

    @staticmethod
    def _render(
        template: Template, messages: list[dict[str, Any]], variables: Mapping[str, Any]
    ) -> str:
        steps = count(1)
        variables = {**variables, "messages": messages, _TICK: lambda: _check_steps(next(steps))}
        try:
            return "".join(_bounded(template.generate(**variables)))
        except TemplateError as error:
            raise InvalidRequest(f"the chat template refused the messages: {error}") from error
        except RecursionError as error:
            raise InvalidRequest("the chat template calls itself without end") from error
        # What the messages lack, or have of another type than the template expects.
        except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
            raise InvalidRequest(f"the chat template failed on the messages: {error}") from error


def given_template(source: str, model: ChatTemplate | None) -> ChatTemplate:
    """A template that a caller gives in place of the model's; raise InvalidRequest for none."""
    try:
        return ChatTemplate({"default": source}, model.named_tokens if model else {})
    except ModelNotFound as error:
        raise InvalidRequest(str(error)) from error


def prepare_message(message: ChatMessage) -> dict[str, Any]:
    """A message as templates expect it: text for content, dicts for the arguments of tool calls."""
    prepared = {**message, "content": _as_text(message.get("content"))}
    if message.get("tool_calls"):
        prepared["tool_calls"] = [_prepare_call(call) for call in message["tool_calls"]]
    return prepared


def compile_template(source: str) -> Template:
    """Compile a template; raise ModelNotFound where it is none."""
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise ModelNotFound(f"the chat template cannot be compiled: {error}") from error


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with a count of all loops' steps and a bound on repetition."""

    intercepted_binops = frozenset({"*", "**"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        for loop in template.find_all(nodes.For):
            tick = nodes.Call(nodes.Name(_TICK, "load"), [], [], None, None)
            loop.body.insert(0, nodes.ExprStmt(tick, lineno=loop.lineno))
        return template

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute what a template multiplies, unless it would take the memory."""
        if operator == "**" and not abs(right) <= MAX_EXPONENT:
            raise SecurityError(f"it raises to the power of {right}, the limit is {MAX_EXPONENT}")
        for one, other in ((left, right), (right, left)):
            is_large = isinstance(one, int) and one.bit_length() > MAX_INTEGER_BITS
            if is_large or (
                isinstance(one, str | list | tuple) and len(one) * int(other) > MAX_REPEATED
            ):
                raise SecurityError(f"{operator} makes more than the limit of {MAX_REPEATED}")
        return super().call_binop(context, operator, left, right)


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's words for training; here it changes nothing."""

    tags: set[str] = {"generation"}  # noqa: RUF012  the base class declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The tag's body, as it is."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _bounded(pieces: Iterator[str]) -> Iterator[str]:
    num_chars = 0
    for piece in pieces:
        num_chars += len(piece)
        if num_chars > MAX_PROMPT_CHARS:
            raise SecurityError(f"it writes more than {MAX_PROMPT_CHARS} characters")
        yield piece


def _check_steps(num_steps: int) -> None:
    if num_steps > MAX_LOOP_STEPS:
        raise SecurityError(f"its loops take more than {MAX_LOOP_STEPS} steps")


def _as_text(content: Any) -> str:
    """Content as text: a string, nothing, or OpenAI's list of parts, joined by line breaks."""
    if content is None:
        return ""
    if not isinstance(content, Sequence) or isinstance(content, str):
        return str(content)
    return "\n".join(_part_text(part) for part in content)


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
    if kind not in ("text", "input_text", "output_text", "refusal"):
        raise InvalidRequest(f"a message holds a part of type {kind}, the model takes text only")
    return str(part.get("text") or part.get("refusal") or "")


def _prepare_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function") or {})
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            function["arguments"] = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(
                f"the arguments of tool call {function.get('name')} are no JSON: {error}"
            ) from error
    return {**call, "function": function}


def _cut_after(text: str, messages: list[dict[str, Any]]) -> str:
    """The prompt up to the end of the last message's content."""
    if not messages or not messages[-1]["content"].strip():
        raise InvalidRequest("continue_final_message needs a last message with content")
    content = messages[-1]["content"]
    for wanted in (content, content.strip()):
        at = text.rfind(wanted)
        if at >= 0:
            return text[: at + len(wanted)]
    raise InvalidRequest(
        "continue_final_message: the chat template does not write the last message as it is"
    )


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)
