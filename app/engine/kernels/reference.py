"""The kernels in plain torch: what faster kernels are tested against, and the way without them.

Dimensions: T rows of the step, H query heads, K key/value heads, G = H / K, D head size,
E hidden size, I intermediate size, N blocks, S block size, B sequences, M blocks of the longest
table, L = M * S positions.
"""

import torch
from torch import Tensor
from torch.nn import functional

from app.engine.kernels.metadata import AttentionMetadata, AttentionSpec, KVCache, QKNorm

MASKED = float("-inf")


def store_kv(key: Tensor, value: Tensor, cache: KVCache, layer: int, slots: Tensor) -> None:
    """Write rows into their slots: slot = block * S + offset.

    key, value: [T, K, D]; slots: [T] int64.
    """
    blocks, offsets = slots // cache.block_size, slots % cache.block_size
    for part, rows in enumerate((key, value)):
        if cache.scales is not None:
            rows, scales = quantize_rows(rows)
            cache.scales[blocks, layer, part, :, offsets] = scales
        cache.data[blocks, layer, part, :, offsets] = rows


def quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Each row in 8 bits, its largest number as 127: [..., D] int8, and scales [...] float32."""
    wide = rows.float()
    scales = wide.abs().amax(-1) / 127
    scales = torch.where(scales > 0, scales, 1.0)
    return (wide / scales.unsqueeze(-1)).round().to(torch.int8), scales


def copy_blocks(cache: KVCache, sources: Tensor, targets: Tensor) -> None:
    """Copy whole blocks, all sources read before any target is written.

    sources, targets: [num_copies] int64.
    """
    for tensor in cache.parts:
        tensor[targets] = tensor[sources]


def paged_attention(
    query: Tensor, cache: KVCache, layer: int, metadata: AttentionMetadata, spec: AttentionSpec
) -> Tensor:
    """Attention of each row over its sequence's positions up to itself: [T, H, D] -> [T, H, D].

    Single rows of many sequences go together, chunks one by one.
    """
    parts = []
    first, row, num_single = 0, 0, metadata.num_single
    counts = ([num_single] if num_single else []) + [1] * (len(metadata.row_counts) - num_single)
    for count in counts:
        last = first + count
        num_rows = sum(metadata.row_counts[first:last])
        rows = query[row : row + num_rows]
        both = _gather(cache, layer, metadata, first, last).to(query.dtype)
        key, value = both[0], both[1]
        mask = _mask(metadata, cache.block_size, first, last, spec.window)
        grouped = _grouped(rows, key.shape[1], count)
        parts.append(_ungrouped(_attend(grouped, key, value, mask, spec), num_rows))
        first, row = last, row + num_rows
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, the division in float32.

    The product is made in the weight's dtype: Llama rounds x / rms(x) first, Gemma, with float32
    weights, does not. x: [..., E]; weight: [E].
    """
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (weight * wide.to(weight.dtype)).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of x + residual, and that sum; x, residual: [T, E]."""
    total = x + residual
    return rms_norm(total, weight, eps), total


def rotate(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, norm: QKNorm | None
) -> tuple[Tensor, Tensor]:
    """Norm each head, if told to, and turn its pairs (i, i + R / 2) by its row's angles.

    Dimensions from R on stay as they are. query: [T, H, D]; key: [T, K, D]; cos, sin: [T, R / 2]
    in the dtype of the heads.
    """
    if norm is not None:
        query = rms_norm(query, norm.q_weight, norm.eps)
        key = rms_norm(key, norm.k_weight, norm.eps)
    return _turn(query, cos, sin), _turn(key, cos, sin)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up; gate_up: [T, 2 I], gate first; returns [T, I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


def gelu_tanh_mul(gate_up: Tensor) -> Tensor:
    """gelu(gate) * up, gelu by its tanh formula; gate_up: [T, 2 I], gate first; returns [T, I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.gelu(gate, approximate="tanh") * up


def visible_mask(positions: Tensor, num_positions: int, window: int | None) -> Tensor:
    """True where a query may look: not after itself, and not `window` or more before.

    positions: [...] of the queries; returns [..., num_positions].
    """
    keys = torch.arange(num_positions, device=positions.device)
    distance = positions.unsqueeze(-1) - keys
    mask = distance >= 0
    return mask if window is None else mask & (distance < window)


def block_rows(block_tables: Tensor, data: Tensor) -> Tensor:
    """Where the tables' keys and values begin: rows of the pool seen as [rows, S * D], layer 0.

    block_tables: [B, M] int64; data: [N, num_layers, 2, K, S, D]; returns [2, B, K, M] int64.
    """
    _, num_layers, _, num_kv_heads, _, _ = data.shape
    device = block_tables.device
    both = torch.arange(2, device=device)[:, None, None, None] * num_kv_heads
    heads = torch.arange(num_kv_heads, device=device)[None, None, :, None]
    blocks = block_tables[None, :, None, :] * (num_layers * 2 * num_kv_heads)
    return blocks + both + heads


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: [T, heads, D]; cos, sin: [T, R / 2]."""
    half = cos.shape[-1]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def _gather(
    cache: KVCache, layer: int, metadata: AttentionMetadata, first: int, last: int
) -> Tensor:
    """Keys and values [2, B, K, L, D] of some sequences, in the order of positions.

    One copy of S * D numbers at a time.
    """
    _, _, _, num_kv_heads, block_size, head_dim = cache.data.shape
    table = _table(metadata, block_size, first, last)
    name = ("rows", first)
    if name not in metadata.memo:
        metadata.memo[name] = block_rows(table, cache.data)
    rows = (metadata.memo[name] + layer * 2 * num_kv_heads).view(-1)
    shape = (2, last - first, num_kv_heads, table.shape[1] * block_size, head_dim)
    both = cache.data.view(-1, block_size * head_dim).index_select(0, rows).view(shape)
    if cache.scales is None:
        return both
    scales = cache.scales.view(-1, block_size).index_select(0, rows)
    return both * scales.view(shape[:-1]).unsqueeze(-1)


def _table(metadata: AttentionMetadata, block_size: int, first: int, last: int) -> Tensor:
    """The sequences' tables, as wide as they need, padding replaced by any block: [B, M] int64."""
    width = -(-max(metadata.contexts[first:last]) // block_size)
    return metadata.block_tables[first:last, :width].clamp(min=0).long()


def _mask(
    metadata: AttentionMetadata, block_size: int, first: int, last: int, window: int | None
) -> Tensor:
    """[B, rows, L] bool."""
    name = ("mask", first, window)
    if name not in metadata.memo:
        row = sum(metadata.row_counts[:first])
        num_rows = sum(metadata.row_counts[first:last])
        positions = metadata.positions[row : row + num_rows].view(last - first, -1)
        num_positions = _table(metadata, block_size, first, last).shape[1] * block_size
        metadata.memo[name] = visible_mask(positions, num_positions, window)
    return metadata.memo[name]


def _grouped(rows: Tensor, num_kv_heads: int, num_sequences: int) -> Tensor:
    """[B * rows, H, D] -> [B, K, G * rows, D]: the heads that see the same keys as one."""
    _, num_heads, head_dim = rows.shape
    split = rows.view(num_sequences, -1, num_kv_heads, num_heads // num_kv_heads, head_dim)
    return split.permute(0, 2, 3, 1, 4).reshape(num_sequences, num_kv_heads, -1, head_dim)


def _ungrouped(output: Tensor, num_rows: int) -> Tensor:
    """[B, K, G * rows, D] -> [B * rows, H, D]."""
    num_sequences, num_kv_heads, _, head_dim = output.shape
    split = output.view(num_sequences, num_kv_heads, -1, num_rows // num_sequences, head_dim)
    return split.permute(0, 3, 1, 2, 4).reshape(num_rows, -1, head_dim)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, spec: AttentionSpec) -> Tensor:
    """query: [B, K, G * rows, D]; key, value: [B, K, L, D]; mask: [B, rows, L]."""
    num_groups = query.shape[2] // mask.shape[1]
    visible = mask.repeat(1, num_groups, 1).unsqueeze(1)
    if spec.softcap is None:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, scale=spec.scale
        )
    scores = query.float() @ key.float().transpose(-1, -2) * spec.scale
    scores = spec.softcap * torch.tanh(scores / spec.softcap)
    weights = scores.masked_fill(~visible, MASKED).softmax(-1)
    return (weights @ value.float()).to(query.dtype)
