"""Compare the engine with and without speculation: one machine, one run, the same model.

    python -m app.scripts.benchmark speculation --shape smollm2-135m --requests 1,4,16

What is simulated: the model has random weights and quotes nobody. So the passages are made from
the answers that it writes without speculation: verbatim, with some tokens replaced, or so that
each pair of tokens of the answer is found and goes on wrongly, the worst for a drafter. What is
real: looking up, verifying, the steps and their times, and that the texts are equal. Answers are
sampled with a seed, because greedy texts of random models run in circles.
"""

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from app.engine import EngineConfig, RequestOutput, SamplingParams
from app.engine.engine_core import EngineCore, NewRequest, load_engine
from app.scripts.benchmark.models import SHAPES, make_model

Tokens = Sequence[int]


@dataclass(frozen=True, slots=True)
class Measurement:
    """Answers of all requests, and what they took."""

    answers: tuple[Tokens, ...]
    total_s: float
    cpu_s: float

    @property
    def tokens_per_s(self) -> float:
        """Over all requests, their prompts included."""
        return sum(map(len, self.answers)) / self.total_s


def speculation(
    shape: Annotated[str, typer.Option(help=f"One of: {', '.join(SHAPES)}.")] = "smollm2-135m",
    requests: Annotated[str, typer.Option(help="Numbers of requests at once.")] = "1,4,16",
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 64,
    output_tokens: Annotated[int, typer.Option(min=2)] = 64,
    threads: Annotated[int, typer.Option(min=0, help="0: all usable cores.")] = 0,
    dtype: Annotated[str, typer.Option()] = "float32",
) -> None:
    """Measure answers that quote, misquote and mislead, and print a table."""
    console = Console()
    table = _table(f"{shape}, {dtype}, prompt {prompt_tokens}, output {output_tokens}")
    with tempfile.TemporaryDirectory() as folder:
        with console.status("making a random model"):
            make_model(Path(folder), SHAPES[shape], prompt_tokens + output_tokens, dtype)
        config = EngineConfig(
            folder,
            dtype=dtype,  # type: ignore[arg-type]  # checked there
            num_threads=threads,
            max_model_len=prompt_tokens + output_tokens,
            enable_prefix_caching=False,
        )
        with console.status("loading"):
            plain = load_engine(config)
            speculating = load_engine(replace(config, speculative_config={"method": "ngram"}))
        vocab_size = SHAPES[shape]["vocab_size"]
        for core in (plain, speculating):  # warm up
            run(core, _make_requests(2, prompt_tokens, 8, vocab_size, seed=0))
        for count in map(int, requests.split(",")):
            load = _make_requests(count, prompt_tokens, output_tokens, vocab_size, seed=count)
            for name, quote in QUOTES.items():
                with console.status(f"{count} requests, {name}"):
                    without = run(plain, load)
                    rng = random.Random(name)
                    passages = [quote(answer, rng, vocab_size) for answer in without.answers]
                    quoting = [
                        replace(request, draft_sources=[[*request.prompt_token_ids[-2:], *passage]])
                        for request, passage in zip(load, passages, strict=True)
                    ]
                    before = speculating.stats()
                    with_drafts = run(speculating, quoting)
                after = speculating.stats()
                num_drafts = after.num_drafts - before.num_drafts
                num_drafted = after.num_draft_tokens - before.num_draft_tokens
                num_accepted = after.num_accepted_tokens - before.num_accepted_tokens
                pairs = zip(without.answers, with_drafts.answers, strict=True)
                table.add_row(
                    str(count),
                    name,
                    f"{without.tokens_per_s:.1f}",
                    f"{with_drafts.tokens_per_s:.1f}",
                    f"{with_drafts.tokens_per_s / without.tokens_per_s:.2f}",
                    f"{without.cpu_s / with_drafts.cpu_s:.2f}",
                    f"{num_accepted}/{num_drafted}",
                    f"{1 + num_accepted / num_drafts:.1f}" if num_drafts else "–",
                    f"{sum(one == other for one, other in pairs)}/{count}",
                )
    console.print(table)
    console.print(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")


def verbatim(answer: Tokens, rng: random.Random, vocab_size: int) -> list[int]:
    """The answer itself."""
    return list(answer)


def misquoted(answer: Tokens, rng: random.Random, vocab_size: int) -> list[int]:
    """The answer with every fifth token or so replaced."""
    return [token if rng.random() < 0.8 else rng.randrange(vocab_size) for token in answer]


def misleading(answer: Tokens, rng: random.Random, vocab_size: int) -> list[int]:
    """Each pair of the answer's tokens, always followed by others."""
    return [
        token
        for pair in pairwise(answer)
        for token in (*pair, *(rng.randrange(vocab_size) for _ in range(5)))
    ]


QUOTES: dict[str, Callable[[Tokens, random.Random, int], list[int]]] = {
    "verbatim": verbatim,
    "misquoted": misquoted,
    "misleading": misleading,
}


def _make_requests(
    count: int, num_prompt_tokens: int, num_output_tokens: int, vocab_size: int, seed: int
) -> list[NewRequest]:
    rng = random.Random(seed)
    return [
        NewRequest(
            str(index),
            [rng.randrange(vocab_size) for _ in range(num_prompt_tokens)],
            SamplingParams(seed=index, max_tokens=num_output_tokens, ignore_eos=True),
        )
        for index in range(count)
    ]


def run(core: EngineCore, requests: Sequence[NewRequest]) -> Measurement:
    """Answer all requests at once."""
    for request in requests:
        core.add(request)
    finished: dict[str, Tokens] = {}
    start, cpu_start = time.monotonic(), time.process_time()
    while core.has_work:
        for output in core.step():
            assert isinstance(output, RequestOutput)
            if output.finished:
                finished[output.request_id] = output.outputs[0].token_ids
    total_s, cpu_s = time.monotonic() - start, time.process_time() - cpu_start
    return Measurement(tuple(finished[r.request_id] for r in requests), total_s, cpu_s)


def _table(title: str) -> Table:
    table = Table(title=title)
    for column in (
        "requests",
        "passages",
        "tokens/s",
        "with drafts",
        "ratio",
        "CPU",
        "accepted",
        "length",
        "equal",
    ):
        table.add_column(column, justify="left" if column == "passages" else "right")
    return table
