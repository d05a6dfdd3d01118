"""Text completions: one prompt or several, each with n answers."""

import time
import uuid
from collections.abc import AsyncGenerator
from typing import Literal

from app.api.generate.logprobs import CompletionLogprobs, joined, prompt_logprobs
from app.api.generate.params import completion_params, request_options
from app.api.generate.replies import Completion, CompletionChoice, Usage
from app.api.generate.replies import CompletionLogprobs as LogprobsOut
from app.api.generate.running import Prompted, Running
from app.api.generate.schemas import CompletionIn
from app.api.generate.usage import usage_of
from app.engine import CompletionOutput, InvalidRequest, RequestOutput
from app.engine_service import ServedModel


def prompts_of(served: ServedModel, wanted: CompletionIn) -> list[Prompted]:
    """The prompts in tokens. Takes milliseconds.

    Raises InvalidRequest for more than could ever wait together: to try again would be in vain.
    """
    items, limit = as_items(wanted.prompt), served.llm.queue_limit(wanted.user or "")
    if len(items) > limit:
        raise InvalidRequest(
            f"there are {len(items)} prompts, the engine's queue takes {limit}: send fewer at a "
            "time, or raise FOLIO_ENGINE_MAX_NUM_QUEUED"
        )
    params = completion_params(served, wanted)
    encode = served.llm.tokenizer.encode
    has_start = wanted.add_special_tokens is not False
    return [
        Prompted(
            encode(item, add_special_tokens=has_start) if isinstance(item, str) else item,
            params,
            request_options(served, wanted),
        )
        for item in items
    ]


def as_items(given: str | list[int] | list[str] | list[list[int]]) -> list[str | list[int]]:
    """A list of texts or tokenised texts, also from a single one."""
    if isinstance(given, str):
        return [given]
    if isinstance(given[0], int):
        return [given]  # all are numbers: one tokenised text
    return list(given)  # checked above


class CompletionReply:
    """Makes a completion, or the chunks of a stream, of the requests' outputs."""

    def __init__(self, served: ServedModel, wanted: CompletionIn) -> None:
        self._served = served
        self._wanted = wanted
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._prompts = as_items(wanted.prompt)

    async def whole(self, running: Running) -> Completion:
        """The completion, when all answers have ended."""
        outputs = await running.last()
        choices = [
            self._text(index, completion.index).piece(output, completion)
            for index, output in enumerate(outputs)
            for completion in output.outputs
        ]
        return self._completion([choice for choice in choices if choice], self._usage(outputs))

    async def chunks(self, running: Running) -> AsyncGenerator[Completion]:
        """The pieces of all answers, as they come."""
        num_answers = self._wanted.n or 1
        texts = [
            [self._text(index, answer) for answer in range(num_answers)]
            for index in range(len(self._prompts))
        ]
        latest: dict[int, RequestOutput] = {}
        async for index, output in running.outputs():
            latest[index] = output
            has_usage = self._wanted.has_usage_in_chunks
            usage = self._usage(list(latest.values())) if has_usage else None
            for text, completion in zip(texts[index], output.outputs, strict=True):
                if piece := text.piece(output, completion):
                    yield self._completion([piece], usage)
        if self._wanted.has_usage:
            yield self._completion([], self._usage(list(latest.values())))

    def _text(self, prompt_index: int, answer_index: int) -> "Text":
        wanted, prompt = self._wanted, self._prompts[prompt_index]
        index = prompt_index * (wanted.n or 1) + answer_index
        return Text(index, wanted, prompt if isinstance(prompt, str) else None, self._served)

    def _usage(self, outputs: list[RequestOutput]) -> Usage:
        usage = usage_of(outputs)
        if self._wanted.max_tokens == 0:  # the engine makes one token, which nobody asked for
            usage.completion_tokens, usage.total_tokens = 0, usage.prompt_tokens
        return usage

    def _completion(self, choices: list[CompletionChoice], usage: Usage | None) -> Completion:
        return Completion(
            id=self._id,
            created=self._created,
            model=self._served.asked_name,
            choices=choices,
            usage=usage,
        )


class Text:
    """One of the answers: what of it was sent already. With `echo` its prompt goes first."""

    def __init__(
        self, index: int, wanted: CompletionIn, prompt: str | None, served: ServedModel
    ) -> None:
        self._index = index
        self._wanted = wanted
        self._prompt = prompt
        self._decode = served.llm.tokenizer.decode
        self._logprobs = CompletionLogprobs(wanted.logprobs or 0)
        self._is_echoed = not wanted.echo
        self._num_characters = 0
        self._num_tokens = 0
        self._is_finished = False

    def piece(self, output: RequestOutput, completion: CompletionOutput) -> CompletionChoice | None:
        """What is new in the completion, if anything."""
        if self._is_finished:
            return None
        text, logprobs = self._echo(output)
        if self._wanted.max_tokens != 0:
            text += completion.text[self._num_characters :]
            new = self._logprobs_of(completion)
            logprobs = joined(logprobs, new) if logprobs and new else logprobs or new
        self._is_finished = completion.finished
        self._num_characters = len(completion.text)
        self._num_tokens = len(completion.token_ids)
        if not (text or completion.finished or (logprobs and logprobs.tokens)):
            return None
        return CompletionChoice(
            index=self._index,
            text=text,
            logprobs=logprobs,
            finish_reason=_reason(completion),
            stop_reason=completion.stop_reason,
            prompt_logprobs=(
                prompt_logprobs(output)
                if completion.finished and self._wanted.prompt_logprobs is not None
                else None
            ),
        )

    def _echo(self, output: RequestOutput) -> tuple[str, LogprobsOut | None]:
        """The prompt and its log probabilities, once."""
        if self._is_echoed:
            return "", None
        self._is_echoed = True
        text = self._prompt or self._decode(output.prompt_token_ids, skip_special_tokens=False)
        if self._wanted.logprobs is None:
            return text, None
        pieces = [self._decode([one], skip_special_tokens=False) for one in output.prompt_token_ids]
        return text, self._logprobs.of_prompt(output, pieces)

    def _logprobs_of(self, completion: CompletionOutput) -> LogprobsOut | None:
        if self._wanted.logprobs is None:
            return None
        return self._logprobs.of_answer(completion, self._num_tokens)


def _reason(completion: CompletionOutput) -> Literal["stop", "length"] | None:
    if not completion.finished:
        return None
    return "length" if completion.finish_reason == "length" else "stop"
