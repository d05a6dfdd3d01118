"""Log probabilities in the two forms that OpenAI's API has, and in vLLM's."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from app.api.generate import replies
from app.engine import CompletionOutput, Logprob, RequestOutput


def chat_logprobs(
    completion: CompletionOutput, start: int, num_top: int
) -> replies.ChatLogprobs | None:
    """Those of the tokens from `start` on."""
    if completion.logprobs is None:
        return None
    chosen = zip(completion.token_ids[start:], completion.logprobs[start:], strict=True)
    return replies.ChatLogprobs(
        content=[
            replies.TokenLogprob(
                **_top(entry[token_id]).model_dump(),
                top_logprobs=[_top(rival) for rival in _likeliest(entry, num_top)],
            )
            for token_id, entry in chosen
        ]
    )


def prompt_logprobs(output: RequestOutput) -> replies.PromptLogprobs | None:
    """vLLM's form, None for the first token."""
    if output.prompt_logprobs is None:
        return None
    return [
        None
        if entry is None
        else {
            token_id: replies.PromptLogprob(
                logprob=one.logprob, rank=one.rank, decoded_token=one.decoded_token
            )
            for token_id, one in entry.items()
        }
        for entry in output.prompt_logprobs
    ]


@dataclass(slots=True)
class CompletionLogprobs:
    """The old form, of a text as it grows; `offset` counts its characters so far."""

    num_top: int
    offset: int = 0

    def of_prompt(self, output: RequestOutput, texts: Sequence[str]) -> replies.CompletionLogprobs:
        """An echoed prompt's; `texts` are those of its tokens."""
        entries = output.prompt_logprobs or ()
        return self._rows(zip(output.prompt_token_ids, texts, entries, strict=True))

    def of_answer(self, completion: CompletionOutput, start: int) -> replies.CompletionLogprobs:
        """Those of the tokens from `start` on."""
        token_ids = completion.token_ids[start:]
        entries = (completion.logprobs or ())[start:]
        chosen = zip(token_ids, entries, strict=True)
        texts = [entry[token_id].decoded_token for token_id, entry in chosen]
        return self._rows(zip(token_ids, texts, entries, strict=True))

    def _rows(
        self, rows: Iterator[tuple[int, str, Mapping[int, Logprob] | None]]
    ) -> replies.CompletionLogprobs:
        result = replies.CompletionLogprobs(
            text_offset=[], token_logprobs=[], tokens=[], top_logprobs=[]
        )
        for token_id, text, entry in rows:
            result.text_offset.append(self.offset)
            result.tokens.append(text)
            result.token_logprobs.append(entry[token_id].logprob if entry else None)
            likeliest = _likeliest(entry, self.num_top) if entry else []
            top = {one.decoded_token: one.logprob for one in likeliest}
            result.top_logprobs.append(top if entry else None)
            self.offset += len(text)
        return result


def joined(
    first: replies.CompletionLogprobs, second: replies.CompletionLogprobs
) -> replies.CompletionLogprobs:
    """One after the other."""
    return replies.CompletionLogprobs(
        text_offset=first.text_offset + second.text_offset,
        token_logprobs=first.token_logprobs + second.token_logprobs,
        tokens=first.tokens + second.tokens,
        top_logprobs=first.top_logprobs + second.top_logprobs,
    )


def _likeliest(entry: Mapping[int, Logprob], num_top: int) -> list[Logprob]:
    ranked = sorted(entry.values(), key=lambda one: one.rank)
    return [one for one in ranked if one.rank <= num_top]


def _top(one: Logprob) -> replies.TopLogprob:
    return replies.TopLogprob(
        token=one.decoded_token,
        logprob=one.logprob,
        bytes=list(one.decoded_token.encode(errors="replace")),
    )
