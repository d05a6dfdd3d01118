"""Text to tokens and back, and chat messages to prompts.

Reads the files that Hugging Face tokenizers save; needs `tokenizers`, not transformers.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from tokenizers import Tokenizer as FastTokenizer

from app.engine.chat_format import ChatFormat, detect_chat_format
from app.engine.chat_template import ChatMessage, ChatTemplate, given_template, prepare_message
from app.engine.errors import InvalidRequest, ModelNotFound

__all__ = ["ChatMessage", "ChatOptions", "Tokenizer"]

# Read by templates as variables.
NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
TEMPLATES_GLOB = "additional_chat_templates/*.jinja"


class ChatOptions(TypedDict, total=False):
    """What `Tokenizer.render_chat` takes besides the messages."""

    chat_template: str | None
    tools: Sequence[Mapping[str, Any]] | None
    add_generation_prompt: bool
    continue_final_message: bool
    documents: Sequence[Mapping[str, Any]] | None
    chat_template_kwargs: Mapping[str, Any] | None


class Tokenizer:
    """A byte-exact tokenizer with the model's chat template; safe from several threads."""

    def __init__(self, fast: FastTokenizer, template: ChatTemplate | None) -> None:
        self._fast = fast
        self._template = template
        added = fast.get_added_tokens_decoder()
        self.special_token_ids = frozenset(id_ for id_, token in added.items() if token.special)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read `tokenizer.json` and, where they are there, its config and chat template."""
        fast = _load_fast(folder)
        config_path = folder / "tokenizer_config.json"
        config: dict[str, Any] = {}
        if config_path.is_file():
            config = json.loads(config_path.read_text(encoding="utf-8"))
        named = {name: _token_text(config[name]) for name in NAMED_TOKENS if config.get(name)}
        sources = _template_sources(folder, config)
        return cls(fast, ChatTemplate(sources, named) if sources else None)

    @property
    def has_chat_template(self) -> bool:
        """Whether the model came with a chat template."""
        return self._template is not None

    @property
    def chat_format(self) -> ChatFormat:
        """How the model writes thoughts and tool calls, as far as its template tells."""
        return detect_chat_format(None if self._template is None else self._template.source)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return self._fast.get_vocab_size(with_added_tokens=True)

    def to_json(self) -> str:
        """The whole tokenizer as `tokenizer.json` writes it."""
        return self._fast.to_str()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; with the model's own start token if it uses one."""
        try:
            return self._fast.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError as error:  # half of a surrogate pair, which JSON can hold, is no text
            raise InvalidRequest(f"the text is no Unicode that UTF-8 can write: {error}") from error

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids; incomplete UTF-8 becomes U+FFFD."""
        return self._fast.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def token_id(self, token: str) -> int | None:
        """The id of a token by its exact text."""
        return self._fast.token_to_id(token)

    def render_chat(self, messages: Sequence[ChatMessage], **options: Unpack[ChatOptions]) -> str:
        """The prompt of a conversation, as `chat_template` or the model's own writes it.

        With `continue_final_message` the prompt ends within the last message, and
        `add_generation_prompt` does not matter.
        """
        template = self._template
        if (source := options.get("chat_template")) is not None:
            template = given_template(source, template)
        if template is None:
            return _plain_chat([prepare_message(message) for message in messages])
        is_continued = options.get("continue_final_message", False)
        is_prompted = options.get("add_generation_prompt", True) and not is_continued
        variables = {
            "documents": list(options.get("documents") or ()) or None,
            **(options.get("chat_template_kwargs") or {}),
            "tools": list(options.get("tools") or ()) or None,
            "add_generation_prompt": is_prompted,
        }
        return template.render(messages, variables, is_continued=is_continued)

    def apply_chat_template(
        self, messages: Sequence[ChatMessage], **options: Unpack[ChatOptions]
    ) -> list[int]:
        """Token ids of a conversation, ready for the model to go on; options as `render_chat`'s."""
        text = self.render_chat(messages, **options)
        # A template writes the start token itself.
        has_template = self._template is not None or options.get("chat_template") is not None
        return self.encode(text, add_special_tokens=not has_template)


def _template_sources(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates by name; a single one is the default."""
    path = folder / "chat_template.jinja"
    more = {p.stem: p.read_text(encoding="utf-8") for p in folder.glob(TEMPLATES_GLOB)}
    if path.is_file():
        return {"default": path.read_text(encoding="utf-8"), **more}
    source = config.get("chat_template") or []
    if isinstance(source, list):  # several templates by name
        return {entry["name"]: entry["template"] for entry in source}
    return {"default": source}


def _load_fast(folder: Path) -> FastTokenizer:
    path = folder / "tokenizer.json"
    if path.is_file():
        return FastTokenizer.from_file(str(path))
    try:
        return _convert(folder)
    except Exception as error:
        raise ModelNotFound(
            f"{folder} has no tokenizer.json and its tokenizer could not be converted ({error}): "
            "save it once with transformers' AutoTokenizer.from_pretrained and save_pretrained, "
            "with sentencepiece installed where it has a tokenizer.model"
        ) from error


def _convert(folder: Path) -> FastTokenizer:
    """What transformers makes of older files: tokenizer.model, or vocab.json and merges.txt."""
    from transformers import AutoTokenizer  # noqa: PLC0415  optional, and slow to import

    fast: FastTokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True).backend_tokenizer
    return fast


def _plain_chat(messages: Sequence[ChatMessage]) -> str:
    """For models that know no chat: the turns as plain text."""
    turns = [f"{str(m['role']).capitalize()}: {m['content']}" for m in messages]
    return "\n\n".join([*turns, "Assistant:"])


def _token_text(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])
