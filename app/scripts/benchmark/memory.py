"""How much of the reserved KV memory holds tokens: paged blocks against contiguous reservations.

    python -m app.scripts.benchmark memory
    python -m app.scripts.benchmark memory --real

Requests arrive at once, with log-normal lengths as chat logs have them: prompts with a median of
200 tokens (sigma 1.0, 8 to 2048), answers of 150 (sigma 0.8, 4 to the largest answer). The
scheduler and the cache manager are the engine's own; the runner only says when an answer ends.
With --real a small random model runs the same load and its cache is measured while it does.

After each step the tokens held and the slots reserved are counted; the table shows their means
over all steps. A contiguous allocator reserves a piece for each running request, when it starts:
of the model's length, of the next power of two of prompt and largest answer, or of just that.
"""

import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from app.engine import EngineConfig, SamplingParams
from app.engine.config import SchedulerConfig
from app.engine.engine_core import NewRequest, load_engine
from app.engine.kv_cache_manager import KVCacheManager
from app.engine.scheduler import Scheduler
from app.engine.sequence import GenerationLimits, SampledToken, Sequence
from app.scripts.benchmark.models import SHAPES, make_model

EOS, OTHER = 0, 1
VOCAB_SIZE = 250
TOKEN_BUDGET = 512


@dataclass(frozen=True, slots=True)
class Request:
    """Lengths in tokens; nobody knows the answer's before it ends."""

    num_prompt_tokens: int
    num_answer_tokens: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The cache after a step, in tokens, and the requests that hold it."""

    num_held_tokens: int
    num_reserved_slots: int
    running: tuple[Request, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """What each allocator knows beforehand."""

    block_size: int
    max_model_len: int
    max_tokens: int


Reservation = Callable[[Request], int]


def memory(
    requests: Annotated[int, typer.Option(min=1, max=512)] = 64,
    block_size: Annotated[int, typer.Option(min=1)] = 16,
    max_model_len: Annotated[int, typer.Option(min=4096, help="Of the model.")] = 4096,
    max_tokens: Annotated[int, typer.Option(min=4, max=2048, help="Largest answer.")] = 1024,
    seeds: Annotated[int, typer.Option(min=1, help="Mixes that are drawn.")] = 3,
    real: Annotated[bool, typer.Option(help="Run a small model, too.")] = False,
) -> None:
    """Count held and reserved KV memory over a mix of requests and print a table."""
    limits = Limits(block_size, max_model_len, max_tokens)
    console = Console()
    kinds = {"control plane": simulate} | ({"real model": run_model} if real else {})
    for seed in range(seeds):
        load = draw_requests(requests, max_tokens, seed)
        for name, run in kinds.items():
            snapshots = list(run(load, limits))
            console.print(
                make_table(f"{requests} requests, seed {seed}, {name}", snapshots, limits)
            )


def draw_requests(count: int, max_tokens: int, seed: int) -> list[Request]:
    """Log-normal lengths, the same for the same seed."""
    rng = random.Random(seed)

    def draw(median: int, sigma: float, low: int, high: int) -> int:
        return min(max(round(median * rng.lognormvariate(0.0, sigma)), low), high)

    return [Request(draw(200, 1.0, 8, 2048), draw(150, 0.8, 4, max_tokens)) for _ in range(count)]


def simulate(load: list[Request], limits: Limits) -> Iterator[Snapshot]:
    """The engine's control plane, with a runner that only counts."""
    num_blocks = sum(-(-limits.max_model_len // limits.block_size) for _ in load)
    kv_cache = KVCacheManager(num_blocks, limits.block_size)
    config = SchedulerConfig(len(load), TOKEN_BUDGET, len(load), limits.max_model_len)
    scheduler = Scheduler(config, kv_cache)
    known = {str(index): request for index, request in enumerate(load)}
    for request_id, request in known.items():
        scheduler.add([_sequence(request_id, request, limits)])
    running: dict[str, Request] = {}
    while scheduler.has_work:
        batch = scheduler.schedule()
        scheduler.finish_step(batch, [(_answer(known, each),) for each in batch.sampled])
        for sequence in (item.sequence for item in batch.sequences):
            running[sequence.request_id] = known[sequence.request_id]
            if sequence.is_finished:
                del running[sequence.request_id]
        stats = scheduler.stats
        yield Snapshot(stats.num_held_tokens, stats.num_reserved_slots, tuple(running.values()))


def run_model(load: list[Request], limits: Limits) -> Iterator[Snapshot]:
    """The whole engine with a small random model; it is told the answers' lengths as limits."""
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), SHAPES["tiny"], limits.max_model_len, "float32")
        core = load_engine(
            EngineConfig(
                folder,
                max_model_len=limits.max_model_len,
                block_size=limits.block_size,
                max_num_seqs=len(load),
                max_num_batched_tokens=TOKEN_BUDGET,
                max_num_queued=len(load),
            )
        )
        rng = random.Random(0)
        running: dict[str, Request] = {}
        for index, request in enumerate(load):
            prompt = [rng.randrange(VOCAB_SIZE) for _ in range(request.num_prompt_tokens)]
            params = SamplingParams(
                temperature=0, max_tokens=request.num_answer_tokens, ignore_eos=True
            )
            core.add(NewRequest(str(index), prompt, params))
            running[str(index)] = request
        while core.has_work:
            for output in core.step():
                if output.finished:
                    del running[output.request_id]
            stats = core.stats()
            holding = tuple(running.values())[: stats.num_requests_running]
            yield Snapshot(stats.num_held_tokens, stats.num_reserved_slots, holding)


def make_table(title: str, snapshots: list[Snapshot], limits: Limits) -> Table:
    """One row for each way to reserve, and how many more users blocks fit in the same memory."""
    ways: dict[str, Reservation] = {
        "contiguous, model's length": lambda request: limits.max_model_len,
        "contiguous, power of two": lambda request: (
            1 << (_largest(request, limits) - 1).bit_length()
        ),
        "contiguous, prompt + max_tokens": lambda request: _largest(request, limits),
    }
    held = sum(snapshot.num_held_tokens for snapshot in snapshots)
    reserved = {
        name: sum(reserve(request) for snapshot in snapshots for request in snapshot.running)
        for name, reserve in ways.items()
    }
    paged = f"paged, blocks of {limits.block_size}"
    reserved[paged] = sum(snapshot.num_reserved_slots for snapshot in snapshots)
    table = Table(title=title, caption="tokens, mean over all steps; users: how many times as many")
    for column in ("reservation", "held", "reserved", "waste %", "users"):
        table.add_column(column, justify="left" if column == "reservation" else "right")
    for name, slots in reserved.items():
        table.add_row(
            name,
            f"{held / len(snapshots):.0f}",
            f"{slots / len(snapshots):.0f}",
            f"{100 * (1 - held / slots):.1f}",
            f"{slots / reserved[paged]:.1f} x",
        )
    return table


def _largest(request: Request, limits: Limits) -> int:
    return request.num_prompt_tokens + limits.max_tokens


def _sequence(request_id: str, request: Request, limits: Limits) -> Sequence:
    rng = random.Random(request_id)
    prompt = [rng.randrange(VOCAB_SIZE) for _ in range(request.num_prompt_tokens)]
    generation = GenerationLimits(frozenset([EOS]), limits.max_model_len, VOCAB_SIZE)
    return Sequence(request_id, 0, prompt, SamplingParams(max_tokens=limits.max_tokens), generation)


def _answer(known: dict[str, Request], sequence: Sequence) -> SampledToken:
    is_last = sequence.num_output_tokens + 1 == known[sequence.request_id].num_answer_tokens
    return SampledToken(EOS if is_last else OTHER)
