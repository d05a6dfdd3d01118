"""Chat completions: messages to a prompt, outputs to messages."""

import json
import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from app.api.generate import replies
from app.api.generate.logprobs import chat_logprobs, prompt_logprobs
from app.api.generate.params import chat_params, request_options
from app.api.generate.parsing import make_parser, message_of, with_thoughts, with_tools
from app.api.generate.replies import ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion
from app.api.generate.running import Prompted, Running
from app.api.generate.schemas import ChatIn, ChatMessage, ConversationIn, NamedTool
from app.api.generate.usage import usage_of
from app.engine import ChatParser, CompletionOutput, InvalidRequest
from app.engine_service import ServedModel


def prompt_of(served: ServedModel, wanted: ChatIn) -> Prompted:
    """The conversation as the model's template writes it, in tokens. Takes milliseconds."""
    token_ids = chat_tokens(served, wanted)
    params = with_tools(served, wanted, chat_params(served, wanted))
    return Prompted(
        token_ids=token_ids,
        params=with_thoughts(served, params, token_ids),
        options=request_options(served, wanted),
    )


def chat_tokens(served: ServedModel, wanted: ConversationIn) -> list[int]:
    """The conversation in tokens, as the model's template writes it."""
    return served.llm.tokenizer.apply_chat_template(
        [template_message(message) for message in wanted.messages or []],
        tools=wanted.tool_dicts if wanted.offers_tools else None,
        chat_template_kwargs=wanted.chat_template_kwargs,
        add_generation_prompt=wanted.add_generation_prompt,
        continue_final_message=wanted.continue_final_message,
    )


def template_message(message: ChatMessage) -> dict[str, Any]:
    """A message as templates read it: one text, and the arguments of calls as values."""
    values = message.model_dump(exclude_none=True, exclude={"content"})
    for call in values.get("tool_calls", ()):
        call["function"]["arguments"] = _arguments(call["function"]["arguments"])
    values["role"] = "system" if message.role == "developer" else message.role
    return values | {"content": message.text}


def _arguments(text: str) -> Any:
    try:
        return json.loads(text or "{}")
    except (ValueError, RecursionError):
        raise InvalidRequest(f"the arguments of a tool call are no JSON: {text[:100]!r}") from None


class ChatReply:
    """Makes a chat completion, or the chunks of a stream, of a request's outputs."""

    def __init__(self, served: ServedModel, wanted: ChatIn, prompt: Prompted) -> None:
        self._served = served
        self._wanted = wanted
        self._prompt = prompt
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())

    async def whole(self, running: Running) -> ChatCompletion:
        """The completion, when all answers have ended."""
        [output] = await running.last()
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._served.asked_name,
            choices=[self._choice(completion) for completion in output.outputs],
            usage=usage_of([output]),
            prompt_logprobs=prompt_logprobs(output),
        )

    async def chunks(self, running: Running) -> AsyncGenerator[ChatChunk]:
        """The pieces of all answers, as they come."""
        wanted = self._wanted
        answers = [self._answer(index) for index in range(wanted.n or 1)]
        opening = replies.MessageOut(role="assistant", content=self._echoed)
        for answer in answers:
            yield self._chunk([ChatChunkChoice(index=answer.index, delta=opening)])
        output = None
        async for _, output in running.outputs():
            usage = usage_of([output]) if wanted.has_usage_in_chunks else None
            for answer, completion in zip(answers, output.outputs, strict=True):
                if piece := answer.piece(completion):
                    yield self._chunk([piece], usage)
        if output and wanted.has_usage:
            yield self._chunk([], usage_of([output]))

    @property
    def _echoed(self) -> str:
        """What `echo` asks to repeat: the assistant's message that is continued."""
        last = self._wanted.messages[-1]
        return last.text if self._wanted.echo and last.role == "assistant" else ""

    def _answer(self, index: int) -> "Answer":
        parser = make_parser(self._served, self._wanted, self._prompt.token_ids)
        return Answer(index, parser, self._wanted)

    def _choice(self, completion: CompletionOutput) -> ChatChoice:
        piece = self._answer(completion.index).piece(completion)
        assert piece is not None
        assert piece.finish_reason is not None
        message = piece.delta
        for call in message.tool_calls or []:
            call.index = None  # for streams only
        message.role = "assistant"
        if message.content is not None or not message.tool_calls:
            message.content = self._echoed + (message.content or "")
        return ChatChoice(
            index=completion.index,
            message=message,
            logprobs=piece.logprobs,
            finish_reason=piece.finish_reason,
            stop_reason=piece.stop_reason,
        )

    def _chunk(
        self, choices: list[ChatChunkChoice], usage: replies.Usage | None = None
    ) -> ChatChunk:
        return ChatChunk(
            id=self._id,
            created=self._created,
            model=self._served.asked_name,
            choices=choices,
            usage=usage,
        )


class Answer:
    """One of the n answers: what of it was sent already."""

    def __init__(self, index: int, parser: ChatParser, wanted: ChatIn) -> None:
        self.index = index
        self._parser = parser
        self._wanted = wanted
        self._num_characters = 0
        self._num_tokens = 0
        self._has_called = False
        self._is_finished = False

    def piece(self, completion: CompletionOutput) -> ChatChunkChoice | None:
        """What is new in the completion, if anything."""
        if self._is_finished:
            return None
        text = completion.text[self._num_characters :]
        deltas = self._parser.feed(text) if text else []
        if completion.finished:
            deltas += self._parser.finish()
        message = message_of(deltas, self._wanted)
        num_top = self._wanted.top_logprobs or 0
        logprobs = chat_logprobs(completion, self._num_tokens, num_top)
        self._has_called = self._has_called or bool(message.tool_calls)
        self._is_finished = completion.finished
        self._num_characters = len(completion.text)
        self._num_tokens = len(completion.token_ids)
        if not (deltas or completion.finished or (logprobs and logprobs.content)):
            return None
        return ChatChunkChoice(
            index=self.index,
            delta=message,
            logprobs=logprobs,
            finish_reason=self._finish_reason(completion) if completion.finished else None,
            stop_reason=completion.stop_reason,
        )

    def _finish_reason(self, completion: CompletionOutput) -> replies.FinishReason:
        if completion.finish_reason == "length":
            return "length"
        # A call that was named was no choice of the model's: it just stops.
        is_named = isinstance(self._wanted.tool_choice, NamedTool)
        return "tool_calls" if self._has_called and not is_named else "stop"
