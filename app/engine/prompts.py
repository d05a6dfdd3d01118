"""The forms in which prompts and conversations are given, and their tokens."""

from collections.abc import Iterable, Sequence
from typing import TypedDict, TypeVar

from app.engine.errors import InvalidRequest
from app.engine.tokenizer import ChatMessage, Tokenizer

Params = TypeVar("Params")


class TextPrompt(TypedDict):
    """A prompt as text."""

    prompt: str


class TokensPrompt(TypedDict):
    """A prompt that is tokenised already."""

    prompt_token_ids: list[int]


class PromptDict(TypedDict, total=False):
    """Text, tokens or both; then the tokens count."""

    prompt: str
    prompt_token_ids: list[int]


Prompt = str | TextPrompt | TokensPrompt | PromptDict | list[int]


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt) -> tuple[str | None, list[int]]:
    """The prompt's text, where it has one, and its tokens."""
    if isinstance(prompt, list):
        return None, prompt
    if isinstance(prompt, str):
        return prompt, tokenizer.encode(prompt)
    given = PromptDict(**prompt)
    if token_ids := given.get("prompt_token_ids"):
        return given.get("prompt"), list(token_ids)
    text = given.get("prompt", "")
    return text, tokenizer.encode(text)


def as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A list of prompts, also from a single one; a list of numbers is one prompt."""
    if isinstance(prompts, str | dict):
        return [prompts]
    many = list(prompts)
    if many and all(isinstance(item, int) for item in many):
        return [many]  # type: ignore[list-item]  # all are numbers: one tokenised prompt
    return many  # type: ignore[return-value]  # checked above


def as_conversations(
    messages: Sequence[ChatMessage] | Sequence[Sequence[ChatMessage]],
) -> list[Sequence[ChatMessage]]:
    """A list of conversations, also from a single one."""
    if messages and isinstance(messages[0], dict):
        return [messages]  # type: ignore[list-item]  # a single conversation
    return list(messages)  # type: ignore[arg-type]  # several


def one_for_each(name: str, given: Params | Iterable[Params], count: int) -> list[Params]:
    """`given` as a list of `count`: a single one counts for all."""
    if not isinstance(given, list | tuple):
        return [given] * count  # type: ignore[list-item]  # no list: a single one
    if len(given) != count:
        raise InvalidRequest(f"{len(given)} {name} for {count} prompts")
    return list(given)
