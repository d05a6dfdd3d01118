import pytest

from app.engine.kv_cache_manager import LEFT_ON_DEVICE, KVCacheManager, hash_128
from tests.engine.control import make_sequences


def sequence_of(tokens, **options):
    return make_sequences("r", tokens, **options)[0]


def compute(cache, sequence, num_tokens=None):
    """Admit a sequence if it is new, and pretend to compute its tokens."""
    target = sequence.num_tokens if num_tokens is None else num_tokens
    if not sequence.block_table:
        cache.admit(sequence, cache.find_prefix(sequence))
    cache.extend(sequence, target)
    sequence.num_computed_tokens = target
    cache.commit(sequence)


@pytest.fixture
def cache():
    return KVCacheManager(num_blocks=8, block_size=4)


def test_a_second_prompt_starts_from_the_blocks_of_the_first(cache):
    first, second = sequence_of(range(10)), sequence_of([*range(8), 50, 51])
    compute(cache, first)
    compute(cache, second)
    assert second.block_table[:2] == first.block_table[:2]
    assert second.num_cached_tokens == 8
    assert cache.num_free_blocks == 8 - 4


def test_a_full_prefix_hit_leaves_the_last_token_to_compute(cache):
    first, second = sequence_of(range(8)), sequence_of(range(8))
    compute(cache, first)
    prefix = cache.find_prefix(second)
    assert len(prefix) * 4 < second.num_tokens


def test_tenants_with_other_salts_share_nothing(cache):
    compute(cache, sequence_of(range(8), salt="one"))
    assert cache.find_prefix(sequence_of(range(9), salt="two")) == []


def test_equal_hashes_of_other_tokens_are_no_hit():
    cache = KVCacheManager(8, 4, hash_function=lambda data: b"same")
    compute(cache, sequence_of(range(8)))
    assert cache.find_prefix(sequence_of([90, 91, 92, 93, 94])) == []


def test_equal_hashes_and_equal_tokens_after_another_prefix_are_no_hit():
    cache = KVCacheManager(8, 4, hash_function=lambda data: hash_128(data)[:0])
    compute(cache, sequence_of([1, 1, 1, 1, 5, 5, 5, 5]))
    other = sequence_of([2, 2, 2, 2, 5, 5, 5, 5, 5])
    assert cache.find_prefix(other) == []


def test_prompt_logprobs_compute_the_whole_prompt(cache):
    compute(cache, sequence_of(range(8)))
    assert cache.find_prefix(sequence_of(range(9), prompt_logprobs=0)) == []


def test_freed_blocks_stay_findable_until_they_are_taken(cache):
    first = sequence_of(range(8))
    compute(cache, first)
    cache.free(first)
    assert cache.num_free_blocks == 8
    assert len(cache.find_prefix(sequence_of(range(9)))) == 2


def test_the_least_recently_used_content_is_evicted_first(cache):
    old, new = sequence_of(range(8)), sequence_of(range(20, 28))
    compute(cache, old)
    compute(cache, new)
    cache.free(old)
    cache.free(new)
    compute(cache, sequence_of(range(50, 70)))  # 4 unused blocks, then one of the old ones
    assert len(cache.find_prefix(sequence_of(range(9)))) == 1  # its end went first
    assert len(cache.find_prefix(sequence_of(range(20, 29)))) == 2


def test_a_fork_copies_the_shared_block_before_it_writes(cache):
    parent, child = make_sequences("r", range(6), n=2)
    compute(cache, parent)
    cache.fork(parent, child)
    child.token_ids.append(9)
    cache.extend(child, 7)
    ((source, target),) = cache.take_moves().copies
    assert (source, target) == (parent.block_table[1], child.block_table[1])
    assert source != target
    assert parent.block_table[0] == child.block_table[0]


def test_the_last_holder_of_a_forked_block_writes_in_place(cache):
    parent, child = make_sequences("r", range(6), n=2)
    compute(cache, parent)
    cache.fork(parent, child)
    cache.free(child)
    parent.token_ids.append(9)
    cache.extend(parent, 7)
    assert cache.take_moves().copies == ()


def test_a_fork_at_a_block_border_copies_nothing(cache):
    parent, child = make_sequences("r", range(8), n=2)
    compute(cache, parent)
    cache.fork(parent, child)
    child.token_ids.append(9)
    cache.extend(child, 9)
    assert cache.take_moves().copies == ()


def test_a_block_computed_twice_is_named_once_and_both_are_returned(cache):
    """Elsewhere a freed duplicate stayed in a live table."""
    first, twin = sequence_of(range(8)), sequence_of(range(8))
    cache.admit(first, cache.find_prefix(first))
    cache.admit(twin, cache.find_prefix(twin))
    compute(cache, first)
    compute(cache, twin)
    cache.check_integrity([first, twin])
    cache.free(first)
    cache.check_integrity([twin])
    cache.free(twin)
    assert cache.num_free_blocks == 8


def test_only_full_computed_blocks_are_found(cache):
    first = sequence_of(range(8))
    cache.admit(first, [])
    compute_upto = 7
    cache.extend(first, 8)
    first.num_computed_tokens = compute_upto
    cache.commit(first)
    assert len(cache.find_prefix(sequence_of(range(9)))) == 1


def test_forgetting_the_cache_keeps_blocks_in_use(cache):
    first = sequence_of(range(8))
    compute(cache, first)
    cache.reset_prefix_cache()
    cache.check_integrity([first])
    assert cache.find_prefix(sequence_of(range(9))) == []


def test_a_long_prompt_that_waits_is_matched_in_linear_time(cache):
    """Each look at the cache adopts the known contents, so comparing stops after one step."""
    cache = KVCacheManager(num_blocks=600, block_size=4)
    tokens = list(range(2000))
    compute(cache, sequence_of(tokens))
    waiting = sequence_of(tokens)
    cache.find_prefix(waiting)
    cached = sequence_of(tokens)
    cache.find_prefix(cached)
    assert all(a is b for a, b in zip(waiting.contents, cached.contents, strict=True))


def test_integrity_check_notices_a_leaked_block(cache):
    first = sequence_of(range(8))
    compute(cache, first)
    with pytest.raises(AssertionError):
        cache.check_integrity([])


def swap_cache(**options):
    return KVCacheManager(num_blocks=8, block_size=4, num_host_blocks=4, **options)


def test_a_swapped_sequence_comes_back_with_what_it_had_computed():
    cache = swap_cache(enable_prefix_caching=False)
    sequence = sequence_of(range(10))
    compute(cache, sequence, 9)
    blocks = list(sequence.block_table)
    cache.swap_out(sequence)
    host = list(sequence.host_table)
    assert cache.take_moves().swap_outs == tuple(zip(blocks, host, strict=True))
    assert (cache.num_free_blocks, cache.num_free_host_blocks) == (8, 1)
    cache.admit(sequence, [])
    assert cache.take_moves().swap_ins == tuple(zip(host, sequence.block_table, strict=True))
    assert sequence.num_computed_tokens == 9
    cache.check_integrity([sequence])


def test_the_last_token_is_left_to_compute_after_a_swap():
    cache = swap_cache(enable_prefix_caching=False)
    sequence = sequence_of(range(9))
    compute(cache, sequence)
    cache.swap_out(sequence)
    assert (len(sequence.host_table), sequence.num_host_tokens) == (2, 8)


def test_blocks_that_the_device_still_has_are_not_moved_back():
    cache = swap_cache()
    sequence = sequence_of(range(10))
    compute(cache, sequence, 9)
    first, second, _ = sequence.block_table
    cache.swap_out(sequence)
    host = list(sequence.host_table)
    cache.take_moves()
    prefix = cache.find_prefix(sequence)
    cache.admit(sequence, prefix)
    assert prefix == [first, second]
    assert cache.take_moves().swap_ins == ((host[2], sequence.block_table[2]),)
    assert cache.num_free_host_blocks == 4


def test_a_named_block_that_others_hold_is_not_copied_to_the_host():
    cache = swap_cache()
    holder, leaver = sequence_of(range(8)), sequence_of([*range(8), 50])
    compute(cache, holder)
    compute(cache, leaver)
    cache.swap_out(leaver)
    assert leaver.host_table == [LEFT_ON_DEVICE, LEFT_ON_DEVICE]
    assert cache.take_moves().swap_outs == ()


def test_a_block_left_on_the_device_and_evicted_is_computed_again():
    cache = swap_cache()
    holder, leaver = sequence_of(range(8)), sequence_of([*range(8), *range(50, 55)])
    compute(cache, holder)
    compute(cache, leaver, 12)
    cache.swap_out(leaver)
    cache.take_moves()
    cache.free(holder)
    cache.reset_prefix_cache()
    cache.admit(leaver, cache.find_prefix(leaver))
    assert leaver.num_computed_tokens == 0
    assert cache.num_free_host_blocks == 3  # still read in this step
    cache.take_moves()
    cache.check_integrity([leaver])


def test_a_forked_sequence_swaps_the_shared_partial_block_for_itself():
    """Its sibling may write that block in place as soon as it is alone."""
    cache = swap_cache()
    parent, child = make_sequences("r", range(6), n=2)
    compute(cache, parent)
    cache.fork(parent, child)
    child.token_ids.append(9)
    cache.swap_out(child)
    assert child.host_table[0] == LEFT_ON_DEVICE
    ((shared, host_block),) = cache.take_moves().swap_outs
    assert (shared, host_block) == (parent.block_table[1], child.host_table[1])
    cache.check_integrity([parent], [child])


def test_a_host_block_that_a_step_reads_is_not_written_in_it():
    cache = swap_cache(enable_prefix_caching=False)
    first, second = sequence_of(range(16)), sequence_of(range(8))
    compute(cache, first, 15)
    cache.swap_out(first)
    cache.take_moves()
    cache.admit(first, [])
    compute(cache, second)
    assert cache.num_blocks_to_swap(second) > cache.num_free_host_blocks == 0
    cache.take_moves()
    assert cache.num_free_host_blocks == 4


def test_an_end_while_swapped_out_returns_the_host_blocks():
    cache = swap_cache()
    sequence = sequence_of(range(10))
    compute(cache, sequence)
    cache.swap_out(sequence)
    cache.take_moves()
    cache.free(sequence)
    cache.take_moves()
    cache.check_integrity([])
    assert cache.num_free_host_blocks == 4


def test_what_was_swapped_in_is_findable_once_the_step_has_run():
    cache = swap_cache()
    sequence = sequence_of(range(10))
    compute(cache, sequence)
    cache.swap_out(sequence)
    cache.take_moves()
    cache.reset_prefix_cache()
    cache.admit(sequence, cache.find_prefix(sequence))
    other = sequence_of(range(9))
    assert cache.find_prefix(other) == []  # not before: the step may fail
    compute(cache, sequence)
    assert cache.find_prefix(other) == sequence.block_table[:2]


def test_empty_slots_count_shared_blocks_once(cache):
    parent, child = make_sequences("r", range(6), n=2)
    compute(cache, parent)
    cache.fork(parent, child)
    assert cache.num_empty_slots([parent, child]) == 2


def test_integrity_check_notices_a_lost_host_block():
    cache = swap_cache()
    sequence = sequence_of(range(10))
    compute(cache, sequence)
    cache.swap_out(sequence)
    cache.take_moves()
    with pytest.raises(AssertionError, match="a host block is lost"):
        cache.check_integrity([])
