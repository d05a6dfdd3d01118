import pytest

from app.engine.errors import EngineOverloaded, InvalidRequest
from app.engine.sequence import FinishReason, GenerationLimits, SamplingRow, SequenceStatus
from tests.engine.control import EOS, Control


def test_a_new_request_joins_without_interrupting_running_ones():
    control = Control(budget=8)
    (running,) = control.add("a", [1, 2], max_tokens=6)
    control.step()
    (new,) = control.add("b", range(1, 20), max_tokens=2)
    batch = control.step()
    assert [(item.sequence, item.num_new_tokens) for item in batch.sequences] == [
        (running, 1),
        (new, 7),
    ]


def test_decodes_keep_their_token_beside_a_more_urgent_prompt():
    control = Control(budget=4)
    (short,) = control.add("short", [1], max_tokens=9)
    control.step()
    (long,) = control.add("long", range(1, 30), max_tokens=1, priority=-1)
    control.step()
    batch = control.step()
    news = {item.sequence.request_id: item.num_new_tokens for item in batch.sequences}
    assert news == {short.request_id: 1, long.request_id: 3}


def test_a_prompt_is_computed_in_chunks_and_samples_once():
    control = Control(budget=8)
    control.add("a", range(1, 20), max_tokens=1)
    batches = control.run()
    assert [batch.num_new_tokens for batch in batches] == [8, 8, 3]
    assert [len(batch.sampled) for batch in batches] == [0, 0, 1]


def test_all_answers_of_a_request_share_its_prompt():
    control = Control(num_blocks=20)
    sequences = control.add("a", range(1, 11), n=4, max_tokens=2)
    control.step()
    assert all(sequence.status is SequenceStatus.RUNNING for sequence in sequences)
    assert control.kv_cache.num_free_blocks == 20 - 3
    batch = control.step()
    assert len(batch.block_copies) == 3  # the last holder writes in place
    assert control.kv_cache.num_free_blocks == 20


def test_the_youngest_is_preempted_and_keeps_its_tokens():
    control = Control(num_blocks=6, enable_prefix_caching=False)
    (old,) = control.add("old", range(1, 9), max_tokens=12)
    (young,) = control.add("young", range(21, 29), max_tokens=12)
    while not young.num_preemptions:
        control.step()
    assert young.status is SequenceStatus.WAITING
    assert young.num_output_tokens > 0
    assert not young.block_table
    assert old.num_preemptions == 0
    control.run()
    assert young.num_output_tokens == 12


def test_a_request_as_large_as_the_pool_runs_in_spite_of_the_watermark():
    control = Control(num_blocks=4, block_size=4, watermark=0.5)
    (sequence,) = control.add("a", range(1, 14), max_tokens=3)
    control.run()
    assert sequence.finish_reason is FinishReason.LENGTH


def test_a_failed_step_with_swaps_leaves_no_move_for_a_later_one():
    control = Control(num_blocks=6, num_host_blocks=9, enable_prefix_caching=False)
    control.add("old", range(1, 9), max_tokens=12)
    control.add("young", range(21, 29), max_tokens=12)
    while not control.scheduler.stats.num_preemptions:
        batch = control.scheduler.schedule()
        if not batch.swap_outs:
            control.scheduler.finish_step(batch, control.runner.run(batch))
    control.scheduler.abort_all()  # the runner failed
    control.scheduler.check_integrity()
    control.add("next", range(1, 9), max_tokens=2)
    assert not control.step().has_swaps
    control.run()


def test_the_watermark_keeps_blocks_for_running_sequences():
    control = Control(num_blocks=8, block_size=4, watermark=0.5)
    control.add("a", range(1, 9), max_tokens=4)
    (waiting,) = control.add("b", range(21, 33), max_tokens=4)
    control.step()
    assert waiting.status is SequenceStatus.WAITING


def test_a_full_queue_refuses_with_a_time_to_try_again():
    control = Control(max_num_queued=1)
    control.add("a", [1])
    with pytest.raises(EngineOverloaded) as refused:
        control.add("b", [1])
    assert refused.value.retry_after_s > 0


def test_the_same_request_id_twice_is_refused():
    control = Control()
    control.add("a", [1])
    with pytest.raises(InvalidRequest, match="running already"):
        control.add("a", [1])


def test_an_empty_prompt_is_refused():
    with pytest.raises(InvalidRequest, match="empty"):
        Control().add("a", [])


@pytest.mark.parametrize("num_steps", range(6))
def test_abort_at_any_step_returns_every_block(num_steps):
    control = Control(budget=4, num_blocks=20)
    control.add("a", range(1, 11), n=3, max_tokens=9)
    for _ in range(num_steps):
        control.step()
    assert len(control.scheduler.abort("a")) == 3
    control.scheduler.check_integrity()
    assert control.kv_cache.num_free_blocks == 20
    assert not control.scheduler.has_work


def test_a_failed_step_returns_every_block():
    control = Control()
    control.add("a", range(1, 11), max_tokens=9)
    control.add("b", range(1, 11), n=2, max_tokens=9)
    control.step()
    control.scheduler.schedule()  # and then the runner fails
    control.scheduler.abort_all()
    control.scheduler.check_integrity()
    assert control.kv_cache.num_free_blocks == 16


def test_a_lower_priority_value_goes_first():
    control = Control(max_num_seqs=1)
    control.add("a", [1], max_tokens=2)
    control.step()
    (later,) = control.add("later", [1], max_tokens=1)
    (urgent,) = control.add("urgent", [1], max_tokens=1, priority=-1)
    while not urgent.is_finished:
        control.step()
    assert not later.is_finished


def test_an_end_token_stops():
    control = Control(next_token=lambda sequence: EOS)
    (sequence,) = control.add("a", [1], max_tokens=9)
    control.run()
    assert (sequence.finish_reason, sequence.num_output_tokens) == (FinishReason.STOP, 1)
    assert sequence.ended_with_stop_token


def test_every_end_token_of_the_model_stops():
    limits = GenerationLimits(frozenset([3, 4]), max_model_len=64, vocab_size=100)
    control = Control(next_token=lambda sequence: 4)
    (sequence,) = control.add("a", [1], max_tokens=9, limits=limits)
    control.run()
    assert sequence.finish_reason is FinishReason.STOP


def test_ignore_eos_goes_on_to_the_length():
    control = Control(next_token=lambda sequence: EOS)
    (sequence,) = control.add("a", [1], max_tokens=9, ignore_eos=True)
    control.run()
    assert (sequence.finish_reason, sequence.num_output_tokens) == (FinishReason.LENGTH, 9)


def test_a_stop_token_is_named_as_the_reason():
    control = Control(next_token=lambda sequence: 5)
    (sequence,) = control.add("a", [1], max_tokens=9, stop_token_ids=[5])
    control.run()
    assert (sequence.finish_reason, sequence.stop_reason) == (FinishReason.STOP, 5)


def test_end_tokens_are_forbidden_before_min_tokens():
    control = Control()
    (sequence,) = control.add("a", [1], max_tokens=4, min_tokens=2, stop_token_ids=[5])
    assert SamplingRow(sequence).forbidden_token_ids == {EOS, 5}
    assert SamplingRow(sequence, draft=(7, 7)).forbidden_token_ids == frozenset()
    control.step()
    control.step()
    assert SamplingRow(sequence).forbidden_token_ids == frozenset()


def test_generation_ends_at_the_models_length():
    control = Control(max_model_len=64)
    (sequence,) = control.add("a", range(1, 61), max_tokens=None)
    control.run()
    assert (sequence.num_tokens, sequence.finish_reason) == (64, FinishReason.LENGTH)


def test_more_answers_than_seats_are_refused():
    with pytest.raises(InvalidRequest, match="n is 5, above max_num_seqs 4"):
        Control(max_num_seqs=4).add("a", [1], n=5)


def test_a_pool_under_pressure_ends_in_bounded_steps():
    """No preempt-resume loop: the oldest is never preempted for a younger one."""
    control = Control(num_blocks=8, max_num_seqs=4)
    for index in range(12):
        control.add(str(index), range(index + 1, index + 9), max_tokens=20)
    num_steps = len(control.run())
    assert control.scheduler.stats.num_preemptions > 0
    assert num_steps <= 12 * 23  # not worse than one after the other
