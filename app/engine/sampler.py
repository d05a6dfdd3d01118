"""Chooses tokens from logits.

What is done to a row, in this order, as in vLLM: logit_bias, penalties, bans (`bans.py`), and
where it has one its prior; then greedy takes the likeliest, and the others go on with
temperature, min_p, top_k, top_p and a draw. Log probabilities are those of the logits as they came.

A row's randomness comes from (seed, index, position) alone, and no operation here mixes rows: with
equal logits, a text does not depend on what shares its batch. Sums over the vocabulary go block by
block for that reason, and because the passes over it are what costs.

Dimensions: R rows, V vocabulary, N blocks of the vocabulary, C candidates.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as ListOf
from hashlib import blake2b

import torch
from torch import Tensor
from torch.nn import functional

from app.engine.bans import MASKED, forbid, has_bans
from app.engine.sampling_params import SamplingParams
from app.engine.sequence import SampledToken, SamplingRow, ScheduledBatch, TokenLogprob
from app.engine.speculative import num_accepted

BLOCK = 32  # tokens
ELEMENTS_AT_ONCE = 2**21  # on CPUs; more at once only takes more memory
# The filters look among so many likely tokens, then, where these do not decide, among more, and
# last at all of them.
CANDIDATES = (256, 4096)

Draw = Callable[[Tensor, ListOf[SamplingRow]], list[int]]


def sample(logits: Tensor, rows: tuple[SamplingRow, ...]) -> tuple[SampledToken, ...]:
    """Choose a token for each row; logits: [R, V] float32, left as they are."""
    changed: dict[int, Tensor] = {}
    groups: dict[Draw, list[int]] = {}
    for index, row in enumerate(rows):
        if _is_adjusted(row):
            changed[index] = adjust(logits[index], row)
        groups.setdefault(_way_to_draw(row.sequence.params), []).append(index)
    token_ids = [0] * len(rows)
    for draw, members in groups.items():
        for indices in _portions(members, logits):
            chosen = draw(_select(logits, changed, indices), [rows[index] for index in indices])
            for index, token_id in zip(indices, chosen, strict=True):
                token_ids[index] = token_id
    return tuple(
        _with_logprobs(token_id, logits[index], row)
        for index, (token_id, row) in enumerate(zip(token_ids, rows, strict=True))
    )


def keep_verified(
    batch: ScheduledBatch, tokens: tuple[SampledToken, ...]
) -> tuple[tuple[SampledToken, ...], ...]:
    """Of each sequence's rows: the tokens that confirm its draft, and the one after them."""
    kept: list[tuple[SampledToken, ...]] = []
    row = 0
    for item in batch.sequences:
        for _ in item.sampled:
            mine = tokens[row : row + len(item.draft) + 1]
            row += len(mine)
            count = num_accepted(item.draft, [token.token_id for token in mine])
            kept.append(mine[: count + 1])
    return tuple(kept)


def token_logprobs(logits: Tensor, token_id: int, num_top: int) -> tuple[TokenLogprob, ...]:
    """The token itself, then the `num_top` most likely ones; logits: [V]."""
    logprobs = torch.log_softmax(logits, dim=-1)
    own = logprobs[token_id]
    rank = int((logprobs > own).sum()) + 1
    values, ids = likeliest(logprobs.unsqueeze(0), num_top)
    top = zip(ids[0, :num_top].tolist(), values[0, :num_top].tolist(), strict=True)
    return (
        TokenLogprob(token_id, float(own), rank),
        *(TokenLogprob(other, value, i + 1) for i, (other, value) in enumerate(top)),
    )


def uniform(seed: int, index: int, position: int) -> float:
    """A number in [0, 1) that depends on its arguments alone."""
    digest = blake2b(f"{seed}:{index}:{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def likeliest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` greatest logits and their tokens, equal ones by token: two of [R, C].

    Of those equal to the last one some may be missing. The C greatest are in the C blocks with
    the greatest maxima, which are found many times faster than by `topk` of a large vocabulary.
    """
    blocks = _blocks(logits)
    if 0 < count < blocks.shape[1]:
        best = blocks.amax(-1).topk(count, sorted=False).indices  # [R, C]
        values, places = _of_blocks(blocks, best).topk(count, sorted=False)
        ids = best.gather(1, places // BLOCK) * BLOCK + places % BLOCK
    else:
        values, ids = logits.topk(min(count, logits.shape[1]), sorted=False)
    ids, order = ids.sort()
    values, order = values.gather(1, order).sort(descending=True, stable=True)
    return values, ids.gather(1, order)


def adjust(logits: Tensor, row: SamplingRow) -> Tensor:
    """Bias, penalties, bans and prior, in a copy: [V] -> [V]."""
    params = row.sequence.params
    logits = logits.clone()
    _add_to(logits, params.logit_bias)
    if params.has_penalties:
        _penalise(logits, row)
    logits = forbid(logits, row)
    if row.sequence.prior is not None:
        _add_to(logits, row.sequence.prior.priors_after(row.output_token_ids))
    return logits


def _add_to(logits: Tensor, biases: Mapping[int, float]) -> None:
    """Add in place, and at once: one by one a vocabulary's bias takes seconds; logits: [V]."""
    if biases:
        ids = torch.tensor(list(biases), device=logits.device)
        logits[ids] += torch.tensor(list(biases.values()), device=logits.device)


def _is_adjusted(row: SamplingRow) -> bool:
    params = row.sequence.params
    return bool(params.logit_bias or params.has_penalties or has_bans(row))


def _way_to_draw(params: SamplingParams) -> Draw:
    if params.is_greedy:
        return _take_likeliest
    return _draw_filtered if params.has_filters else _draw_from_all


def _portions(indices: list[int], logits: Tensor) -> Iterable[list[int]]:
    """The rows that are handled together."""
    is_cpu = logits.device.type == "cpu"
    size = max(ELEMENTS_AT_ONCE // logits.shape[1], 1) if is_cpu else len(indices)
    return (indices[start : start + size] for start in range(0, len(indices), size))


def _select(logits: Tensor, changed: dict[int, Tensor], indices: list[int]) -> Tensor:
    if not changed and indices[-1] - indices[0] + 1 == len(indices):
        return logits[indices[0] : indices[-1] + 1]
    return torch.stack([changed.get(index, logits[index]) for index in indices])


def _with_logprobs(token_id: int, logits: Tensor, row: SamplingRow) -> SampledToken:
    num_top = row.sequence.params.logprobs
    if num_top is None:
        return SampledToken(token_id)
    return SampledToken(token_id, token_logprobs(logits, token_id, num_top))


def _take_likeliest(logits: Tensor, rows: ListOf[SamplingRow]) -> list[int]:
    """The greatest logit; of equal ones the first."""
    blocks = _blocks(logits)
    best = blocks.amax(-1).argmax(-1, keepdim=True)  # [R, 1]
    places = _of_blocks(blocks, best).argmax(-1, keepdim=True)
    return _as_list(best * BLOCK + places)


def _draw_from_all(logits: Tensor, rows: ListOf[SamplingRow]) -> list[int]:
    """Invert the cumulative distribution over all tokens: first the block, then the token."""
    weights = _weights(logits, rows)
    sums = weights.sum(-1, dtype=torch.float64)  # [R, N]
    cumulative = sums.cumsum(-1)
    point = cumulative[:, -1:] * _uniforms(rows, logits)
    block = _first_beyond(cumulative, point, sums)
    inside = _of_blocks(weights, block).double()  # [R, BLOCK]
    before = (cumulative - sums).gather(1, block)
    place = _first_beyond(before + inside.cumsum(-1), point, inside)
    return _as_list(block * BLOCK + place)


def _draw_filtered(logits: Tensor, rows: ListOf[SamplingRow]) -> list[int]:
    """Draw after min_p, top_k and top_p, from as many candidates as it takes."""
    token_ids: list[int] = [-1] * len(rows)
    left = list(range(len(rows)))
    for count in (*CANDIDATES, logits.shape[1]):
        some = logits if len(left) == len(rows) else logits[left]
        drawn = _draw_among(some, [rows[index] for index in left], count)
        for index, token_id in zip(left, drawn, strict=True):
            token_ids[index] = token_id
        left = [index for index in left if token_ids[index] < 0]
        if not left:
            break
    return token_ids


def _draw_among(logits: Tensor, rows: ListOf[SamplingRow], count: int) -> list[int]:
    """Draw among the likeliest tokens; -1 where more than `count` are needed to tell.

    In their order each filter keeps a beginning, so all comes down to how long that is.
    """
    params = [row.sequence.params for row in rows]
    values, ids = likeliest(logits, count)
    temperature, top_p, min_p = (
        _column((getattr(p, name) for p in params), logits)
        for name in ("temperature", "top_p", "min_p")
    )
    most = logits.shape[1]
    top_k = _column((min(p.top_k, most) if p.top_k > 0 else most for p in params), logits).long()
    weights = ((values - values[:, :1]).double() / temperature).exp()  # the likeliest has 1
    cumulative = weights.cumsum(-1)
    smallest = values.gather(1, top_k.clamp(max=values.shape[1]) - 1)
    num_kept = ((values >= smallest) & (weights >= min_p)).sum(-1, keepdim=True)
    num_kept = num_kept.clamp(min=1)  # a row of NaN keeps none: it must not fail its batch
    is_cut = (top_k < most) | (min_p > 0)
    mass = cumulative.gather(1, num_kept - 1)
    if not bool(is_cut.all()):
        total = _weights(logits, rows).sum(-1, dtype=torch.float64).cumsum(-1)[:, -1:]
        mass = torch.where(is_cut, mass, total)
    num_needed = (cumulative < top_p * mass).sum(-1, keepdim=True) + 1
    num_drawn = torch.where(top_p < 1, torch.minimum(num_needed, num_kept), num_kept)
    point = cumulative.gather(1, num_drawn - 1) * _uniforms(rows, logits)
    place = torch.minimum(_first_beyond(cumulative, point, weights), num_drawn - 1)
    num_known = (values > values[:, -1:]).sum(-1, keepdim=True)
    is_told = (num_drawn <= num_known) & (~is_cut | (num_kept <= num_known))
    is_told |= weights[:, -1:] == 0  # as where a grammar leaves few: the others cannot be drawn
    if values.shape[1] == most:
        is_told[:] = True
    return _as_list(torch.where(is_told, ids.gather(1, place), -1))


def _blocks(logits: Tensor) -> Tensor:
    """[R, V] -> [R, N, BLOCK], a view where V is a multiple of BLOCK."""
    rest = -logits.shape[1] % BLOCK
    padded = functional.pad(logits, (0, rest), value=MASKED) if rest else logits
    return padded.view(logits.shape[0], -1, BLOCK)


def _of_blocks(blocks: Tensor, indices: Tensor) -> Tensor:
    """Some blocks of each row, side by side: [R, N, BLOCK], [R, n] -> [R, n * BLOCK]."""
    num_rows, num_blocks, _ = blocks.shape
    first = torch.arange(num_rows, device=blocks.device).unsqueeze(1) * num_blocks
    chosen = blocks.view(-1, BLOCK).index_select(0, (first + indices).flatten())
    return chosen.view(num_rows, -1)


def _weights(logits: Tensor, rows: ListOf[SamplingRow]) -> Tensor:
    """Probabilities after temperature, relative to the likeliest token's: [R, N, BLOCK]."""
    blocks = _blocks(logits)
    greatest = blocks.amax(-1).amax(-1)[:, None, None]
    temperature = _column((row.sequence.params.temperature for row in rows), logits).float()
    return (blocks - greatest).div_(temperature.unsqueeze(-1)).exp_()


def _uniforms(rows: Iterable[SamplingRow], like: Tensor) -> Tensor:
    """Each row's random number: [R, 1] float64."""
    sequences = ((row.sequence, row.num_tokens) for row in rows)
    return _column((uniform(s.seed, s.index, position) for s, position in sequences), like)


def _column(values: Iterable[float], like: Tensor) -> Tensor:
    """[R, 1] float64."""
    return torch.tensor(list(values), dtype=torch.float64, device=like.device).unsqueeze(1)


def _first_beyond(cumulative: Tensor, point: Tensor, weights: Tensor) -> Tensor:
    """Where the sum first exceeds the point, and never after the last weight above 0: [R, 1]."""
    index = (cumulative <= point).sum(-1, keepdim=True)
    places = torch.arange(weights.shape[1], device=weights.device)
    last = torch.where(weights > 0, places, 0).amax(-1, keepdim=True)
    return torch.minimum(index, last)


def _as_list(column: Tensor) -> list[int]:
    values: list[int] = column.squeeze(1).tolist()
    return values


def _penalise(logits: Tensor, row: SamplingRow) -> None:
    """Repetition counts prompt and output, presence and frequency the output only."""
    params = row.sequence.params
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(row.token_ids)), device=logits.device)
        values = logits[seen]
        penalty = params.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    counts = Counter(row.output_token_ids)
    if counts and (params.frequency_penalty or params.presence_penalty):
        seen = torch.tensor(list(counts), device=logits.device)
        number = torch.tensor(list(counts.values()), device=logits.device)
        logits[seen] -= params.frequency_penalty * number + params.presence_penalty
