import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.engine.errors import UnsupportedModel
from tests.engine import engines, tiny
from tests.engine.engines import greedy_params, load, make_prompts

PROMPTS = make_prompts(1, (5, 40))
VISION = {"vision_tower.layers.0.self_attn.q_proj.weight": torch.ones(3, 3)}


def rewrite(folder, target, *, rename=str, more=None, config=dict, **changes):
    """A copy of a checkpoint with other names, more weights, or another config.json."""
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    renamed = {rename(name): tensor for name, tensor in weights.items()}
    save_file(renamed | (more or {}), target / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config(settings | changes)))
    return target


def answers(folder):
    outputs = engines.generate(load(folder), PROMPTS, greedy_params(8))
    return [list(output.token_ids) for output in outputs]


def within_a_model_of_images(settings):
    text = {name: value for name, value in settings.items() if name != "architectures"}
    return {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"language_model.{name}",
        lambda name: name.replace("model.", "model.language_model.", 1),
        lambda name: name.removeprefix("model."),
    ],
    ids=["language_model.model", "model.language_model", "no prefix"],
)
def test_a_decoder_is_found_under_the_names_of_larger_models(rename, checkpoints, tmp_path, caplog):
    folder, model = checkpoints("gemma3")
    target = rewrite(folder, tmp_path, rename=rename, more=VISION, config=within_a_model_of_images)
    with caplog.at_level(logging.WARNING):
        tokens = answers(target)
    tiny.assert_greedy(model, PROMPTS, tokens)
    assert "weights not used num=1 weights=vision_tower.layers.0" in caplog.text


def test_a_weight_of_the_decoder_that_nothing_reads_is_refused(checkpoints, tmp_path):
    folder = checkpoints("llama-mha-bias")[0]
    target = rewrite(folder, tmp_path, attention_bias=False)
    message = r"has model\.layers\.0\.self_attn\.k_proj\.bias, .* and 9 more, which Llama"
    with pytest.raises(UnsupportedModel, match=message):
        load(target)


def test_layers_beyond_those_of_the_config_are_refused(checkpoints, tmp_path):
    target = rewrite(checkpoints("llama")[0], tmp_path, num_hidden_layers=2)
    with pytest.raises(UnsupportedModel, match=r"has model\.layers\.2\."):
        load(target)


def test_copies_and_biases_of_zero_are_no_leftovers(checkpoints, tmp_path, caplog):
    folder, model = checkpoints("llama-3-rope-tied")
    more = {
        "lm_head.weight": torch.zeros(model.config.vocab_size, 64),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "model.layers.0.self_attn.q_proj.bias": torch.zeros(64),
    }
    with caplog.at_level(logging.WARNING):
        assert answers(rewrite(folder, tmp_path, more=more)) == answers(folder)
    assert "weights not used" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"intermediate_size": 100}, r"mlp\.down_proj\.weight is \[64, 96\], .* \[64, 100\]"),
        ({"num_key_value_heads": 4}, r"k_proj\.weight is \[32, 64\], .* \[64, 64\]"),
        ({"vocab_size": 7}, r"(lm_head|embed_tokens)\.weight is \[\d+, 64\], .* \[7, 64\]"),
    ],
)
def test_a_weight_of_another_shape_is_named_with_both_shapes(
    settings, message, checkpoints, tmp_path
):
    with pytest.raises(UnsupportedModel, match=message):
        load(rewrite(checkpoints("llama")[0], tmp_path, **settings))
