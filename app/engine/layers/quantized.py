"""Weights kept in 8 or 4 bits and brought back to numbers a tile at a time.

Dimensions: T rows, G groups of inputs that share a scale (1: the whole row).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# Numbers made at a time: a tile of float32 stays near the caches of a CPU; a GPU gets few launches.
CPU_TILE = 2**19
GPU_TILE = 2**24
# torch's int8 kernel reads bfloat16 rows one by one. CPU ms, AVX2, one thread, 9728 x 896, kernel /
# tiles / bfloat16 weights: 1 row 1.3 / 4.3 / 1.8, 8 rows 7 / 27 / 26. For float32 rows it is not
# vectorised: 19 / 1.9 (tiles) / 3.7 (float32 weights) for one row, so those take tiles.
TORCH_KERNEL_ROWS = 8


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """W [out, in]: W[o, i] = (data[o, i] - zero[o, g]) * scale[o, g], where i is in group g.

    data: [out, in] int8; or [out, in / 2] uint8, two numbers of 0 … 15 in a byte:

        byte j of a group of n inputs    ┌─ high: number j + n / 2 ─┬─ low: number j ─┐

    scale, zero: [out, G]; zero None is 0. order: [in] int64 if the columns of data belong to the
    inputs in another order (column c to input order[c]), else None.
    """

    data: Tensor
    scale: Tensor
    zero: Tensor | None = None
    order: Tensor | None = None

    @property
    def num_groups(self) -> int:
        """Groups of inputs in a row."""
        return self.scale.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        num_outputs, width = self.data.shape
        return num_outputs, width * 2 if self.data.dtype == torch.uint8 else width

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that it keeps in memory."""
        parts = (self.data, self.scale, self.zero, self.order)
        return tuple(part for part in parts if part is not None)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x: [T, in] -> [T, out]."""
        if self._suits_torch_kernel(x):
            scale = self.scale.flatten().to(x.dtype)
            output: Tensor = torch.ops.aten._weight_int8pack_mm(x.contiguous(), self.data, scale)
        else:
            output = self._multiply_tiles(x if self.order is None else x[:, self.order])
        return output if bias is None else output + bias

    def rows(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Some rows of W as numbers; index: [n] int64; returns [n, in]."""
        assert self.order is None
        zero = None if self.zero is None else self.zero[index]
        return QuantizedWeight(self.data[index], self.scale[index], zero).dequantize(dtype)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """[out, in] in the order of data's columns."""
        numbers = self._grouped_numbers().float()
        if self.zero is not None:
            numbers -= self.zero.float().unsqueeze(-1)
        numbers *= self.scale.float().unsqueeze(-1)
        return numbers.flatten(1).to(dtype)

    def numbers(self) -> Tensor:
        """[out, in] int8, or uint8 of 0 … 15, in the order of data's columns."""
        return self._grouped_numbers().flatten(1)

    def _grouped_numbers(self) -> Tensor:
        """[out, G, inputs of a group]."""
        grouped = torch.unflatten(self.data, 1, (self.num_groups, -1))
        if self.data.dtype == torch.uint8:
            return torch.cat([grouped & 15, grouped >> 4], dim=-1)
        return grouped

    def _suits_torch_kernel(self, x: Tensor) -> bool:
        return (
            x.dtype == torch.bfloat16
            and x.device.type == "cpu"
            and x.shape[0] <= TORCH_KERNEL_ROWS
            and self.data.dtype == torch.int8
            and self.num_groups == 1
            and self.zero is None
        )

    def _multiply_tiles(self, x: Tensor) -> Tensor:
        num_outputs, num_inputs = self.data.shape[0], x.shape[1]
        tile = max((GPU_TILE if x.is_cuda else CPU_TILE) // num_inputs, 1)
        output = x.new_empty((x.shape[0], num_outputs))
        for start in range(0, num_outputs, tile):
            rows = self._slice(start, start + tile).dequantize(x.dtype)
            output[:, start : start + tile] = functional.linear(x, rows)
        return output

    def _slice(self, start: int, end: int) -> "QuantizedWeight":
        zero = None if self.zero is None else self.zero[start:end]
        return QuantizedWeight(self.data[start:end], self.scale[start:end], zero)


def join(one: QuantizedWeight, other: QuantizedWeight) -> QuantizedWeight | None:
    """Both side by side as one weight, or None where their forms differ."""
    if one.data.dtype != other.data.dtype or one.num_groups != other.num_groups:
        return None
    if (one.zero is None) != (other.zero is None) or one.scale.dtype != other.scale.dtype:
        return None
    if not _same_order(one.order, other.order):
        return None
    zero = None
    if one.zero is not None and other.zero is not None:
        zero = torch.cat([one.zero, other.zero])
    data, scale = torch.cat([one.data, other.data]), torch.cat([one.scale, other.scale])
    return QuantizedWeight(data, scale, zero, one.order)


def _same_order(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)
