"""Compare the engine with Hugging Face `generate`: one machine, one run, the same random model.

    python -m app.scripts.benchmark speed --shape qwen2.5-0.5b --requests 1,8
    python -m app.scripts.benchmark speed --engines auto,torch,int8,int4 --checkpoint bfloat16

All requests of a row arrive at once; prompts are random tokens, greedy, no stopping. All models
are loaded and take turns, so that what else the machine does falls on each. Where it does much
else, compare CPU seconds with one thread.

`--engines` names ways to run the engine: "auto" as it would by itself, "torch" without kernels of
its own, "int8" and "int4" with weights made so small. `--checkpoint` is the dtype of the files,
`--dtype` the one that both compute in.
"""

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from app.engine import LLM, SamplingParams
from app.engine.machine import num_usable_cores
from app.scripts.benchmark.models import SHAPES, make_model


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of a generator, with prompts that it has not seen before."""

    prompts: tuple[tuple[int, ...], ...]
    num_output_tokens: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """Seconds to each request's first token, seconds between tokens, and the whole."""

    first_token_s: tuple[float, ...]
    inter_token_s: tuple[float, ...]
    total_s: float
    cpu_s: float


Generator = Callable[[Load], Measurement]
# The options of `LLM` that make each way to run the engine.
ENGINES: dict[str, dict[str, Any]] = {
    "auto": {},
    "torch": {"kernels": "torch"},
    "int8": {"quantization": "int8"},
    "int4": {"quantization": "int4"},
}
KV_BYTES = 2**30  # of each engine, so that several fit side by side


def speed(  # noqa: PLR0913  one argument for each option of the command
    shape: Annotated[str, typer.Option(help=f"One of: {', '.join(SHAPES)}.")] = "smollm2-135m",
    requests: Annotated[str, typer.Option(help="Numbers of requests at once.")] = "1,8",
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 128,
    output_tokens: Annotated[int, typer.Option(min=2)] = 32,
    repeats: Annotated[
        int, typer.Option(min=1, help="The one with the least CPU time is shown.")
    ] = 1,
    threads: Annotated[int, typer.Option(min=0, help="0: all usable cores.")] = 0,
    dtype: Annotated[str, typer.Option()] = "float32",
    checkpoint: Annotated[str, typer.Option()] = "bfloat16",
    engines: Annotated[str, typer.Option(help=f"Of: {', '.join(ENGINES)}.")] = "auto",
) -> None:
    """Measure the generators side by side and print a table."""
    console = Console()
    counts = [int(count) for count in requests.split(",")]
    table = _table(f"{shape}, {dtype}, prompt {prompt_tokens}, output {output_tokens}")
    with tempfile.TemporaryDirectory() as folder:
        with console.status("making a random model"):
            make_model(Path(folder), SHAPES[shape], prompt_tokens + output_tokens, checkpoint)
        with console.status("loading"):
            generators = {
                f"engine {name}": engine(folder, dtype, threads, ENGINES[name])
                for name in engines.split(",")
            }
            generators["hugging face"] = hugging_face(folder, dtype, threads)
        vocab_size = SHAPES[shape]["vocab_size"]
        for run in generators.values():  # warm up
            run(make_load(1, prompt_tokens, 2, vocab_size, seed=0))
        for count in counts:
            fastest: dict[str, Measurement] = {}
            for repeat in range(repeats):
                load = make_load(count, prompt_tokens, output_tokens, vocab_size, seed=repeat + 1)
                for name, run in generators.items():
                    with console.status(f"{name}: {count} requests, repeat {repeat + 1}"):
                        measured = run(load)
                    best = fastest.setdefault(name, measured)
                    fastest[name] = min(best, measured, key=lambda m: m.cpu_s)
            for name, measured in fastest.items():
                _add_row(table, name, count, output_tokens, measured)
    console.print(table)
    console.print(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")


def make_load(
    num_requests: int, num_prompt_tokens: int, num_output_tokens: int, vocab_size: int, seed: int
) -> Load:
    """Random prompts; different seeds share no prefix."""
    rng = random.Random(f"{seed}:{num_requests}")
    prompts = tuple(
        tuple(rng.randrange(vocab_size) for _ in range(num_prompt_tokens))
        for _ in range(num_requests)
    )
    return Load(prompts, num_output_tokens)


def engine(folder: str, dtype: str, threads: int, options: dict[str, Any]) -> Generator:
    """The engine, with continuous batching."""
    llm = LLM(folder, dtype=dtype, num_threads=threads, kv_cache_memory_bytes=KV_BYTES, **options)  # type: ignore[arg-type]  # checked there

    def run(load: Load) -> Measurement:
        params = SamplingParams(temperature=0, max_tokens=load.num_output_tokens, ignore_eos=True)
        start, cpu_start = time.monotonic(), time.process_time()
        outputs = llm.generate([list(prompt) for prompt in load.prompts], params)
        total_s, cpu_s = time.monotonic() - start, time.process_time() - cpu_start
        first, between = [], []
        for output in outputs:
            metrics = output.metrics
            assert metrics.first_token_time is not None
            assert metrics.finished_time is not None
            first.append(metrics.first_token_time - start)
            span_s = metrics.finished_time - metrics.first_token_time
            between.append(span_s / (load.num_output_tokens - 1))
        return Measurement(tuple(first), tuple(between), total_s, cpu_s)

    return run


def hugging_face(folder: str, dtype: str, threads: int) -> Generator:
    """`generate` on one static batch of all requests, its best case: equal lengths."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    model.eval()
    torch.set_num_threads(threads or num_usable_cores())

    @torch.inference_mode()
    def run(load: Load) -> Measurement:
        ids = torch.tensor(load.prompts)
        times: list[float] = []

        def note_time(token_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
            times.append(time.monotonic())
            return torch.zeros(token_ids.shape[0], dtype=torch.bool)

        start, cpu_start = time.monotonic(), time.process_time()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=load.num_output_tokens,
            min_new_tokens=load.num_output_tokens,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=[note_time],
        )
        total_s, cpu_s = time.monotonic() - start, time.process_time() - cpu_start
        between = (times[-1] - times[0]) / (load.num_output_tokens - 1)
        num_requests = len(load.prompts)
        first = times[0] - start
        return Measurement((first,) * num_requests, (between,) * num_requests, total_s, cpu_s)

    return run


def _table(title: str) -> Table:
    table = Table(title=title)
    table.add_column("generator")
    for column in ("requests", "output tokens/s", "first token ms", "between tokens ms", "CPU s"):
        table.add_column(column, justify="right")
    return table


def _add_row(
    table: Table, name: str, num_requests: int, num_output_tokens: int, measured: Measurement
) -> None:
    table.add_row(
        name,
        str(num_requests),
        f"{num_requests * num_output_tokens / measured.total_s:.1f}",
        f"{1000 * statistics.median(measured.first_token_s):.0f}",
        f"{1000 * statistics.median(measured.inter_token_s):.1f}",
        f"{measured.cpu_s:.2f}",
    )
