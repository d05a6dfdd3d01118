"""Text to tokens and back, and chat messages to prompts.

Reads the files that Hugging Face tokenizers save; needs `tokenizers` and Jinja2, not transformers.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as FastTokenizer

from app.engine.errors import InvalidRequest, ModelNotFound

ChatMessage = Mapping[str, Any]  # role, content, and what a template knows besides

# Read by templates as variables.
NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


class Tokenizer:
    """A byte-exact tokenizer with the model's chat template; safe from several threads."""

    def __init__(
        self, fast: FastTokenizer, named_tokens: Mapping[str, str], template: Template | None
    ) -> None:
        self._fast = fast
        self._named_tokens = named_tokens
        self._template = template

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read `tokenizer.json` and, where they are there, its config and chat template."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelNotFound(
                f"{folder} has no tokenizer.json: save the tokenizer with a fast tokenizer class"
            )
        config_path = folder / "tokenizer_config.json"
        config: dict[str, Any] = {}
        if config_path.is_file():
            config = json.loads(config_path.read_text(encoding="utf-8"))
        named = {name: _token_text(config[name]) for name in NAMED_TOKENS if config.get(name)}
        source = _template_source(folder, config)
        template = None if source is None else compile_template(source)
        return cls(FastTokenizer.from_file(str(path)), named, template)

    @property
    def has_chat_template(self) -> bool:
        """Whether the model came with a chat template."""
        return self._template is not None

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return self._fast.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; with the model's own start token if it uses one."""
        return self._fast.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids; incomplete UTF-8 becomes U+FFFD."""
        return self._fast.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def token_id(self, token: str) -> int | None:
        """The id of a token by its exact text."""
        return self._fast.token_to_id(token)

    def render_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt of a conversation, as the model's template writes it."""
        if self._template is None:
            return _plain_chat(messages)
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=list(tools) if tools else None,
                add_generation_prompt=add_generation_prompt,
                **self._named_tokens,
            )
        except TemplateError as error:
            raise InvalidRequest(f"the chat template refused the messages: {error}") from error

    def apply_chat_template(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Token ids of a conversation, ready for the model to go on."""
        text = self.render_chat(messages, tools=tools, add_generation_prompt=add_generation_prompt)
        # A template writes the start token itself.
        return self.encode(text, add_special_tokens=self._template is None)


def compile_template(source: str) -> Template:
    """Compile a chat template: a stranger's code, so it runs in a sandbox."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise ModelNotFound(f"the model's chat template cannot be compiled: {error}") from error


def _template_source(folder: Path, config: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    source = config.get("chat_template")
    if isinstance(source, list):  # several templates by name
        by_name = {entry["name"]: entry["template"] for entry in source}
        source = by_name.get("default")
    return source if isinstance(source, str) else None


def _plain_chat(messages: Sequence[ChatMessage]) -> str:
    """For models that know no chat: the turns as plain text."""
    turns = [f"{str(m['role']).capitalize()}: {m['content']}" for m in messages]
    return "\n\n".join([*turns, "Assistant:"])


def _token_text(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _to_json(value: object, indent: int | None = None, **_: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)
