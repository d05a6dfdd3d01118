"""Linear maps with fused weights, whatever form the weights are kept in."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from app.engine.layers.lora import LoraPart, LoraRows

# oneDNN's packed weights win for few rows and lose a little for many. CPU ms, AVX2, float32, one
# thread, 9728 x 896, packed / plain: 1 row 2.5 / 2.3, 8 rows 4.1 / 8.6, 64 rows 17 / 19,
# 128 rows 30 / 32, 512 rows 117 / 110. Wide inputs lose at one row: 896 x 4864, 1 row 1.2 / 0.6,
# 8 rows 2.4 / 2.6, so those stay plain.
PACKED_FOR_ROWS = 8


class Weight(Protocol):
    """A matrix W [out, in] in some form; a form's call chooses among its kernels."""

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x: [T, in]; bias: [out]; returns x W^T + bias: [T, out]."""
        ...


@dataclass(frozen=True, slots=True)
class PlainWeight:
    """weight: [out, in]."""

    weight: Tensor

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x: [T, in] -> [T, out]."""
        return functional.linear(x, self.weight, bias)


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """weight: [out, in], as oneDNN lays it out."""

    weight: Tensor

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x: [T, in] -> [T, out]."""
        output: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, bias, "none", [], "")
        return output


@dataclass(frozen=True, slots=True)
class Linear:
    """y = x W^T + b, and what the rows' adapters add.

    `weights` stand side by side: one, unless the fused modules are kept in forms that cannot be
    joined. bias: [out] or None.
    """

    weights: tuple[Weight, ...]
    bias: Tensor | None = None
    lora: tuple[LoraPart, ...] = ()

    def __call__(self, x: Tensor, lora: LoraRows | None = None) -> Tensor:
        """x: [T, in] -> [T, out]."""
        if len(self.weights) == 1:
            output = self.weights[0](x, self.bias)
        else:
            output = torch.cat([weight(x, None) for weight in self.weights], dim=-1)
            output = output if self.bias is None else output + self.bias
        if lora is not None:
            for part in self.lora:
                part.add(x, lora, output)
        return output


def make_weight(parts: list[Tensor]) -> Weight:
    """The faster form of matrices [out, in], joined along their outputs."""
    weight = torch.cat(parts) if len(parts) > 1 else parts[0]
    if not _can_pack(weight):
        return PlainWeight(weight)
    reorder = torch.ops.mkldnn._reorder_linear_weight
    return PackedWeight(reorder(weight.contiguous(), PACKED_FOR_ROWS))


def _can_pack(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch has no types here
        return False
    if weight.shape[0] < weight.shape[1]:
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
