"""Tiny checkpoints with random weights and a trained byte-level tokenizer, made on the spot."""

import json

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
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

CORPUS = [
    "The pages of documents and the pages of the cache are kept apart.",
    "A block holds the keys and values of sixteen tokens, and a table says where they are.",
    "量子计算利用叠加和纠缠来处理信息。分块管理键值缓存可以减少内存碎片。",
    "Émile naïvely mixed 3.14 with 🙂 and 🤖, then asked: why?",
]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
COMMON = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,  # wide, so that greedy choices are far apart
    "pad_token_id": None,
    "bos_token_id": None,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [1.0, 1.5, 2.5, 4.0, 6.0, 8.0],
}
GEMMA = {
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "sliding_window": 24,
    "tie_word_embeddings": False,  # tied and scaled embeddings repeat the last token
}
MOE = {
    "head_dim": 32,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
}
# A random model of each family and of each thing that a flag changes. Windows are shorter than the
# tests' sequences, so that what they hide matters.
FAMILIES = {
    "llama": (LlamaConfig, {}),
    "llama-mha-bias": (
        LlamaConfig,
        {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
    ),
    "llama-3-rope-tied": (
        LlamaConfig,
        {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True, "num_key_value_heads": 1},
    ),
    "llama-linear-rope": (
        LlamaConfig,
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
    ),
    "llama-dynamic-rope": (
        LlamaConfig,
        {
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
            "max_position_embeddings": 256,
        },
    ),
    "mistral-window": (MistralConfig, {"sliding_window": 24}),
    "qwen2": (Qwen2Config, {}),
    "qwen2-tied-yarn": (Qwen2Config, {"rope_parameters": YARN_ROPE, "tie_word_embeddings": True}),
    "qwen2-late-window": (
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
    ),
    "qwen3": (Qwen3Config, {"head_dim": 32}),
    "qwen3-moe": (Qwen3MoeConfig, MOE),
    "qwen3-moe-normed": (
        Qwen3MoeConfig,
        {**MOE, "norm_topk_prob": True, "mlp_only_layers": [0]},
    ),
    "qwen3-moe-sparse-window": (
        Qwen3MoeConfig,
        {**MOE, "decoder_sparse_step": 2, "use_sliding_window": True, "sliding_window": 24},
    ),
    "phi3-window": (Phi3Config, {"sliding_window": 24}),
    "phi3-partial-longrope": (
        Phi3Config,
        {
            "rope_parameters": {**LONG_ROPE, "partial_rotary_factor": 0.75},
            "original_max_position_embeddings": 256,
        },
    ),
    "gemma": (GemmaConfig, {"head_dim": 16}),
    "gemma2": (Gemma2Config, {**GEMMA, "attn_logit_softcapping": 5.0}),
    "gemma3": (Gemma3TextConfig, {**GEMMA, "sliding_window_pattern": 3}),
    "granite": (
        GraniteConfig,
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.6,
            "attention_multiplier": 0.2,
            "logits_scaling": 2.0,
        },
    ),
}


def train_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>", "<|start|>"],
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    return tokenizer


def make_checkpoint(folder, family, **save_options):
    """Save a random model of a family and the tokenizer; returns the Hugging Face model."""
    config_class, changes = FAMILIES[family]
    tokenizer = train_tokenizer()
    settings = {**COMMON, "vocab_size": tokenizer.get_vocab_size(), "eos_token_id": 0, **changes}
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config_class(**settings)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:  # made as 0 and 1: a lost one must show
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(folder, **save_options)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|end|>", "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return model


@torch.no_grad()
def greedy(model, prompt, num_tokens):
    """What Hugging Face generates for one prompt alone, without stopping."""
    ids = torch.tensor([prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return output[0, len(prompt) :].tolist()


@torch.no_grad()
def logprobs(model, prompt, tokens):
    """Hugging Face's log probabilities after the prompt and after each token but the last.

    [len(tokens), vocabulary].
    """
    ids = torch.tensor([[*prompt, *tokens]])
    return model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].log_softmax(-1)


def assert_greedy(model, prompts, answers):
    """Each answer is what Hugging Face chooses, seen in one pass instead of one for each token."""
    for prompt, tokens in zip(prompts, answers, strict=True):
        assert tokens == logprobs(model, prompt, tokens).argmax(-1).tolist()
