"""Two ways to have a question answered: in this process, or by a running appliance."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import httpx

from app.domain import Evidence, Failed, Finished, Question, SearchHit
from app.errors import GeneratorUnavailable, Unavailable
from app.rag.entailment import Meanings
from app.rag.evaluation import Given
from app.rag.lexical import terms
from app.rag.pipeline import AnswerPipeline
from app.rag.protocols import Embedder, Generator, Retriever
from app.rag.retriever import HybridRetriever
from app.scripts.evaluate.index import MemoryIndex, embed_hits
from app.scripts.evaluate.runs import CANDIDATES, Report

ASK_TIMEOUT_S = 300.0
ALL_COLLECTIONS = "folio"
DONE = "[DONE]"


class Noting:
    """A retriever that keeps the evidence of its last question."""

    def __init__(self, retriever: Retriever) -> None:
        self._retriever = retriever
        self.last: Evidence | None = None

    def retrieve(self, question: Question, limit: int) -> Evidence:
        """See Retriever."""
        self.last = self._retriever.retrieve(question, limit)
        return self.last


def pipeline_asker(
    hits: Sequence[SearchHit], embedder: Embedder, generator: Generator, report: Report
) -> Callable[[str], Given]:
    """Ask the appliance's own pipeline over these chunks; what is cited are their documents."""
    index = MemoryIndex(hits, embed_hits(hits, embedder, partial(report, "embed")))
    retriever = Noting(HybridRetriever(embedder, index, index, CANDIDATES))
    pipeline = AnswerPipeline(
        retriever,
        generator,
        terms=terms,
        num_chunks=index.num_chunks,
        meanings=Meanings(embedder),
    )

    def ask(text: str) -> Given:
        return asyncio.run(_ask_pipeline(pipeline, retriever, text))

    return ask


async def _ask_pipeline(pipeline: AnswerPipeline, retriever: Noting, text: str) -> Given:
    started = time.perf_counter()
    async for event in pipeline.answer(Question(text)):
        match event:
            case Failed():
                raise GeneratorUnavailable(f"“{text}” was not answered: {event.message}")
            case Finished(answer):
                by_chunk = {source.hit.chunk.id: source.hit.chunk for source in answer.sources}
                return Given(
                    text=answer.text,
                    cited=tuple(by_chunk[c.chunk_id].document_id for c in answer.citations),
                    is_refusal=answer.is_refusal,
                    confidence=retriever.last.confidence if retriever.last else None,
                    first_token_s=answer.timings.first_token_s,
                    seconds=time.perf_counter() - started,
                )
    raise AssertionError("an answer ends with Finished or Failed")


def http_asker(url: str, api_key: str | None, model: str) -> Callable[[str], Given]:
    """Ask a running appliance; what is cited are documents by name."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    options: dict[str, Any] = {
        "base_url": url.rstrip("/"),
        "headers": headers,
        "timeout": ASK_TIMEOUT_S,
    }

    def ask(text: str) -> Given:
        try:
            with httpx.Client(**options, trust_env=False) as http:
                return _ask_http(http, model, text)
        except httpx.HTTPError as error:
            raise Unavailable(f"Folio at {url} does not answer: {error}") from error

    return ask


def _ask_http(http: httpx.Client, model: str, text: str) -> Given:
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": text}]}
    started = time.perf_counter()
    written: list[str] = []
    first_token_s: float | None = None
    last: dict[str, Any] = {}
    with http.stream("POST", "/v1/chat/completions", json=body) as reply:
        if reply.is_error:
            reply.read()
            raise Unavailable(f"status {reply.status_code}: {reply.text[:300]}")
        for chunk in _chunks(reply.iter_lines()):
            if "error" in chunk:
                raise GeneratorUnavailable(
                    f"“{text}” was not answered: {chunk['error']['message']}"
                )
            piece = chunk["choices"][0]["delta"].get("content") if chunk["choices"] else None
            if piece:
                first_token_s = first_token_s or time.perf_counter() - started
                written.append(piece)
            last = last | chunk
    delta = last["choices"][0]["delta"] if last.get("choices") else {}
    named = {f"#/docs/{s['document_id']}?chunk={s['chunk_id']}": s for s in last.get("sources", [])}
    urls = [note["url_citation"]["url"] for note in delta.get("annotations") or []]
    cited = [named["#" + url.partition("#")[2]]["document_name"] for url in urls]
    return Given(
        text="".join(written),
        cited=tuple(cited),
        is_refusal=bool(last.get("is_refusal")),
        confidence=None,
        first_token_s=first_token_s,
        seconds=time.perf_counter() - started,
    )


def _chunks(lines: Iterator[str]) -> Iterator[dict[str, Any]]:  # Any: JSON
    """The data of server-sent events."""
    for line in lines:
        data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
        if data and data != DONE:
            yield json.loads(data)
