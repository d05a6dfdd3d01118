"""The host's blocks of preempted sequences, and the moves between them and the device."""

import time

import torch

from app.engine.kernels.metadata import KVCache

Moves = tuple[tuple[int, int], ...]


class HostPool:
    """Blocks beside those of the device, each tensor with the same shape but the first dimension.

    On a GPU the memory is pinned and all moves are queued on the stream that computes: a block is
    read before a later kernel writes it and written before a later one reads it, without a
    synchronisation. Nothing on the host looks into the pool.
    """

    def __init__(self, cache: KVCache, num_blocks: int) -> None:
        self._device_parts = cache.parts
        self._is_cuda = cache.data.is_cuda
        self._host_parts = tuple(
            torch.empty((num_blocks, *part.shape[1:]), dtype=part.dtype, pin_memory=self._is_cuda)
            for part in cache.parts
        )
        self._marks: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        self._seconds = 0.0

    def move(self, swap_outs: Moves, swap_ins: Moves) -> None:
        """Copy whole blocks out (block, host block), then in (host block, block)."""
        start, begin = time.perf_counter(), self._mark()
        # An integer picks a view, so the copy lands in the pool; x[[index]].copy_(y) would fill a
        # temporary and leave x as it was.
        for device, host in zip(self._device_parts, self._host_parts, strict=True):
            for block, host_block in swap_outs:
                host[host_block].copy_(device[block], non_blocking=True)
            for host_block, block in swap_ins:
                device[block].copy_(host[host_block], non_blocking=True)
        end = self._mark()
        self._marks = (begin, end) if begin is not None and end is not None else None
        self._seconds = time.perf_counter() - start

    def seconds(self) -> float:
        """How long the last moves took; waits for them."""
        if self._marks is None:
            return self._seconds
        begin, end = self._marks
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000

    def _mark(self) -> torch.cuda.Event | None:
        if not self._is_cuda:
            return None
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch
        event.record()
        return event
