"""Writes a trained reader as a model folder, in files that a repository takes."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaForCausalLM

from app.scripts.train_reader.tokens import save_tokenizer

MAX_FILE_BYTES = 15_000_000
INDEX = "model.safetensors.index.json"


def export(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Weights in bfloat16 in shards, configuration, tokenizer and chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config.to_dict()
    config |= {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    kept = {name: value for name, value in config.items() if not name.startswith("_")}
    _write(folder / "config.json", kept)
    end = model.config.eos_token_id
    _write(folder / "generation_config.json", {"eos_token_id": end, "do_sample": False})
    save_tokenizer(tokenizer, folder)
    _save_shards(model, folder)


def _save_shards(model: LlamaForCausalLM, folder: Path) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, value in model.state_dict().items():
        if name == "lm_head.weight":  # tied to the embeddings
            continue
        tensor = value.to(torch.bfloat16).contiguous()
        if size + tensor.nbytes > MAX_FILE_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, {"format": "pt"})
        (folder / file).chmod(0o644)  # it writes for its own user only
        places |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    _write(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
