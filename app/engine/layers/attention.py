"""Attention over the block table: single new rows of many sequences together, chunks one by one."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from app.engine.kernels import reference

SINGLE = -1  # the part of a step that is one row of each of many sequences


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
    _masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)
    _rows: dict[int, Tensor] = field(default_factory=dict)

    def mask(self, part: int, window: int | None, block_size: int) -> Tensor:
        """The mask of chunk `part`, or of the single rows for SINGLE; made once for all layers."""
        key = (part, window)
        if key not in self._masks:
            positions = self.single_positions if part == SINGLE else self.chunks[part].positions
            num_positions = self._table(part).shape[1] * block_size
            self._masks[key] = reference.visible_mask(positions, num_positions, window)
        return self._masks[key]

    def rows(self, part: int, kv_cache: Tensor) -> Tensor:
        """Where that part's keys and values are in the cache; made once for all layers."""
        if part not in self._rows:
            self._rows[part] = reference.block_rows(self._table(part), kv_cache)
        return self._rows[part]

    def _table(self, part: int) -> Tensor:
        return self.block_tables if part == SINGLE else self.chunks[part].block_table[None]


@dataclass(frozen=True, slots=True)
class PagedAttention:
    """The attention of layer `layer`; `window` limits how far back it looks."""

    layer: int
    scale: float
    window: int | None

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        metadata: AttentionMetadata,
    ) -> Tensor:
        """query: [T, H, D]; key, value: [T, K, D]; returns [T, H * D].

        kv_cache: [N, num_layers, 2, K, S, D].
        """
        reference.store_kv(key, value, kv_cache[:, self.layer], metadata.slots)
        outputs = []
        if metadata.num_single:
            rows = query[: metadata.num_single]
            seen = self._seen(SINGLE, kv_cache, metadata)
            outputs.append(reference.attend_one_each(rows, *seen, self.scale))
        for part, chunk in enumerate(metadata.chunks):
            rows = query[chunk.start_row : chunk.start_row + chunk.num_rows]
            seen = self._seen(part, kv_cache, metadata)
            outputs.append(reference.attend_chunk(rows, *seen, self.scale))
        return torch.cat(outputs).flatten(1) if len(outputs) > 1 else outputs[0].flatten(1)

    def _seen(
        self, part: int, kv_cache: Tensor, metadata: AttentionMetadata
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and mask of a part."""
        block_size = kv_cache.shape[4]
        key, value = reference.gather_kv(kv_cache, self.layer, metadata.rows(part, kv_cache))
        return key, value, metadata.mask(part, self.window, block_size)
