"""Linear maps with fused weights."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Linear:
    """y = x W^T + b; weight: [out, in], bias: [out] or None."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, in] -> [T, out]."""
        return functional.linear(x, self.weight, self.bias)


def fuse(parts: list[Linear]) -> Linear:
    """One map whose output is the parts' outputs side by side."""
    weight = torch.cat([part.weight for part in parts])
    if all(part.bias is None for part in parts):
        return Linear(weight)
    biases = [part.weight.new_zeros(part.weight.shape[0]) if part.bias is None else part.bias
              for part in parts]  # fmt: skip
    return Linear(weight, torch.cat(biases))
