"""The paged attention in torch against attention as it is defined, one row at a time."""

import pytest
import torch

from app.engine.kernels.reference import copy_blocks, store_kv, visible_mask
from app.engine.layers.attention import AttentionMetadata, ChunkMetadata, PagedAttention
from app.engine.layers.linear import Linear, make_linear

BLOCK_SIZE = 16
NUM_LAYERS = 2
LAYER = 1


def by_definition(query, keys, values, position, window):
    """One row: query [H, D]; keys, values [positions, K, D]."""
    first = 0 if window is None else max(position - window + 1, 0)
    num_groups = query.shape[0] // keys.shape[1]
    seen = slice(first, position + 1)
    keys = keys[seen].repeat_interleave(num_groups, dim=1).double()
    values = values[seen].repeat_interleave(num_groups, dim=1).double()
    scores = torch.einsum("hd,phd->hp", query.double(), keys) * query.shape[1] ** -0.5
    return torch.einsum("hp,phd->hd", scores.softmax(-1), values).float()


class Case:
    """Sequences of given contexts in shuffled blocks, with their last rows as queries."""

    def __init__(self, contexts, num_rows, num_kv_heads, num_groups, head_dim, window=None):
        torch.manual_seed(0)
        self.window = window
        self.contexts, self.num_rows = contexts, num_rows
        blocks = [-(-context // BLOCK_SIZE) for context in contexts]
        order = torch.randperm(sum(blocks) + 3).tolist()
        self.tables = [[order.pop() for _ in range(count)] for count in blocks]
        shape = (sum(blocks) + 3, NUM_LAYERS, 2, num_kv_heads, BLOCK_SIZE, head_dim)
        self.cache = torch.randn(shape) * 100  # what is not written must not be seen
        self.keys = [torch.randn(context, num_kv_heads, head_dim) for context in contexts]
        self.values = [torch.randn(context, num_kv_heads, head_dim) for context in contexts]
        self.queries = [torch.randn(n, num_kv_heads * num_groups, head_dim) for n in num_rows]

    def slots(self, sequence, start, end):
        table = self.tables[sequence]
        slots = [table[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in range(start, end)]
        return torch.tensor(slots, dtype=torch.int64)

    def run(self):
        """Earlier tokens are in the cache already; the rows' own are stored by the call."""
        slots, singles, chunks, row = [], [], [], 0
        for i, (context, num_rows) in enumerate(zip(self.contexts, self.num_rows, strict=True)):
            start = context - num_rows
            store_kv(
                self.keys[i][:start],
                self.values[i][:start],
                self.cache[:, LAYER],
                self.slots(i, 0, start),
            )
            slots.append(self.slots(i, start, context))
            if num_rows == 1:
                singles.append(i)
            else:
                positions = torch.arange(start, context)
                chunks.append(ChunkMetadata(row, num_rows, torch.tensor(self.tables[i]), positions))
            row += num_rows
        width = max((len(self.tables[i]) for i in singles), default=0)
        metadata = AttentionMetadata(
            slots=torch.cat(slots),
            num_single=len(singles),
            block_tables=torch.tensor(
                [self.tables[i] + [0] * (width - len(self.tables[i])) for i in singles]
            ),
            single_positions=torch.tensor([self.contexts[i] - 1 for i in singles]),
            chunks=tuple(chunks),
        )
        keys = torch.cat([k[len(k) - n :] for k, n in zip(self.keys, self.num_rows, strict=True)])
        values = torch.cat(
            [v[len(v) - n :] for v, n in zip(self.values, self.num_rows, strict=True)]
        )
        attention = PagedAttention(LAYER, self.queries[0].shape[2] ** -0.5, self.window)
        return attention(torch.cat(self.queries), keys, values, self.cache, metadata)

    def expected(self):
        rows = []
        for i, context in enumerate(self.contexts):
            start = context - self.num_rows[i]
            rows += [
                by_definition(query, self.keys[i], self.values[i], start + j, self.window)
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
    case = Case([30, 1, 18, 33, 16], [1, 1, 18, 20, 2], 2, 3, 64, window)
    torch.testing.assert_close(case.run(), case.expected(), rtol=1e-4, atol=1e-4)


def test_a_long_context():
    case = Case([8192, 3], [1, 1], 1, 2, 64)
    torch.testing.assert_close(case.run(), case.expected(), rtol=1e-4, atol=1e-4)


def test_storing_writes_its_slots_and_no_others():
    case = Case([20], [20], 2, 1, 64)
    before = case.cache.clone()
    case.run()
    changed = (case.cache != before).flatten(2).any(-1)
    assert not changed[:, 0].any()  # the other layer
    assert sorted(case.tables[0]) == changed[:, 1].nonzero().flatten().tolist()


def test_all_sources_are_read_before_any_target_is_written():
    cache = torch.arange(4.0)[:, None].repeat(1, 3)
    copy_blocks(cache, torch.tensor([0, 1]), torch.tensor([1, 2]))
    assert cache[:, 0].tolist() == [0, 0, 1, 3]


def test_a_query_sees_itself_and_what_is_before_it():
    assert visible_mask(torch.tensor([2]), 4, None).tolist() == [[True, True, True, False]]
    assert visible_mask(torch.tensor([2]), 4, 2).tolist() == [[False, True, True, False]]


@pytest.mark.parametrize("num_rows", [1, 2, 7, 64, 200])
def test_packed_weights_equal_plain_ones(num_rows):
    torch.manual_seed(0)
    weights, biases = [torch.randn(30, 20), torch.randn(11, 20)], [torch.randn(30), torch.randn(11)]
    packed = make_linear(weights, biases)
    plain = Linear(torch.cat(weights), torch.cat(biases), is_packed=False)
    x = torch.randn(num_rows, 20)
    torch.testing.assert_close(packed(x), plain(x), rtol=1e-5, atol=1e-5)
