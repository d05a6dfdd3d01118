"""`python -m app.scripts.evaluate`: measure retrieval, answers, abstention and parsing."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from app.config import Settings
from app.rag.entailment import Meanings
from app.rag.parsers import SubprocessParser
from app.rag.parsers.quality import evaluate_formats
from app.scripts.evaluate.answer_commands import answers, compare, gate
from app.scripts.evaluate.claims import measure_support, read_qa
from app.scripts.evaluate.demo import measure_demo
from app.scripts.evaluate.reading_commands import reading
from app.scripts.evaluate.runs import (
    Abstention,
    Figures,
    make_benches,
    measure_abstention,
    measure_retrieval,
)
from app.scripts.evaluate.sets import read_sets
from app.scripts.evaluate.terminal import (
    JsonFile,
    Sample,
    console,
    embedder,
    reporting,
    write_json,
)

app = typer.Typer(add_completion=False, help=__doc__, no_args_is_help=True)
app.command()(answers)
app.command()(compare)
app.command()(gate)
app.command()(reading)

Folder = Annotated[Path, typer.Argument(help="Folder of the set, or of several sets.")]
Merged = Annotated[bool, typer.Option("--merged", help="Search all sets as one collection.")]


@app.command()
def retrieval(
    path: Folder, merged: Merged = False, sample: Sample = 0, json_file: JsonFile = None
) -> None:
    """nDCG@10, recall@10 and MRR of both legs and the hybrid, on sets in the BEIR layout."""
    figures: dict[str, dict[str, Figures]] = {}
    sets = read_sets(path, sample)
    with reporting() as report:
        for bench in make_benches(sets, embedder(), merged, report):
            figures |= measure_retrieval(bench, report)
    print_retrieval(figures, "one merged collection" if merged else "each set by itself")
    write_json(json_file, {name: {way: asdict(f) for way, f in ways.items()}
                           for name, ways in figures.items()})  # fmt: skip


@app.command()
def abstention(path: Folder, sample: Sample = 0, json_file: JsonFile = None) -> None:
    """How well confidence tells answerable questions from those whose documents are taken out.

    With --json app/rag/calibration.json it writes what the thresholds in PROFILES rest on.
    """
    results: dict[str, Abstention] = {}
    sets = [one for one in read_sets(path, sample) if not one.is_long]
    with reporting() as report:
        for bench in make_benches(sets, embedder(), False, report):
            results |= measure_abstention(bench, report)
    print_abstention(results)
    write_json(json_file, {name: asdict(result) for name, result in results.items()})


@app.command()
def citations(
    path: Annotated[Path, typer.Argument(help="QA file (.jsonl) whose rows carry their passage.")],
    sample: Sample = 0,
    json_file: JsonFile = None,
) -> None:
    """How well the citation check tells supported claims from unsupported, on the second half."""
    rows = read_qa(path)
    rows = rows[:: max(1, len(rows) // sample) if sample else 1]
    support = measure_support(rows[len(rows) // 2 :], Meanings(embedder()))
    table = Table("claims", "number", "passed", title=str(path))
    for kind, share in support.passed.items():
        table.add_row(kind, str(support.num_claims[kind]), f"{share:.1%}")
    console.print(table)
    console.print(
        f"precision {support.precision:.3f}, recall {support.recall:.3f}; a check takes "
        f"{support.median_ms:.1f} ms, one in a hundred {support.slowest_1_percent_ms:.0f} ms"
    )
    write_json(json_file, asdict(support))


@app.command()
def demo(path: Folder, json_file: JsonFile = None) -> None:
    """Questions of demo_questions.jsonl over the documents beside it: found, answered, refused."""
    results = measure_demo(path, embedder())
    table = Table("question", "rank", "confidence", "sufficient", "right", title=str(path))
    for result in results:
        rank = str(result.rank or "-") if result.is_answerable else ""
        confidence = f"{result.confidence:.2f}"
        table.add_row(result.question, rank, confidence, str(result.is_sufficient),
                      "yes" if result.is_right else "NO")  # fmt: skip
    console.print(table)
    write_json(json_file, [asdict(result) for result in results])


@app.command()
def formats(path: Folder, json_file: JsonFile = None) -> None:
    """Share of the strings in expected.json that the parsers find, by format, with the misses."""
    settings = Settings()
    parser = SubprocessParser(
        settings.parse_timeout_s, settings.parse_memory_mb, settings.passwords
    )
    report = evaluate_formats(path, parser)
    table = Table("format", "found", title=str(path))
    for suffix, share in report.share_by_suffix.items():
        table.add_row(suffix, f"{share:.1%}")
    table.add_row("all", f"{report.share:.1%}")
    console.print(table)
    for miss in report.misses:
        console.print(f"missed {miss}", markup=False)
    write_json(json_file, {"share": report.share, "share_by_suffix": report.share_by_suffix,
                           "misses": report.misses})  # fmt: skip


def print_retrieval(figures: dict[str, dict[str, Figures]], title: str) -> None:
    """Print a table, one row for each set and way of searching."""
    table = Table("set", "search", "nDCG@10", "held out", "recall@10", "MRR", title=title)
    for name, ways in figures.items():
        for way, f in ways.items():
            values = (f.ndcg, f.held_out_ndcg, f.recall, f.mrr)
            table.add_row(name, way, *(f"{value:.4f}" for value in values))
    console.print(table)


def print_abstention(results: dict[str, Abstention]) -> None:
    """Print a table, one row for each set."""
    table = Table("set", "language", "AUROC", "threshold", "chosen", "answered", "refused",
                  "fitted")  # fmt: skip
    for name, result in results.items():
        table.add_row(name, result.language, f"{result.auroc:.4f}", f"{result.threshold:.2f}",
                      f"{result.chosen:.2f}",
                      f"{result.answered:.1%}", f"{result.refused:.1%}",
                      " ".join(map(str, result.fitted)))  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    app()
