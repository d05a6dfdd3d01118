from collections import Counter

import pytest
import torch

from app.engine.sampler import adjust, probabilities, sample, token_logprobs, uniform
from tests.engine.control import make_sequences

NUM_DRAWS = 4000
LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])


def sequence(prompt=(1, 2), output=(), **options):
    (made,) = make_sequences("r", prompt, max_tokens=64, **options)
    made.token_ids += output
    return made


def distribution(**options):
    probs = probabilities(LOGITS, sequence(**options))
    return (probs / probs.sum()).tolist()


def draw_counts(**options):
    """How often each token is drawn over many seeds."""
    counts = Counter()
    for seed in range(NUM_DRAWS):
        one = sequence(**options)
        one.seed = seed
        counts[sample(LOGITS[None], (one,))[0].token_id] += 1
    return [counts[token] for token in range(len(LOGITS))]


def chi_square(counts, probs):
    pairs = [(c, p * NUM_DRAWS) for c, p in zip(counts, probs, strict=True) if p > 0]
    return sum((count - wanted) ** 2 / wanted for count, wanted in pairs)


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.8}, {"min_p": 0.2, "temperature": 1.5}],
)
def test_draws_follow_the_distribution(options):
    counts = draw_counts(**options)
    assert chi_square(counts, distribution(**options)) < 25  # p = 0.0001 at 5 degrees of freedom


def test_the_distribution_is_softmax_over_temperature():
    assert distribution(temperature=0.5) == pytest.approx(
        torch.softmax(LOGITS / 0.5, dim=0).tolist()
    )


def test_top_k_keeps_the_likeliest():
    assert [p > 0 for p in distribution(top_k=2)] == [True, True, False, False, False, False]


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    # 0.561, 0.206, 0.125, ...: two reach 0.76, three are needed for 0.77
    kept = [sum(p > 0 for p in distribution(top_p=top_p)) for top_p in (0.5, 0.76, 0.77, 1.0)]
    assert kept == [1, 2, 3, 6]


def test_top_p_sorts_the_vocabulary_when_likely_tokens_do_not_reach():
    flat = torch.zeros(5000)
    probs = probabilities(flat + torch.arange(5000) * 1e-4, sequence(top_p=0.9))
    kept = probs[probs > 0]
    assert 4000 < len(kept) < 4600
    assert float(kept.sum() - kept.min()) < 0.9 <= float(kept.sum()) + 1e-9


def test_min_p_is_relative_to_the_likeliest():
    assert sum(p > 0 for p in distribution(min_p=0.3)) == 2


def test_temperature_zero_takes_the_likeliest():
    assert sample(LOGITS[None], (sequence(temperature=0),))[0].token_id == 0


def test_a_seed_gives_the_same_tokens_whatever_shares_the_batch():
    rows = torch.randn(5, 300, generator=torch.Generator().manual_seed(1))
    mixed = [
        sequence(temperature=0),
        sequence(top_p=0.5),
        sequence(top_k=9, seed=3),
        sequence(presence_penalty=1.0, output=(5,)),
        sequence(min_p=0.1),
    ]
    together = [token.token_id for token in sample(rows, tuple(mixed))]
    alone = [sample(rows[i : i + 1], (mixed[i],))[0].token_id for i in range(5)]
    assert together == alone


def test_answers_of_one_request_and_positions_differ():
    numbers = {uniform(1, index, position) for index in range(9) for position in range(9)}
    assert len(numbers) == 81
    assert all(0 <= number < 1 for number in numbers)


def test_impossible_tokens_are_never_drawn():
    logits = torch.full((1, 1000), float("-inf"))
    logits[0, 500] = 0.0
    one = sequence()
    for seed in range(200):
        one.seed = seed
        assert sample(logits, (one,))[0].token_id == 500


def test_presence_and_frequency_count_the_output_only():
    adjusted = adjust(
        LOGITS, sequence(prompt=(0,), output=(1, 1), presence_penalty=0.5, frequency_penalty=0.25)
    )
    assert (adjusted - LOGITS).tolist() == pytest.approx([0, -1.0, 0, 0, 0, 0])


def test_repetition_penalty_counts_prompt_and_output():
    adjusted = adjust(LOGITS, sequence(prompt=(0, 5), output=(1,), repetition_penalty=2.0))
    assert adjusted.tolist() == pytest.approx([1.0, 0.5, 0.5, 0.0, -1.0, -6.0])


def test_logit_bias_and_min_tokens_change_the_choice():
    assert adjust(LOGITS, sequence(logit_bias={5: 100}))[5] == 97
    assert adjust(LOGITS, sequence(min_tokens=1))[0] == float("-inf")  # 0 is the end token


def test_a_bad_word_is_banned_once_its_beginning_was_written():
    one = sequence(output=(3,))
    one.bad_word_ids = ((3, 4), (2, 1), (5,))
    banned = torch.isinf(adjust(LOGITS, one)).nonzero().flatten().tolist()
    assert banned == [4, 5]


def test_adjusting_leaves_the_logits_alone():
    before = LOGITS.clone()
    adjust(LOGITS, sequence(repetition_penalty=2.0, min_tokens=3, logit_bias={1: 3.0}))
    assert torch.equal(LOGITS, before)


def test_logprobs_come_before_filters_with_the_token_first():
    own, first, second = token_logprobs(LOGITS, 3, 2)
    assert (own.token_id, own.rank) == (3, 4)
    assert [(entry.token_id, entry.rank) for entry in (first, second)] == [(0, 1), (1, 2)]
    assert own.logprob == pytest.approx(float(torch.log_softmax(LOGITS, 0)[3]))
