"""Keys and values in 8 bits: what the kernels keep, and that nothing else of the engine sees it."""

import pytest
import torch

from app.engine import InvalidRequest, SamplingParams
from app.engine.config import EngineConfig
from app.engine.engine_core import NewRequest
from app.engine.kernels.metadata import KVCache
from app.engine.kernels.reference import copy_blocks, quantize_rows
from tests.engine.test_exactness import finish_all, generate, greedy_params, load, make_prompts
from tests.engine.test_kernels import LAYER, Case

LENGTHS = (33, 17, 90)


class Int8Case(Case):
    """A case whose pool is int8; what is expected is attention over the rounded numbers."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        shape = self.cache.data.shape
        garbage = torch.randint(-127, 128, shape, dtype=torch.int8)
        self.cache = KVCache(garbage, torch.rand(shape[:-1]) * 100)

    def expected(self):
        self.keys, self.values = map(self.rounded, (self.keys, self.values))
        return super().expected()

    @staticmethod
    def rounded(sequences):
        pairs = [quantize_rows(rows) for rows in sequences]
        return [data * scales.unsqueeze(-1) for data, scales in pairs]


@pytest.mark.parametrize("options", [{}, {"window": 5}, {"softcap": 2.0}])
def test_attention_over_8_bits_is_attention_over_the_rounded_numbers(options):
    case = Int8Case([30, 1, 18, 33, 16], [1, 1, 18, 20, 2], 2, 3, 64, **options)
    torch.testing.assert_close(case.run(), case.expected(), rtol=1e-4, atol=1e-4)


def test_a_row_keeps_its_largest_number_and_loses_half_a_step_at_most():
    rows = torch.randn(40, 3, 64)
    rows[7] = 0
    data, scales = quantize_rows(rows)
    step = rows.abs().amax(-1, keepdim=True) / 127
    assert ((data * scales.unsqueeze(-1) - rows).abs() <= 0.501 * step).all()


def test_a_copied_block_takes_its_scales_along():
    case = Int8Case([20], [20], 2, 1, 64)
    case.run()
    source = case.tables[0][0]
    target = next(i for i in range(len(case.cache.data)) if i not in case.tables[0])
    copy_blocks(case.cache, torch.tensor([source]), torch.tensor([target]))
    for part in case.cache.parts:
        assert torch.equal(part[source, LAYER], part[target, LAYER])


def prompt_logprobs(folder, prompt, **options):
    core = load(folder, max_num_batched_tokens=32, **options)
    core.add(NewRequest("0", prompt, greedy_params(1, prompt_logprobs=0)))
    entries = finish_all(core)["0"].prompt_logprobs[1:]
    return torch.tensor([e[t].logprob for e, t in zip(entries, prompt[1:], strict=True)])


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_the_loss_is_that_of_bfloat16(family, checkpoints):
    """Measured mean gaps of log probabilities, int8 / bfloat16: 0.13 / 0.12 on llama."""
    folder, prompt = checkpoints(family)[0], make_prompts(1, [90])[0]
    exact = prompt_logprobs(folder, prompt)
    gap = (prompt_logprobs(folder, prompt, kv_cache_dtype="int8") - exact).abs()
    gap_of_bfloat16 = (prompt_logprobs(folder, prompt, dtype="bfloat16") - exact).abs()
    assert 0 < gap.mean() < 1.3 * gap_of_bfloat16.mean()


def test_batch_chunks_blocks_and_prefix_hits_change_nothing(checkpoints):
    """A row is rounded by itself, so every way of computing it gives the same cache."""
    folder, prompts = checkpoints("llama")[0], make_prompts(1, LENGTHS)
    plain = generate(load(folder, kv_cache_dtype="int8", max_num_seqs=1), prompts)
    core = load(folder, kv_cache_dtype="int8", block_size=4, max_num_batched_tokens=32)
    assert generate(core, prompts) == plain
    assert generate(core, prompts) == plain
    assert core.stats().num_prefix_hit_tokens > 0


def test_forked_answers_survive_copies_and_preemption(checkpoints):
    folder, prompt = checkpoints("llama")[0], make_prompts(3, [41])[0]
    params = SamplingParams(n=4, temperature=0.7, seed=5, max_tokens=20, ignore_eos=True)
    outputs = []
    for num_blocks in (200, 22):
        core = load(
            folder,
            kv_cache_dtype="int8",
            block_size=4,
            max_model_len=80,
            kv_cache_memory_bytes=num_blocks * 4 * 240,
        )
        core.add(NewRequest("many", prompt, params))
        outputs.append([o.token_ids for o in finish_all(core)["many"].outputs])
    assert core.stats().num_preemptions > 0
    assert outputs[0] == outputs[1]


def test_the_pool_counts_the_scales(checkpoints):
    """A token has 3 layers x 2 x 2 heads of 16 bytes and a float32: 240 bytes; 768 in float32."""
    folder = checkpoints("llama")[0]
    for dtype, token_bytes in (("int8", 240), ("auto", 768)):
        core = load(folder, kv_cache_dtype=dtype, kv_cache_memory_bytes=100 * 16 * token_bytes)
        assert core.stats().num_blocks == 100


def test_an_unknown_dtype_is_refused_with_the_list():
    with pytest.raises(InvalidRequest, match="kv_cache_dtype is fp8, known: auto, int8"):
        EngineConfig("model", kv_cache_dtype="fp8")
