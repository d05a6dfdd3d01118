"""Swapping out and in under load changes no token: against Hugging Face, with the real runner."""

import random

import pytest

from app.engine import InvalidRequest, OutOfMemory, SamplingParams
from app.engine.config import EngineConfig
from app.engine.cost_model import CostModel
from app.engine.engine_core import NewRequest
from tests.engine import engines, tiny
from tests.engine.engines import (
    bytes_for_blocks,
    finish_all,
    greedy_params,
    load,
    make_prompts,
    tokens_in_a_cancel_storm,
)
from tests.engine.test_speculative import FreeRows

LENGTHS = [20, 30, 25, 40, 33, 18]
GIB = 2**30


class AlwaysSwap(CostModel):
    def prefers_swap(self, num_blocks, num_tokens):
        return True


def load_small(folder, *, num_blocks=34, num_host_blocks=200, **options):
    """A pool for about three sequences, and a host pool."""
    core = load(
        folder,
        block_size=4,
        max_model_len=100,
        kv_cache_memory_bytes=bytes_for_blocks(num_blocks, 4),
        swap_space=bytes_for_blocks(num_host_blocks, 4) / GIB,
        **options,
    )
    core._scheduler._costs = AlwaysSwap()
    return core


def generate(core, prompts):
    return [list(o.token_ids) for o in engines.generate(core, prompts, greedy_params())]


def greedy(model, prompts, answers):
    """What Hugging Face chooses after each prompt and each token of the answers."""
    pairs = zip(prompts, answers, strict=True)
    return [tiny.logprobs(model, prompt, answer).argmax(-1).tolist() for prompt, answer in pairs]


@pytest.mark.parametrize("enable_prefix_caching", [True, False])
@pytest.mark.parametrize("num_host_blocks", [200, 20])
def test_preemption_by_swap_changes_nothing(enable_prefix_caching, num_host_blocks, checkpoints):
    """With 20 host blocks both kinds of preemption mix."""
    folder, model = checkpoints("llama")
    prompts = make_prompts(2, LENGTHS)
    core = load_small(
        folder,
        num_host_blocks=num_host_blocks,
        enable_prefix_caching=enable_prefix_caching,
    )
    tokens = generate(core, prompts)
    stats = core.stats()
    assert tokens == greedy(model, prompts, tokens)
    assert stats.num_swapped_in_blocks > 0
    assert (stats.num_swap_preemptions == stats.num_preemptions) is (num_host_blocks == 200)
    assert stats.num_free_host_blocks == stats.num_host_blocks == num_host_blocks
    assert stats.num_swapped_out_bytes == stats.num_swapped_out_blocks * bytes_for_blocks(1, 4)


def test_forked_answers_survive_a_swap(checkpoints):
    folder = checkpoints("llama")[0]
    prompt = make_prompts(3, [41])[0]
    params = SamplingParams(n=4, temperature=0.7, seed=5, max_tokens=20, ignore_eos=True)
    outputs = []
    for num_blocks in (200, 22):
        core = load_small(folder, num_blocks=num_blocks)
        core.add(NewRequest("many", prompt, params))
        outputs.append([output.token_ids for output in finish_all(core)["many"].outputs])
    assert core.stats().num_swapped_in_blocks > 0
    assert outputs[0] == outputs[1]


def test_speculation_and_swap_together_change_nothing(checkpoints):
    """The answers themselves are given to draft from, so that drafts are often right."""
    folder, model = checkpoints("qwen2")
    prompts = make_prompts(12, [27, 33, 24, 30])
    expected = [tiny.greedy(model, prompt, 24) for prompt in prompts]
    core = load_small(folder, num_blocks=30, speculative_config={"method": "ngram"})
    core.speculator.row_cost = FreeRows()
    for index, (prompt, answer) in enumerate(zip(prompts, expected, strict=True)):
        sources = [prompt[-3:] + answer]
        core.add(NewRequest(str(index), prompt, greedy_params(), draft_sources=sources))
    finished = finish_all(core)
    assert [list(finished[str(i)].outputs[0].token_ids) for i in range(4)] == expected
    assert core.stats().num_swapped_in_blocks > 0
    assert core.stats().num_accepted_tokens > 0


def test_a_cancel_storm_with_swaps_leaves_the_others_exact(checkpoints):
    folder, model = checkpoints("qwen2")
    rng = random.Random(4)
    prompts = make_prompts(4, [12, 45, 30, 8])
    core = load_small(folder, num_blocks=40, num_host_blocks=50, max_num_batched_tokens=32)
    tokens = tokens_in_a_cancel_storm(core, prompts, rng, range(2, 7))
    assert tokens == greedy(model, prompts, tokens)
    assert core.stats().num_swapped_in_blocks > 0
    assert core.stats().num_free_host_blocks == core.stats().num_host_blocks


def test_on_a_cpu_there_is_no_host_pool_unless_asked_for(checkpoints):
    assert load(checkpoints("llama")[0]).stats().num_host_blocks == 0


def test_measured_rates_replace_the_assumed_ones(checkpoints):
    core = load(checkpoints("llama")[0], block_size=4, kv_cache_memory_bytes=2**20, swap_space=0.01)
    costs = core._scheduler._costs
    assumed = costs.token_s
    generate(core, make_prompts(2, LENGTHS))
    assert costs.token_s != assumed


def test_a_host_pool_larger_than_the_memory_is_refused(checkpoints):
    with pytest.raises(OutOfMemory, match=r"swap_space is 100000000\.0 GiB, the host has"):
        load(checkpoints("llama")[0], swap_space=1e8)


def test_a_negative_swap_space_is_refused():
    with pytest.raises(InvalidRequest, match="swap_space is -1, it must be at least 0"):
        EngineConfig("model", swap_space=-1)
