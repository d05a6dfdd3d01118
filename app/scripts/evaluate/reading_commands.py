"""The command that holds the built-in reader against the prior alone, and fits its weights."""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from app.errors import FolioError
from app.rag.lexical import terms
from app.rag.llm.extractive import ExtractiveGenerator
from app.rag.llm.reader import READER_FOLDER, ReaderGenerator, ReaderWeights
from app.rag.replies import REFUSAL
from app.scripts.evaluate.reading import ReadingTask, answerers, measure_reading, read_tasks
from app.scripts.evaluate.remembering import RememberingEmbedder
from app.scripts.evaluate.terminal import JsonFile, Sample, console, embedder, write_json

# Tried one after another, each with the best of those before.
GRID = {
    "prior_weight": (0.5, 1.0, 2.0, 4.0, 8.0),
    "refusal_prior": (-6.0, -3.0, -1.0, 0.0, 1.0, 2.0, 4.0),
    "end_prior": (-8.0, -4.0, -2.0, 0.0, 2.0, 4.0),
}
MAX_FALSE_REFUSALS = 0.15
KV_CACHE_BYTES = 64 * 2**20


def reading(
    paths: Annotated[list[Path], typer.Argument(help="Questions with their passage: context.")],
    model: Annotated[Path, typer.Option(help="Folder of the reader.")] = READER_FOLDER,
    fit: Annotated[
        bool, typer.Option("--fit", help="Fit reader.json on one half of the passages first.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    sample: Sample = 0,
    json_file: JsonFile = None,
) -> None:
    """Quotes with the right passage among three: the reader, the prior, both, a baseline.

    Measured on the half of the passages that the weights were not fitted on.
    """
    try:
        sets = {path.stem: read_tasks(path, sample) for path in paths}
        results = asyncio.run(_measure(sets, model, fit=fit, threads=threads))
    except FolioError as error:
        console.print(f"evaluate: {error}", style="red", markup=False)
        raise typer.Exit(2) from error
    for name, by_answerer in results.items():
        columns = list(by_answerer)
        table = Table("figure", *columns, title=name)
        for figure in next(iter(by_answerer.values())):
            values = (by_answerer[column].get(figure) for column in columns)
            table.add_row(figure, *("–" if v is None else f"{v:.3f}" for v in values))
        console.print(table)
    write_json(json_file, results)


async def _measure(
    sets: dict[str, list[ReadingTask]], folder: Path, *, fit: bool, threads: int
) -> dict[str, dict[str, dict[str, float]]]:
    from app.engine import AsyncLLM  # noqa: PLC0415  torch takes seconds to import

    extractive = ExtractiveGenerator(terms, embedder=RememberingEmbedder(embedder()))
    llm = AsyncLLM(
        model=str(folder),
        dtype="float32",
        num_threads=threads,
        kv_cache_memory_bytes=KV_CACHE_BYTES,
    )

    def reader(weights: ReaderWeights) -> ReaderGenerator:
        return ReaderGenerator(llm, extractive, REFUSAL, weights)

    try:
        if fit:
            seen = [task for tasks in sets.values() for task in tasks if task.half == 0]
            await fit_weights(folder, reader, seen)
        weights = ReaderWeights.load(folder)
        return {
            name: {
                who: await measure_reading(generator, [t for t in tasks if t.half == 1])
                for who, generator in answerers(reader, weights, extractive).items()
            }
            for name, tasks in sets.items()
        }
    finally:
        llm.shutdown()


async def fit_weights(
    folder: Path,
    reader: Callable[[ReaderWeights], ReaderGenerator],
    tasks: Sequence[ReadingTask],
) -> None:
    """Choose each weight in turn, twice, and write reader.json."""
    best = ReaderWeights(is_default=False, prior_weight=1.0, refusal_prior=-3.0, end_prior=0.0)
    value = await _value(reader(best), tasks)
    for name, choices in itertools.chain(GRID.items(), GRID.items()):
        for choice in choices:
            changes: dict[str, Any] = {name: choice}
            tried = replace(best, **changes)
            reached = await _value(reader(tried), tasks)
            console.print(f"{name} {choice}: {reached:.3f}")
            if reached > value:
                best, value = tried, reached
    best.save(folder)


async def _value(generator: ReaderGenerator, tasks: Sequence[ReadingTask]) -> float:
    """What is wanted at once: the answer held, the source right, no false refusal."""
    figures = await measure_reading(generator, tasks)
    held, right = figures.get("holds_answer", 0.0), figures.get("citation_precision", 0.0)
    refused = figures.get("refused_unanswerable", 0.0)
    excess = max(0.0, 1 - figures["answered"] - MAX_FALSE_REFUSALS)
    return held + 0.5 * right + 0.25 * refused - 2 * excess
