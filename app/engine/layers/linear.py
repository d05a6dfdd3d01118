"""Linear maps with fused weights."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# oneDNN's packed weights win for few rows and lose for many, so many rows go in slabs. Measured
# with AVX2, float32, 9728 x 896, one thread, ms packed / plain: 2 rows 2.2 / 4.5, 8 rows 3.7 / 6.2,
# 32 rows 9.0 / 11.0, 128 rows 31 / 32, 512 rows 187 / 112.
SLAB_ROWS = 128
PACKED_FOR_ROWS = 8


@dataclass(frozen=True, slots=True)
class Linear:
    """y = x W^T + b; weight: [out, in], or packed for oneDNN; bias: [out] or None."""

    weight: Tensor
    bias: Tensor | None
    is_packed: bool

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, in] -> [T, out]."""
        if not self.is_packed:
            return functional.linear(x, self.weight, self.bias)
        if x.shape[0] <= SLAB_ROWS:
            return self._packed(x)
        return torch.cat([self._packed(slab) for slab in torch.split(x, SLAB_ROWS)])

    def _packed(self, x: Tensor) -> Tensor:
        output: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, "none", [], ""
        )
        return output


def make_linear(weights: list[Tensor], biases: list[Tensor] | None = None) -> Linear:
    """One map whose output is those of the weights side by side; each weight: [out, in]."""
    weight = torch.cat(weights) if len(weights) > 1 else weights[0]
    bias = torch.cat(biases) if biases else None
    can_pack = _can_pack(weight)
    if can_pack:
        weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKED_FOR_ROWS)
    return Linear(weight, bias, can_pack)


def _can_pack(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch has no types here
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
