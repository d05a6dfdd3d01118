"""Trains the built-in reader: `python -m app.scripts.train_reader --help`; see docs/reader.md.

Made for a small CPU; on a GPU, which it takes where there is one, add layers and steps:
`--layers 8 --intermediate-size 3072 --batch-tokens 65536 --steps 8000`.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import torch
import typer
from rich.console import Console
from tokenizers import Tokenizer

from app.domain import Language
from app.scripts.train_reader.corpus import Grounded, Text, read_grounded, read_texts
from app.scripts.train_reader.examples import Exercises
from app.scripts.train_reader.export import export
from app.scripts.train_reader.manifest import Corpus, without_overlap, write_manifest
from app.scripts.train_reader.measure import measure
from app.scripts.train_reader.overlap import Runs, evaluation_runs
from app.scripts.train_reader.plot import plot
from app.scripts.train_reader.tokens import count_tokens, save_tokenizer, train_tokenizer
from app.scripts.train_reader.training import LOG, LOG_EVERY, Recipe, Training

VOCABULARY = 8192
DEFAULT = Recipe()
# Every so many documents and questions one is held out, to be measured on.
HELD_OUT = 20
LANGUAGES: tuple[Language, ...] = ("en", "zh")
Item = TypeVar("Item", Text, Grounded)
cli = typer.Typer(add_completion=False, help=__doc__.partition("\n\n")[0])
console = Console(stderr=True, soft_wrap=True, highlight=False)


@cli.command()
def train(  # noqa: PLR0913  # a command has as many arguments as options
    out: Annotated[Path, typer.Option(help="Folder of the run; the model is OUT/model.")],
    data: Annotated[Path, typer.Option(help="Licensed texts and questions.", exists=True)],
    evaluation: Annotated[
        list[Path], typer.Option(help="Evaluation sets, to keep away from; several.", exists=True)
    ],
    docs: Annotated[Path, typer.Option(exists=True)] = Path("docs"),
    minutes: Annotated[float, typer.Option(min=0.0, help="Stop after so long.")] = 120.0,
    steps: Annotated[int, typer.Option(min=1)] = DEFAULT.steps,
    seed: Annotated[int, typer.Option()] = DEFAULT.seed,
    layers: Annotated[int, typer.Option(min=3)] = DEFAULT.num_layers,
    intermediate_size: Annotated[int, typer.Option(min=32)] = DEFAULT.intermediate_size,
    batch_tokens: Annotated[int, typer.Option(min=1024)] = DEFAULT.batch_tokens,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    questions: Annotated[int, typer.Option(min=1, help="To measure on, by language.")] = 200,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from OUT's checkpoint.")] = False,
    check_overlap: Annotated[
        bool, typer.Option("--check-overlap", help="Only tell what shares text; 1 if any does.")
    ] = False,
) -> None:
    """Train, measure on held-out documents, and write the model with its sources and curves."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    out.mkdir(parents=True, exist_ok=True)
    corpus, known = read_corpus(data, docs, out / "packages", evaluation)
    if check_overlap:
        raise typer.Exit(code=int(corpus.num_left_out > 0))
    recipe = Recipe(
        steps=steps,
        batch_tokens=batch_tokens,
        seed=seed,
        num_layers=layers,
        intermediate_size=intermediate_size,
    )
    training, held_out = prepare(corpus, recipe, out)
    if resume:
        training.resume()
    training.run(time.monotonic() + 60 * minutes, console.print)
    model = out / "model"
    export(training.model, training.tokenizer, model)
    write_manifest(corpus, evaluation, known, model)
    if training.step >= 2 * LOG_EVERY:  # a curve takes two points
        plot(out / LOG, model / "training.svg")
    for language in LANGUAGES:
        console.print(language, measure(model, held_out, language, questions))


def read_corpus(
    data: Path, docs: Path, packages: Path, evaluation: Sequence[Path]
) -> tuple[Corpus, Runs]:
    """All texts and questions but those that share text with the evaluation sets."""
    known = evaluation_runs(evaluation)
    texts, grounded = read_texts(data, docs, packages), read_grounded(data)
    corpus = without_overlap(texts, grounded, known)
    console.print(
        f"{len(corpus.texts)} documents, {len(corpus.grounded)} questions; "
        f"{corpus.num_left_out} left out because they share text with the evaluation sets"
    )
    return corpus, known


def prepare(corpus: Corpus, recipe: Recipe, out: Path) -> tuple[Training, Exercises]:
    """A run over nineteen twentieths of the corpus, and exercises from the rest."""
    texts, held_texts = _split(corpus.texts)
    grounded, held_grounded = _split(corpus.grounded)
    tokenizer = _tokenizer(corpus, out)
    counts = torch.zeros(tokenizer.get_vocab_size())
    sentences = (sentence for text in texts for sentence in text.sentences)
    for token, count in count_tokens(sentences, tokenizer).items():
        counts[token] = count
    training = Training(recipe, Exercises(texts, grounded), tokenizer, counts, out)
    return training, Exercises(held_texts, held_grounded)


def _tokenizer(corpus: Corpus, out: Path) -> Tokenizer:
    file = out / "tokenizer.json"
    if not file.exists():
        pieces = [sentence for text in corpus.texts for sentence in text.sentences]
        pieces += [part for item in corpus.grounded for part in (item.question, *item.sentences)]
        save_tokenizer(train_tokenizer(pieces, VOCABULARY), out)
    return Tokenizer.from_file(str(file))


def _split(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    kept = [item for place, item in enumerate(items) if place % HELD_OUT]
    return kept, [item for place, item in enumerate(items) if place % HELD_OUT == 0]


if __name__ == "__main__":
    cli()
