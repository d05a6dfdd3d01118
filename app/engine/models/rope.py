"""Rotary frequencies of a model: plain, or stretched in one of five ways for longer contexts.

Where Hugging Face chooses by the length reached so far (dynamic, longrope), the engine chooses
once, for the longest sequence that it serves: keys in the cache stay valid as a sequence grows.
"""

import math

import torch
from torch import Tensor

from app.engine.model_config import Rope, RopeScaling


def rotary_frequencies(rope: Rope, max_model_len: int) -> tuple[Tensor, float]:
    """Frequencies [rope.dim / 2] and the factor on cos and sin."""
    scaling = rope.scaling
    if scaling is None:
        return _plain(rope.theta, rope.dim), 1.0
    frequencies = _plain(_base(rope, max_model_len), rope.dim)
    if scaling.kind == "linear":
        frequencies = frequencies / scaling.factor
    elif scaling.kind == "llama3":
        frequencies = _llama3(frequencies, scaling)
    elif scaling.kind == "yarn":
        frequencies = _yarn(frequencies, scaling, rope)
    elif scaling.kind == "longrope":
        is_long = max_model_len > scaling.original_max_position
        factors = scaling.long_factors if is_long else scaling.short_factors
        frequencies = frequencies / torch.tensor(factors, dtype=torch.float32)
    return frequencies, scaling.attention_factor


def _plain(base: float, dim: int) -> Tensor:
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    return 1.0 / (base**exponents)


def _base(rope: Rope, max_model_len: int) -> float:
    """The base, which dynamic scaling raises with the length (NTK-aware)."""
    scaling = rope.scaling
    if scaling is None or scaling.kind != "dynamic":
        return rope.theta
    length = max(max_model_len, scaling.original_max_position)
    stretch = scaling.factor * length / scaling.original_max_position - (scaling.factor - 1)
    return float(rope.theta * stretch ** (rope.dim / (rope.dim - 2)))


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Long waves are stretched, short ones kept, those between blended (Llama 3.1)."""
    turns = scaling.original_max_position * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - keep) * frequencies / scaling.factor + keep * frequencies


def _yarn(frequencies: Tensor, scaling: RopeScaling, rope: Rope) -> Tensor:
    """YaRN (Peng et al., 2023): blend by how often a dimension turns within the old context."""
    half = frequencies.shape[0]

    def dimension(num_turns: float) -> float:
        ratio = scaling.original_max_position / (num_turns * 2 * math.pi)
        return half * math.log(ratio) / math.log(rope.theta)

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncates_range:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    span = max(high - low, 0.001)
    stretch = ((torch.arange(half, dtype=torch.float32) - low) / span).clamp(0, 1)
    return frequencies / scaling.factor * stretch + frequencies * (1 - stretch)
