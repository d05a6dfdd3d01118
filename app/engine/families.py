"""The families of models that run, and what tells them apart.

To add one of the Llama kind, add its line here, one in `tests/engine/tiny.py`, and, for something
that no other family does, a flag in `ModelConfig` with its use in `models/llama.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Settings = Mapping[str, Any]  # of a config.json


@dataclass(frozen=True, slots=True)
class Family:
    """What an architecture does, and what it takes where its `config.json` is silent.

    `windows` says which layers have the sliding window, where `layer_types` does not: every one,
    those from `max_window_layers` on, or all but each `sliding_window_pattern`-th.
    """

    name: str
    defaults: Settings = field(default_factory=dict)
    windows: Literal["none", "every", "late", "pattern"] = "none"
    qkv_bias: bool | None = None  # None: as attention_bias says, for the output too
    has_qk_norm: bool = False
    has_post_norms: bool = False
    has_fused_projections: bool = False
    has_scaled_embeddings: bool = False  # by sqrt(hidden_size)
    norm_weight_offset: float = 0.0


# Hugging Face's defaults where the families agree; a family's own come on top.
DEFAULTS: Settings = {
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "use_sliding_window": True,
}
QWEN: Settings = {
    "max_position_embeddings": 32_768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
GEMMA: Settings = {
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
}
GEMMA3 = Family(
    "Gemma 3 text",
    {
        **GEMMA,
        # The hub's configs of the larger models name little more than their sizes.
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131_072,
        "query_pre_attn_scalar": 256,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
    },
    windows="pattern",
    has_qk_norm=True,
    has_post_norms=True,
    has_scaled_embeddings=True,
    norm_weight_offset=1.0,
)
FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family("Llama 2 and 3, SmolLM2, TinyLlama", {"eos_token_id": 2}),
    "MistralForCausalLM": Family(
        "Mistral",
        {
            "max_position_embeddings": 131_072,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
            "eos_token_id": 2,
        },
        windows="every",
    ),
    "Qwen2ForCausalLM": Family("Qwen2 and Qwen2.5", QWEN, windows="late", qkv_bias=True),
    "Qwen3ForCausalLM": Family(
        "Qwen3", {**QWEN, "head_dim": 128}, windows="late", has_qk_norm=True
    ),
    "Qwen3MoeForCausalLM": Family(
        "Qwen3-MoE",
        {
            **QWEN,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
        },
        windows="every",
        has_qk_norm=True,
    ),
    "Phi3ForCausalLM": Family(
        "Phi-3 and Phi-4-mini",
        {
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "eos_token_id": 32_000,
        },
        windows="every",
        qkv_bias=False,
        has_fused_projections=True,
    ),
    "GemmaForCausalLM": Family("Gemma", GEMMA, has_scaled_embeddings=True, norm_weight_offset=1.0),
    "Gemma2ForCausalLM": Family(
        "Gemma 2",
        {
            **GEMMA,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "sliding_window_pattern": 2,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        windows="pattern",
        has_post_norms=True,
        has_scaled_embeddings=True,
        norm_weight_offset=1.0,
    ),
    "Gemma3ForCausalLM": GEMMA3,
    "Gemma3ForConditionalGeneration": GEMMA3,
    "GraniteForCausalLM": Family("Granite", {"attention_multiplier": 1.0, "eos_token_id": 2}),
}
