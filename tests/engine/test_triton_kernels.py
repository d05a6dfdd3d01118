"""Triton's kernels against their torch twins: on a GPU where there is one, else interpreted.

The interpreter runs the kernels' Python and knows neither GPU types nor registers; that they
compile for GPUs is for `test_triton_compiles.py` to show.
"""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

import triton

from app.engine.kernels import dispatch, reference, triton_attention
from app.engine.kernels.metadata import AttentionMetadata, AttentionSpec, KVCache, QKNorm
from app.engine.kernels.triton_attention import paged_attention, store_kv
from app.engine.kernels.triton_rows import add_rms_norm, gelu_tanh_mul, rms_norm, rotate, silu_mul
from tests.engine import engines

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
LAYER, NUM_LAYERS = 1, 3
# Where the interpreter rounds to bfloat16 it cuts, and it multiplies matrices of it as integers.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}

pytestmark = [
    pytest.mark.skipif(
        not HAS_GPU and not triton.knobs.runtime.interpret,
        reason="a GPU is here, but torch is not built for it",
    ),
    # numpy's, in the interpreter: an infinity on the way to a probability of 0
    pytest.mark.filterwarnings("ignore:overflow encountered"),
]


class Case:
    """Sequences in shuffled blocks, their last rows as queries; all other slots hold NaN."""

    def __init__(
        self,
        contexts,
        row_counts=None,
        *,
        num_kv_heads=1,
        num_groups=2,
        head_dim=64,
        block_size=16,
        dtype=torch.float32,
        window=None,
        softcap=None,
    ):
        torch.manual_seed(len(contexts))
        row_counts = row_counts or [1] * len(contexts)
        self.spec = AttentionSpec(head_dim**-0.5, window, softcap)
        counts = [-(-context // block_size) for context in contexts]
        order = torch.randperm(sum(counts) + 2).tolist()
        tables = [[order.pop() for _ in range(count)] for count in counts]
        shape = (sum(counts) + 2, NUM_LAYERS, 2, num_kv_heads, block_size, head_dim)
        data = torch.full(shape, torch.nan, dtype=dtype)
        for table, context in zip(tables, contexts, strict=True):
            for index, block in enumerate(table):
                used = min(block_size, context - index * block_size)
                rows = torch.randn(2, num_kv_heads, used, head_dim)
                data[block, LAYER, :, :, :used] = rows.to(dtype)
        positions, slots = [], []
        for table, context, count in zip(tables, contexts, row_counts, strict=True):
            new = range(context - count, context)
            positions += new
            slots += [table[p // block_size] * block_size + p % block_size for p in new]
        self.layout = positions, slots, row_counts, tables
        self.cache = KVCache(data.to(DEVICE))
        num_heads = num_kv_heads * num_groups
        self.query = torch.randn(sum(row_counts), num_heads, head_dim).to(dtype).to(DEVICE)

    def metadata(self, device=DEVICE):
        return AttentionMetadata.build(*self.layout, device)

    def run(self):
        return paged_attention(self.query, self.cache, LAYER, self.metadata(), self.spec)

    def expected(self):
        """By the twin, in float32 and on the CPU."""
        data, scales = self.cache.data.cpu(), self.cache.scales
        if scales is None:
            cache = KVCache(data.float().nan_to_num())
        else:
            cache = KVCache(data, scales.cpu().nan_to_num())
        metadata = self.metadata(torch.device("cpu"))
        query = self.query.cpu().float()
        return reference.paged_attention(query, cache, LAYER, metadata, self.spec)

    def check(self):
        assert_near(self.run(), self.expected(), self.query.dtype)

    def alone(self, index):
        """The rows of one sequence, with nothing else in the batch."""
        positions, slots, row_counts, tables = self.layout
        start = sum(row_counts[:index])
        rows = slice(start, start + row_counts[index])
        layout = positions[rows], slots[rows], [row_counts[index]], [tables[index]]
        metadata = AttentionMetadata.build(*layout, DEVICE)
        return paged_attention(self.query[rows], self.cache, LAYER, metadata, self.spec)


def assert_near(actual, expected, dtype):
    assert actual.dtype == dtype
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(actual.cpu().float(), expected, rtol=tolerance, atol=tolerance)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("num_groups", "head_dim"), [(1, 80), (7, 96), slow(2, 64), slow(8, 128), slow(2, 256)]
)
def test_contexts_around_the_block_size(num_groups, head_dim):
    Case([1, 15, 16, 17], num_groups=num_groups, head_dim=head_dim).check()


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("num_groups", [1, 2, 7, 8])
def test_every_head_size_and_group(num_groups, head_dim):
    contexts, row_counts = [1, 15, 16, 17, 40, 70], [1, 1, 1, 1, 3, 12]
    Case(contexts, row_counts, num_groups=num_groups, head_dim=head_dim).check()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("num_groups", [1, 2, 7, 8])
def test_every_head_size_and_group_at_half_precision(num_groups, head_dim, dtype):
    contexts, row_counts = [1, 15, 16, 17, 8192, 40, 1000], [1, 1, 1, 1, 1, 3, 200]
    shape = {"num_kv_heads": 2, "num_groups": num_groups, "head_dim": head_dim}
    Case(contexts, row_counts, dtype=dtype, **shape).check()


@pytest.mark.slow
def test_a_long_context():
    Case([8192, 3]).check()


def test_float16():
    Case([40, 70], [1, 20], dtype=torch.float16).check()


@pytest.mark.parametrize("window", [None, 5, slow(1), slow(16), slow(200)])
def test_single_rows_and_chunks_in_one_step(window):
    Case([30, 1, 18, 33, 100], [1, 1, 3, 20, 9], num_groups=3, window=window).check()


@pytest.mark.parametrize("block_size", [5, slow(4), slow(32)])
def test_block_sizes_of_any_kind(block_size):
    Case([30, 33, 70], [1, 7, 23], num_groups=3, block_size=block_size).check()


@pytest.mark.parametrize("window", [7, slow(None)])
def test_softcapped_scores(window):
    Case([30, 33, 70], [1, 3, 23], num_groups=3, window=window, softcap=2.0).check()


@pytest.mark.parametrize("window", [None, slow(511), slow(530)])
def test_splits_are_merged(window):
    """Rows of one sequence on both sides of a split's border, each with splits of its own."""
    Case([513, 512, 1026], [1, 1, 5], window=window).check()


@pytest.mark.slow
def test_splits_that_take_turns_for_the_workspace_give_the_same(monkeypatch):
    case = Case([600, 20, 530, 40], [1, 1, 6, 7])
    expected = case.run()
    monkeypatch.setattr(triton_attention, "WORKSPACE_BYTES", 1)
    triton_attention._launches.cache_clear()
    assert torch.equal(case.run(), expected)
    triton_attention._launches.cache_clear()


def test_tiles_that_a_row_sees_nothing_of_make_no_nan():
    """With a window of 1 each row sees itself: its value, whatever tiles come before and after."""
    case = Case([200], [150], window=1)
    positions, slots, _, _ = case.layout
    own = case.cache.data[:, LAYER, 1, 0].flatten(0, 1)[torch.tensor(slots, device=DEVICE)]
    torch.testing.assert_close(case.run(), own.unsqueeze(1).expand(-1, 2, -1))
    assert positions[0] == 50


def test_blocks_before_the_window_may_be_given_away():
    case = Case([150, 150], [1, 20], window=10)
    expected = case.run()
    tables = case.layout[3]
    tables[0][:8] = [-1] * 8  # position 149 sees 140 and on: block 8
    tables[1][:7] = [-1] * 7  # position 130 sees 121 and on: block 7
    assert torch.equal(case.run(), expected)
    tables[0][8] = -1
    assert not torch.equal(case.run(), expected)


@pytest.mark.parametrize("window", [100, slow(None)])
def test_a_row_has_the_same_bits_alone_and_in_any_batch(window):
    case = Case([600, 3, 77, 40, 90], [1, 1, 4, 12, 30], num_groups=3, window=window)
    together = case.run().split(case.layout[2])
    for index, rows in enumerate(together):
        assert torch.equal(rows, case.alone(index))


def test_a_long_chunk_has_the_same_bits_wherever_it_is_cut():
    case = Case([90], [60], num_groups=3)
    whole = case.run()
    positions, slots, _, tables = case.layout
    rows = slice(25, 60)
    layout = positions[rows], slots[rows], [35], tables
    metadata = AttentionMetadata.build(*layout, DEVICE)
    cut = paged_attention(case.query[rows], case.cache, LAYER, metadata, case.spec)
    assert torch.equal(cut, whole[rows])


@pytest.mark.parametrize("softcap", [None, slow(2.0)])
def test_an_int8_cache(softcap):
    case = Case([1, 30, 70], [1, 1, 20], num_kv_heads=2, head_dim=80, softcap=softcap)
    data, scales = reference.quantize_rows(case.cache.data.nan_to_num(1.0))
    scales[case.cache.data.isnan().any(-1)] = torch.nan
    case.cache = KVCache(data, scales)
    case.check()


def interpreted_in_place(monkeypatch):
    """Keep the interpreter from copying each tensor onto itself, which touches all of its pages."""
    if not HAS_GPU:
        executor = triton.runtime.interpreter.GridExecutor
        monkeypatch.setattr(executor, "_restore_args_dev", lambda *args: None)


@pytest.mark.parametrize("dtype", [torch.int8, slow(torch.float16)])
def test_a_pool_of_more_numbers_than_32_bits_count(dtype, monkeypatch):
    """Only the pages of one sequence are touched; the others take no memory."""
    interpreted_in_place(monkeypatch)
    small = Case([20], num_kv_heads=2, dtype=torch.float16)
    positions, _, row_counts, [table] = small.layout
    block_numbers = NUM_LAYERS * 2 * 2 * 16 * 64
    first = 2**31 // block_numbers + 1
    shape = (first + len(table), *small.cache.data.shape[1:])
    scales = torch.empty(shape[:-1], device=DEVICE) if dtype == torch.int8 else None
    large = KVCache(torch.empty(shape, dtype=dtype, device=DEVICE), scales)
    new_table = list(range(first, first + len(table)))
    for position in range(20):
        rows = small.cache.data[table[position // 16], LAYER, :, :, position % 16].unsqueeze(1)
        slot = new_table[position // 16] * 16 + position % 16
        store_kv(*rows, large, LAYER, torch.tensor([slot], device=DEVICE))
    metadata = AttentionMetadata.build(positions, [0], row_counts, [new_table], DEVICE)
    actual = paged_attention(small.query, large, LAYER, metadata, small.spec)
    tolerance = 0.05 if dtype == torch.int8 else 0
    torch.testing.assert_close(actual, small.run(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_storing_writes_its_slots_and_no_others(dtype):
    heads = torch.randn(5, 9, 80, device=DEVICE).to(dtype)  # rows of a fused projection
    key, value = heads[:, 3:6], heads[:, 6:]
    slots = torch.tensor([3, 17, 16, 40, 5], device=DEVICE)
    shape = (3, NUM_LAYERS, 2, 3, 16, 80)
    actual, expected = (KVCache(torch.zeros(shape, device=DEVICE).to(dtype)) for _ in range(2))
    store_kv(key, value, actual, LAYER, slots)
    reference.store_kv(key, value, expected, LAYER, slots)
    assert torch.equal(actual.data, expected.data)
    assert actual.data.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_storing_in_8_bits(dtype):
    rows = torch.randn(5, 3, 80, device=DEVICE).to(dtype)
    rows[1, 2] = 0
    rows[2, 0] = torch.arange(80) - 40.5  # halves round to even
    rows[2, 0, 0] = 127  # so that the scale is 1
    slots = torch.tensor([3, 17, 16, 40, 5], device=DEVICE)
    shape = (3, NUM_LAYERS, 2, 3, 16, 80)
    actual, expected = (
        KVCache(
            torch.zeros(shape, dtype=torch.int8, device=DEVICE),
            torch.zeros(shape[:-1], device=DEVICE),
        )
        for _ in range(2)
    )
    store_kv(rows, -rows, actual, LAYER, slots)
    reference.store_kv(rows, -rows, expected, LAYER, slots)
    assert torch.equal(actual.data, expected.data)
    assert torch.equal(actual.scales, expected.scales)


ROWS = [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)]
ROWS += [(torch.float16, torch.float16), (torch.bfloat16, torch.float32)]


@pytest.mark.parametrize(("dtype", "weight_dtype"), ROWS)
def test_norms(dtype, weight_dtype):
    x, residual = (torch.randn(2, 5, 300, device=DEVICE) * 2).to(dtype)
    weight = torch.randn(300, device=DEVICE).to(weight_dtype)
    close(rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6))
    heads = torch.randn(4, 3, 300, device=DEVICE).to(dtype)
    close(rms_norm(heads, weight, 1e-6), reference.rms_norm(heads, weight, 1e-6))
    actual = add_rms_norm(x, residual, weight, 1e-6)
    for one, other in zip(actual, reference.add_rms_norm(x, residual, weight, 1e-6), strict=True):
        close(one, other)


@pytest.mark.parametrize(
    ("head_dim", "num_turned"), [(80, 80), (96, 72), slow(64, 64), slow(128, 64)]
)
@pytest.mark.parametrize(("dtype", "weight_dtype"), ROWS)
def test_rotation_with_and_without_norm(dtype, weight_dtype, head_dim, num_turned):
    heads = torch.randn(2, 4, head_dim, device=DEVICE).to(dtype)
    query, key = heads[:, :2], heads[:, 2:3]
    angles = torch.rand(2, num_turned // 2, device=DEVICE) * 6
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    weights = torch.rand(2, head_dim, device=DEVICE).to(weight_dtype)
    for norm in (None, QKNorm(*weights, 1e-6)):
        actual = rotate(query, key, cos, sin, norm)
        expected = reference.rotate(query, key, cos, sin, norm)
        for one, other in zip(actual, expected, strict=True):
            close(one, other)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [48, 1100])
def test_gated_activations(size, dtype):
    gate_up = (torch.randn(3, 2 * size, device=DEVICE) * 4).to(dtype)
    gate_up[0, :2] = torch.tensor([-100.0, 100.0])
    close(silu_mul(gate_up), reference.silu_mul(gate_up))
    close(gelu_tanh_mul(gate_up), reference.gelu_tanh_mul(gate_up))


def close(actual, expected):
    tolerance = TOLERANCE[expected.dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_launchers_name_what_is_wrong():
    case = Case([40])
    with pytest.raises(AssertionError, match=r"cache is torch.float32, it must be one of "):
        paged_attention(case.query.half(), case.cache, LAYER, case.metadata(), case.spec)
    with pytest.raises(AssertionError, match="query has stride 2 at the end"):
        wide = torch.zeros(1, 2, 128, device=DEVICE)[..., ::2]
        paged_attention(wide, case.cache, LAYER, case.metadata(), case.spec)
    key = torch.zeros(2, 1, 64, device=DEVICE)
    slots = torch.zeros(3, dtype=torch.int64, device=DEVICE)
    with pytest.raises(AssertionError, match=r"slots is \(3,\), it must be \(2,\)"):
        store_kv(key, key, case.cache, LAYER, slots)
    with pytest.raises(AssertionError, match="9 columns"):
        silu_mul(torch.zeros(2, 9, device=DEVICE))


@pytest.mark.gpu
def test_nothing_waits_for_the_device():
    case = Case([8192, 40, 100], [1, 1, 30], num_kv_heads=2, dtype=torch.bfloat16)
    metadata = case.metadata()
    paged_attention(case.query, case.cache, LAYER, metadata, case.spec)  # compile
    torch.cuda.set_sync_debug_mode("error")
    try:
        paged_attention(case.query, case.cache, LAYER, metadata, case.spec)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.slow
def test_a_whole_model_gives_the_tokens_of_the_twins(checkpoints, monkeypatch):
    """Gemma 3 has the most in it: windows, norms of heads, float32 weights of norms, GELU."""
    folder, prompts = checkpoints("gemma3")[0], engines.make_prompts(1, [3, 26])
    tokens = []
    for kernels in (dispatch.REFERENCE, dispatch.triton_kernels()):
        monkeypatch.setattr("app.engine.model_runner.choose_kernels", lambda *_, k=kernels: k)
        core = engines.load(folder, block_size=8, max_num_batched_tokens=40)
        outputs = engines.generate(core, prompts, engines.greedy_params(4))
        tokens.append([output.token_ids for output in outputs])
    assert tokens[0] == tokens[1]
