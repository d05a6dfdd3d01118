"""Token-exact against Hugging Face greedy in float32, whatever the batch, chunk or block size."""

import copy
import random

import pytest
import torch

from app.engine import SamplingParams
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

NUM_TOKENS = 16
LENGTHS = (1, 7, 16, 17, 33, 90)
FLOAT32_NOISE = 1e-3  # of log probabilities


def generate(core, prompts, **options):
    outputs = engines.generate(core, prompts, greedy_params(NUM_TOKENS, **options))
    return [list(output.token_ids) for output in outputs]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_equals_hugging_face(family, checkpoints):
    folder, model = checkpoints(family)
    prompts = make_prompts(1, LENGTHS)
    core = load(folder, block_size=8, max_num_batched_tokens=40)
    outputs = engines.generate(core, prompts, greedy_params(NUM_TOKENS, logprobs=0))
    tiny.assert_greedy(model, prompts, [list(output.token_ids) for output in outputs])
    for prompt, output in zip(prompts, outputs, strict=True):
        expected = tiny.logprobs(model, prompt, output.token_ids).max(-1).values.tolist()
        steps = zip(output.logprobs, output.token_ids, strict=True)
        likely = [entry[token].logprob for entry, token in steps]
        assert likely == pytest.approx(expected, abs=FLOAT32_NOISE)


def test_one_pass_of_hugging_face_finds_what_it_generates(checkpoints):
    """So that the other tests may do without a pass for each token."""
    folder, model = checkpoints("llama")
    prompts = make_prompts(1, LENGTHS)
    answers = [tiny.greedy(model, prompt, NUM_TOKENS) for prompt in prompts]
    tiny.assert_greedy(model, prompts, answers)
    assert generate(load(folder), prompts) == answers


@pytest.mark.parametrize(
    "family", [name for name in tiny.FAMILIES if "rope" in name or "yarn" in name]
)
def test_stretched_rope_equals_hugging_face_beyond_the_trained_length(family, checkpoints):
    """Dynamic scaling and longrope are set for `max_model_len`, so that is the length compared."""
    folder, model = checkpoints(family)
    [prompt] = make_prompts(6, [300])
    core = load(folder, max_model_len=300 + NUM_TOKENS, max_num_batched_tokens=70)
    tiny.assert_greedy(model, [prompt], generate(core, [prompt]))


@pytest.mark.parametrize(
    ("block_size", "budget", "max_num_seqs"),
    [(4, 16, 1), (5, 23, 4), (16, 200, 16), (32, 16, 4), (4, 200, 4), (5, 16, 16)],
)
def test_batch_chunk_and_block_sizes_do_not_matter(block_size, budget, max_num_seqs, checkpoints):
    """A few settings; `test_exactness_matrix.py` has the rest."""
    folder, model = checkpoints("qwen2")
    prompts = make_prompts(1, LENGTHS)
    core = load(
        folder,
        block_size=block_size,
        max_num_batched_tokens=budget,
        max_num_seqs=max_num_seqs,
    )
    tiny.assert_greedy(model, prompts, generate(core, prompts))


@pytest.mark.parametrize("family", ["llama", "mistral-window"])
def test_a_prefix_hit_changes_nothing(family, checkpoints):
    folder, model = checkpoints(family)
    prompts = make_prompts(1, LENGTHS)
    core = load(folder, block_size=4)
    generate(core, prompts)
    again = generate(core, prompts)
    assert core.stats().num_prefix_hit_tokens > sum(LENGTHS) - 5 * len(LENGTHS)
    tiny.assert_greedy(model, prompts, again)


@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_preemption_by_recompute_changes_nothing(enable_prefix_caching, checkpoints):
    prompts = make_prompts(2, [20, 30, 25, 40, 33, 18])
    core = load(
        checkpoints("llama")[0],
        block_size=4,
        max_model_len=100,
        kv_cache_memory_bytes=bytes_for_blocks(34, 4),
        enable_prefix_caching=enable_prefix_caching,
    )
    tokens = generate(core, prompts)
    assert core.stats().num_preemptions > 0
    tiny.assert_greedy(checkpoints("llama")[1], prompts, tokens)


def test_forked_answers_equal_those_of_single_requests(checkpoints):
    """n = 4: four seeds, one prompt, blocks shared until they are written."""
    core = load(checkpoints("llama")[0], block_size=16, max_num_batched_tokens=32)
    prompt = make_prompts(3, [43])[0]
    params = SamplingParams(n=4, temperature=0.7, seed=5, max_tokens=20, ignore_eos=True)
    core.add(NewRequest("many", prompt, params))
    together = [output.token_ids for output in finish_all(core)["many"].outputs]
    without_sharing = load(checkpoints("llama")[0], enable_prefix_caching=False, max_num_seqs=4)
    without_sharing.add(NewRequest("many", prompt, params))
    alone = [o.token_ids for o in finish_all(without_sharing)["many"].outputs]
    assert len(set(together)) == 4
    assert together == alone


def test_forked_answers_survive_preemption(checkpoints):
    folder = checkpoints("llama")[0]
    prompt = make_prompts(3, [41])[0]
    params = SamplingParams(n=4, temperature=0.7, seed=5, max_tokens=20, ignore_eos=True)
    outputs = []
    for num_blocks in (200, 22):
        pool = bytes_for_blocks(num_blocks, 4)
        core = load(folder, block_size=4, max_model_len=80, kv_cache_memory_bytes=pool)
        core.add(NewRequest("many", prompt, params))
        outputs.append([o.token_ids for o in finish_all(core)["many"].outputs])
    assert core.stats().num_preemptions > 0
    assert outputs[0] == outputs[1]


def test_cancel_storms_leave_the_others_exact(checkpoints):
    rng = random.Random(4)
    prompts = make_prompts(4, [12, 45, 30, 8])
    core = load(
        checkpoints("qwen2")[0],
        block_size=4,
        max_model_len=120,
        max_num_batched_tokens=32,
        kv_cache_memory_bytes=bytes_for_blocks(40, 4),
    )
    tokens = tokens_in_a_cancel_storm(core, prompts, rng, range(5))
    assert core.stats().num_free_blocks == core.stats().num_blocks
    tiny.assert_greedy(checkpoints("qwen2")[1], prompts, tokens)


def test_sharded_checkpoints_equal_single_files(checkpoints, tmp_path):
    model = checkpoints("llama")[1]
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    tiny.train_tokenizer().save(str(tmp_path / "tokenizer.json"))
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    prompts = make_prompts(1, [17])
    tiny.assert_greedy(model, prompts, generate(load(tmp_path), prompts))


def some_slow(families):
    quick = ("qwen2", "qwen3-moe-normed", "gemma3")
    return [f if f in quick else pytest.param(f, marks=pytest.mark.slow) for f in families]


@pytest.mark.parametrize("family", some_slow(tiny.FAMILIES))
def test_bfloat16_is_as_near_to_float32_as_hugging_faces(family, checkpoints):
    """Near ties may fall the other way, so the gap is bounded instead of the tokens compared."""
    folder, model = checkpoints(family)
    [prompt] = make_prompts(1, [60])
    exact, theirs = (
        tiny.logprobs(each, prompt[:1], prompt[1:]).float()
        for each in (model, copy.deepcopy(model).bfloat16())
    )
    chosen = torch.tensor(prompt[1:])[:, None]
    core = load(folder, dtype="bfloat16")
    core.add(NewRequest("0", prompt, greedy_params(1, prompt_logprobs=0)))
    entries = zip(finish_all(core)["0"].prompt_logprobs[1:], prompt[1:], strict=True)
    ours = torch.tensor([entry[token].logprob for entry, token in entries])
    their_gaps = (theirs - exact).gather(1, chosen)[:, 0].abs()
    our_gaps = (ours - exact.gather(1, chosen)[:, 0]).abs()
    assert our_gaps.mean() < 1.5 * their_gaps.mean()
    assert our_gaps.max() < 2.5 * their_gaps.max()
