"""What is read from `config.json` against what Hugging Face reads from it."""

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from app.engine.model_config import parse_model_config, token_id_set
from app.engine.models.rope import rotary_frequencies

CLASSES = {
    "LlamaForCausalLM": LlamaConfig,
    "MistralForCausalLM": MistralConfig,
    "Qwen2ForCausalLM": Qwen2Config,
    "Qwen3ForCausalLM": Qwen3Config,
    "Qwen3MoeForCausalLM": Qwen3MoeConfig,
    "Phi3ForCausalLM": Phi3Config,
    "GemmaForCausalLM": GemmaConfig,
    "Gemma2ForCausalLM": Gemma2Config,
    "Gemma3ForCausalLM": Gemma3TextConfig,
    "GraniteForCausalLM": GraniteConfig,
}
SIZES = {
    "vocab_size": 100,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize("architecture", CLASSES)
def test_a_silent_config_means_what_hugging_face_takes(architecture):
    theirs = CLASSES[architecture](**SIZES)
    ours = parse_model_config({**SIZES, "architectures": [architecture]})
    windows = theirs.sliding_window if hasattr(theirs, "sliding_window") else None
    kinds = getattr(theirs, "layer_types", None) or ["sliding_attention"] * 8
    rope = theirs.rope_parameters
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or 32)
    assert ours.max_positions == theirs.max_position_embeddings
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    assert ours.eos_token_ids == token_id_set(theirs.eos_token_id)
    assert ours.rope.theta == rope.get("full_attention", rope)["rope_theta"]
    assert ours.layer_windows == tuple(
        windows if kind == "sliding_attention" else None for kind in kinds
    )
    assert ours.attention_softcap == getattr(theirs, "attn_logit_softcapping", None)
    assert ours.logit_softcap == getattr(theirs, "final_logit_softcapping", None)


def test_gemma_3_turns_local_layers_by_a_base_of_their_own():
    scaling = {"rope_type": "linear", "factor": 8.0}
    gemma3 = {**SIZES, "architectures": ["Gemma3ForCausalLM"]}
    old = parse_model_config(
        {**gemma3, "rope_theta": 5e5, "rope_local_base_freq": 7e3, "rope_scaling": scaling}
    )
    new_spelling = {
        "full_attention": {**scaling, "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 7e3},
    }
    assert old == parse_model_config({**gemma3, "rope_parameters": new_spelling})
    assert (old.rope.theta, old.rope.scaling.factor) == (5e5, 8.0)
    assert (old.local_rope.theta, old.local_rope.scaling) == (7e3, None)
    assert old.max_positions == 131_072


LONG = {
    "rope_type": "longrope",
    "short_factor": [1 + i / 16 for i in range(16)],
    "long_factor": [1 + i for i in range(16)],
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
ROPES = {
    "linear": ("LlamaForCausalLM", {"rope_type": "linear", "factor": 2.0}, {}),
    "dynamic": ("LlamaForCausalLM", {"rope_type": "dynamic", "factor": 2.0}, {}),
    "llama3": (
        "LlamaForCausalLM",
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        },
        {},
    ),
    "yarn": ("Qwen2ForCausalLM", YARN, {}),
    "yarn-old-name": (
        "Qwen2ForCausalLM",
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
        {},
    ),
    "yarn-attention-factor": ("Qwen3ForCausalLM", {**YARN, "attention_factor": 0.7}, {}),
    "yarn-mscale": ("LlamaForCausalLM", {**YARN, "mscale": 0.7, "mscale_all_dim": 1.2}, {}),
    "yarn-not-truncated": ("LlamaForCausalLM", {**YARN, "truncate": False}, {}),
    "yarn-betas": ("LlamaForCausalLM", {**YARN, "beta_fast": 20, "beta_slow": 2}, {}),
    "longrope": ("Phi3ForCausalLM", LONG, {"original_max_position_embeddings": 1024}),
    "longrope-partial": (
        "Phi3ForCausalLM",
        {**LONG, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
        {"original_max_position_embeddings": 1024, "partial_rotary_factor": 0.5},
    ),
}


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("max_model_len", [1000, 5000])
@pytest.mark.parametrize("name", ROPES)
def test_rope_frequencies_equal_hugging_faces(name, max_model_len, spelling):
    architecture, rope, more = ROPES[name]
    raw = {**SIZES, "head_dim": 32, "max_position_embeddings": 2048, "rope_theta": 5e4, **more}
    theirs = CLASSES[architecture](**raw, rope_parameters=dict(rope))
    make = ROPE_INIT_FUNCTIONS[theirs.rope_parameters["rope_type"]]
    expected, expected_factor = make(theirs, seq_len=max_model_len)
    ours = parse_model_config({**raw, "architectures": [architecture], spelling: rope})
    frequencies, factor = rotary_frequencies(ours.rope, max_model_len)
    torch.testing.assert_close(frequencies, expected, rtol=1e-6, atol=0)
    assert factor == pytest.approx(expected_factor)
