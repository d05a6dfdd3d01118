"""Linear maps with fused weights."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# oneDNN's packed weights win for few rows and lose a little for many. CPU ms, AVX2, float32, one
# thread, 9728 x 896, packed / plain: 1 row 2.5 / 2.3, 8 rows 4.1 / 8.6, 64 rows 17 / 19,
# 128 rows 30 / 32, 512 rows 117 / 110. Wide inputs lose at one row: 896 x 4864, 1 row 1.2 / 0.6,
# 8 rows 2.4 / 2.6, so those stay plain.
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
    if weight.shape[0] < weight.shape[1]:
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
