"""Compare answers that only quote with free ones: one machine, one run, the same model.

    python -m app.scripts.benchmark quotes --shape smollm2-135m --requests 1,4,16

The model has random weights, so which sentences it quotes means nothing; how many tokens they
have, the masks, the priors and the steps are real. A free answer gets as many tokens as its
request's quotes have.
"""

import json
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from app.engine import (
    EngineConfig,
    QuoteOnlyParams,
    QuoteSource,
    SamplingParams,
    StructuredOutputsParams,
)
from app.engine.engine_core import NewRequest, load_engine
from app.scripts.benchmark.models import SHAPES, make_model
from app.scripts.benchmark.speculation import run

NUM_SOURCES = 3
NUM_SENTENCES = 8
WORDS = "the pages of a document hold what its blocks in the cache say about keys and values"


def quotes(
    shape: Annotated[str, typer.Option(help=f"One of: {', '.join(SHAPES)}.")] = "smollm2-135m",
    requests: Annotated[str, typer.Option(help="Numbers of requests at once.")] = "1,4,16",
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 64,
    threads: Annotated[int, typer.Option(min=0, help="0: all usable cores.")] = 0,
    dtype: Annotated[str, typer.Option()] = "float32",
) -> None:
    """Measure tokens a second with and without the constraint, and print a table."""
    console = Console()
    table = Table(title=f"{shape}, {dtype}, prompt {prompt_tokens}")
    for column in ("requests", "output tokens", "free tokens/s", "quotes tokens/s", "ratio"):
        table.add_column(column, justify="right")
    vocab_size = SHAPES[shape]["vocab_size"]
    with tempfile.TemporaryDirectory() as folder:
        with console.status("making and loading a random model"):
            make_model(Path(folder), SHAPES[shape], 2048, dtype)
            end = json.dumps({"eos_token_id": vocab_size - 1})
            (Path(folder) / "generation_config.json").write_text(end)
            core = load_engine(
                EngineConfig(
                    folder,
                    dtype=dtype,  # type: ignore[arg-type]  # checked there
                    num_threads=threads,
                    max_model_len=2048,
                    enable_prefix_caching=False,
                )
            )
        run(core, make_requests(2, prompt_tokens, vocab_size))  # warm up
        for count in map(int, requests.split(",")):
            quoting = make_requests(count, prompt_tokens, vocab_size)
            with console.status(f"{count} requests"):
                quoted = run(core, quoting)
                free = [
                    replace(
                        request,
                        params=SamplingParams(seed=1, max_tokens=len(answer), ignore_eos=True),
                    )
                    for request, answer in zip(quoting, quoted.answers, strict=True)
                ]
                plain = run(core, free)
            table.add_row(
                str(count),
                str(sum(map(len, quoted.answers))),
                f"{plain.tokens_per_s:.1f}",
                f"{quoted.tokens_per_s:.1f}",
                f"{quoted.tokens_per_s / plain.tokens_per_s:.2f}",
            )
    console.print(table)
    console.print(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")


def make_requests(count: int, num_prompt_tokens: int, vocab_size: int) -> list[NewRequest]:
    """Requests that quote three sentences of 24, each of 8 words and a token for each byte."""
    rng = random.Random(count)
    words = WORDS.split()
    requests = []
    for index in range(count):
        sources = [
            QuoteSource(number, [" ".join(rng.choices(words, k=8)) for _ in range(NUM_SENTENCES)])
            for number in range(1, NUM_SOURCES + 1)
        ]
        structured = StructuredOutputsParams(quote_only=QuoteOnlyParams(sources))
        params = SamplingParams(seed=index, max_tokens=1024, structured_outputs=structured)
        prompt = [rng.randrange(vocab_size - 1) for _ in range(num_prompt_tokens)]
        requests.append(NewRequest(str(index), prompt, params))
    return requests
