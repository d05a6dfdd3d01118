"""A mixture of experts in place of an MLP: each row goes through the few that its router picks."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from app.engine.layers.lora import LoraRows
from app.engine.models.mlp import GatedMLP


@dataclass(frozen=True, slots=True)
class SparseMLP:
    """The sum of the chosen experts' outputs, weighted by the router.

    router: [num_experts, E]. Rows are grouped by expert, so that each expert's weights are read
    once; the numbers of rows come to the host for that, so a step cannot be captured in a graph.
    """

    router: Tensor
    experts: tuple[GatedMLP, ...]
    num_experts_per_token: int
    normalizes_weights: bool

    def __call__(self, x: Tensor, lora: LoraRows | None = None) -> Tensor:
        """x: [T, E] -> [T, E]; experts take no adapters, so `lora` changes nothing."""
        weights, chosen = self._route(x)  # [T, k] both
        choices = chosen.flatten()
        by_expert = choices.argsort(stable=True)  # numbers of choices, T * k of them
        counts = choices.bincount(minlength=len(self.experts)).tolist()
        output = torch.zeros_like(x)
        for expert, group in zip(self.experts, torch.split(by_expert, counts), strict=True):
            if len(group):
                rows = group // self.num_experts_per_token
                output.index_add_(0, rows, expert(x[rows]) * weights.flatten()[group, None])
        return output

    def _route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        probabilities = functional.linear(x, self.router).softmax(-1, dtype=torch.float32)
        weights, chosen = probabilities.topk(self.num_experts_per_token, dim=-1)
        if self.normalizes_weights:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights.to(x.dtype), chosen
