"""Root mean square norm, as Llama-like models have it."""

from dataclasses import dataclass

from torch import Tensor

from app.engine.kernels.dispatch import Kernels


@dataclass(frozen=True, slots=True)
class RMSNorm:
    """x / rms(x) * weight over the last dimension."""

    weight: Tensor
    eps: float
    kernels: Kernels

    def __call__(self, x: Tensor) -> Tensor:
        """x: [..., E] -> [..., E]."""
        return self.kernels.rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of x + residual, and that sum; x, residual: [T, E]."""
        return self.kernels.add_rms_norm(x, residual, self.weight, self.eps)
