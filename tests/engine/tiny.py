"""Tiny checkpoints with random weights and a trained byte-level tokenizer, made on the spot."""

import json

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
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
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama-mha-bias": (
        LlamaConfig,
        LlamaForCausalLM,
        {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
    ),
    "llama-3-rope-tied": (
        LlamaConfig,
        LlamaForCausalLM,
        {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True, "num_key_value_heads": 1},
    ),
    "llama-linear-rope": (
        LlamaConfig,
        LlamaForCausalLM,
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
    ),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen2-tied-yarn": (
        Qwen2Config,
        Qwen2ForCausalLM,
        {"rope_parameters": YARN_ROPE, "tie_word_embeddings": True},
    ),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 32}),
    "mistral-window": (MistralConfig, MistralForCausalLM, {"sliding_window": 24}),
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
    config_class, model_class, changes = FAMILIES[family]
    tokenizer = train_tokenizer()
    settings = {**COMMON, "vocab_size": tokenizer.get_vocab_size(), "eos_token_id": 0, **changes}
    torch.manual_seed(7)
    model = model_class(config_class(**settings)).eval()
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
