"""The gated MLP of Llama-like layers."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from app.engine.layers.linear import Linear
from app.engine.layers.lora import LoraRows


@dataclass(frozen=True, slots=True)
class GatedMLP:
    """down(activation(gate(x)) * up(x)); `activation_mul` takes both halves side by side."""

    gate_up: Linear
    down: Linear
    activation_mul: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, lora: LoraRows | None = None) -> Tensor:
        """x: [T, E] -> [T, E]."""
        return self.down(self.activation_mul(self.gate_up(x, lora)), lora)
