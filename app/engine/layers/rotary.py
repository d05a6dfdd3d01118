"""Rotary position embedding."""

import torch
from torch import Tensor


class RotaryEmbedding:
    """Tables of cos and sin, times `factor`, for positions below `max_model_len`.

    frequencies: [D / 2].
    """

    def __init__(self, frequencies: Tensor, factor: float, max_model_len: int) -> None:
        positions = torch.arange(max_model_len, dtype=torch.float32, device=frequencies.device)
        angles = torch.outer(positions, frequencies)
        self._cos = angles.cos() * factor
        self._sin = angles.sin() * factor

    def at(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin of the rows' positions: [T] -> two of [T, D / 2]."""
        cos, sin = self._cos[positions], self._sin[positions]
        return cos.to(dtype), sin.to(dtype)
