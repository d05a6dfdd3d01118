"""Attention over the block table: single new rows of many sequences together, chunks one by one."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from app.engine.kernels import reference


@dataclass(frozen=True, slots=True)
class ChunkMetadata:
    """Several rows of one sequence; block_table: [M] int64, positions: [rows] int64."""

    start_row: int
    num_rows: int
    block_table: Tensor
    positions: Tensor


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Where a step's rows are written and what they may see, the same for every layer.

    The first `num_single` rows belong to a sequence each; the chunks follow in order.
    slots: [T] int64; block_tables: [num_single, M] int64; single_positions: [num_single] int64.
    """

    slots: Tensor
    num_single: int
    block_tables: Tensor
    single_positions: Tensor
    chunks: tuple[ChunkMetadata, ...]
    masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)

    def mask(self, part: int, window: int | None, block_size: int) -> Tensor:
        """The mask of chunk `part`, or of the single rows for -1; made once for all layers."""
        key = (part, window)
        if key not in self.masks:
            if part < 0:
                positions, num_table = self.single_positions, self.block_tables.shape[1]
            else:
                chunk = self.chunks[part]
                positions, num_table = chunk.positions, chunk.block_table.shape[0]
            self.masks[key] = reference.visible_mask(positions, num_table * block_size, window)
        return self.masks[key]


@dataclass(frozen=True, slots=True)
class PagedAttention:
    """One layer's attention; `window` limits how far back it looks."""

    scale: float
    window: int | None

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, cache: Tensor, metadata: AttentionMetadata
    ) -> Tensor:
        """query: [T, H, D]; key, value: [T, K, D]; cache: [N, 2, K, S, D]; returns [T, H * D]."""
        reference.store_kv(key, value, cache, metadata.slots)
        block_size = cache.shape[3]
        outputs = []
        num_single = metadata.num_single
        if num_single:
            mask = metadata.mask(-1, self.window, block_size)
            outputs.append(
                reference.attend_one_each(
                    query[:num_single], cache, metadata.block_tables, mask, self.scale
                )
            )
        for part, chunk in enumerate(metadata.chunks):
            rows = query[chunk.start_row : chunk.start_row + chunk.num_rows]
            mask = metadata.mask(part, self.window, block_size)
            outputs.append(reference.attend_chunk(rows, cache, chunk.block_table, mask, self.scale))
        return torch.cat(outputs).flatten(1) if len(outputs) > 1 else outputs[0].flatten(1)
