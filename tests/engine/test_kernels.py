"""The paged attention in torch against attention as it is defined, one row at a time."""

import pytest
import torch

from app.engine.kernels.dispatch import REFERENCE
from app.engine.kernels.metadata import AttentionMetadata, AttentionSpec, KVCache
from app.engine.kernels.reference import copy_blocks, rms_norm, rotate, store_kv, visible_mask
from app.engine.layers.attention import ForwardContext, PagedAttention
from app.engine.layers.linear import PackedWeight, PlainWeight, make_weight

BLOCK_SIZE = 16
NUM_LAYERS = 2
LAYER = 1


def by_definition(query, keys, values, position, spec):
    """One row: query [H, D]; keys, values [positions, K, D]."""
    first = 0 if spec.window is None else max(position - spec.window + 1, 0)
    num_groups = query.shape[0] // keys.shape[1]
    seen = slice(first, position + 1)
    keys = keys[seen].repeat_interleave(num_groups, dim=1).double()
    values = values[seen].repeat_interleave(num_groups, dim=1).double()
    scores = torch.einsum("hd,phd->hp", query.double(), keys) * spec.scale
    if spec.softcap is not None:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    return torch.einsum("hp,phd->hd", scores.softmax(-1), values).float()


class Case:
    """Sequences of given contexts in shuffled blocks, with their last rows as queries."""

    def __init__(self, contexts, num_rows, num_kv_heads, num_groups, head_dim, **options):
        torch.manual_seed(0)
        self.spec = AttentionSpec(head_dim**-0.5, **options)
        self.contexts, self.num_rows = contexts, num_rows
        blocks = [-(-context // BLOCK_SIZE) for context in contexts]
        order = torch.randperm(sum(blocks) + 3).tolist()
        self.tables = [[order.pop() for _ in range(count)] for count in blocks]
        shape = (sum(blocks) + 3, NUM_LAYERS, 2, num_kv_heads, BLOCK_SIZE, head_dim)
        self.cache = KVCache(torch.randn(shape) * 100)  # what is not written must not be seen
        self.keys = [torch.randn(context, num_kv_heads, head_dim) for context in contexts]
        self.values = [torch.randn(context, num_kv_heads, head_dim) for context in contexts]
        self.queries = [torch.randn(n, num_kv_heads * num_groups, head_dim) for n in num_rows]

    def slots(self, sequence, start, end):
        table = self.tables[sequence]
        slots = [table[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in range(start, end)]
        return torch.tensor(slots, dtype=torch.int64)

    def run(self):
        """Earlier tokens are in the cache already; the rows' own are stored by the call."""
        slots, positions = [], []
        for i, (context, num_rows) in enumerate(zip(self.contexts, self.num_rows, strict=True)):
            start = context - num_rows
            before = self.keys[i][:start], self.values[i][:start]
            store_kv(*before, self.cache, LAYER, self.slots(i, 0, start))
            slots += self.slots(i, start, context).tolist()
            positions += range(start, context)
        metadata = AttentionMetadata.build(
            positions, slots, self.num_rows, self.tables, torch.device("cpu")
        )
        keys = torch.cat([k[len(k) - n :] for k, n in zip(self.keys, self.num_rows, strict=True)])
        values = torch.cat(
            [v[len(v) - n :] for v, n in zip(self.values, self.num_rows, strict=True)]
        )
        attention = PagedAttention(LAYER, self.spec, REFERENCE)
        context = ForwardContext(self.cache, metadata)
        return attention(torch.cat(self.queries), keys, values, context)

    def expected(self):
        rows = []
        for i, context in enumerate(self.contexts):
            start = context - self.num_rows[i]
            rows += [
                by_definition(query, self.keys[i], self.values[i], start + j, self.spec)
                for j, query in enumerate(self.queries[i])
            ]
        return torch.stack(rows).flatten(1)


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128])
@pytest.mark.parametrize("num_groups", [1, 2, 7, 8])
def test_contexts_around_the_block_size(num_groups, head_dim):
    case = Case([1, 15, 16, 17, 40], [1] * 5, 2, num_groups, head_dim)
    torch.testing.assert_close(case.run(), case.expected(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", [None, 1, 5, 16, 200])
def test_single_rows_and_chunks_in_one_step(window):
    case = Case([30, 1, 18, 33, 16], [1, 1, 18, 20, 2], 2, 3, 64, window=window)
    torch.testing.assert_close(case.run(), case.expected(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", [None, 5])
def test_softcapped_scores(window):
    case = Case([30, 1, 18, 33], [1, 1, 18, 20], 2, 3, 64, window=window, softcap=2.0)
    torch.testing.assert_close(case.run(), case.expected(), rtol=1e-4, atol=1e-4)


def test_a_long_context():
    case = Case([8192, 3], [1, 1], 1, 2, 64)
    torch.testing.assert_close(case.run(), case.expected(), rtol=1e-4, atol=1e-4)


def test_storing_writes_its_slots_and_no_others():
    case = Case([20], [20], 2, 1, 64)
    before = case.cache.data.clone()
    case.run()
    changed = (case.cache.data != before).flatten(2).any(-1)
    assert not changed[:, 0].any()  # the other layer
    assert sorted(case.tables[0]) == changed[:, 1].nonzero().flatten().tolist()


def test_all_sources_are_read_before_any_target_is_written():
    cache = torch.arange(4.0)[:, None].repeat(1, 3)
    copy_blocks(KVCache(cache), torch.tensor([0, 1]), torch.tensor([1, 2]))
    assert cache[:, 0].tolist() == [0, 0, 1, 3]


def test_a_query_sees_itself_and_what_is_before_it():
    assert visible_mask(torch.tensor([2]), 4, None).tolist() == [[True, True, True, False]]
    assert visible_mask(torch.tensor([2]), 4, 2).tolist() == [[False, True, True, False]]


@pytest.mark.parametrize("num_rows", [1, 2, 7, 64, 200])
def test_packed_weights_equal_plain_ones(num_rows):
    torch.manual_seed(0)
    parts, bias = [torch.randn(30, 20), torch.randn(11, 20)], torch.randn(41)
    packed, plain = make_weight(parts), PlainWeight(torch.cat(parts))
    assert isinstance(packed, PackedWeight)
    x = torch.randn(num_rows, 20)
    torch.testing.assert_close(packed(x, bias), plain(x, bias), rtol=1e-5, atol=1e-5)


def test_a_float32_weight_keeps_the_norm_from_rounding_twice():
    """Gemma's norms multiply before they round, Llama's after."""
    torch.manual_seed(0)
    x, weight = torch.randn(50, 64).bfloat16(), torch.randn(64).bfloat16()
    exact = x.double() / x.double().square().mean(-1, keepdim=True).sqrt() * weight.double()
    once, twice = rms_norm(x, weight.float(), 0.0), rms_norm(x, weight, 0.0)
    assert torch.equal(once, exact.float().bfloat16())
    assert once.dtype == twice.dtype == torch.bfloat16
    assert 0 < (once != twice).float().mean() < 0.5


def test_only_the_rotary_dimensions_turn():
    query, key = torch.randn(3, 4, 20), torch.randn(3, 2, 20)
    angles = torch.rand(3, 6)
    turned, _ = rotate(query, key, angles.cos(), angles.sin(), None)
    assert torch.equal(turned[..., 12:], query[..., 12:])
    pairs = torch.complex(query[..., :6], query[..., 6:12])
    expected = pairs * torch.polar(torch.ones_like(angles), angles).unsqueeze(1)
    torch.testing.assert_close(torch.complex(turned[..., :6], turned[..., 6:12]), expected)
