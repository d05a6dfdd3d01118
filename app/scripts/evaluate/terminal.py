"""What the commands share: the embedder of the settings, progress, and reports."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from app.config import Settings
from app.rag.embeddings import load_embedder
from app.rag.protocols import Embedder
from app.scripts.evaluate.runs import Report

console = Console()
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Write the figures to this file, too.")
]
Sample = Annotated[int, typer.Option(help="Ask so many questions, taken evenly; 0: all.")]


def embedder() -> Embedder:
    """Load the embedder that the settings name."""
    settings = Settings()
    return load_embedder(settings.embedding_model, settings.num_threads)


@contextmanager
def reporting() -> Iterator[Report]:
    """Show a counter for each kind of work."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        tasks: dict[str, Any] = {}

        def report(name: str, num_done: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=None)
            progress.advance(tasks[name], num_done)

        yield report


def write_json(path: Path | None, figures: object) -> None:
    """Write figures where a file was asked for."""
    if path is not None:
        path.write_text(json.dumps(figures, ensure_ascii=False, indent=2) + "\n", "utf-8")
