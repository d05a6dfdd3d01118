"""Rotary frequencies of a model: plain, or stretched in one of four ways for longer contexts."""

import math

import torch
from torch import Tensor

from app.engine.config import ModelConfig, RopeScaling


def rotary_frequencies(config: ModelConfig, max_model_len: int) -> tuple[Tensor, float]:
    """Frequencies [head_dim / 2] and the factor on cos and sin."""
    scaling, base, dim = config.rope_scaling, config.rope_theta, config.head_dim
    if scaling is not None and scaling.kind == "dynamic":
        # Stretched once for the longest sequence served, so that keys in the cache stay valid.
        length = max(max_model_len, scaling.original_max_position)
        stretch = scaling.factor * length / scaling.original_max_position - (scaling.factor - 1)
        base *= stretch ** (dim / (dim - 2))
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    frequencies = 1.0 / (base**exponents)
    if scaling is None or scaling.kind == "dynamic":
        return frequencies, 1.0
    if scaling.kind == "linear":
        return frequencies / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _llama3(frequencies, scaling), 1.0
    return _yarn(frequencies, scaling, base)


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Long waves are stretched, short ones kept, those between blended (Llama 3.1)."""
    turns = scaling.original_max_position * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - keep) * frequencies / scaling.factor + keep * frequencies


def _yarn(frequencies: Tensor, scaling: RopeScaling, base: float) -> tuple[Tensor, float]:
    """YaRN (Peng et al., 2023): blend by how often a dimension turns within the old context."""
    half = frequencies.shape[0]

    def dimension(num_turns: float) -> float:
        ratio = scaling.original_max_position / (num_turns * 2 * math.pi)
        return half * math.log(ratio) / math.log(base)

    low = max(math.floor(dimension(scaling.beta_fast)), 0)
    high = min(math.ceil(dimension(scaling.beta_slow)), 2 * half - 1)
    span = max(high - low, 0.001)
    stretch = ((torch.arange(half, dtype=torch.float32) - low) / span).clamp(0, 1)
    blended = frequencies / scaling.factor * stretch + frequencies * (1 - stretch)
    factor = scaling.attention_factor
    if factor is None:
        factor = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
    return blended, factor
