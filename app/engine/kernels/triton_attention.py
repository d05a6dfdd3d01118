"""Store into and attention over the paged cache, in Triton; twins in `reference`.

One kernel serves single rows and chunks. A program takes BLOCK_Q rows of one sequence with the G
query heads that share a key/value head, together up to BLOCK_M rows of a matrix product, and walks
over the keys in tiles that know nothing of blocks:

    rows of the step        s0 | t0 | a0 a1 a2 a3 a4 | b0 b1 b2      query_starts 0 1 2 7 10
    programs (BLOCK_Q = 2)  s0   t0   a0 a1, a2 a3, a4  b0 b1, b2    found by binary search

Where rows are few, programs along a third axis take SPLIT_SIZE positions each and `_merge` joins
their sums (Flash-Decoding, Dao et al., 2023). Tiles and splits begin at fixed positions and a row's
own position alone says whether it is merged, so its bits do not depend on what shares the batch.
Packing of heads and search: vLLM's unified attention. Dimensions as in `reference`.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from app.engine.kernels.checks import check_device, check_dtype, check_shape
from app.engine.kernels.metadata import AttentionMetadata, AttentionSpec, KVCache

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
FEW_ROWS = 8  # sequences with up to so many rows are split
SPLIT_SIZE = 512  # positions of a split: its sums add about G / 128 to the bytes of its keys
BOUNDLESS: tl.constexpr = tl.constexpr(2**30)  # more positions than a sequence has
WORKSPACE_BYTES = 64 * 2**20  # for the sums of splits; sequences beyond it take turns
LEAST_M, CHUNK_M = 16, 64  # rows of a matrix product: the least there is, and for chunks
TILE_BYTES = 16 * 1024  # of keys: two stages of keys and values fit every GPU's shared memory

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
INT8_LIMIT: tl.constexpr = tl.constexpr(127.0)
ROUNDER: tl.constexpr = tl.constexpr(12582912.0)  # 1.5 * 2^23: added and taken, rounds half to even


def store_kv(key: Tensor, value: Tensor, cache: KVCache, layer: int, slots: Tensor) -> None:
    """As `reference.store_kv`; one program for each row."""
    num_rows, num_kv_heads, head_dim = key.shape
    check_shape("key", key, (num_rows, num_kv_heads, head_dim))
    check_shape("value", value, (num_rows, num_kv_heads, head_dim))
    check_shape("slots", slots, (num_rows,))
    check_dtype("slots", slots, torch.int64)
    check_dtype("value", value, key.dtype)
    _check_cache(key, cache)
    check_device({"key": key, "value": value, "cache": cache.data, "slots": slots})
    data, scales = _of_layer(cache, layer)
    _store[(num_rows,)](
        key,
        value,
        data,
        scales,
        slots,
        *key.stride()[:2],
        *value.stride()[:2],
        *data.stride()[:4],
        *scales.stride()[:3],
        NUM_KV_HEADS=num_kv_heads,
        HEADS_TILE=triton.next_power_of_2(num_kv_heads),
        HEAD_DIM=head_dim,
        DIM_TILE=triton.next_power_of_2(head_dim),
        BLOCK_SIZE=cache.block_size,
        IS_INT8=cache.scales is not None,
        num_warps=4,
        enable_fp_fusion=False,
    )


def paged_attention(
    query: Tensor, cache: KVCache, layer: int, metadata: AttentionMetadata, spec: AttentionSpec
) -> Tensor:
    """As `reference.paged_attention`; asks the device for nothing."""
    num_rows, num_heads, head_dim = query.shape
    num_kv_heads, num_sequences = cache.data.shape[3], len(metadata.row_counts)
    assert num_heads % num_kv_heads == 0, f"{num_heads} heads over {num_kv_heads} key/value heads"
    check_shape("query", query, (sum(metadata.row_counts), num_heads, head_dim))
    check_shape("positions", metadata.positions, (num_rows,))
    check_shape("query_starts", metadata.query_starts, (num_sequences + 1,))
    check_shape(
        "block_tables", metadata.block_tables, (num_sequences, metadata.block_tables.shape[1])
    )
    check_dtype("positions", metadata.positions, torch.int64)
    check_dtype("query_starts", metadata.query_starts, torch.int32)
    check_dtype("block_tables", metadata.block_tables, torch.int32)
    _check_cache(query, cache)
    check_device({"query": query, "cache": cache.data, "positions": metadata.positions})
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    num_sums = num_heads * (head_dim + 2)
    for launch in _launches(metadata.row_counts, metadata.contexts, num_sums):
        _run(launch, out, query, cache, layer, metadata, spec)
    return out


@dataclass(frozen=True, slots=True)
class _Launch:
    """Sequences [first, last), whose rows are [first_row, last_row), in one grid."""

    first: int
    last: int
    first_row: int
    last_row: int
    split_size: int
    num_splits: int

    @property
    def is_split(self) -> bool:
        """Whether its sequences have few rows."""
        return self.split_size == SPLIT_SIZE


@lru_cache(maxsize=8)
def _launches(
    row_counts: tuple[int, ...], contexts: tuple[int, ...], num_sums: int
) -> tuple[_Launch, ...]:
    """Sequences with few rows first, in turns whose sums fit the workspace, then the chunks.

    `num_sums` are the numbers that a split of a row leaves. All layers of a step ask the same.
    """
    num_few = next((i for i, count in enumerate(row_counts) if count > FEW_ROWS), len(row_counts))
    launches = []
    first, first_row = 0, 0
    while first < num_few:
        num_splits = -(-max(contexts[first:num_few]) // SPLIT_SIZE)
        max_rows = max(WORKSPACE_BYTES // (num_splits * num_sums * 4), FEW_ROWS)
        last, last_row = first, first_row
        while last < num_few and last_row + row_counts[last] - first_row <= max_rows:
            last, last_row = last + 1, last_row + row_counts[last]
        launches.append(_Launch(first, last, first_row, last_row, SPLIT_SIZE, num_splits))
        first, first_row = last, last_row
    if first < len(row_counts):
        rest = first, len(row_counts), first_row, sum(row_counts)
        launches.append(_Launch(*rest, BOUNDLESS.value, num_splits=1))
    return tuple(launches)


def _run(
    launch: _Launch,
    out: Tensor,
    query: Tensor,
    cache: KVCache,
    layer: int,
    metadata: AttentionMetadata,
    spec: AttentionSpec,
) -> None:
    _, num_heads, head_dim = query.shape
    num_kv_heads = cache.data.shape[3]
    num_groups = num_heads // num_kv_heads
    dim_tile = max(triton.next_power_of_2(head_dim), 16)
    tile = min(max(TILE_BYTES // (dim_tile * query.element_size()), 16), 64)
    # float32 products take the plain cores, and registers for no more than the least.
    is_wide = not launch.is_split and query.dtype != torch.float32
    block_m = max(CHUNK_M if is_wide else LEAST_M, triton.next_power_of_2(num_groups))
    block_q = block_m // num_groups
    num_programs = (
        launch.last_row // block_q - launch.first_row // block_q + launch.last - launch.first
    )
    num_rows = launch.last_row - launch.first_row if launch.num_splits > 1 else 0
    sums = query.new_empty((num_rows, num_heads, launch.num_splits, head_dim), dtype=torch.float32)
    stats = query.new_empty((num_rows, num_heads, launch.num_splits, 2), dtype=torch.float32)
    data, scales = _of_layer(cache, layer)
    softcap = spec.softcap or 0.0
    # exp2(x log2(e)) is exp(x); with a softcap the kernel takes exp2 of twice the scores.
    factor = 2 * LOG2_E.value * spec.scale / softcap if softcap else LOG2_E.value * spec.scale
    _attend[(num_programs, num_kv_heads, launch.num_splits)](
        out,
        sums,
        stats,
        query,
        data,
        scales,
        metadata.query_starts,
        metadata.positions,
        metadata.block_tables,
        launch.first,
        launch.last,
        factor,
        *query.stride()[:2],
        *data.stride()[:4],
        *scales.stride()[:3],
        metadata.block_tables.stride(0),
        NUM_GROUPS=num_groups,
        HEAD_DIM=head_dim,
        DIM_TILE=dim_tile,
        BLOCK_SIZE=cache.block_size,
        BLOCK_M=block_m,
        TILE=tile,
        SPLIT_SIZE=launch.split_size,
        WINDOW=spec.window or BOUNDLESS.value,
        SOFTCAP=softcap,
        IS_INT8=cache.scales is not None,
        num_warps=8 if is_wide and dim_tile > 128 else 4,
        num_stages=3 if launch.is_split else 2,
        enable_fp_fusion=True,
    )
    if launch.num_splits > 1:
        _merge[(num_rows, num_heads)](
            out,
            sums,
            stats,
            metadata.positions,
            launch.first_row,
            launch.num_splits,
            HEAD_DIM=head_dim,
            DIM_TILE=dim_tile,
            SPLIT_SIZE=launch.split_size,
            WINDOW=spec.window or BOUNDLESS.value,
            num_warps=1,
            enable_fp_fusion=True,
        )


def _of_layer(cache: KVCache, layer: int) -> tuple[Tensor, Tensor]:
    """Data [N, 2, K, S, D] and scales [N, 2, K, S] of a layer; without scales, any tensor."""
    data = cache.data[:, layer]
    return data, data[..., 0] if cache.scales is None else cache.scales[:, layer]


def _check_cache(rows: Tensor, cache: KVCache) -> None:
    """rows: [T, heads, D] that go into the cache or look into it."""
    num_blocks, num_layers, _, num_kv_heads, block_size, _ = cache.data.shape
    heads = (num_blocks, num_layers, 2, num_kv_heads, block_size)
    check_shape("cache", cache.data, (*heads, rows.shape[2]))
    check_dtype("rows", rows, *FLOATS)
    if cache.scales is None:
        check_dtype("cache", cache.data, rows.dtype)
    else:
        check_dtype("cache", cache.data, torch.int8)
        check_shape("scales", cache.scales, heads)
        check_dtype("scales", cache.scales, torch.float32)


@triton.jit
def _store(
    key,
    value,
    data,
    scales,
    slots,
    stride_key_row,
    stride_key_head,
    stride_value_row,
    stride_value_head,
    stride_block,
    stride_part,
    stride_head,
    stride_slot,
    stride_scale_block,
    stride_scale_part,
    stride_scale_head,
    NUM_KV_HEADS: tl.constexpr,
    HEADS_TILE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    IS_INT8: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    block, offset = slot // BLOCK_SIZE, slot % BLOCK_SIZE
    head, dim = tl.arange(0, HEADS_TILE), tl.arange(0, DIM_TILE)
    is_head = head < NUM_KV_HEADS
    inside = is_head[:, None] & (dim < HEAD_DIM)[None, :]
    from_key = row * stride_key_row + head[:, None] * stride_key_head + dim[None, :]
    from_value = row * stride_value_row + head[:, None] * stride_value_head + dim[None, :]
    keys = tl.load(key + from_key, mask=inside, other=0.0)
    values = tl.load(value + from_value, mask=inside, other=0.0)
    # 64 bits from here on: a pool may hold more than 2^31 numbers.
    target = block * stride_block + head[:, None] * stride_head + offset * stride_slot
    target += dim[None, :]
    if IS_INT8:
        scale = block * stride_scale_block + head * stride_scale_head + offset
        keys, key_scale = _quantize(keys)
        values, value_scale = _quantize(values)
        tl.store(scales + scale, key_scale, mask=is_head)
        tl.store(scales + scale + stride_scale_part, value_scale, mask=is_head)
    tl.store(data + target, keys, mask=inside)
    tl.store(data + target + stride_part, values, mask=inside)


@triton.jit
def _quantize(rows):
    """As `reference.quantize_rows`; rows: [heads, DIM_TILE], 0 beyond the head size."""
    wide = rows.to(tl.float32)
    scale = tl.div_rn(tl.max(tl.abs(wide), axis=1), INT8_LIMIT)
    scale = tl.where(scale > 0, scale, 1.0)
    rounded = tl.div_rn(wide, tl.broadcast_to(scale[:, None], wide.shape)) + ROUNDER - ROUNDER
    return rounded.to(tl.int8), scale


@triton.jit
def _rows_of_program(query_starts, first_sequence, last_sequence, BLOCK_Q: tl.constexpr):
    """The sequence, and first and last row, of this program along the first axis.

    Sequence b begins at program query_starts[b] // BLOCK_Q + b, which leaves it enough programs,
    and needs no table of where each begins. One without rows gets a first row after its last.
    """
    first_program = tl.load(query_starts + first_sequence) // BLOCK_Q + first_sequence
    program = first_program + tl.program_id(0)
    low, high = first_sequence, last_sequence - 1
    while low < high:
        middle = (low + high + 1) // 2
        is_reached = tl.load(query_starts + middle) // BLOCK_Q + middle <= program
        low = tl.where(is_reached, middle, low)
        high = tl.where(is_reached, high, middle - 1)
    first_row = tl.load(query_starts + low)
    first_row += (program - first_row // BLOCK_Q - low) * BLOCK_Q
    end_row = tl.load(query_starts + low + 1)
    return low, first_row, tl.minimum(first_row + BLOCK_Q, end_row) - 1


@triton.jit
def _first_split(position, SPLIT_SIZE: tl.constexpr, WINDOW: tl.constexpr):
    """The first split that a row at `position` sees something of; the last has the row itself."""
    return tl.maximum(position - WINDOW + 1, 0) // SPLIT_SIZE


@triton.jit(do_not_specialize=["first_sequence", "last_sequence", "stride_table"])
def _attend(
    out,
    sums,
    stats,
    query,
    data,
    scales,
    query_starts,
    positions,
    block_tables,
    first_sequence,
    last_sequence,
    factor,
    stride_query_row,
    stride_query_head,
    stride_block,
    stride_part,
    stride_head,
    stride_slot,
    stride_scale_block,
    stride_scale_part,
    stride_scale_head,
    stride_table,
    NUM_GROUPS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TILE: tl.constexpr,
    SPLIT_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    IS_INT8: tl.constexpr,
):
    BLOCK_Q: tl.constexpr = BLOCK_M // NUM_GROUPS
    kv_head = tl.program_id(1)
    split = tl.program_id(2)

    sequence, first_row, last_row = _rows_of_program(
        query_starts, first_sequence, last_sequence, BLOCK_Q
    )
    if first_row > last_row:
        return
    first_position = tl.load(positions + first_row).to(tl.int32)
    last_position = tl.load(positions + last_row).to(tl.int32)

    # Positions that some row sees. Tiles begin at multiples of TILE, whatever the window.
    start = split * SPLIT_SIZE
    stop = tl.minimum(start + SPLIT_SIZE, last_position + 1)
    start = tl.maximum(start, tl.maximum(first_position - WINDOW + 1, 0) // TILE * TILE)
    if start >= stop:
        return

    m, dim = tl.arange(0, BLOCK_M), tl.arange(0, DIM_TILE)
    row = first_row + m // NUM_GROUPS
    head = kv_head * NUM_GROUPS + m % NUM_GROUPS
    is_row = row <= last_row
    is_dim = dim < HEAD_DIM
    position = tl.load(positions + row, mask=is_row, other=0).to(tl.int32)
    wide_row = row.to(tl.int64)
    query_at = (wide_row * stride_query_row + head * stride_query_head)[:, None] + dim[None, :]
    rows = tl.load(query + query_at, mask=is_row[:, None] & is_dim[None, :], other=0.0)

    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, DIM_TILE], tl.float32)
    table = block_tables + sequence.to(tl.int64) * stride_table
    for tile in range(start, stop, TILE):
        key_position = tile + tl.arange(0, TILE)
        block = tl.load(table + key_position // BLOCK_SIZE, mask=key_position < stop, other=-1)
        is_held = block >= 0
        block = block.to(tl.int64)  # a pool may hold more than 2^31 numbers
        offset = key_position % BLOCK_SIZE
        key_at = block * stride_block + kv_head * stride_head + offset * stride_slot
        key_at = key_at[:, None] + dim[None, :]
        held = is_held[:, None] & is_dim[None, :]
        keys = tl.load(data + key_at, mask=held, other=0).to(rows.dtype)
        scores = tl.dot(rows, tl.trans(keys), input_precision="ieee") * factor
        scale_at = block * stride_scale_block + kv_head * stride_scale_head + offset
        if IS_INT8:
            scores *= tl.load(scales + scale_at, mask=is_held, other=0.0)[None, :]
        if SOFTCAP > 0:  # c tanh(x) = c (1 - 2 / (exp(2 x) + 1))
            scores = SOFTCAP * LOG2_E * (1 - 2 / (tl.exp2(scores) + 1))
        distance = position[:, None] - key_position[None, :]
        visible = (distance >= 0) & (distance < WINDOW) & is_held[None, :]
        scores = tl.where(visible, scores, float("-inf"))

        new_peak = tl.maximum(peak, tl.max(scores, axis=1))
        base = tl.where(new_peak == float("-inf"), 0.0, new_peak)  # nothing seen yet: no NaN
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(peak - base)
        total = total * shrink + tl.sum(weights, axis=1)
        peak = new_peak
        if IS_INT8:
            value_at = scale_at + stride_scale_part
            weights *= tl.load(scales + value_at, mask=is_held, other=0.0)[None, :]
        values = tl.load(data + key_at + stride_part, mask=held, other=0).to(rows.dtype)
        acc = acc * shrink[:, None]
        acc = tl.dot(weights.to(rows.dtype), values, acc, input_precision="ieee")

    # A row whose positions all lie in one split is done; others leave sums for `_merge`.
    first_split = _first_split(position, SPLIT_SIZE, WINDOW)
    last_split = position // SPLIT_SIZE
    num_heads = tl.num_programs(1) * NUM_GROUPS
    is_done = is_row & (first_split == last_split) & (split == last_split)
    out_at = (wide_row * num_heads + head)[:, None] * HEAD_DIM + dim[None, :]
    result = acc / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(out + out_at, result.to(out.dtype.element_ty), mask=is_done[:, None] & is_dim[None, :])
    if SPLIT_SIZE < BOUNDLESS:
        is_part = is_row & (first_split != last_split)
        start_row = tl.load(query_starts + first_sequence)
        part = ((wide_row - start_row) * num_heads + head) * tl.num_programs(2) + split
        tl.store(stats + part * 2, peak, mask=is_part)
        tl.store(stats + part * 2 + 1, total, mask=is_part)
        part_at = part[:, None] * HEAD_DIM + dim[None, :]
        tl.store(sums + part_at, acc, mask=is_part[:, None] & is_dim[None, :])


@triton.jit(do_not_specialize=["first_row", "num_splits"])
def _merge(
    out,
    sums,
    stats,
    positions,
    first_row,
    num_splits,
    HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    SPLIT_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    position = tl.load(positions + first_row + row).to(tl.int32)
    first_split = _first_split(position, SPLIT_SIZE, WINDOW)
    last_split = position // SPLIT_SIZE
    if first_split == last_split:
        return
    dim = tl.arange(0, DIM_TILE)
    is_dim = dim < HEAD_DIM
    num_heads = tl.num_programs(1)
    first_part = (row * num_heads + head) * num_splits
    peak, total = float("-inf"), 0.0
    acc = tl.zeros([DIM_TILE], tl.float32)
    for split in range(first_split, last_split + 1):
        part = first_part + split
        part_peak = tl.load(stats + part * 2)
        new_peak = tl.maximum(peak, part_peak)  # finite: the row sees something of each split
        shrink, weight = tl.exp2(peak - new_peak), tl.exp2(part_peak - new_peak)
        part_sums = tl.load(sums + part * HEAD_DIM + dim, mask=is_dim, other=0.0)
        acc = acc * shrink + part_sums * weight
        total = total * shrink + tl.load(stats + part * 2 + 1) * weight
        peak = new_peak
    at = ((first_row + row) * num_heads + head) * HEAD_DIM + dim
    tl.store(out + at, (acc / total).to(out.dtype.element_ty), mask=is_dim)
