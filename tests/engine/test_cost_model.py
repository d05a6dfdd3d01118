import pytest

from app.engine.cost_model import CostModel, StepCost


def step(**changes):
    defaults = {
        "num_rows": 100,
        "num_prompt_rows": 100,
        "num_moved_blocks": 0,
        "num_started": 0,
        "compute_s": 1.0,
        "move_s": 0.0,
    }
    return StepCost(**(defaults | changes))


def observe(costs, count=200, **changes):
    for _ in range(count):
        costs.observe(step(**changes))
    return costs


def test_rates_settle_at_what_is_measured():
    costs = observe(CostModel(), num_moved_blocks=10, move_s=0.02)
    assert costs.token_s == pytest.approx(0.01)
    assert costs.block_s == pytest.approx(0.002)


def test_the_cheaper_of_both_ways_is_chosen():
    """16 tokens of 10 ms against a block out and in again."""
    slow_moves = observe(CostModel(), num_moved_blocks=1, move_s=0.1)
    quick_moves = observe(CostModel(), num_moved_blocks=1, move_s=0.07)
    assert not slow_moves.prefers_swap(num_blocks=1, num_tokens=16)
    assert quick_moves.prefers_swap(num_blocks=1, num_tokens=16)


def test_a_block_with_one_token_is_computed_again_where_a_full_one_is_moved():
    costs = CostModel(token_s=1e-3, block_s=2e-3)
    assert costs.prefers_swap(num_blocks=1, num_tokens=16)
    assert not costs.prefers_swap(num_blocks=1, num_tokens=1)


def test_steps_of_single_tokens_do_not_raise_the_price_of_a_prompt_token():
    costs = CostModel(token_s=1e-3)
    observe(costs, num_rows=4, num_prompt_rows=0, compute_s=1.0)
    assert costs.token_s == 1e-3


def test_a_step_that_the_device_has_not_finished_is_counted_with_the_next():
    costs = CostModel()
    for _ in range(200):
        costs.observe(step(compute_s=0.0, is_complete=False))
        costs.observe(step(compute_s=2.0))
    assert costs.token_s == pytest.approx(0.01)


def test_before_any_measurement_a_gpu_swaps_a_full_block_of_a_large_model():
    """8 billion weights in 16 bits, 2 MiB a block of 16 tokens."""
    costs = CostModel.assumed(16 * 10**9, 2 * 2**20, is_gpu=True)
    assert costs.prefers_swap(num_blocks=1, num_tokens=16)


def test_the_time_to_try_again_follows_the_measured_rate():
    costs = observe(CostModel(), num_started=1, compute_s=4.0)
    assert costs.retry_after_s(num_waiting=5) == pytest.approx(4.0)
    assert costs.retry_after_s(num_waiting=100) == pytest.approx(40.0)


def test_steps_in_which_nobody_starts_count_for_the_next_start():
    costs = CostModel()
    for _ in range(200):
        observe(costs, count=3, compute_s=1.0)
        costs.observe(step(num_started=2, compute_s=1.0))
    assert costs.retry_after_s(num_waiting=1) == pytest.approx(2.0)


def test_the_time_to_try_again_stays_within_reason():
    assert CostModel().retry_after_s(num_waiting=1) == 1.0
    slow = observe(CostModel(), num_started=1, compute_s=60.0)
    assert slow.retry_after_s(num_waiting=1000) == 120.0
