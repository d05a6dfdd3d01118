"""Chooses tokens from logits.

Each row is handled by itself and its randomness comes from (seed, index, position) alone, so a
request's text does not depend on what shares its batch.
"""

from hashlib import blake2b

import torch
from torch import Tensor

from app.engine.sequence import SampledToken, Sequence, TokenLogprob

MASKED = float("-inf")
NUCLEUS_GUESS = 1024  # top_p looks among so many likely tokens before it sorts the vocabulary


def sample(logits: Tensor, sequences: tuple[Sequence, ...]) -> tuple[SampledToken, ...]:
    """Choose a token for each row; logits: [num_rows, vocabulary] float32, left as they are."""
    greedy = logits.argmax(dim=-1).tolist()
    return tuple(
        _sample_row(logits[row], greedy[row], sequence) for row, sequence in enumerate(sequences)
    )


def token_logprobs(logits: Tensor, token_id: int, num_top: int) -> tuple[TokenLogprob, ...]:
    """The token itself, then the `num_top` most likely ones; logits: [vocabulary]."""
    logprobs = torch.log_softmax(logits, dim=-1)
    own = logprobs[token_id]
    rank = int((logprobs > own).sum()) + 1
    top = torch.topk(logprobs, num_top)
    likely = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return (
        TokenLogprob(token_id, float(own), rank),
        *(TokenLogprob(other, value, i + 1) for i, (other, value) in enumerate(likely)),
    )


def uniform(seed: int, index: int, position: int) -> float:
    """A number in [0, 1) that depends on its arguments alone."""
    digest = blake2b(f"{seed}:{index}:{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def probabilities(logits: Tensor, sequence: Sequence) -> Tensor:
    """What is sampled from, after temperature and filters: [vocabulary] float64, unnormalised."""
    params = sequence.params
    scaled = logits.double() / params.temperature
    if 0 < params.top_k < scaled.shape[0]:
        smallest = torch.topk(scaled, params.top_k).values[-1]
        scaled = scaled.masked_fill(scaled < smallest, MASKED)
    probs = torch.softmax(scaled, dim=-1)
    if params.min_p > 0:
        probs = probs.masked_fill(probs < params.min_p * probs.max(), 0)
    if params.top_p < 1:
        probs = probs.masked_fill(probs < _nucleus_threshold(probs, params.top_p), 0)
    return probs


def adjust(logits: Tensor, sequence: Sequence) -> Tensor:
    """Bias, bans and penalties; returns new logits where there are any: [vocabulary]."""
    params = sequence.params
    banned = [*sequence.forbidden_token_ids, *_banned_words(sequence)]
    if not (params.logit_bias or banned or params.has_penalties):
        return logits
    logits = logits.clone()
    for token_id, bias in params.logit_bias.items():
        logits[token_id] += bias
    if params.has_penalties:
        _penalise(logits, sequence)
    if banned:
        logits[banned] = MASKED
    return logits


def _sample_row(logits: Tensor, likeliest: int, sequence: Sequence) -> SampledToken:
    params = sequence.params
    adjusted = adjust(logits, sequence)
    if not params.is_greedy:
        token_id = _draw(probabilities(adjusted, sequence), sequence)
    else:
        token_id = likeliest if adjusted is logits else int(adjusted.argmax())
    if params.logprobs is None:
        return SampledToken(token_id)
    return SampledToken(token_id, token_logprobs(logits, token_id, params.logprobs))


def _draw(probs: Tensor, sequence: Sequence) -> int:
    """Invert the cumulative distribution; a token of probability 0 is never hit."""
    cumulative = probs.cumsum(0)
    total = cumulative[-1]
    point = total * uniform(sequence.seed, sequence.index, sequence.num_tokens)
    point = torch.minimum(point, torch.nextafter(total, torch.zeros_like(total)))
    return int(torch.searchsorted(cumulative, point, right=True))


def _nucleus_threshold(probs: Tensor, top_p: float) -> Tensor:
    """The probability of the last token that the nucleus needs to reach `top_p`."""
    wanted = top_p * probs.sum()
    likely = torch.topk(probs, min(NUCLEUS_GUESS, probs.shape[0])).values
    cumulative = likely.cumsum(0)
    if cumulative[-1] < wanted:
        likely = probs.sort(descending=True).values
        cumulative = likely.cumsum(0)
    last = torch.searchsorted(cumulative, wanted).clamp(max=likely.shape[0] - 1)
    return likely[last]


def _penalise(logits: Tensor, sequence: Sequence) -> None:
    """Repetition counts prompt and output, presence and frequency the output only."""
    params = sequence.params
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(sequence.token_ids)), device=logits.device)
        values = logits[seen]
        penalty = params.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if sequence.num_output_tokens:
        output = torch.tensor(sequence.output_token_ids, device=logits.device)
        counts = torch.bincount(output, minlength=logits.shape[0])
        logits -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)


def _banned_words(sequence: Sequence) -> list[int]:
    """Last tokens of bad words whose other tokens were just generated."""
    output = sequence.output_token_ids if sequence.bad_word_ids else []
    return [
        word[-1]
        for word in sequence.bad_word_ids
        if len(word) == 1 or tuple(output[1 - len(word) :]) == word[:-1]
    ]
