"""What tokens a request forbids: those its grammar does not allow, and those it does not want.

A grammar's word is law. The other bans cut what is left of it; one that would leave nothing is
lifted for that token. Dimensions: V vocabulary.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from app.engine.sequence import SamplingRow

MASKED = float("-inf")


def has_bans(row: SamplingRow) -> bool:
    """Whether `forbid` could change this row."""
    sequence, params = row.sequence, row.sequence.params
    is_early = row.num_output_tokens < params.min_tokens
    return (
        sequence.grammar is not None
        or params.allowed_token_ids is not None
        or sequence.bad_words is not None
        or is_early
    )


def forbid(logits: Tensor, row: SamplingRow) -> Tensor:
    """The logits with what is forbidden at -inf: [V] -> [V]."""
    grammar = row.sequence.grammar
    if grammar is not None:
        allowed = _unpack(grammar.after(row.output_token_ids), logits)
        logits = logits.masked_fill(~allowed, MASKED)
    for banned in _bans(logits, row):
        left = logits.masked_fill(banned, MASKED)
        if left.max() > MASKED:
            logits = left
    return logits


def _bans(logits: Tensor, row: SamplingRow) -> Iterator[Tensor]:
    """The tokens of each ban: [V] bool."""
    sequence, params = row.sequence, row.sequence.params
    if params.allowed_token_ids is not None:
        banned = torch.ones_like(logits, dtype=torch.bool)
        banned[list(params.allowed_token_ids)] = False
        yield banned
    if sequence.bad_words is not None:
        yield ~_unpack(sequence.bad_words.after(row.output_token_ids), logits)
    token_ids = [*row.forbidden_token_ids]
    if params.ignore_eos and sequence.grammar is not None:
        token_ids += sequence.limits.eos_token_ids
    if token_ids:
        banned = torch.zeros_like(logits, dtype=torch.bool)
        banned[token_ids] = True
        yield banned


def _unpack(mask: bytes, logits: Tensor) -> Tensor:
    """One bit for each token, lowest first, as [V] bool."""
    bits = np.unpackbits(np.frombuffer(mask, np.uint8), count=len(logits), bitorder="little")
    return torch.from_numpy(bits).view(torch.bool).to(logits.device)
