"""What a checkpoint says of itself: Hugging Face's `config.json` is read in this file alone.

No torch here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from app.engine.errors import UnsupportedModel
from app.engine.families import DEFAULTS, FAMILIES, Family, Settings
from app.engine.quantization_config import CheckpointQuantization, parse_quantization

Activation = Literal["silu", "gelu_tanh"]
ACTIVATIONS: Mapping[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
ROPE_KINDS = ("linear", "dynamic", "llama3", "yarn", "longrope")


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched; `kind` is one of ROPE_KINDS.

    `attention_factor` multiplies cos and sin. `short_factors` and `long_factors`, one for each
    frequency, are those of longrope.
    """

    kind: str
    factor: float
    original_max_position: int
    attention_factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncates_range: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding of the first `dim` numbers of a head."""

    theta: float
    dim: int
    scaling: RopeScaling | None = None


@dataclass(frozen=True, slots=True)
class MixtureOfExperts:
    """The layers in `layers` have experts for an MLP, of which each token takes a few."""

    num_experts: int
    num_experts_per_token: int
    intermediate_size: int
    normalizes_weights: bool
    layers: frozenset[int]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a decoder of the Llama kind, with the flags that tell the families apart.

    `layer_windows` has one entry for each layer: how many positions it sees, None for all.
    `local_rope` is that of layers with a window, where it is another than `rope`.
    `has_post_norms`: attention and MLP have a norm after them too. Embeddings, what layers add
    and logits are multiplied by the multipliers; a softcap c makes c * tanh(x / c) of x.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_positions: int
    rope: Rope
    local_rope: Rope | None
    layer_windows: tuple[int | None, ...]
    attention_scale: float
    activation: Activation
    mixture_of_experts: MixtureOfExperts | None
    quantization: CheckpointQuantization | None
    tie_word_embeddings: bool
    eos_token_ids: frozenset[int]
    has_qkv_bias: bool
    has_output_bias: bool
    has_mlp_bias: bool
    has_qk_norm: bool
    has_post_norms: bool
    has_fused_projections: bool
    norm_weight_offset: float
    embedding_multiplier: float
    residual_multiplier: float
    logit_divisor: float
    attention_softcap: float | None
    logit_softcap: float | None

    @property
    def kv_elements_per_token(self) -> int:
        """Numbers of key and value per token, over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim

    def with_eos(self, eos_token_ids: frozenset[int]) -> "ModelConfig":
        """The same model with other end tokens."""
        return replace(self, eos_token_ids=eos_token_ids)


def parse_model_config(raw: Settings) -> ModelConfig:
    """Read a Hugging Face `config.json`; raise UnsupportedModel with the list of what runs."""
    architecture = (raw.get("architectures") or ["(none named)"])[0]
    family = FAMILIES.get(architecture)
    if family is None:
        known = ", ".join(f"{family.name} ({name})" for name, family in FAMILIES.items())
        raise UnsupportedModel(f"architecture {architecture} is not supported; supported: {known}")
    stored = raw.get("quantization_config")
    # A model of text and images keeps its decoder's settings apart.
    raw = {**DEFAULTS, **family.defaults, **raw, **raw.get("text_config", {})}
    num_heads = _number(raw, "num_attention_heads")
    head_dim = raw.get("head_dim") or _number(raw, "hidden_size") // num_heads
    attention_bias = bool(raw.get("attention_bias", False))
    rope, local_rope = _ropes(raw, head_dim)
    return ModelConfig(
        architecture=architecture,
        vocab_size=_number(raw, "vocab_size"),
        hidden_size=_number(raw, "hidden_size"),
        intermediate_size=_number(raw, "intermediate_size"),
        num_layers=_number(raw, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=raw.get("num_key_value_heads") or num_heads,
        head_dim=head_dim,
        rms_norm_eps=raw["rms_norm_eps"],
        max_positions=_max_positions(raw["max_position_embeddings"], rope, local_rope),
        rope=rope,
        local_rope=local_rope,
        layer_windows=_layer_windows(raw, family),
        attention_scale=_attention_scale(raw, head_dim),
        activation=_activation(raw),
        mixture_of_experts=_mixture_of_experts(raw),
        quantization=parse_quantization(stored) if stored else None,
        tie_word_embeddings=bool(raw["tie_word_embeddings"]),
        eos_token_ids=token_id_set(raw.get("eos_token_id")),
        has_qkv_bias=attention_bias if family.qkv_bias is None else family.qkv_bias,
        has_output_bias=attention_bias and family.qkv_bias is None,
        has_mlp_bias=bool(raw.get("mlp_bias", False)),
        has_qk_norm=family.has_qk_norm,
        has_post_norms=family.has_post_norms,
        has_fused_projections=family.has_fused_projections,
        norm_weight_offset=family.norm_weight_offset,
        embedding_multiplier=_embedding_multiplier(raw, family),
        residual_multiplier=float(raw.get("residual_multiplier", 1.0)),
        logit_divisor=float(raw.get("logits_scaling", 1.0)),
        attention_softcap=raw.get("attn_logit_softcapping"),
        logit_softcap=raw.get("final_logit_softcapping"),
    )


def token_id_set(value: int | list[int] | None) -> frozenset[int]:
    """`eos_token_id` as Hugging Face writes it: a number, a list, or nothing."""
    if value is None:
        return frozenset()
    return frozenset([value] if isinstance(value, int) else value)


def _number(raw: Settings, name: str) -> int:
    if not isinstance(raw.get(name), int):
        raise UnsupportedModel(f"{name} in config.json is {raw.get(name)}, it must be a number")
    return int(raw[name])


def _activation(raw: Settings) -> Activation:
    name = raw.get("hidden_activation") or raw["hidden_act"]
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise UnsupportedModel(f"activation {name} is not supported; supported: {known}")
    return ACTIVATIONS[name]


def _attention_scale(raw: Settings, head_dim: int) -> float:
    if "attention_multiplier" in raw:
        return float(raw["attention_multiplier"])
    return float(raw.get("query_pre_attn_scalar", head_dim) ** -0.5)


def _embedding_multiplier(raw: Settings, family: Family) -> float:
    if family.has_scaled_embeddings:
        return math.sqrt(raw["hidden_size"])
    return float(raw.get("embedding_multiplier", 1.0))


def _layer_windows(raw: Settings, family: Family) -> tuple[int | None, ...]:
    """The window of each layer; a layer type that the engine does not know is refused."""
    if raw.get("use_bidirectional_attention"):
        raise UnsupportedModel("attention to later tokens is not supported: this is no generator")
    window = raw.get("sliding_window") if raw["use_sliding_window"] else None
    kinds = _layer_kinds(raw, family)
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown:
        raise UnsupportedModel(
            f"layers of type {', '.join(sorted(unknown))} are not supported; supported: "
            "full_attention, sliding_attention"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _layer_kinds(raw: Settings, family: Family) -> list[str]:
    num_layers = _number(raw, "num_hidden_layers")
    if family.windows in ("late", "pattern") and raw.get("layer_types"):
        return list(raw["layer_types"])
    first, pattern = 0, num_layers + 1  # every layer
    if family.windows == "none":
        first = num_layers
    elif family.windows == "late":
        first = raw["max_window_layers"] or 0
    elif family.windows == "pattern":
        pattern = raw["sliding_window_pattern"]
    return [
        "sliding_attention" if i >= first and (i + 1) % pattern else "full_attention"
        for i in range(num_layers)
    ]


def _mixture_of_experts(raw: Settings) -> MixtureOfExperts | None:
    num_experts = raw.get("num_local_experts") or raw.get("num_experts")
    if not num_experts:
        return None
    step, dense = raw.get("decoder_sparse_step", 1), raw.get("mlp_only_layers") or []
    layers = range(raw["num_hidden_layers"])
    return MixtureOfExperts(
        num_experts=num_experts,
        num_experts_per_token=raw["num_experts_per_tok"],
        intermediate_size=raw["moe_intermediate_size"],
        normalizes_weights=bool(raw.get("norm_topk_prob", False)),
        layers=frozenset(i for i in layers if i not in dense and (i + 1) % step == 0),
    )


def _ropes(raw: Settings, head_dim: int) -> tuple[Rope, Rope | None]:
    """The rope of all layers, or of those without and with a window (Gemma 3).

    `rope_parameters` is the newer spelling of `rope_scaling` with `rope_theta` beside it.
    """
    settings = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    rope = _rope(raw, settings.get("full_attention") or settings, raw["rope_theta"], head_dim)
    if "rope_local_base_freq" not in raw:
        return rope, None
    local = settings.get("sliding_attention") or {}
    return rope, _rope(raw, local, raw["rope_local_base_freq"], head_dim)


def _rope(raw: Settings, settings: Settings, theta: float, head_dim: int) -> Rope:
    partial = settings.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0
    return Rope(
        theta=float(settings.get("rope_theta") or theta),
        dim=int(head_dim * partial),
        scaling=_rope_scaling(raw, settings),
    )


def _rope_scaling(raw: Settings, settings: Settings) -> RopeScaling | None:
    kind = settings.get("rope_type") or settings.get("type") or "default"
    if kind == "default":
        return None
    if "long_factor" in settings:
        kind = "longrope"  # the first Phi-3 models call it su or yarn
    if kind not in ROPE_KINDS:
        raise UnsupportedModel(
            f"rope scaling {kind} is not supported; supported: {', '.join(ROPE_KINDS)}"
        )
    longest = raw["max_position_embeddings"]
    original = longest
    if kind in ("llama3", "yarn", "longrope"):
        name = "original_max_position_embeddings"
        original = raw.get(name) or settings.get(name) or longest
    factor = float(settings.get("factor") or longest / original)
    return RopeScaling(
        kind=kind,
        factor=factor,
        original_max_position=original,
        attention_factor=_attention_factor(kind, factor, original, settings),
        low_freq_factor=float(settings.get("low_freq_factor", 1.0)),
        high_freq_factor=float(settings.get("high_freq_factor", 4.0)),
        beta_fast=float(settings.get("beta_fast") or 32.0),
        beta_slow=float(settings.get("beta_slow") or 1.0),
        truncates_range=bool(settings.get("truncate", True)),
        short_factors=tuple(settings.get("short_factor", ())),
        long_factors=tuple(settings.get("long_factor", ())),
    )


def _attention_factor(kind: str, factor: float, original: int, settings: Settings) -> float:
    """What cos and sin are multiplied by, as YaRN and LongRoPE recommend."""
    if kind not in ("yarn", "longrope"):
        return 1.0
    if settings.get("attention_factor") is not None:
        return float(settings["attention_factor"])
    if factor <= 1:
        return 1.0
    if kind == "longrope":
        return math.sqrt(1 + math.log(factor) / math.log(original))
    scale, scale_all = settings.get("mscale"), settings.get("mscale_all_dim")
    if scale and scale_all:
        return float(
            (0.1 * scale * math.log(factor) + 1) / (0.1 * scale_all * math.log(factor) + 1)
        )
    return 0.1 * math.log(factor) + 1


def _max_positions(longest: int, rope: Rope, local_rope: Rope | None) -> int:
    """The longest sequence, with rope scaling that reaches beyond `max_position_embeddings`.

    Llama 3, LongRoPE and Gemma 3 name the stretched length there, the others the trained one.
    """
    scaling = rope.scaling
    if scaling is None or scaling.kind in ("llama3", "longrope") or local_rope is not None:
        return longest
    return max(longest, int(scaling.original_max_position * scaling.factor))
