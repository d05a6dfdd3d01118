"""Measures what one document and one question cost here, for `plan_capacity --costs`.

    python -m app.scripts.plan_capacity.measure FOLDER >costs.json

The files are ingested into a library of its own, in FOLIO_DATABASE_URL (an empty database) or
SQLite. Answers are written by a stand-in for the language model, so that what a question costs is
all but its generation: retrieval, prompt, citations.
"""

import asyncio
import json
import resource
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from app.config import Settings
from app.domain import Generation, GenerationRequest, GeneratorInfo, Question, Usage
from app.rag.entailment import Meanings
from app.rag.lexical import term_weights, terms
from app.rag.pipeline import AnswerPipeline
from app.rag.retriever import HybridRetriever
from app.scripts.plan_capacity.costs import Costs
from app.services import Services
from app.wiring.appliance import build_services
from app.wiring.loading import load_ingestion

STOP_S = 30.0
INGEST_TIMEOUT_S = 3600.0
QUESTION_WORDS = 10
QUOTED_WORDS = 25


class Scribe:
    """Implements Generator: begins to quote each source, word by word, and names it."""

    info = GeneratorInfo("openai", "scribe")
    max_prompt_tokens = 8192

    def count_tokens(self, text: str) -> int:
        """About as many as a model would."""
        return len(text) // 3

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Generation]:
        """The beginning of each source with its number."""
        for source in request.sources:
            for word in source.hit.chunk.span.text.split()[:QUOTED_WORDS]:
                yield Generation(f"{word} ")
            yield Generation(f"[{source.number}]. ")
        yield Generation("", "stop", Usage())


def main(
    folder: Annotated[Path, typer.Argument(help="Files such as those that will be ingested.")],
    questions: Annotated[int, typer.Option(help="Questions to ask.")] = 100,
) -> None:
    """Print the costs as JSON."""
    with tempfile.TemporaryDirectory(prefix="folio-measure-") as data_dir:
        settings = Settings(data_dir=Path(data_dir), manual_dir=None)
        services = build_services(settings)
        try:
            costs = measure(services, settings, sorted(folder.iterdir()), questions)
        finally:
            services.close(STOP_S)
    sys.stdout.write(json.dumps(asdict(costs), indent=2) + "\n")


def measure(
    services: Services, settings: Settings, files: Sequence[Path], num_questions: int
) -> Costs:
    """Ingest the files and ask; the parser's processes count from their end on."""
    load_ingestion(settings, services)
    database, processor = services.records.database, services.require_processor()
    collection = services.records.collections.create("measured")
    num_bytes = database.num_bytes()
    with processor_seconds() as ingesting:
        for file in files:
            processor.add_file(collection.id, "folder", str(file), file.name, file)
        processor.wait_until_idle(INGEST_TIMEOUT_S)
        processor.stop(STOP_S)
    texts = texts_of(services)
    num_bytes = database.num_bytes() - num_bytes
    asked = [
        " ".join(text.split()[:QUESTION_WORDS])
        for text in texts[:: max(1, len(texts) // num_questions)]
    ]
    pipeline = make_pipeline(services, settings)
    asyncio.run(ask(pipeline, asked[:3]))  # what is loaded once
    with processor_seconds() as asking:
        asyncio.run(ask(pipeline, asked))
    return Costs(
        chunks_per_document=round(len(texts) / len(files), 2),
        ingest_core_s_per_chunk=round(ingesting[0] / len(texts), 4),
        question_core_s=round(asking[0] / len(asked), 4),
        sql_bytes_per_chunk=round(num_bytes / len(texts)),
        terms_per_chunk=round(sum(len(term_weights(text)) for text in texts) / len(texts)),
        file_bytes_per_document=round(sum(file.stat().st_size for file in files) / len(files)),
    )


def texts_of(services: Services) -> list[str]:
    """The text of every chunk."""
    documents = services.records.documents.list(page_size=100_000)[0]
    chunks = services.records.chunks
    return [
        chunk.span.text
        for document in documents
        for chunk in chunks.list(document.id, page_size=100_000)[0]
    ]


def make_pipeline(services: Services, settings: Settings) -> AnswerPipeline:
    """The pipeline of the appliance, but for its language model."""
    embedder, store = services.require(services.embedder), services.require(services.store)
    chunks = services.records.chunks
    return AnswerPipeline(
        HybridRetriever(
            embedder, store, chunks.of(store.index_name), settings.retrieval_candidates
        ),
        Scribe(),
        terms=terms,
        num_chunks=chunks.num_chunks,
        meanings=Meanings(embedder),
    )


async def ask(pipeline: AnswerPipeline, questions: Sequence[str]) -> None:
    """Ask one after the other."""
    for text in questions:
        async for _ in pipeline.answer(Question(text)):
            pass


@contextmanager
def processor_seconds() -> Iterator[list[float]]:
    """The processor time of the block, of this process and of those it has ended."""
    started, spent = used_s(), [time.monotonic()]
    yield spent
    spent[0] = used_s() - started


def used_s() -> float:
    """User and system time until now."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    typer.run(main)
