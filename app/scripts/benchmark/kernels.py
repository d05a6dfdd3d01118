"""Measure the GPU kernels: bandwidth of decode attention, and each fused kernel beside its twin.

    python -m app.scripts.benchmark kernels --batches 1,16,128 --contexts 1024,8192

Decoding reads every key and value once, so its limit is the memory: the table shows the bytes of
keys and values over the time, as a share of the device's bandwidth.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from app.engine.kernels.dispatch import REFERENCE, Kernels, choose_kernels
from app.engine.kernels.metadata import AttentionMetadata, AttentionSpec, KVCache

# Bytes per second by the makers' data sheets; a name is found within torch's name of the device.
BANDWIDTHS = {
    "H200": 4.8e12,
    "H100 PCIe": 2.0e12,
    "H100": 3.35e12,
    "A100-SXM4-80GB": 2.04e12,
    "A100-SXM4-40GB": 1.56e12,
    "L40S": 8.6e11,
    "RTX 4090": 1.01e12,
    "MI300X": 5.3e12,
}
BLOCK_SIZE = 16
REPEATS = 30
FLUSH_BYTES = 2**28  # written between repeats, more than any cache holds

Timer = Callable[[Callable[[], object]], float]


@dataclass(frozen=True, slots=True)
class Shape:
    """Heads and sizes of a model."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int


def kernels(  # noqa: PLR0913  one argument for each option of the command
    batches: Annotated[str, typer.Option(help="Sequences that decode together.")] = "1,16,128",
    contexts: Annotated[str, typer.Option(help="Positions of each.")] = "1024,8192,32768",
    rows: Annotated[str, typer.Option(help="Rows for the fused kernels.")] = "1,64,512",
    heads: Annotated[int, typer.Option(min=1)] = 32,
    kv_heads: Annotated[int, typer.Option(min=1)] = 8,
    head_dim: Annotated[int, typer.Option(min=1)] = 128,
    hidden_size: Annotated[int, typer.Option(min=1)] = 4096,
    intermediate_size: Annotated[int, typer.Option(min=1)] = 14336,
    int8: Annotated[bool, typer.Option(help="Keys and values in 8 bits.")] = False,
    bandwidth_gb_s: Annotated[
        float | None, typer.Option(help="Of the device's memory, where it is not known.")
    ] = None,
) -> None:
    """Measure attention and the fused kernels on a GPU and print two tables."""
    if not torch.cuda.is_available():
        raise typer.BadParameter("this measures kernels of GPUs, and torch finds none here")
    device, name = torch.device("cuda"), torch.cuda.get_device_name()
    bandwidth = bandwidth_gb_s * 1e9 if bandwidth_gb_s else known_bandwidth(name)
    shape = Shape(heads, kv_heads, head_dim, hidden_size, intermediate_size)
    console = Console()
    console.print(f"{name}, {bandwidth / 1e9:.0f} GB/s, {shape}, int8 cache: {int8}")
    table = _table("decode attention", "batch", "context", "µs", "GB/s", "of the bandwidth")
    for batch in _numbers(batches):
        for context in _numbers(contexts):
            seconds = attention_s(shape, batch, context, int8, device, gpu_time_s)
            speed = kv_bytes(shape, batch, context, int8) / seconds
            share = f"{100 * speed / bandwidth:.0f} %"
            table.add_row(
                str(batch), str(context), f"{1e6 * seconds:.0f}", f"{speed / 1e9:.0f}", share
            )
    console.print(table)
    table = _table("fused kernels", "kernel", "rows", "µs", "µs of the twin", "times faster")
    for num_rows in _numbers(rows):
        for kernel, (fused, twin) in fused_s(shape, num_rows, device, gpu_time_s).items():
            times = f"{1e6 * fused:.1f}", f"{1e6 * twin:.1f}", f"{twin / fused:.1f}"
            table.add_row(kernel, str(num_rows), *times)
    console.print(table)


def known_bandwidth(device_name: str) -> float:
    """Bytes per second of a device that the table knows."""
    for name, bandwidth in BANDWIDTHS.items():
        if name in device_name:
            return bandwidth
    known = ", ".join(BANDWIDTHS)
    raise typer.BadParameter(
        f"the bandwidth of {device_name} is not known (known: {known}): give --bandwidth-gb-s"
    )


def kv_bytes(shape: Shape, batch: int, context: int, is_int8: bool) -> int:
    """What one layer's decode step has to read, int8 with a float32 scale for each head."""
    head_bytes = shape.head_dim + 4 if is_int8 else 2 * shape.head_dim
    return 2 * batch * context * shape.num_kv_heads * head_bytes


def attention_s(
    shape: Shape, batch: int, context: int, is_int8: bool, device: torch.device, timer: Timer
) -> float:
    """Seconds of one layer's attention for one row of each sequence."""
    blocks_each = -(-context // BLOCK_SIZE)
    dims = (batch * blocks_each, 1, 2, shape.num_kv_heads, BLOCK_SIZE, shape.head_dim)
    dtype = torch.int8 if is_int8 else torch.bfloat16
    scales = torch.ones(dims[:-1], device=device) if is_int8 else None
    cache = KVCache(torch.zeros(dims, dtype=dtype, device=device), scales)
    blocks = torch.randperm(batch * blocks_each).view(batch, blocks_each).tolist()
    metadata = AttentionMetadata.build(
        [context - 1] * batch, [0] * batch, [1] * batch, blocks, device
    )
    query_shape = (batch, shape.num_heads, shape.head_dim)
    query = torch.randn(query_shape, device=device).to(torch.bfloat16)
    spec = AttentionSpec(shape.head_dim**-0.5)
    attend = choose_kernels(device).paged_attention
    return timer(lambda: attend(query, cache, 0, metadata, spec))


def fused_s(
    shape: Shape, num_rows: int, device: torch.device, timer: Timer
) -> dict[str, tuple[float, float]]:
    """Seconds of each fused kernel and of its twin."""
    fused = _calls(choose_kernels(device), shape, num_rows, device)
    twins = _calls(REFERENCE, shape, num_rows, device)
    return {name: (timer(fused[name]), timer(twins[name])) for name in fused}


def _calls(
    kernels: Kernels, shape: Shape, num_rows: int, device: torch.device
) -> dict[str, Callable[[], object]]:
    def made(*size: int) -> Tensor:
        return torch.randn(size, device=device).to(torch.bfloat16)

    hidden, weight = made(num_rows, shape.hidden_size), made(shape.hidden_size)
    gate_up = made(num_rows, 2 * shape.intermediate_size)
    query = made(num_rows, shape.num_heads, shape.head_dim)
    key = made(num_rows, shape.num_kv_heads, shape.head_dim)
    cos = made(num_rows, shape.head_dim // 2)
    blocks = -(-num_rows // BLOCK_SIZE)
    cache = KVCache(made(blocks, 1, 2, shape.num_kv_heads, BLOCK_SIZE, shape.head_dim))
    slots = torch.arange(num_rows, device=device)
    return {
        "rms_norm": lambda: kernels.rms_norm(hidden, weight, 1e-6),
        "add_rms_norm": lambda: kernels.add_rms_norm(hidden, hidden, weight, 1e-6),
        "rotate": lambda: kernels.rotate(query, key, cos, cos, None),
        "silu_mul": lambda: kernels.silu_mul(gate_up),
        "store_kv": lambda: kernels.store_kv(key, key, cache, 0, slots),
    }


def gpu_time_s(run: Callable[[], object]) -> float:
    """Median seconds on the GPU, its caches cold; the first runs compile and are not counted."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    events = [(_event(), _event()) for _ in range(REPEATS)]
    for _ in range(3):
        run()
    for start, end in events:
        flush.zero_()  # also keeps the GPU busy while the next launch is prepared
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    times_ms: list[float] = [start.elapsed_time(end) for start, end in events]
    return statistics.median(times_ms) / 1000


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch has no types here


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right")
    return table
