"""The kernels in plain torch: what runs on a CPU, and what faster kernels are tested against.

Dimensions: T rows of the step, H query heads, K key/value heads, G = H / K, D head size,
N blocks, S block size, B sequences, M blocks of the longest table, L = M * S positions.
One layer's cache is a view [N, 2, K, S, D]; index 0 holds keys, 1 values.
"""

import torch
from torch import Tensor
from torch.nn import functional

MASKED = float("-inf")


def store_kv(key: Tensor, value: Tensor, cache: Tensor, slots: Tensor) -> None:
    """Write rows into their slots: slot = block * S + offset.

    key, value: [T, K, D]; cache: [N, 2, K, S, D]; slots: [T] int64.
    """
    block_size = cache.shape[3]
    blocks, offsets = slots // block_size, slots % block_size
    cache[blocks, 0, :, offsets] = key
    cache[blocks, 1, :, offsets] = value


def copy_blocks(cache: Tensor, sources: Tensor, targets: Tensor) -> None:
    """Copy whole blocks, all sources read before any target is written.

    cache: [N, ...]; sources, targets: [num_copies] int64.
    """
    cache[targets] = cache[sources]


def visible_mask(positions: Tensor, num_positions: int, window: int | None) -> Tensor:
    """True where a query may look: not after itself, and not `window` or more before.

    positions: [...] of the queries; returns [..., num_positions].
    """
    keys = torch.arange(num_positions, device=positions.device)
    distance = positions.unsqueeze(-1) - keys
    mask = distance >= 0
    return mask if window is None else mask & (distance < window)


def block_rows(block_tables: Tensor, kv_cache: Tensor) -> Tensor:
    """Where the tables' keys and values begin: rows of the cache seen as [rows, S * D], layer 0.

    block_tables: [B, M] int64; kv_cache: [N, num_layers, 2, K, S, D]; returns [2, B, K, M] int64.
    """
    _, num_layers, _, num_kv_heads, _, _ = kv_cache.shape
    device = block_tables.device
    both = torch.arange(2, device=device)[:, None, None, None] * num_kv_heads
    heads = torch.arange(num_kv_heads, device=device)[None, None, :, None]
    blocks = block_tables[None, :, None, :] * (num_layers * 2 * num_kv_heads)
    return blocks + both + heads


def gather_kv(kv_cache: Tensor, layer: int, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [B, K, L, D] of a layer, in the order of positions.

    One copy of S * D numbers at a time; rows: [2, B, K, M] as `block_rows` gives them.
    """
    _, _, _, num_kv_heads, block_size, head_dim = kv_cache.shape
    flat = kv_cache.view(-1, block_size * head_dim)
    _, num_sequences, _, num_table = rows.shape
    both = flat.index_select(0, (rows + layer * 2 * num_kv_heads).view(-1)).view(
        2, num_sequences, num_kv_heads, num_table * block_size, head_dim
    )
    return both[0], both[1]


def attend_one_each(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float
) -> Tensor:
    """One query row for each of B sequences.

    query: [B, H, D]; key, value: [B, K, L, D]; mask: [B, L] bool; returns [B, H, D].
    """
    num_sequences, num_heads, head_dim = query.shape
    # The G query heads of a key/value head see the same positions: rows of one attention.
    grouped = query.view(num_sequences, key.shape[1], -1, head_dim)
    output = functional.scaled_dot_product_attention(
        grouped, key, value, attn_mask=mask[:, None, None, :], scale=scale
    )
    return output.reshape(num_sequences, num_heads, head_dim)


def attend_chunk(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Several query rows of one sequence.

    query: [T, H, D]; key, value: [1, K, L, D]; mask: [T, L] bool; returns [T, H, D].
    """
    num_rows, num_heads, head_dim = query.shape
    num_kv_heads = key.shape[1]
    num_groups = num_heads // num_kv_heads
    grouped = query.view(num_rows, num_kv_heads, num_groups, head_dim)
    rows = grouped.permute(1, 2, 0, 3).reshape(1, num_kv_heads, num_groups * num_rows, head_dim)
    output = functional.scaled_dot_product_attention(
        rows, key, value, attn_mask=mask.repeat(num_groups, 1), scale=scale
    )
    output = output.view(num_kv_heads, num_groups, num_rows, head_dim)
    return output.permute(2, 0, 1, 3).reshape(num_rows, num_heads, head_dim)
