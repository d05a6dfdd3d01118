"""Turns an answer's text, as it grows, into content, reasoning and tool calls.

Families write calls and thoughts in ways of their own (`chat_format.py`). However the text is cut
into pieces, the parts are the same. No half of a tag is ever shown, a call is told when it is
whole, and what only looked like a call becomes content: only white space around tags is dropped.
"""

import json
import re
import secrets
import string
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from app.engine.chat_format import ChatFormat, ToolFormat

_JSON_CHARACTERS = frozenset(string.ascii_letters + string.digits + string.whitespace + "+-.:,")
# Mistral's newer models write the name before the arguments: get_weather[ARGS]{"city": ...}
_NAME = re.compile(
    r"\s{0,8}([\w.-]{1,128})\s{0,8}(?:\[CALL_ID\]\w{0,64})?(?:\[ARGS\])?\s{0,8}(?=\{)"
)
_NAME_BEGUN = re.compile(r"[\w.\[\]\s-]{0,256}")  # no shorter than what _NAME takes


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """More of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A whole call; `index` counts the answer's calls from 0, `arguments` is a JSON object."""

    index: int
    id: str
    name: str
    arguments: str


Delta = ContentDelta | ReasoningDelta | ToolCallDelta


class ChatParser:
    """Follows one answer; `prompt` is asked whether the template opened the thoughts itself."""

    def __init__(
        self,
        chat_format: ChatFormat,
        *,
        prompt: str = "",
        tool_names: Collection[str] = (),
        make_id: Callable[[int], str] | None = None,
    ) -> None:
        self._reasoning = chat_format.reasoning
        self._tools = chat_format.tools if tool_names else None
        self._tool_names = frozenset(tool_names)
        self._make_id = make_id or random_id
        self._buffer = ""  # text that is not told yet
        self._lead = ""  # white space and tag before the call in `_buffer`
        self._scanner = _JsonScanner()
        self._call_name: str | None = None
        self._num_calls = 0
        self._skips_space = False
        self._has_content = False
        self._state = self._at_start
        if self._reasoning is not None and prompt.rstrip().endswith(self._reasoning.start):
            self._begin_reasoning()

    def feed(self, text: str) -> list[Delta]:
        """What a piece of text adds."""
        self._buffer += text
        return self._advance(is_last=False)

    def finish(self) -> list[Delta]:
        """What was held back, now that nothing follows."""
        return self._advance(is_last=True)

    def _advance(self, *, is_last: bool) -> list[Delta]:
        """Let the state take from the buffer until it, or the one it left for, wants more."""
        deltas: list[Delta] = []
        state = None
        while state != self._state:
            state = self._state
            deltas += state(is_last)
        return deltas

    def _at_start(self, is_last: bool) -> list[Delta]:
        tags, text = self._reasoning, self._buffer.lstrip()
        if tags is None:
            self._state = self._in_content
        elif text.startswith(tags.start):
            self._buffer = text[len(tags.start) :]
            self._begin_reasoning()
        elif is_last or not tags.start.startswith(text):
            self._state = self._in_content
        return []

    def _begin_reasoning(self) -> None:
        self._skips_space = True
        self._state = self._in_reasoning

    def _in_reasoning(self, is_last: bool) -> list[Delta]:
        assert self._reasoning is not None
        end = self._reasoning.end
        thought, tag, rest = self._buffer.partition(end)
        if tag:
            self._buffer = thought.rstrip()
            told = self._take(len(self._buffer))
            self._buffer, self._skips_space = rest, True
            self._state = self._in_content
        else:
            told = self._take_settled((end,), is_last=is_last, may_drop_space=True)
        return [ReasoningDelta(told)] if told else []

    def _in_content(self, is_last: bool) -> list[Delta]:
        tools, deltas = self._tools, []
        if tools is None:
            told = self._take(len(self._buffer))
        elif tools.is_bare and not self._has_content and self._buffer.lstrip()[:1] == "{":
            told = ""
            self._begin_call(len(self._buffer) - len(self._buffer.lstrip()), 0)
        elif found := min(
            ((at, -len(tag)) for tag in tools.starts if (at := self._buffer.find(tag)) >= 0),
            default=None,
        ):
            at, length = found[0], -found[1]
            num_told = len(self._buffer[:at].rstrip())
            told = self._take(num_told)
            self._begin_call(at - num_told, length)
        else:
            told = self._take_settled(tools.starts, is_last=is_last, may_drop_space=False)
        if told:
            self._has_content = True
            deltas = [ContentDelta(told)]
        return [*deltas]

    def _begin_call(self, num_space: int, tag_length: int) -> None:
        self._lead = self._buffer[: num_space + tag_length]
        self._buffer = self._buffer[num_space + tag_length :]
        self._scanner, self._call_name = _JsonScanner(), None
        self._state = self._in_call

    def _in_call(self, is_last: bool) -> list[Delta]:
        assert self._tools is not None
        if self._tools.may_name_first and not self._take_name(is_last):
            return []
        end, is_json = self._scanner.scan(self._buffer)
        if end is None:
            return self._give_up(len(self._buffer)) if is_last else []
        calls = self._read_calls(self._buffer[:end], self._tools) if is_json else None
        if calls is None:
            return self._give_up(end)
        self._buffer = self._buffer[end:]
        self._state = self._after_call
        deltas: list[Delta] = []
        for name, arguments in calls:
            call_id = self._make_id(self._tools.id_length)
            deltas.append(ToolCallDelta(self._num_calls, call_id, name, arguments))
            self._num_calls += 1
        return deltas

    def _take_name(self, is_last: bool) -> bool:
        """Move a name before the arguments into the lead; False while it may still grow."""
        if self._call_name is not None or self._buffer.lstrip()[:1] in ("{", "["):
            return True
        if match := _NAME.match(self._buffer):
            self._call_name = match[1]
            self._lead += match[0]
            self._buffer = self._buffer[match.end() :]
            return True
        return is_last or _NAME_BEGUN.fullmatch(self._buffer) is None

    def _after_call(self, is_last: bool) -> list[Delta]:
        """Swallow the end tag; a separator before another call is its lead."""
        assert self._tools is not None
        tools, text = self._tools, self._buffer.lstrip()
        expected = (*tools.ends, ";") if tools.is_bare else tools.ends
        if not is_last and any(tag != text and tag.startswith(text) for tag in expected):
            return []
        found = next((tag for tag in expected if text.startswith(tag)), "")
        rest = text[len(found) :].lstrip()
        if found == ";":
            if not rest and not is_last:
                return []
            if rest[:1] == "{":
                self._begin_call(len(self._buffer) - len(rest), 0)
                return []
            found = ""
        self._skips_space = True
        self._buffer = text[len(found) :]
        self._state = self._in_content
        return []

    def _read_calls(self, payload: str, tools: ToolFormat) -> list[tuple[str, str]] | None:
        """Names and arguments; None if the text is no call."""
        try:
            value = json.loads(payload, strict=False)
        except (ValueError, RecursionError):
            return None
        if self._call_name is not None:
            value = {"name": self._call_name, "arguments": value}
        calls = [_read_call(item) for item in (value if isinstance(value, list) else [value])]
        # Without a tag any JSON object might be the answer: it has to name a tool on offer.
        is_tagged = bool(self._lead.strip(" \t\r\n;"))
        known = [call for call in calls if call and (is_tagged or call[0] in self._tool_names)]
        return known if known and len(known) == len(calls) else None

    def _give_up(self, length: int) -> list[Delta]:
        """Tell the lead and the buffer's beginning as content."""
        text = self._lead + self._buffer[:length]
        self._buffer = self._buffer[length:]
        self._has_content, self._skips_space = True, False
        self._state = self._in_content
        return [ContentDelta(text)] if text else []

    def _take(self, length: int) -> str:
        """Take the buffer's beginning, without white space where it is to be skipped."""
        text = self._buffer[:length]
        if self._skips_space:
            text = text.lstrip()
        self._buffer = self._buffer[length:]
        self._skips_space = self._skips_space and not text
        return text

    def _take_settled(self, tags: Collection[str], *, is_last: bool, may_drop_space: bool) -> str:
        """Take all but what may be the beginning of a tag, and white space before one."""
        if is_last:
            text = self._buffer.rstrip() if may_drop_space else self._buffer
            told = self._take(len(text))
            self._buffer = ""
            return told
        num_held = max((_overlap(self._buffer, tag) for tag in tags), default=0)
        settled = self._buffer[: len(self._buffer) - num_held]
        return self._take(len(settled.rstrip()))


class _JsonScanner:
    """Finds the end of an object or array that grows, looking at each character once."""

    def __init__(self) -> None:
        self._position = 0
        self._open: list[str] = []
        self._is_in_string = False
        self._is_escaped = False

    def scan(self, text: str) -> tuple[int | None, bool]:
        """Where the value ends, or stops being JSON; None while it goes on. Whether it is JSON."""
        for position in range(self._position, len(text)):
            character = text[position]
            if self._is_in_string:
                self._go_on_in_string(character)
            elif not self._go_on(character):
                return position, False
            elif not self._open and character in "}]":
                return position + 1, True
        self._position = len(text)
        return None, True

    def _go_on_in_string(self, character: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif character == "\\":
            self._is_escaped = True
        elif character == '"':
            self._is_in_string = False

    def _go_on(self, character: str) -> bool:
        if character in "{[":
            self._open.append("}" if character == "{" else "]")
            return True
        if not self._open:
            return character.isspace()
        if character in "}]":
            return self._open.pop() == character
        self._is_in_string = character == '"'
        return self._is_in_string or character in _JSON_CHARACTERS


def random_id(length: int) -> str:
    """An id for a call: `call_` and random letters, or letters alone where a family counts them."""
    letters = "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(24))
    return letters[:length] if length else f"call_{letters}"


def _read_call(item: Any) -> tuple[str, str] | None:
    """Name and arguments of `{"name": …, "arguments" or "parameters": …}`."""
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        return None
    arguments = item.get("arguments", item.get("parameters"))
    if isinstance(arguments, str):  # written as JSON within JSON
        try:
            arguments = json.loads(arguments, strict=False)
        except (ValueError, RecursionError):
            return None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        return None
    return item["name"], json.dumps(arguments, ensure_ascii=False)


def _overlap(text: str, tag: str) -> int:
    """Length of the longest end of `text` that begins `tag`."""
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0
