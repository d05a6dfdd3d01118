from collections import Counter
from itertools import pairwise

import pytest
import torch

from app.engine import sampler
from app.engine.sampler import adjust, likeliest, sample, token_logprobs, uniform
from app.engine.sequence import SamplingRow
from tests.engine.control import make_sequences

NUM_DRAWS = 4000
LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])


def row(prompt=(1, 2), output=(), draft=(), seed=0, **options):
    (sequence,) = make_sequences("r", prompt, max_tokens=64, **options)
    sequence.token_ids += output
    sequence.seed = seed
    return SamplingRow(sequence, tuple(draft))


def distribution(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """What vLLM's documentation says of the filters, in their order, the slow way."""
    probs = torch.softmax(logits.double() / temperature, dim=-1)
    ranked = sorted(range(len(probs)), key=lambda token: -probs[token])
    kept = [token for token in ranked if probs[token] >= min_p * probs.max()]
    kept = kept[: top_k or None]
    wanted, total, nucleus = top_p * float(probs[kept].sum()), 0.0, []
    for token in kept:
        if nucleus and total >= wanted:
            break
        nucleus.append(token)
        total += float(probs[token])
    return {token: float(probs[token]) / total for token in nucleus}


def draws(logits, seeds, **options):
    """The tokens drawn for many seeds, as the rows of one batch."""
    rows = tuple(row(seed=seed, **options) for seed in seeds)
    return [token.token_id for token in sample(logits.expand(len(rows), -1), rows)]


def chi_square(counts, probs):
    """The statistic, and its limit at p = 0.0001 by Wilson and Hilferty's approximation."""
    wanted = {token: p * sum(counts.values()) for token, p in probs.items()}
    freedom = max(len(wanted) - 1, 1)
    limit = freedom * (1 - 2 / (9 * freedom) + 3.72 * (2 / (9 * freedom)) ** 0.5) ** 3
    return sum((counts[token] - w) ** 2 / w for token, w in wanted.items()), limit


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 3},
        {"top_p": 0.8},
        {"min_p": 0.2, "temperature": 1.5},
        {"temperature": 2.0, "top_k": 5, "top_p": 0.9, "min_p": 0.05},
    ],
    ids=str,
)
def test_draws_follow_the_distribution(options):
    counts = Counter(draws(LOGITS, range(NUM_DRAWS), **options))
    probs = distribution(LOGITS, **options)
    assert counts.keys() <= probs.keys()
    statistic, limit = chi_square(counts, probs)
    assert statistic < limit


def test_the_test_would_see_a_wrong_distribution():
    counts = Counter(draws(LOGITS, range(NUM_DRAWS), temperature=1.1))
    statistic, limit = chi_square(counts, distribution(LOGITS))
    assert statistic > limit


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.6},
        {"top_p": 0.7},
        {"top_k": 40, "top_p": 0.95},
        {"top_k": 700},
        {"min_p": 0.01},
        {"top_p": 0.9999},
        {"top_k": 3000, "top_p": 0.99, "min_p": 1e-4},
    ],
    ids=str,
)
def test_every_token_of_a_large_vocabulary_has_its_share(options, monkeypatch):
    """Over evenly spread random numbers, each token's share is its probability."""
    logits = torch.randn(5003, generator=torch.Generator().manual_seed(5)) * 2.5
    probs = distribution(logits, **options)
    num_draws = 300
    monkeypatch.setattr(sampler, "uniform", lambda seed, *_: (seed + 0.5) / num_draws)
    counts = Counter(draws(logits, range(num_draws), **options))
    assert counts.keys() <= probs.keys()
    assert max(abs(counts[t] - num_draws * p) for t, p in probs.items()) < 1.001


def test_filters_that_need_many_candidates_look_at_more(monkeypatch):
    logits = torch.randn(5003, generator=torch.Generator().manual_seed(5))
    options = {"top_p": 0.8, "temperature": 1.3}
    expected = draws(logits, range(50), **options)
    monkeypatch.setattr(sampler, "CANDIDATES", (5003,))
    assert draws(logits, range(50), **options) == expected
    assert len(distribution(logits, **options)) > 256


def test_ties_are_kept_whole_by_top_k_and_ordered_by_token():
    logits = torch.zeros(1000)
    logits[7] = 1.0
    assert len(set(draws(logits, range(400), top_k=2))) > 250  # all others equal the second
    assert set(draws(logits, range(200), top_p=0.0035)) == {7, 0}
    assert draws(logits, [0], temperature=0) == [7]
    assert draws(torch.zeros(1000), [0], temperature=0) == [0]


def test_the_likeliest_are_those_of_a_sort():
    logits = torch.randn(3, 4001, generator=torch.Generator().manual_seed(1))
    values, ids = likeliest(logits, 20)
    expected = logits.sort(descending=True)
    assert torch.equal(values, expected.values[:, :20])
    assert torch.equal(ids, expected.indices[:, :20])


def test_temperature_zero_takes_the_likeliest():
    assert draws(LOGITS, [0], temperature=0) == [0]


MIXED = [
    {"temperature": 0},
    {"top_p": 0.5},
    {},
    {"top_k": 9, "seed": 3},
    {"presence_penalty": 1.0, "output": (5,)},
    {"temperature": 0, "repetition_penalty": 1.3, "output": (5, 9)},
    {"min_p": 0.1},
    {"temperature": 1.7},
    {"top_p": 0.99, "temperature": 1.5},
    {"logprobs": 2},
]


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_row_is_sampled_alike_whatever_shares_the_batch(num_threads):
    """Alone, with others, in any order and at any place: the same token, bit for bit."""
    logits = torch.randn(len(MIXED), 33_003, generator=torch.Generator().manual_seed(1)) * 3
    rows = [row(**options) for options in MIXED]
    for seed, one in enumerate(rows):
        one.sequence.seed = seed
    torch.set_num_threads(num_threads)
    try:
        together = sample(logits, tuple(rows))
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(2)).tolist()
        shuffled = sample(logits[order], tuple(rows[index] for index in order))
        alone = [sample(logits[i : i + 1], (rows[i],))[0] for i in range(len(rows))]
    finally:
        torch.set_num_threads(1)
    assert together == tuple(alone)
    assert [shuffled[order.index(index)] for index in range(len(rows))] == alone


def test_a_draft_is_sampled_as_if_it_had_been_written():
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(1))
    options = {"frequency_penalty": 1.5, "repetition_penalty": 1.2, "min_tokens": 3, "top_p": 0.9}
    for seed in range(50):
        drafted = row(output=(5,), draft=(6, 7), seed=seed, **options)
        written = row(output=(5, 6, 7), seed=seed, **options)
        assert sample(logits, (drafted,)) == sample(logits, (written,))


def test_answers_of_one_request_and_positions_differ():
    numbers = {uniform(1, index, position) for index in range(9) for position in range(9)}
    assert len(numbers) == 81
    assert all(0 <= number < 1 for number in numbers)


@pytest.mark.parametrize("options", [{}, {"top_p": 0.999}, {"top_k": 5}, {"min_p": 1e-3}], ids=str)
def test_impossible_tokens_are_never_drawn(options, monkeypatch):
    logits = torch.full((1000,), float("-inf"))
    logits[500] = 0.0
    for point in (0.0, 0.5, 1 - 2.0**-53):
        monkeypatch.setattr(sampler, "uniform", lambda *_, point=point: point)
        assert draws(logits, [1], **options) == [500]


def test_what_a_mask_leaves_is_not_looked_for_among_all(monkeypatch):
    counts = []

    def spy(logits, count):
        counts.append(count)
        return likeliest(logits, count)

    monkeypatch.setattr(sampler, "likeliest", spy)
    logits = torch.full((5003,), float("-inf"))
    logits[40:50] = 0.0
    assert set(draws(logits, range(200), top_k=20, top_p=0.95)) == set(range(40, 50))
    assert counts == [256]


def test_presence_and_frequency_count_the_output_only():
    adjusted = adjust(
        LOGITS, row(prompt=(0,), output=(1, 1), presence_penalty=0.5, frequency_penalty=0.25)
    )
    assert (adjusted - LOGITS).tolist() == pytest.approx([0, -1.0, 0, 0, 0, 0])


def test_repetition_penalty_counts_prompt_and_output():
    adjusted = adjust(LOGITS, row(prompt=(0, 5), output=(1,), repetition_penalty=2.0))
    assert adjusted.tolist() == pytest.approx([1.0, 0.5, 0.5, 0.0, -1.0, -6.0])


def test_logit_bias_and_min_tokens_change_the_choice():
    assert adjust(LOGITS, row(logit_bias={5: 100}))[5] == 97
    assert adjust(LOGITS, row(min_tokens=1))[0] == float("-inf")  # 0 is the end token
    assert draws(LOGITS, [0], temperature=0, min_tokens=1) == [1]
    assert draws(LOGITS, [0], temperature=0, logit_bias={5: 100}) == [5]


def test_sampling_leaves_the_logits_alone():
    logits = LOGITS.repeat(3, 1)
    options = {"repetition_penalty": 2.0, "min_tokens": 3, "logit_bias": {1: 3.0}}
    sample(logits, (row(**options), row(temperature=0.5), row(top_p=0.5)))
    assert torch.equal(logits, LOGITS.repeat(3, 1))


def test_logprobs_come_before_filters_with_the_token_first():
    own, first, second = token_logprobs(LOGITS, 3, 2)
    assert (own.token_id, own.rank) == (3, 4)
    assert [(entry.token_id, entry.rank) for entry in (first, second)] == [(0, 1), (1, 2)]
    assert own.logprob == pytest.approx(float(torch.log_softmax(LOGITS, 0)[3]))


def test_logprobs_are_those_of_the_logits_as_they_came():
    token = sample(LOGITS[None], (row(temperature=0.1, top_k=1, logit_bias={4: 100}, logprobs=1),))[
        0
    ]
    assert token.token_id == 4
    assert (token.logprobs[0].rank, token.logprobs[1].token_id) == (5, 0)
    assert token.logprobs[0].logprob == pytest.approx(float(torch.log_softmax(LOGITS, 0)[4]))


def test_the_most_logprobs_are_in_order():
    entries = token_logprobs(torch.randn(9000, generator=torch.Generator().manual_seed(3)), 5, 100)
    assert len(entries) == 101
    assert all(one.logprob >= other.logprob for one, other in pairwise(entries[1:]))


@pytest.mark.parametrize("top_k", [2**63, 10**30])
def test_top_k_beyond_the_vocabulary_cuts_nothing(top_k):
    assert draws(LOGITS, range(50), top_k=top_k) == draws(LOGITS, range(50))


@pytest.mark.parametrize("options", [{"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.1}], ids=str)
def test_a_row_of_nan_does_not_fail_those_beside_it(options):
    logits = torch.stack([torch.full_like(LOGITS, torch.nan), LOGITS])
    rows = (row(seed=1, **options), row(seed=1, **options))
    assert sample(logits, rows)[1] == sample(LOGITS[None], rows[1:])[0]
