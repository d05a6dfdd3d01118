"""The table of token embeddings, plain or in the form of a head that it is tied to."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from app.engine.kernels.cpu.linear import PanelWeight
from app.engine.layers.quantized import QuantizedWeight


@dataclass(frozen=True, slots=True)
class Embedding:
    """A row of `table` [vocabulary, E] for each token, in `dtype`."""

    table: Tensor | QuantizedWeight | PanelWeight
    dtype: torch.dtype

    def __call__(self, token_ids: Tensor) -> Tensor:
        """token_ids: [T] int64 -> [T, E]."""
        if isinstance(self.table, Tensor):
            return functional.embedding(token_ids, self.table).to(self.dtype)
        return self.table.rows(token_ids, self.dtype)
