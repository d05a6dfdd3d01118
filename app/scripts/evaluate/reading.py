"""Answerers that quote, held against each other with the right passage among three.

The same questions and passages go to the reader with retrieval's prior, to the reader alone, to
the prior alone (the extractive answerer), and to whoever quotes the first sentence it sees.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from app.domain import (
    AskedQuestion,
    ChunkSpan,
    Generation,
    GenerationRequest,
    GeneratorInfo,
    Source,
)
from app.rag.evaluation import Given, Judged, figures_of, judge, question_of
from app.rag.lexical import terms
from app.rag.llm.extractive import ExtractiveGenerator, quotable
from app.rag.llm.reader import ReaderGenerator, ReaderWeights
from app.rag.llm.sentence_scores import read_sentences
from app.rag.protocols import Generator
from app.rag.replies import is_refusal
from app.rag.text import MARKER, language_of
from app.scripts.evaluate.index import make_hit
from app.scripts.evaluate.sets import read_lines

NUM_SOURCES = 3
AT_ONCE = 8
MAX_TOKENS = 512


@dataclass(frozen=True, slots=True)
class ReadingTask:
    """A question with its sources; `half` tells the passages to fit on (0) from the others."""

    question: AskedQuestion
    request: GenerationRequest
    half: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What an answerer made of a task."""

    judged: Judged
    num_foreign: int  # sentences that no source has
    num_tokens: int


def read_tasks(path: Path, sample: int, seed: int = 7) -> list[ReadingTask]:
    """Questions of a file whose rows hold their passage, each with two passages of others."""
    rows = [row for row in read_lines(path) if row.get("context")]
    passages = dict.fromkeys(row["context"] for row in rows)
    halves = {passage: index % 2 for index, passage in enumerate(passages)}
    rng = random.Random(seed)
    chosen = rows[:: max(1, len(rows) // sample) if sample else 1]
    pool = list(passages)
    tasks = []
    for row in chosen:
        gold = row["context"]
        texts = [gold, *rng.sample([p for p in pool if p != gold], NUM_SOURCES - 1)]
        rng.shuffle(texts)
        sources = tuple(_source(number, text) for number, text in enumerate(texts, start=1))
        number = str(texts.index(gold) + 1)
        question = replace(question_of(row, path.name), sources=frozenset([number]))
        request = GenerationRequest(
            messages=(),
            question=question.text,
            sources=sources,
            language=language_of(question.text),
            max_tokens=MAX_TOKENS,
            temperature=0.0,
        )
        tasks.append(ReadingTask(question, request, halves[gold]))
    return tasks


def answerers(
    reader: Callable[[ReaderWeights], ReaderGenerator],
    weights: ReaderWeights,
    extractive: ExtractiveGenerator,
) -> dict[str, Generator]:
    """Who is compared, by name."""
    alone = replace(weights, prior_weight=0.0)
    return {
        "reader and prior": reader(weights),
        "reader alone": reader(alone),
        "prior alone": extractive,
        "first sentence": FirstSentence(),
    }


async def measure_reading(generator: Generator, tasks: Sequence[ReadingTask]) -> dict[str, float]:
    """The figures of `answers`, with sentences that are in no source, and tokens a second."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def read(task: ReadingTask) -> Reading:
        async with gate:
            return await _read(generator, task)

    start = time.monotonic()
    readings = await asyncio.gather(*map(read, tasks))
    seconds = time.monotonic() - start
    figures = figures_of([reading.judged for reading in readings])
    return {
        **figures,
        "foreign_sentences": float(sum(reading.num_foreign for reading in readings)),
        "tokens_per_s": sum(reading.num_tokens for reading in readings) / seconds,
    }


class FirstSentence:
    """Implements Generator by quoting the first sentence of the first source."""

    max_prompt_tokens = 1_000_000
    info = GeneratorInfo("extractive", "first sentence")

    def count_tokens(self, text: str) -> int:
        """Words."""
        return len(text.split())

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Generation]:
        """The sentence and its number."""
        first = read_sentences(request.sources[:1], terms)[0]
        yield Generation(f"{quotable(first)} [1]", "stop")


async def _read(generator: Generator, task: ReadingTask) -> Reading:
    start, first_token_s, text, num_tokens = time.monotonic(), None, "", 0
    async for piece in generator.generate(task.request):
        if piece.text and first_token_s is None:
            first_token_s = time.monotonic() - start
        text += piece.text
        num_tokens += piece.usage.num_completion_tokens if piece.usage else 0
    cited = [number for match in MARKER.finditer(text) for number in match.group(1).split(",")]
    given = Given(
        text=text,
        cited=tuple(cited),
        is_refusal=is_refusal(text),
        confidence=None,
        first_token_s=first_token_s,
        seconds=time.monotonic() - start,
    )
    num_foreign = 0 if given.is_refusal else _num_foreign(text, task.request.sources)
    return Reading(judge(task.question, given), num_foreign, num_tokens)


def _num_foreign(text: str, sources: Sequence[Source]) -> int:
    """Pieces between numbers that no source has word for word."""
    known = "\n".join(quotable(s) for s in read_sentences(sources, terms)).replace("\n", " ")
    pieces = (piece.strip(" \n-") for piece in MARKER.split(text)[::2])
    return sum(1 for piece in pieces if piece and piece not in known)


def _source(number: int, text: str) -> Source:
    hit = make_hit(str(number), str(number), "", ChunkSpan(0, len(text), text, (), 0))
    return Source(number, hit)
