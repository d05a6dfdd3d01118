"""What the engine is told (`EngineConfig`) and what a checkpoint says of itself (`ModelConfig`).

No torch here. Hugging Face's `config.json` is read in this file alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from app.engine.errors import InvalidRequest, UnsupportedModel

DType = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How to run a model. None means: chosen from the model and from what the machine has left.

    `model` is a local folder or a hub name. `kv_cache_memory_bytes` is the size of the block
    pool. `max_num_batched_tokens` is the budget of a step, `max_num_queued` the number of
    requests that may wait. `num_threads` 0 takes every core this process may use.
    """

    model: str
    tokenizer: str | None = None
    dtype: DType = "auto"
    max_model_len: int | None = None
    seed: int = 0
    block_size: int = 16
    kv_cache_memory_bytes: int | None = None
    max_num_seqs: int = 32
    max_num_batched_tokens: int = 512
    max_num_queued: int = 256
    enable_prefix_caching: bool = True
    num_threads: int = 0

    def __post_init__(self) -> None:
        for name in ("block_size", "max_num_seqs", "max_num_batched_tokens", "max_num_queued"):
            if getattr(self, name) < 1:
                raise InvalidRequest(f"{name} is {getattr(self, name)}, it must be at least 1")
        if self.dtype not in get_args(DType):
            raise InvalidRequest(f"dtype is {self.dtype}, known: {', '.join(get_args(DType))}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise InvalidRequest(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}, below max_num_seqs "
                f"{self.max_num_seqs}: a step could not give each sequence a token"
            )


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """The limits that the scheduler keeps; `watermark` is the share of blocks kept for growth."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_num_queued: int
    max_model_len: int
    watermark: float = 0.01


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched; `kind` is linear, dynamic, llama3 or yarn."""

    kind: str
    factor: float
    original_max_position: int
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a decoder of the Llama kind, with the flags that tell the families apart."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope_theta: float
    rope_scaling: RopeScaling | None
    tie_word_embeddings: bool
    has_qkv_bias: bool
    has_output_bias: bool
    has_mlp_bias: bool
    has_qk_norm: bool
    sliding_window: int | None
    first_sliding_layer: int
    eos_token_ids: frozenset[int]

    @property
    def kv_elements_per_token(self) -> int:
        """Numbers of key and value per token, over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim

    @property
    def max_positions(self) -> int:
        """The longest sequence, with rope scaling that reaches beyond the trained positions."""
        scaling = self.rope_scaling
        if scaling is None or scaling.kind == "llama3":
            return self.max_position_embeddings
        stretched = int(scaling.original_max_position * scaling.factor)
        return max(self.max_position_embeddings, stretched)

    def with_eos(self, eos_token_ids: frozenset[int]) -> "ModelConfig":
        """The same model with other end tokens."""
        return replace(self, eos_token_ids=eos_token_ids)


@dataclass(frozen=True, slots=True)
class FamilyFlags:
    """What an architecture does where its `config.json` does not say."""

    qkv_bias: bool | None = None  # None: as attention_bias says
    qk_norm: bool = False
    sliding_window: bool = False


FAMILIES: Mapping[str, FamilyFlags] = {
    "LlamaForCausalLM": FamilyFlags(),
    "MistralForCausalLM": FamilyFlags(sliding_window=True),
    "Qwen2ForCausalLM": FamilyFlags(qkv_bias=True, sliding_window=True),
    "Qwen3ForCausalLM": FamilyFlags(qk_norm=True, sliding_window=True),
}


def parse_model_config(raw: Mapping[str, Any]) -> ModelConfig:
    """Read a Hugging Face `config.json`; raise UnsupportedModel with the list of what runs."""
    architecture = (raw.get("architectures") or ["(none named)"])[0]
    flags = FAMILIES.get(architecture)
    if flags is None:
        raise UnsupportedModel(
            f"architecture {architecture} is not supported; supported: {', '.join(FAMILIES)}"
        )
    if raw.get("hidden_act", "silu") != "silu":
        raise UnsupportedModel(f"activation {raw['hidden_act']} is not supported; supported: silu")
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "unknown")
        raise UnsupportedModel(f"checkpoints quantised with {method} are not supported")
    num_heads = raw["num_attention_heads"]
    window, first_sliding = _sliding_window(raw, flags)
    attention_bias = bool(raw.get("attention_bias", False))
    return ModelConfig(
        architecture=architecture,
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=raw.get("num_key_value_heads") or num_heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // num_heads,
        rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
        max_position_embeddings=raw.get("max_position_embeddings", 2048),
        rope_theta=_rope(raw).get("rope_theta") or raw.get("rope_theta") or 10000.0,
        rope_scaling=_rope_scaling(raw),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        has_qkv_bias=attention_bias if flags.qkv_bias is None else flags.qkv_bias,
        has_output_bias=attention_bias and flags.qkv_bias is None,
        has_mlp_bias=bool(raw.get("mlp_bias", False)),
        has_qk_norm=flags.qk_norm,
        sliding_window=window,
        first_sliding_layer=first_sliding,
        eos_token_ids=token_id_set(raw.get("eos_token_id")),
    )


def token_id_set(value: int | list[int] | None) -> frozenset[int]:
    """`eos_token_id` as Hugging Face writes it: a number, a list, or nothing."""
    if value is None:
        return frozenset()
    return frozenset([value] if isinstance(value, int) else value)


def _rope(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    return raw.get("rope_parameters") or raw.get("rope_scaling") or {}


def _rope_scaling(raw: Mapping[str, Any]) -> RopeScaling | None:
    rope = _rope(raw)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind not in ("linear", "dynamic", "llama3", "yarn"):
        raise UnsupportedModel(
            f"rope scaling {kind} is not supported; supported: linear, dynamic, llama3, yarn"
        )
    return RopeScaling(
        kind=kind,
        factor=float(rope.get("factor", 1.0)),
        original_max_position=int(
            rope.get("original_max_position_embeddings") or raw["max_position_embeddings"]
        ),
        low_freq_factor=float(rope.get("low_freq_factor", 1.0)),
        high_freq_factor=float(rope.get("high_freq_factor", 4.0)),
        beta_fast=float(rope.get("beta_fast") or 32.0),
        beta_slow=float(rope.get("beta_slow") or 1.0),
        attention_factor=rope.get("attention_factor"),
    )


def _sliding_window(raw: Mapping[str, Any], flags: FamilyFlags) -> tuple[int | None, int]:
    """The window, and the first layer that has it (the layers before see everything)."""
    if not flags.sliding_window or not raw.get("use_sliding_window", True):
        return None, 0
    window = raw.get("sliding_window")
    return window, int(raw.get("max_window_layers") or 0) if window else 0
