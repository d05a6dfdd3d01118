"""Turns a scheduled batch into the tensors of one forward pass."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from app.engine.kernels.metadata import AttentionMetadata
from app.engine.layers.lora import LoraRows
from app.engine.sequence import ScheduledBatch, ScheduledSequence, Sequence


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Rows of a prompt that are asked for: their log probabilities, or their states to pool."""

    sequence: Sequence
    start_row: int
    start_position: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """token_ids: [T] int64; sampled_rows: [num_sampling_rows] int64, as in `sampling_rows`."""

    token_ids: Tensor
    sampled_rows: Tensor
    attention: AttentionMetadata
    lora: LoraRows | None
    prompt_rows: tuple[PromptRows, ...]
    pooled_rows: tuple[PromptRows, ...]


def build_inputs(
    batch: ScheduledBatch, block_size: int, device: torch.device, lora_slots: Mapping[int, int]
) -> ModelInputs:
    """Lay out the rows, sequences with fewer of them first: kernels take few and many apart.

    `lora_slots` says in which slot the adapter of each `lora_int_id` is.
    """
    items = sorted(batch.sequences, key=lambda item: item.num_new_tokens)
    layout = _Layout(block_size)
    for item in items:
        layout.add(item)
    rows = [
        row
        for item in batch.sequences
        for last in [layout.last_row[id(item.sequence)]] * len(item.sampled)
        for row in range(last - len(item.draft), last + 1)
    ]
    return ModelInputs(
        token_ids=torch.tensor(layout.token_ids, dtype=torch.int64, device=device),
        sampled_rows=torch.tensor(rows, dtype=torch.int64, device=device),
        attention=AttentionMetadata.build(
            layout.positions, layout.slots, layout.row_counts, layout.tables, device
        ),
        lora=_lora_rows(items, lora_slots, device),
        prompt_rows=tuple(layout.prompt_rows(item) for item in items if _wants(item)),
        pooled_rows=tuple(layout.pooled_rows(item) for item in items if _is_pooled(item)),
    )


def _lora_rows(
    items: list[ScheduledSequence], slots: Mapping[int, int], device: torch.device
) -> LoraRows | None:
    """Which adapter each row takes; None where no row takes any."""
    if not slots:
        return None
    first, last = min(slots.values()), max(slots.values()) + 1
    of_rows = [
        slots.get(item.sequence.lora_int_id, -1)
        for item in items
        for _ in range(item.num_new_tokens)
    ]
    row_slots = torch.tensor(of_rows, dtype=torch.int64, device=device).view(-1, 1, 1)
    others = row_slots != torch.arange(first, last, device=device).unsqueeze(-1)
    return LoraRows(first, last, others)


class _Layout:
    """The rows of a step, as they are laid out one sequence after the other."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self.token_ids: list[int] = []
        self.positions: list[int] = []
        self.slots: list[int] = []
        self.row_counts: list[int] = []
        self.tables: list[list[int]] = []
        self.last_row: dict[int, int] = {}

    def add(self, item: ScheduledSequence) -> None:
        sequence, size = item.sequence, self._block_size
        start = sequence.num_computed_tokens
        end = start + item.num_new_tokens
        table = sequence.block_table
        self.token_ids += sequence.token_ids[start:end]
        self.token_ids += item.draft
        self.positions += range(start, end)
        self.slots += [table[p // size] * size + p % size for p in range(start, end)]
        self.row_counts.append(item.num_new_tokens)
        self.tables.append(table[: -(-end // size)])
        self.last_row[id(sequence)] = len(self.positions) - 1

    def prompt_rows(self, item: ScheduledSequence) -> PromptRows:
        sequence = item.sequence
        first_row = self.last_row[id(sequence)] - item.num_new_tokens + 1
        start = sequence.num_computed_tokens
        end = min(start + item.num_new_tokens, sequence.num_prompt_tokens - 1)
        return PromptRows(sequence, first_row, start, end - start)

    def pooled_rows(self, item: ScheduledSequence) -> PromptRows:
        sequence = item.sequence
        num_rows = item.num_new_tokens if sequence.pooling == "mean" else 1
        end_row = self.last_row[id(sequence)] + 1
        end = sequence.num_computed_tokens + item.num_new_tokens
        return PromptRows(sequence, end_row - num_rows, end - num_rows, num_rows)


def _wants(item: ScheduledSequence) -> bool:
    """Whether prompt log probabilities are asked for, and some come from this step's rows."""
    sequence = item.sequence
    return (
        sequence.params.prompt_logprobs is not None
        and sequence.num_computed_tokens < sequence.num_prompt_tokens - 1
    )


def _is_pooled(item: ScheduledSequence) -> bool:
    """Whether some of its rows are pooled: all for a mean, else that of the last token."""
    sequence = item.sequence
    is_last = item.num_new_tokens == sequence.num_pending_tokens
    return sequence.pooling == "mean" or (sequence.pooling == "last" and is_last)
