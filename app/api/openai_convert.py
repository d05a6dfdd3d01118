"""Answers and their events in OpenAI's shapes; sources in every form that clients read."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from app.api.convert import source_out
from app.api.openai_schemas import (
    Annotation,
    AssistantMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    Grounding,
    SearchResult,
    UrlCitation,
    UsageTokens,
)
from app.domain import Answer, Source


@dataclass(frozen=True, slots=True)
class Envelope:
    """What all pieces of one completion share; `base_url` is where our pages are."""

    id: str
    created: int
    model: str
    base_url: str
    lists_sources: bool = False

    def completion(self, answer: Answer) -> ChatCompletion:
        """The whole answer."""
        message = AssistantMessage(
            role="assistant",
            content=answer.text + self.source_list(answer),
            annotations=self.annotations(answer),
        )
        return ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=[Choice(message=message, finish_reason=answer.finish_reason)],
            usage=usage_tokens(answer),
            is_refusal=answer.is_refusal,
            **dict(self.grounding(answer.sources)),
        )

    def opening(self) -> ChatCompletionChunk:
        """The first chunk: who speaks."""
        return self._chunk(AssistantMessage(role="assistant", content=""))

    def text(self, text: str) -> ChatCompletionChunk:
        """More text."""
        return self._chunk(AssistantMessage(content=text))

    def sources(self, sources: Sequence[Source]) -> ChatCompletionChunk:
        """The sources, sent before the first token."""
        chunk = self._chunk(AssistantMessage())
        return chunk.model_copy(update=dict(self.grounding(sources)))

    def source_list(self, answer: Answer) -> str:
        """What the answer cites as a Markdown list, where that was asked for."""
        cited = {citation.number for citation in answer.citations}
        if not self.lists_sources or not cited:
            return ""
        lines = [
            f"- [{source.number}] [{_plain(source.hit.document_name)}]({self.url(source)})"
            for source in answer.sources
            if source.number in cited
        ]
        return "\n\n" + "\n".join(lines)

    def closing(self, answer: Answer) -> ChatCompletionChunk:
        """The last chunk of the text: why it ended, its citations, its sources again."""
        delta = AssistantMessage(annotations=self.annotations(answer))
        chunk = self._chunk(delta)
        chunk.choices[0].finish_reason = answer.finish_reason
        grounding = dict(self.grounding(answer.sources))
        return chunk.model_copy(update=grounding | {"is_refusal": answer.is_refusal})

    def usage(self, answer: Answer) -> ChatCompletionChunk:
        """The chunk that `stream_options.include_usage` asks for."""
        chunk = self._chunk(AssistantMessage())
        return chunk.model_copy(update={"choices": [], "usage": usage_tokens(answer)})

    def grounding(self, sources: Sequence[Source]) -> Grounding:
        """The sources in order of their numbers."""
        return Grounding(
            citations=[self.url(source) for source in sources],
            search_results=[
                SearchResult(title=_title(s), url=self.url(s), snippet=s.hit.chunk.span.text)
                for s in sources
            ],
            sources=[source_out(source) for source in sources],
        )

    def annotations(self, answer: Answer) -> list[Annotation]:
        """A citation of each supported sentence."""
        by_chunk = {source.hit.chunk.id: source for source in answer.sources}
        return [
            Annotation(
                url_citation=UrlCitation(
                    start_index=citation.start,
                    end_index=citation.end,
                    title=_title(by_chunk[citation.chunk_id]),
                    url=self.url(by_chunk[citation.chunk_id]),
                )
            )
            for citation in answer.citations
        ]

    def url(self, source: Source) -> str:
        """The chunk in our viewer."""
        chunk = source.hit.chunk
        return f"{self.base_url}#/docs/{chunk.document_id}?chunk={chunk.id}"

    def _chunk(self, delta: AssistantMessage) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self.id, created=self.created, model=self.model, choices=[ChunkChoice(delta=delta)]
        )


def usage_tokens(answer: Answer) -> UsageTokens:
    """Token counts under OpenAI's names."""
    prompt, completion = answer.usage.num_prompt_tokens, answer.usage.num_completion_tokens
    return UsageTokens(
        prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion
    )


def _plain(name: str) -> str:
    """A name that cannot break out of a link's text."""
    return re.sub(r"([\\\[\]])", r"\\\1", name)


def _title(source: Source) -> str:
    return source.hit.document_title or source.hit.document_name
