"""Moves between device and host, bit by bit."""

import pytest
import torch

from app.engine.host_pool import HostPool
from app.engine.kernels.metadata import KVCache

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def make_cache(dtype, device, *, with_scales=False):
    """8 blocks of random bits, NaN and infinities among them."""
    shape = (8, 3, 2, 2, 4, 16)
    bits = torch.randint(0, 256, (*shape[:-1], shape[-1] * dtype.itemsize), dtype=torch.uint8)
    scales = torch.rand(shape[:-1], device=device) if with_scales else None
    return KVCache(bits.view(dtype).to(device), scales)


def bits_of(tensor):
    return tensor.view(torch.uint8).cpu().clone()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_block_comes_back_from_the_host_bit_by_bit(dtype, device):
    """Elsewhere x[index].copy_(y) filled a temporary, and the block stayed as it was."""
    cache = make_cache(dtype, device)
    pool, before = HostPool(cache, 5), bits_of(cache.data)
    pool.move(((1, 4), (6, 0)), ())
    cache.data[1] = 0
    cache.data[6] = 0
    pool.move((), ((4, 3), (0, 1)))
    after = bits_of(cache.data)
    assert torch.equal(after[3], before[1])
    assert torch.equal(after[1], before[6])
    untouched = [0, 2, 4, 5, 7]
    assert torch.equal(after[untouched], before[untouched])


@pytest.mark.parametrize("device", DEVICES)
def test_scales_move_with_their_block(device):
    cache = make_cache(torch.int8, device, with_scales=True)
    pool, scales = HostPool(cache, 2), cache.scales[5].clone()
    pool.move(((5, 1),), ())
    cache.scales[5] = 0
    pool.move((), ((1, 2),))
    assert torch.equal(cache.scales[2], scales)
    assert torch.equal(cache.data[2], cache.data[5])


@pytest.mark.parametrize("device", DEVICES)
def test_a_block_swapped_out_is_taken_by_another_in_the_same_step(device):
    """Out before in: the new content is not what lands on the host."""
    cache = make_cache(torch.float32, device)
    pool, before = HostPool(cache, 2), bits_of(cache.data)
    pool.move(((3, 0),), ())
    pool.move(((5, 1),), ((0, 5),))
    pool.move((), ((1, 3),))
    after = bits_of(cache.data)
    assert torch.equal(after[5], before[3])
    assert torch.equal(after[3], before[5])


@pytest.mark.gpu
def test_moves_keep_their_place_among_the_kernels_without_a_synchronisation():
    """Elsewhere a swap restored garbage: nothing ordered it after the kernels that wrote."""
    cache = make_cache(torch.float32, "cuda")
    pool = HostPool(cache, 1)
    for value in range(1, 200):
        cache.data[0].fill_(value)
        pool.move(((0, 0),), ())
        cache.data[0].fill_(-1)
        pool.move((), ((0, 1),))
        cache.data[2] = cache.data[1] * 2
    assert cache.data[2].eq(2 * 199).all()


@pytest.mark.parametrize("device", DEVICES)
def test_the_time_of_the_moves_is_measured(device):
    pool = HostPool(make_cache(torch.float32, device), 1)
    pool.move(((0, 0),), ())
    assert 0 < pool.seconds() < 10
