"""Token-exact against Hugging Face greedy in float32, whatever the batch, chunk or block size."""

import random

import pytest

from app.engine import SamplingParams
from app.engine.config import EngineConfig
from app.engine.engine_core import NewRequest, load_engine
from tests.engine import tiny

NUM_TOKENS = 24
LENGTHS = (1, 7, 16, 17, 33, 90)


def greedy_params(num_tokens=NUM_TOKENS, **options):
    return SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, **options)


def make_prompts(seed, lengths=LENGTHS):
    rng = random.Random(seed)
    return [[rng.randrange(2, 300) for _ in range(length)] for length in lengths]


@pytest.fixture(scope="module")
def expected(checkpoints):
    """Hugging Face's tokens for a family and a prompt, computed once."""
    known = {}

    def get(family, prompt):
        key = family, tuple(prompt)
        if key not in known:
            known[key] = tiny.greedy(checkpoints(family)[1], prompt, NUM_TOKENS)
        return known[key]

    return get


def load(folder, **options):
    defaults = {
        "dtype": "float32",
        "num_threads": 1,
        "kv_cache_memory_bytes": 2**22,
        "max_model_len": 256,
    }
    return load_engine(EngineConfig(str(folder), **(defaults | options)))


def bytes_for_blocks(num_blocks, block_size):
    """Pool size of the tiny models: 3 layers, 2 key/value heads of 16, float32."""
    return num_blocks * block_size * 3 * 2 * 2 * 16 * 4


def finish_all(core, check=True):
    """Step until done, with every invariant after each step; final outputs by request id."""
    finished = {}
    while core.has_work:
        for output in core.step():
            if output.finished:
                finished[output.request_id] = output
        if check:
            core.check_integrity()
    assert core.stats().num_free_blocks == core.stats().num_blocks
    return finished


def generate(core, prompts, **options):
    for index, prompt in enumerate(prompts):
        core.add(NewRequest(str(index), prompt, greedy_params(**options)))
    finished = finish_all(core)
    return [list(finished[str(i)].outputs[0].token_ids) for i in range(len(prompts))]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_equals_hugging_face(family, checkpoints, expected):
    prompts = make_prompts(1)
    core = load(checkpoints(family)[0], block_size=8, max_num_batched_tokens=40)
    assert generate(core, prompts) == [expected(family, prompt) for prompt in prompts]


@pytest.mark.parametrize("block_size", [4, 5, 16, 32])
@pytest.mark.parametrize("budget", [16, 23, 200])
@pytest.mark.parametrize("max_num_seqs", [1, 4, 16])
def test_batch_chunk_and_block_sizes_do_not_matter(
    block_size, budget, max_num_seqs, checkpoints, expected
):
    prompts = make_prompts(1)
    core = load(
        checkpoints("qwen2")[0],
        block_size=block_size,
        max_num_batched_tokens=budget,
        max_num_seqs=max_num_seqs,
    )
    assert generate(core, prompts) == [expected("qwen2", prompt) for prompt in prompts]


@pytest.mark.parametrize("family", ["llama", "mistral-window"])
def test_a_prefix_hit_changes_nothing(family, checkpoints, expected):
    prompts = make_prompts(1)
    core = load(checkpoints(family)[0], block_size=4)
    generate(core, prompts)
    again = generate(core, prompts)
    assert core.stats().num_prefix_hit_tokens > sum(LENGTHS) - 5 * len(LENGTHS)
    assert again == [expected(family, prompt) for prompt in prompts]


@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_preemption_by_recompute_changes_nothing(enable_prefix_caching, checkpoints, expected):
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
    assert tokens == [expected("llama", prompt) for prompt in prompts]


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


def test_cancel_storms_leave_the_others_exact(checkpoints, expected):
    rng = random.Random(4)
    prompts = make_prompts(4, [12, 45, 30, 8])
    core = load(
        checkpoints("qwen2")[0],
        block_size=4,
        max_model_len=120,
        max_num_batched_tokens=32,
        kv_cache_memory_bytes=bytes_for_blocks(40, 4),
    )
    for index, prompt in enumerate(prompts):
        core.add(NewRequest(str(index), prompt, greedy_params()))
    finished, doomed, num_added = {}, [], 0
    while core.has_work:
        if num_added < 60:
            doomed.append(f"doomed-{num_added}")
            prompt = prompts[num_added % 4][: rng.randrange(1, 9)] + [rng.randrange(2, 300)] * 9
            params = SamplingParams(n=rng.choice([1, 3]), max_tokens=40, ignore_eos=True)
            core.add(NewRequest(doomed[-1], prompt, params, priority=rng.choice([-1, 0])))
            num_added += 1
        while len(doomed) > rng.randrange(0, 5):
            core.abort(doomed.pop(rng.randrange(len(doomed))))
        finished.update({o.request_id: o for o in core.step() if o.finished})
        core.check_integrity()
    assert core.stats().num_free_blocks == core.stats().num_blocks
    tokens = [list(finished[str(i)].outputs[0].token_ids) for i in range(4)]
    assert tokens == [expected("qwen2", prompt) for prompt in prompts]


def test_sharded_checkpoints_equal_single_files(checkpoints, expected, tmp_path):
    checkpoints("llama")[1].save_pretrained(tmp_path, max_shard_size="100KB")
    tiny.train_tokenizer().save(str(tmp_path / "tokenizer.json"))
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    prompt = make_prompts(1)[3]
    assert generate(load(tmp_path), [prompt]) == [expected("llama", prompt)]


def test_bfloat16_logits_stay_near_those_of_float32(checkpoints):
    """Near ties may fall the other way, so the gap is bounded instead of the tokens compared."""
    prompts = make_prompts(1, [33])
    params = greedy_params(1, prompt_logprobs=0)
    logprobs = []
    for dtype in ("float32", "bfloat16"):
        core = load(checkpoints("qwen2")[0], dtype=dtype)
        core.add(NewRequest("0", prompts[0], params))
        output = finish_all(core)["0"]
        entries = zip(output.prompt_logprobs[1:], prompts[0][1:], strict=True)
        logprobs.append([entry[token].logprob for entry, token in entries])
    gaps = [abs(one - other) for one, other in zip(*logprobs, strict=True)]
    assert max(gaps) < 0.6
    assert sum(gaps) / len(gaps) < 0.15
