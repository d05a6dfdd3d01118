"""Turns a scheduled batch into the tensors of one forward pass."""

from dataclasses import dataclass

import torch
from torch import Tensor

from app.engine.layers.attention import AttentionMetadata, ChunkMetadata
from app.engine.sequence import ScheduledBatch, ScheduledSequence, Sequence


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Rows whose logits tell the log probabilities of a prompt's next tokens."""

    sequence: Sequence
    start_row: int
    start_position: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """token_ids, positions: [T] int64; sampled_rows: [num_sampled] int64, one for each sample."""

    token_ids: Tensor
    positions: Tensor
    sampled_rows: Tensor
    attention: AttentionMetadata
    prompt_rows: tuple[PromptRows, ...]


def build_inputs(batch: ScheduledBatch, block_size: int, device: torch.device) -> ModelInputs:
    """Lay out the rows: sequences with a single new row first, then the chunks."""
    single = [item for item in batch.sequences if item.num_new_tokens == 1]
    chunks = [item for item in batch.sequences if item.num_new_tokens > 1]
    layout = _Layout(block_size, device)
    for item in (*single, *chunks):
        layout.add(item)
    last_row = layout.last_row
    rows = [last_row[id(item.sequence)] for item in batch.sequences for _ in item.sampled]
    positions = layout.tensor(layout.positions)
    attention = AttentionMetadata(
        slots=layout.tensor(layout.slots),
        num_single=len(single),
        block_tables=layout.tensor(_padded_tables(single, block_size)),
        single_positions=positions[: len(single)],
        chunks=tuple(layout.chunk(item, positions) for item in chunks),
    )
    return ModelInputs(
        token_ids=layout.tensor(layout.token_ids),
        positions=positions,
        sampled_rows=layout.tensor(rows),
        attention=attention,
        prompt_rows=tuple(layout.prompt_rows(item) for item in chunks + single if _wants(item)),
    )


class _Layout:
    """The rows of a step, as they are laid out one sequence after the other."""

    def __init__(self, block_size: int, device: torch.device) -> None:
        self._block_size = block_size
        self._device = device
        self.token_ids: list[int] = []
        self.positions: list[int] = []
        self.slots: list[int] = []
        self.last_row: dict[int, int] = {}

    def add(self, item: ScheduledSequence) -> None:
        sequence, size = item.sequence, self._block_size
        start = sequence.num_computed_tokens
        end = start + item.num_new_tokens
        self.token_ids += sequence.token_ids[start:end]
        self.positions += range(start, end)
        table = sequence.block_table
        self.slots += [table[p // size] * size + p % size for p in range(start, end)]
        self.last_row[id(sequence)] = len(self.positions) - 1

    def first_row(self, item: ScheduledSequence) -> int:
        return self.last_row[id(item.sequence)] - item.num_new_tokens + 1

    def chunk(self, item: ScheduledSequence, positions: Tensor) -> ChunkMetadata:
        start = self.first_row(item)
        return ChunkMetadata(
            start_row=start,
            num_rows=item.num_new_tokens,
            block_table=self.tensor(_visible_table(item, self._block_size)),
            positions=positions[start : start + item.num_new_tokens],
        )

    def prompt_rows(self, item: ScheduledSequence) -> PromptRows:
        sequence = item.sequence
        start = sequence.num_computed_tokens
        end = min(start + item.num_new_tokens, sequence.num_prompt_tokens - 1)
        return PromptRows(sequence, self.first_row(item), start, end - start)

    def tensor(self, values: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)


def _wants(item: ScheduledSequence) -> bool:
    """Whether prompt log probabilities are asked for, and some come from this step's rows."""
    sequence = item.sequence
    return (
        sequence.params.prompt_logprobs is not None
        and sequence.num_computed_tokens < sequence.num_prompt_tokens - 1
    )


def _visible_table(item: ScheduledSequence, block_size: int) -> list[int]:
    num_tokens = item.sequence.num_computed_tokens + item.num_new_tokens
    return item.sequence.block_table[: -(-num_tokens // block_size)]


def _padded_tables(items: list[ScheduledSequence], block_size: int) -> list[list[int]]:
    """Tables of equal length; what pads them is masked, so any valid block will do."""
    tables = [_visible_table(item, block_size) for item in items]
    width = max(map(len, tables), default=0)
    return [table + [0] * (width - len(table)) for table in tables]
