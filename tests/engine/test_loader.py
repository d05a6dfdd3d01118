import json

import pytest

from app.engine.config import EngineConfig
from app.engine.engine_core import choose_max_model_len, load_engine
from app.engine.errors import InvalidRequest, ModelNotFound, OutOfMemory, UnsupportedModel
from app.engine.loader import find_model, load_model_config
from app.engine.model_config import parse_model_config

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}


def change_config(folder, target, **changes):
    """A copy of a checkpoint with another config.json."""
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changes))
    return target


def test_an_unsupported_architecture_is_refused_with_the_list():
    with pytest.raises(
        UnsupportedModel, match=r"GPT2LMHeadModel .* Llama 2 .*Qwen3-MoE \(Qwen3Moe"
    ):
        parse_model_config({**LLAMA, "architectures": ["GPT2LMHeadModel"]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "activation gelu"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised with fp8"),
        ({"rope_scaling": {"type": "mrope"}, "rope_theta": 1e4}, "rope scaling mrope .* linear, "),
    ],
)
def test_what_the_engine_does_not_do_is_refused_by_name(changes, message):
    with pytest.raises(UnsupportedModel, match=message):
        parse_model_config(LLAMA | changes)


def test_rope_settings_are_read_in_their_old_and_new_places():
    scaling = {"rope_type": "linear", "factor": 2.0}
    old = parse_model_config({**LLAMA, "rope_theta": 5e5, "rope_scaling": scaling})
    new = parse_model_config({**LLAMA, "rope_parameters": {**scaling, "rope_theta": 5e5}})
    assert old == new
    assert (old.rope.theta, old.max_positions) == (5e5, 1024)


def test_end_tokens_of_the_generation_config_count_more(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "eos_token_id": 5}))
    assert load_model_config(tmp_path).eos_token_ids == {5}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [6, 7]}))
    assert load_model_config(tmp_path).eos_token_ids == {6, 7}


def windows(architecture, **settings):
    raw = {**LLAMA, "architectures": [architecture], "num_hidden_layers": 4, **settings}
    return parse_model_config(raw).layer_windows


def test_the_layers_with_a_window_are_those_that_hugging_face_gives_one():
    kinds = ["full_attention", "sliding_attention"] * 2
    assert windows("LlamaForCausalLM", sliding_window=32) == (None,) * 4
    assert windows("MistralForCausalLM") == (4096,) * 4
    assert windows("MistralForCausalLM", sliding_window=None) == (None,) * 4
    qwen = {"sliding_window": 32, "max_window_layers": 1}
    assert windows("Qwen2ForCausalLM", **qwen) == (None,) * 4
    assert windows("Qwen2ForCausalLM", use_sliding_window=True, **qwen) == (None, 32, 32, 32)
    assert windows("Gemma2ForCausalLM", sliding_window=8) == (8, None, 8, None)
    assert windows("Gemma2ForCausalLM", sliding_window=8, layer_types=kinds) == (None, 8) * 2
    pattern = {"sliding_window": 8, "sliding_window_pattern": 3}
    assert windows("Gemma3ForCausalLM", **pattern) == (8, 8, None, 8)


def test_an_unknown_type_of_layer_is_refused_by_name():
    kinds = ["full_attention", "linear_attention"] * 2
    with pytest.raises(UnsupportedModel, match="type linear_attention"):
        windows("Qwen3ForCausalLM", layer_types=kinds)


def test_a_missing_weight_is_named(checkpoints, tmp_path):
    folder = change_config(checkpoints("llama")[0], tmp_path, attention_bias=True)
    with pytest.raises(UnsupportedModel, match=r"lacks the weight .*q_proj\.bias"):
        load_engine(EngineConfig(str(folder), kv_cache_memory_bytes=2**20, num_threads=1))


def test_a_folder_without_weights_is_named(checkpoints, tmp_path):
    folder = change_config(checkpoints("llama")[0], tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelNotFound, match=r"neither model\.safetensors"):
        load_engine(EngineConfig(str(folder), num_threads=1))


def test_a_model_that_is_nowhere_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFound, match="nobody/nothing"):
        find_model("nobody/nothing")


def test_a_pool_without_a_block_is_refused_with_the_numbers(checkpoints):
    config = EngineConfig(
        str(checkpoints("llama")[0]), dtype="float32", kv_cache_memory_bytes=100, num_threads=1
    )
    with pytest.raises(OutOfMemory, match="blocks of 12 KiB"):
        load_engine(config)


def test_the_pool_is_no_larger_than_all_seats_can_use(checkpoints):
    config = EngineConfig(
        str(checkpoints("llama")[0]), max_num_seqs=3, max_model_len=100, num_threads=1
    )
    assert load_engine(config).stats().num_blocks == 3 * 7


def test_a_small_pool_lowers_the_models_length(checkpoints):
    pool = 4 * 16 * 768  # 4 blocks of 16 tokens of 768 bytes
    config = EngineConfig(
        str(checkpoints("llama")[0]), dtype="float32", kv_cache_memory_bytes=pool, num_threads=1
    )
    assert load_engine(config).max_model_len == 64


def test_more_than_the_model_takes_is_refused():
    config = EngineConfig("model", max_model_len=600)
    with pytest.raises(InvalidRequest, match="600, the model takes 512"):
        choose_max_model_len(config, parse_model_config(LLAMA))


def test_a_budget_below_the_seats_is_refused():
    with pytest.raises(InvalidRequest, match="max_num_batched_tokens is 8"):
        EngineConfig("model", max_num_batched_tokens=8, max_num_seqs=16)


def test_an_unknown_dtype_is_refused_with_the_list():
    with pytest.raises(InvalidRequest, match="dtype is int3, known: auto, float32"):
        EngineConfig("model", dtype="int3")
