"""What every attention kernel is told: the block pool, whose rows are whose, and how to look.

Dimensions: T rows of the step, B sequences, M blocks of the longest table, N blocks of the pool,
K key/value heads, S block size, D head size.
"""

from array import array
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class KVCache:
    """The block pool; a block is one contiguous piece of `data`, all layers of S tokens.

    data: [N, num_layers, 2, K, S, D]; index 0 of the third dimension holds keys, 1 values.
    scales: [N, num_layers, 2, K, S] float32, with int8 data only: value = int8 * scale.
    """

    data: Tensor
    scales: Tensor | None = None

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return self.data.shape[4]

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors that make up the pool, each with the block as first dimension."""
        return (self.data,) if self.scales is None else (self.data, self.scales)


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """How a layer looks back: `window` limits how far, `softcap` c makes c * tanh(s / c) of s."""

    scale: float
    window: int | None = None
    softcap: float | None = None


@dataclass(frozen=True, slots=True)
class QKNorm:
    """The norms of each query and key head before they are turned; weights: [D]."""

    q_weight: Tensor
    k_weight: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Which rows are whose and what they may see, the same for every layer.

    Sequences with fewer rows come first. Rows query_starts[b] … query_starts[b + 1] belong to
    sequence b and are the last of its context_lens[b] positions.

    slots, positions: [T] int64; query_starts: [B + 1] int32; context_lens: [B] int32;
    block_tables: [B, M] int32, padded with -1. `row_counts` and `contexts` are the same numbers
    on the host, so that no kernel has to ask the device for them.
    """

    slots: Tensor
    positions: Tensor
    query_starts: Tensor
    context_lens: Tensor
    block_tables: Tensor
    row_counts: tuple[int, ...]
    contexts: tuple[int, ...]
    # What the torch twin works out once for all layers.
    memo: dict[tuple[object, ...], Tensor] = field(default_factory=dict)

    @property
    def num_single(self) -> int:
        """Sequences with one row each."""
        return sum(count == 1 for count in self.row_counts)

    @classmethod
    def build(
        cls,
        positions: list[int],
        slots: list[int],
        row_counts: list[int],
        block_tables: list[list[int]],
        device: torch.device,
    ) -> "AttentionMetadata":
        """From plain lists, all sequences in order, those with fewer rows first."""
        ends = list(accumulate(row_counts))
        contexts = [positions[end - 1] + 1 for end in ends]
        return cls(
            slots=torch.tensor(slots, dtype=torch.int64, device=device),
            positions=torch.tensor(positions, dtype=torch.int64, device=device),
            query_starts=torch.tensor([0, *ends], dtype=torch.int32, device=device),
            context_lens=torch.tensor(contexts, dtype=torch.int32, device=device),
            block_tables=_padded(block_tables).to(device),
            row_counts=tuple(row_counts),
            contexts=tuple(contexts),
        )


def _padded(tables: list[list[int]]) -> Tensor:
    """[B, M] int32. Most numbers of a step are here: through an array is 3 times faster."""
    width = max(map(len, tables))
    flat: list[int] = []
    for table in tables:
        flat += table
        flat += [-1] * (width - len(table))
    return torch.frombuffer(array("i", flat), dtype=torch.int32).view(-1, width)
