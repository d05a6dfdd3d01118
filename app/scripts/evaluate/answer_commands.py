"""The commands about whole answers: measure them, compare two reports, and the gate."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from app.config import Settings
from app.domain import ChunkSpan, SearchHit
from app.errors import FolioError, InvalidInput
from app.manual import LEFT_OUT
from app.rag.evaluation import Given, question_of
from app.rag.lexical import terms
from app.rag.llm.discovery import ModelChoice, resolve_generator
from app.rag.llm.extractive import ExtractiveGenerator
from app.rag.protocols import Embedder, Generator
from app.rag.replies import REFUSAL
from app.scripts.evaluate.answers import AnswersReport, measure_answers, read_questions
from app.scripts.evaluate.asking import ALL_COLLECTIONS, http_asker, pipeline_asker
from app.scripts.evaluate.comparing import compare as compare_reports
from app.scripts.evaluate.demo import read_files
from app.scripts.evaluate.index import make_hit
from app.scripts.evaluate.runs import Report
from app.scripts.evaluate.sets import CORPUS, read_lines
from app.scripts.evaluate.terminal import (
    JsonFile,
    Sample,
    console,
    embedder,
    reporting,
    write_json,
)

Questions = Annotated[
    Path,
    typer.Argument(
        help="JSON lines: question, and where they are known answers, documents (file names that"
        " hold it) and answerable (false where none does)."
    ),
]
GATE = "gate.json"
MANUALS = {"en": "manual", "zh": "zh"}


def answers(  # noqa: PLR0913 - the options of a command
    path: Questions,
    corpus: Annotated[
        Path | None, typer.Option(help=f"Answer from the passages of this {CORPUS}.")
    ] = None,
    documents: Annotated[
        Path | None, typer.Option(help="Answer from the files in this folder.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Ask the running appliance at this address.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="With --url: one knowledge base by name.")
    ] = ALL_COLLECTIONS,
    sample: Sample = 0,
    json_file: JsonFile = None,
) -> None:
    """Exact match, F1, citations, refusals and times of whole answers.

    In this process the answers are quotes, or those of the endpoint that LLM_BASE_URL names; with
    --url they are whatever that appliance answers.
    """
    try:
        if sum(source is not None for source in (corpus, documents, url)) != 1:
            raise InvalidInput("give one of --corpus, --documents and --url")
        questions = read_questions(path)
        questions = questions[:: max(1, len(questions) // sample) if sample else 1]
        with reporting() as report:
            ask = make_asker(corpus, documents, url, model, report)
            measured = measure_answers(questions, ask, report)
    except FolioError as error:
        console.print(f"evaluate: {error}", style="red", markup=False)
        raise typer.Exit(2) from error
    print_answers(measured, str(path))
    write_json(json_file, asdict(measured))


def compare(
    before: Annotated[Path, typer.Argument(help="A report of `answers --json`.")],
    after: Annotated[Path, typer.Argument(help="Another one, over the same questions.")],
    json_file: JsonFile = None,
) -> None:
    """Compare two reports question by question, with 95 % intervals of the differences."""
    try:
        differences = compare_reports(before, after)
    except FolioError as error:
        console.print(f"evaluate: {error}", style="red", markup=False)
        raise typer.Exit(2) from error
    table = Table("measure", "questions", "before", "after", "difference", "95 %", "certain")
    for item in differences:
        table.add_row(
            item.measure,
            str(item.num_questions),
            f"{item.before:.3f}",
            f"{item.after:.3f}",
            f"{item.after - item.before:+.3f}",
            f"{item.low:+.3f} to {item.high:+.3f}",
            "yes" if item.is_certain else "no",
        )
    console.print(table)
    write_json(json_file, [asdict(item) for item in differences])


def gate(
    docs: Annotated[Path, typer.Argument(help="Folder with Folio's own manual.")] = Path("docs"),
    json_file: JsonFile = None,
) -> None:
    """Questions over Folio's own manual against fixed floors: status 1 where one is not reached."""
    wanted = json.loads(resources.files(__package__).joinpath(GATE).read_text("utf-8"))
    questions = [question_of(row, GATE) for row in wanted["questions"]]
    with reporting() as report:
        model = embedder()
        hits = list(manual_chunks(docs, model))
        ask = pipeline_asker(hits, model, ExtractiveGenerator(terms, embedder=model), report)
        measured = measure_answers(questions, ask, report)
    print_answers(measured, str(docs))
    write_json(json_file, asdict(measured))
    missed = {
        name: floor
        for name, floor in wanted["floors"].items()
        if measured.figures.get(name, 0.0) < floor
    }
    for name, floor in missed.items():
        reached = measured.figures.get(name, 0.0)
        console.print(f"{name} is {reached:.3f}, the floor is {floor}", style="red")
    if missed:
        raise typer.Exit(1)
    console.print("all floors are reached")


def make_asker(
    corpus: Path | None, documents: Path | None, url: str | None, model: str, report: Report
) -> Callable[[str], Given]:
    """Whoever is asked."""
    settings = Settings()
    if url is not None:
        return http_asker(url, secret(settings.api_key), model)
    reader = embedder()
    if corpus is not None:
        hits: Sequence[SearchHit] = list(passages_of(corpus))
    else:
        assert documents is not None
        hits = list(read_files(documents, reader))
    if not hits:
        raise InvalidInput(f"{corpus or documents} holds nothing that can be read")
    return pipeline_asker(hits, reader, make_generator(settings, reader), report)


def make_generator(settings: Settings, embedder: Embedder) -> Generator:
    """The endpoint of the settings, or quotes."""
    if not settings.llm_base_url:
        return ExtractiveGenerator(terms, embedder=embedder)
    choice = ModelChoice(
        model=settings.llm_model,
        base_url=settings.llm_base_url,
        api_key=secret(settings.llm_api_key),
    )
    return resolve_generator(
        choice, terms=terms, embedder=embedder, refusals=REFUSAL, load=no_engine
    )


def no_engine(*args: object) -> Any:  # Any: never returns
    """The engine is measured through a running appliance."""
    raise AssertionError("an endpoint is set, so no engine is loaded")


def passages_of(path: Path) -> list[SearchHit]:
    """The passages of a corpus, whole; its folder will do as well."""
    file = path / CORPUS if path.is_dir() else path
    hits = []
    for row in read_lines(file):
        text = f"{row.get('title', '')}\n{row['text']}".strip()
        hits.append(make_hit(row["_id"], row["_id"], "", ChunkSpan(0, len(text), text, (), 0)))
    return hits


def manual_chunks(docs: Path, embedder: Embedder) -> list[SearchHit]:
    """The chunks of the manual; documents are named `en/page.md` and `zh/page.md`."""
    hits = []
    for language, folder in MANUALS.items():
        for hit in read_files(docs / folder, embedder):
            chunk = hit.chunk
            if chunk.document_id in LEFT_OUT:
                continue
            name = f"{language}/{chunk.document_id}"
            hits.append(make_hit(f"{language}/{chunk.id}", name, hit.document_title, chunk.span))
    return hits


def print_answers(measured: AnswersReport, title: str) -> None:
    """One row for each figure."""
    table = Table("figure", "value", title=f"{title}, {measured.num_questions} questions")
    for name, value in measured.figures.items():
        table.add_row(name, f"{value:.3f}")
    console.print(table)


def secret(value: Any) -> str | None:  # Any: pydantic's SecretStr
    """The secret's text where there is one."""
    return value.get_secret_value() if value else None
