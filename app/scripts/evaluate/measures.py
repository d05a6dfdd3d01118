"""Figures of merit: pure functions of rankings, scores and truths."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def ndcg(ranking: Sequence[str], relevant: Mapping[str, int], depth: int = 10) -> float:
    """Normalised discounted cumulative gain with linear gains, as trec_eval's ndcg_cut."""
    gains = [relevant.get(id, 0) for id in ranking[:depth]]
    ideal = sorted(relevant.values(), reverse=True)[:depth]
    return discounted(gains) / discounted(ideal)


def discounted(gains: Sequence[int]) -> float:
    """Sum of gains, each divided by log2(rank + 1)."""
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


def recall(ranking: Sequence[str], relevant: Mapping[str, int], depth: int = 10) -> float:
    """Share of what is relevant that is among the first."""
    return len(set(ranking[:depth]) & relevant.keys()) / len(relevant)


def reciprocal_rank(ranking: Sequence[str], relevant: Mapping[str, int]) -> float:
    """1 / rank of the first relevant one; 0 where there is none."""
    return next((1 / rank for rank, id in enumerate(ranking, start=1) if id in relevant), 0.0)


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Chance that a positive scores above a negative; a tie counts half."""
    ordered = np.sort(np.asarray(negative, dtype=np.float64))
    below = np.searchsorted(ordered, positive, side="left")
    not_above = np.searchsorted(ordered, positive, side="right")
    return float((below + not_above).sum() / 2 / (len(positive) * len(negative)))


def fit_logistic(features: Floats, is_positive: Floats, num_steps: int = 50) -> Floats:
    """Weights and, last, the bias of a logistic regression, by Newton's method.

    `features` is [num_samples, num_features]. A light ridge keeps separable data finite.
    """
    inputs = np.hstack([features, np.ones((len(features), 1))])
    ridge = 1e-3 * len(features) * np.diag([*[1.0] * features.shape[1], 0.0])
    weights = np.zeros(inputs.shape[1])
    for _ in range(num_steps):
        chance = 1 / (1 + np.exp(-inputs @ weights))
        gradient = inputs.T @ (chance - is_positive) + ridge @ weights
        curvature = (inputs * (chance * (1 - chance))[:, None]).T @ inputs + ridge
        weights = weights - np.linalg.solve(curvature, gradient)
    return weights
