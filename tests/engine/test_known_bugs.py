"""Bugs that other engines had, one named test each; the list is in docs/engine.md.

What only a GPU can show is marked so, next to the part that exists on a CPU.
"""

import random

import pytest
import torch

from app.engine import SamplingParams
from app.engine.engine_core import NewRequest
from app.engine.errors import PromptTooLong
from app.engine.host_pool import HostPool
from app.engine.kernels.metadata import AttentionMetadata, KVCache
from app.engine.sequence import FinishReason, ScheduledBatch, SequenceStatus
from tests.engine import engines, tiny
from tests.engine.control import Control
from tests.engine.engines import finish_all, greedy_params, load, make_prompts


def test_a_prefix_hit_after_preemption_does_not_overrun_the_table():
    """The blocks found again were more than those that the resumed step had allotted."""
    control = Control(num_blocks=7, block_size=4)
    control.add("old", range(1, 9), max_tokens=14)
    (young,) = control.add("young", range(21, 29), max_tokens=14)
    while not young.num_preemptions:
        control.step()
    while young.status is SequenceStatus.WAITING:
        control.step()
    assert 0 < young.num_computed_tokens <= len(young.block_table) * 4
    control.run()
    assert young.num_output_tokens == 14


@pytest.mark.parametrize("num_tokens", [4, 8, 12])
def test_a_full_prefix_hit_does_not_give_zero_query_tokens(num_tokens):
    """With the whole prompt in the cache nothing was left to compute logits from."""
    control = Control()
    control.add("first", range(1, num_tokens + 1), max_tokens=1)
    control.run()
    (second,) = control.add("second", range(1, num_tokens + 1), max_tokens=1)
    batch = control.step()
    assert [item.num_new_tokens for item in batch.sequences] == [4]
    assert second.num_cached_tokens == num_tokens - 4


@pytest.mark.parametrize("budget", [15, 16, 17])
def test_a_chunk_boundary_does_not_miscount_the_kv_length(budget, checkpoints):
    """Chunks that end just before, at and after a block's end, of prompts around such ends."""
    folder, model = checkpoints("llama")
    prompts = make_prompts(20, [31, 32, 33, 47, 48, 49])
    core = load(folder, block_size=16, max_num_batched_tokens=budget, max_num_seqs=8)
    for prompt, output in zip(
        prompts, engines.generate(core, prompts, greedy_params()), strict=True
    ):
        tokens = list(output.token_ids)
        assert tokens == tiny.logprobs(model, prompt, tokens).argmax(-1).tolist()


def test_a_freed_duplicate_block_is_in_no_live_table():
    """Two sequences computed the same block in one step; freeing one gave away the other's."""
    control = Control(num_blocks=20, max_num_seqs=4)
    control.add("first", range(1, 9), max_tokens=2)
    (twin,) = control.add("twin", range(1, 9), max_tokens=12)
    control.step()
    while "first" in control.scheduler.request_ids:
        control.step()
    control.add("next", range(30, 50), max_tokens=2)  # takes what the first has freed
    control.run()  # the fake runner checks every slot that the twin reads
    assert twin.num_output_tokens == 12


def test_an_over_long_prompt_is_answered_with_the_numbers():
    """It was dropped, and its client waited for ever."""
    with pytest.raises(PromptTooLong, match=r"70 tokens, the model takes 64"):
        Control(max_model_len=64).add("a", range(70))


def test_a_request_larger_than_the_pool_is_answered_with_the_numbers():
    """It waited for blocks that could never be free."""
    with pytest.raises(PromptTooLong, match=r"18 tokens in 5 blocks of 4, .* 4 blocks"):
        Control(num_blocks=4, block_size=4).add("a", range(1, 11), max_tokens=8)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_swap_does_not_restore_garbage(device):
    """The copy back ran beside the kernels that write and read, or landed in a temporary.

    On a GPU thousands of moves and kernels are queued without a synchronisation between them.
    """
    cache = KVCache(torch.zeros(4, 2, 2, 2, 16, 64, device=device))
    pool = HostPool(cache, 2)
    for value in range(1, 500):
        cache.data[0].fill_(value)
        pool.move(((0, value % 2),), ())
        cache.data[0].fill_(-1)  # taken by another sequence at once
        pool.move((), ((value % 2, 1),))
        cache.data[2] += cache.data[1]
    assert cache.data[2].eq(sum(range(1, 500))).all()


def test_the_longest_context_is_read_anew_for_each_step():
    """`max_seqlen` was baked into a captured graph: later tokens were not seen."""

    def build(contexts):
        tables = [list(range(-(-context // 4))) for context in contexts]
        positions = [context - 1 for context in contexts]
        counts = [1] * len(contexts)
        device = torch.device("cpu")
        return AttentionMetadata.build(positions, positions, counts, tables, device)

    assert build([3, 9]).contexts == (3, 9)
    assert build([4, 61]).contexts == (4, 61)
    assert build([4, 61]).context_lens.tolist() == [4, 61]


def test_answers_longer_than_any_context_before_stay_exact(checkpoints):
    """The same, seen from outside: each step sees a longer context than the steps before."""
    folder, model = checkpoints("qwen2")
    prompt = make_prompts(21, [5])[0]
    core = load(folder, block_size=4)
    core.add(NewRequest("0", prompt, greedy_params(150)))
    tokens = list(finish_all(core)["0"].outputs[0].token_ids)
    assert tokens == tiny.logprobs(model, prompt, tokens).argmax(-1).tolist()


def test_a_waiting_request_does_not_prefill_after_its_client_left():
    """Its prompt was computed although nobody was there to read the answer."""
    control = Control(max_num_seqs=2, budget=8)
    control.add("a", [1], max_tokens=3)
    control.add("b", [1], max_tokens=3)
    control.step()
    control.add("c", range(1, 30), max_tokens=3)
    (gone,) = control.scheduler.abort("c")
    batches = control.run()
    assert gone.finish_reason is FinishReason.ABORT
    assert all(item.sequence is not gone for batch in batches for item in batch.sequences)


def test_speculation_does_not_corrupt_the_prefix_cache():
    """Blocks with guessed tokens were named before the guess was verified.

    The drafts are wrong half of the time; whoever starts from a block that they touched reads
    slots that the fake runner checks.
    """
    control = Control(
        num_blocks=40,
        max_num_seqs=4,
        draft_accuracy=0.5,
        next_token=lambda s: 1 + s.token_ids[-1] % 9,
    )
    (first,) = control.add("first", range(1, 9), max_tokens=30)
    control.run()
    for length in range(9, 38):
        control.add(f"next-{length}", first.token_ids[:length], max_tokens=2)
        control.run()
    assert control.kv_cache.stats.num_hit_tokens > 0


def test_the_batch_does_not_change_a_result(checkpoints):
    """The number of parts into which a context was split followed from the batch.

    One request alone and among others, greedy and sampled: the same tokens, the same log
    probabilities to within rounding.
    """
    folder, _ = checkpoints("llama")
    prompt, *others = make_prompts(22, [60, 3, 90, 17, 33])
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=20, logprobs=0, ignore_eos=True)

    def run(companions):
        core = load(folder, block_size=8)
        core.add(NewRequest("0", prompt, params))
        for index, other in enumerate(companions, start=1):
            core.add(NewRequest(str(index), other, greedy_params()))
        (output,) = finish_all(core)["0"].outputs
        return output.token_ids, output.cumulative_logprob

    tokens, logprob = run([])
    many_tokens, many_logprob = run(others)
    assert many_tokens == tokens
    assert many_logprob == pytest.approx(logprob, abs=1e-3)


def test_a_host_block_read_in_a_step_is_not_overwritten_by_it():
    """Swaps out come first: one to the block that a swap in reads would restore another's."""
    rng = random.Random(1)
    control = Control(num_blocks=7, num_host_blocks=9, max_num_seqs=4, enable_prefix_caching=False)
    control.scheduler._costs.prefers_swap = lambda num_blocks, num_tokens: True
    batches: list[ScheduledBatch] = []
    for index in range(40):
        control.add(str(index), [rng.randrange(1, 9) for _ in range(7)], max_tokens=9)
    batches = control.run()
    read = [{host for host, _ in batch.swap_ins} for batch in batches]
    written = [{host for _, host in batch.swap_outs} for batch in batches]
    assert any(read)
    assert not any(r & w for r, w in zip(read, written, strict=True))
