import pytest

from app.engine.kv_cache_manager import KVCacheManager, hash_128
from tests.engine.control import make_sequences


def sequence_of(tokens, **options):
    return make_sequences("r", tokens, **options)[0]


def compute(cache, sequence, num_tokens=None):
    """Admit a sequence if it is new, and pretend to compute its tokens."""
    target = sequence.num_tokens if num_tokens is None else num_tokens
    if not sequence.block_table:
        cache.admit(sequence, cache.find_prefix(sequence))
    before = sequence.num_computed_tokens
    cache.extend(sequence, target)
    sequence.num_computed_tokens = target
    cache.commit(sequence, before)


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
    ((source, target),) = cache.take_copies()
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
    assert cache.take_copies() == ()


def test_a_fork_at_a_block_border_copies_nothing(cache):
    parent, child = make_sequences("r", range(8), n=2)
    compute(cache, parent)
    cache.fork(parent, child)
    child.token_ids.append(9)
    cache.extend(child, 9)
    assert cache.take_copies() == ()


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
    cache.commit(first, 0)
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
