"""The command line: `python -m app.scripts.train_reader --help`."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from tokenizers import Tokenizer

from app.scripts.train_reader.corpus import Grounded, Text, read_grounded, read_texts
from app.scripts.train_reader.examples import Exercises
from app.scripts.train_reader.export import export
from app.scripts.train_reader.overlap import overlapping
from app.scripts.train_reader.tokens import save_tokenizer, train_tokenizer
from app.scripts.train_reader.training import CHECKPOINT, LOG, Recipe, Training

VOCAB_SIZE = 8192
GPU_RECIPE = Recipe(
    steps=30_000, batch_tokens=65_536, learning_rate=1e-3, hidden_size=512, num_layers=8
)
console = Console(stderr=True)


def train_reader(  # noqa: PLR0913 - the options of a command
    data: Annotated[Path, typer.Option(help="Folder with the licensed training texts.")],
    evaluation: Annotated[
        list[Path],
        typer.Option(help="Folders of evaluation sets: texts that share an n-gram are left out."),
    ],
    output: Annotated[Path, typer.Option(help="Where the model goes.")] = Path("reader-model"),
    work: Annotated[
        Path, typer.Option(help="Checkpoint, log and fetched texts; a run there goes on.")
    ] = Path("reader-work"),
    docs: Annotated[Path, typer.Option(help="Folio's own documents.")] = Path("docs"),
    minutes: Annotated[float, typer.Option(min=0.1, help="Stop and export after this.")] = 120.0,
    steps: Annotated[int, typer.Option(min=1)] = Recipe().steps,
    seed: Annotated[int, typer.Option()] = Recipe().seed,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    check_overlap: Annotated[
        bool, typer.Option("--check-overlap", help="Only say what shares an n-gram, and end.")
    ] = False,
) -> None:
    """Train the built-in reader: a small model that chooses which sentences to quote.

    The same seed, steps and texts give the same model on the same machine, in one run or in
    several. With a GPU a larger model is trained (30 million parameters).
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    work.mkdir(parents=True, exist_ok=True)
    texts, grounded = read_texts(data, docs, work), read_grounded(data)
    kept_texts, kept_grounded = without_overlap(texts, grounded, evaluation)
    num_dropped = len(texts) + len(grounded) - len(kept_texts) - len(kept_grounded)
    console.print(
        f"{len(texts)} texts and {len(grounded)} grounded questions, {num_dropped} of them share "
        "words with the evaluation sets and are left out"
    )
    if check_overlap:
        return
    recipe = GPU_RECIPE if torch.cuda.is_available() else replace(Recipe(), steps=steps)
    tokenizer = make_tokenizer(kept_texts, kept_grounded, work)
    exercises = Exercises(kept_texts, kept_grounded)
    training = Training(replace(recipe, seed=seed), exercises, tokenizer, work)
    if (work / CHECKPOINT).exists():
        training.resume()
        console.print(f"going on after step {training.step}")
    training.run(time.monotonic() + minutes * 60, console.print)
    export(training.model, tokenizer, work / LOG, output)
    console.print(f"the reader after {training.step} steps is in {output}")


def without_overlap(
    texts: list[Text], grounded: list[Grounded], evaluation: list[Path]
) -> tuple[list[Text], list[Grounded]]:
    """What shares no n-gram with any evaluation set."""
    for folder in evaluation:
        flags = overlapping([" ".join(text.sentences) for text in texts], folder)
        texts = [text for text, is_shared in zip(texts, flags, strict=True) if not is_shared]
        flags = overlapping([" ".join([g.question, *g.sentences]) for g in grounded], folder)
        grounded = [item for item, is_shared in zip(grounded, flags, strict=True) if not is_shared]
    return texts, grounded


def make_tokenizer(texts: list[Text], grounded: list[Grounded], work: Path) -> Tokenizer:
    """The run's tokenizer: made once, then read again."""
    path = work / "tokenizer.json"
    if path.exists():
        return Tokenizer.from_file(str(path))
    sentences = [sentence for text in texts for sentence in text.sentences]
    sentences += [text for item in grounded for text in (item.question, *item.sentences)]
    tokenizer = train_tokenizer(sentences, VOCAB_SIZE)
    save_tokenizer(tokenizer, work)
    return tokenizer


if __name__ == "__main__":
    typer.run(train_reader)
