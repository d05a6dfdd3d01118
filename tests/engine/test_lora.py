"""Adapters in PEFT's layout, made and merged by hand: mixed in a batch, each exact by itself."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.engine import LLM, EngineConfig, InvalidRequest, LoRARequest, SamplingParams
from app.engine.engine_core import NewRequest
from tests.engine import tiny
from tests.engine.control import Control
from tests.engine.test_exactness import finish_all, greedy_params, load, make_prompts

NUM_TOKENS = 10
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FUSED = ("qkv_proj", "gate_up_proj", "down_proj")


def make_adapter(folder, model, *, rank=4, modules=ALL, seed=0, tensors=None, **config):
    """Write an adapter of random matrices, the ranks of `rank_pattern` kept; returns the folder."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, module in model.named_modules():
        if not name.endswith(tuple(modules)):
            continue
        r = next((n for k, n in config.get("rank_pattern", {}).items() if name.endswith(k)), rank)
        num_outputs, num_inputs = module.weight.shape
        for matrix, shape in (("A", (r, num_inputs)), ("B", (num_outputs, r))):
            values = torch.randn(shape, generator=generator) * 0.3
            state[f"base_model.model.{name}.lora_{matrix}.weight"] = values
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": list(modules)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(settings | config))
    save_file(state | (tensors or {}), folder / "adapter_model.safetensors")
    return folder


def merged(model, folder):
    """Hugging Face's model with an adapter added to its weights."""
    model = copy.deepcopy(model)
    config = json.loads((folder / "adapter_config.json").read_text())
    state = load_file(folder / "adapter_model.safetensors")
    for name, a in state.items():
        if not name.endswith("lora_A.weight"):
            continue
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        alphas = config.get("alpha_pattern", {})
        alpha = next((n for k, n in alphas.items() if module.endswith(k)), config["lora_alpha"])
        rank = a.shape[0]
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        b = state[name.replace("lora_A", "lora_B")]
        model.get_submodule(module).weight.data += scale * (b @ a)
    return model


class Adapted:
    """A checkpoint with two adapters, and what Hugging Face makes of each."""

    def __init__(self, folder, base, modules=ALL):
        paths = {
            "one": make_adapter(folder / "one", base, modules=modules, seed=1),
            "two": make_adapter(
                folder / "two",
                base,
                rank=8,
                modules=(modules[0], modules[-1]),
                seed=2,
                use_rslora=True,
                rank_pattern={"down_proj": 3},
                alpha_pattern={"1.mlp.down_proj": 5},
            ),
        }
        self.models = {"": base} | {name: merged(base, path) for name, path in paths.items()}
        self.requests = {"": None} | {
            name: LoRARequest(name, number, str(path))
            for number, (name, path) in enumerate(paths.items(), start=1)
        }
        self._known = {}

    def expected(self, name, prompt, num_tokens=NUM_TOKENS):
        key = name, tuple(prompt), num_tokens
        if key not in self._known:
            self._known[key] = tiny.greedy(self.models[name], prompt, num_tokens)
        return self._known[key]


@pytest.fixture(scope="module")
def adapted(checkpoints, tmp_path_factory):
    made = {}

    def get(family):
        if family not in made:
            modules = FUSED if family.startswith("phi3") else ALL
            folder = tmp_path_factory.mktemp(f"adapters-{family}")
            made[family] = Adapted(folder, checkpoints(family)[1], modules)
        return made[family]

    return get


def generate(core, wanted, num_tokens=NUM_TOKENS):
    """Tokens for (prompt, LoRARequest or None) each, all added at once."""
    for index, (prompt, request) in enumerate(wanted):
        core.add(NewRequest(str(index), prompt, greedy_params(num_tokens), lora_request=request))
    finished = finish_all(core)
    return [list(finished[str(i)].outputs[0].token_ids) for i in range(len(wanted))]


def mixed(adapted, lengths=(7, 33, 50)):
    """Each prompt with no adapter, the first and the second, interleaved."""
    return [(prompt, name) for prompt in make_prompts(1, lengths) for name in adapted.requests]


def check(core, adapted, wanted):
    tokens = generate(core, [(prompt, adapted.requests[name]) for prompt, name in wanted])
    assert tokens == [adapted.expected(name, prompt) for prompt, name in wanted]


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama-mha-bias", {}),
        ("phi3-window", {}),
        ("qwen3", {"speculative_config": {"num_speculative_tokens": 4}}),
    ],
)
def test_a_mixed_batch_equals_hugging_face_with_merged_weights(
    family, options, adapted, checkpoints
):
    """The same prompts with each adapter, twice: the second time from the prefix cache."""
    core = load(
        checkpoints(family)[0],
        enable_lora=True,
        max_loras=2,
        block_size=8,
        max_num_batched_tokens=40,
        **options,
    )
    wanted = mixed(adapted(family))
    check(core, adapted(family), wanted)
    check(core, adapted(family), wanted)
    assert core.stats().num_prefix_hit_tokens > 0


def test_more_adapters_than_slots_take_turns(adapted, checkpoints):
    core = load(checkpoints("qwen3")[0], enable_lora=True, max_loras=1)
    wanted = mixed(adapted("qwen3"))
    check(core, adapted("qwen3"), wanted)
    check(core, adapted("qwen3"), wanted[::-1])


def test_preempted_sequences_keep_their_adapter(adapted, checkpoints):
    core = load(
        checkpoints("qwen3")[0],
        enable_lora=True,
        max_loras=2,
        block_size=4,
        max_model_len=100,
        kv_cache_memory_bytes=30 * 4 * 1536,
    )
    wanted = mixed(adapted("qwen3"), (20, 33))
    check(core, adapted("qwen3"), wanted)
    assert core.stats().num_preemptions > 0


def test_the_scheduler_runs_max_loras_at_once_and_starves_nobody():
    control = Control(max_num_seqs=8, budget=32, num_blocks=64)
    assert control.config.max_loras == 1
    for index, lora_int_id in enumerate([1, 0, 2, 1, 0, 2]):
        for sequence in control.add(str(index), range(2, 8), max_tokens=6):
            sequence.lora_int_id = lora_int_id
    together = [
        {item.sequence.lora_int_id for item in batch.sequences} - {0} for batch in control.run()
    ]
    assert max(map(len, together)) == 1
    order = [adapter for batch in together for adapter in batch]
    assert [a for i, a in enumerate(order) if i == 0 or a != order[i - 1]] == [1, 2, 1, 2]


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_adapters_work_on_quantised_weights(quantization, adapted, checkpoints):
    """What an adapter adds is not rounded: the same as on a model with the rounded weights."""
    folder, (prompt,) = checkpoints("qwen3")[0], make_prompts(1, [33])
    request = adapted("qwen3").requests["one"]
    core = load(folder, quantization=quantization, enable_lora=True, kernels="torch")
    model = core._runner._model
    reference = copy.deepcopy(adapted("qwen3").models[""])
    for index, layer in enumerate(model._layers):
        maps = {
            "self_attn.q_proj self_attn.k_proj self_attn.v_proj": layer.attention.qkv,
            "self_attn.o_proj": layer.attention.output,
            "mlp.gate_proj mlp.up_proj": layer.mlp.gate_up,
            "mlp.down_proj": layer.mlp.down,
        }
        for names, linear in maps.items():
            modules = [reference.get_submodule(f"model.layers.{index}.{n}") for n in names.split()]
            rows = linear.weights[0].dequantize(torch.float32)
            sizes = [module.weight.shape[0] for module in modules]
            for module, weight in zip(modules, rows.split(sizes), strict=True):
                module.weight.data = weight.clone()
    reference.lm_head.weight.data = model._head.weights[0].dequantize(torch.float32).clone()
    expected = tiny.greedy(merged(reference, Path(request.lora_path)), prompt, 12)
    assert generate(core, [(prompt, request)], 12) == [expected]


def test_tenants_of_different_adapters_share_no_prefix(adapted, checkpoints):
    core = load(checkpoints("qwen3")[0], enable_lora=True, max_loras=2)
    (prompt,) = make_prompts(1, [64])
    for name in adapted("qwen3").requests:
        generate(core, [(prompt, adapted("qwen3").requests[name])], 1)
        assert core.stats().num_prefix_hit_tokens == 0


def test_files_that_changed_are_read_again_and_find_no_old_prefix(checkpoints, tmp_path):
    folder, model = checkpoints("qwen3")
    core = load(folder, enable_lora=True)
    (prompt,) = make_prompts(1, [40])
    other = LoRARequest("other", 2, str(make_adapter(tmp_path / "other", model, seed=8)))
    for seed in (5, 6):
        path = make_adapter(tmp_path / "changing", model, seed=seed)
        tokens = generate(core, [(prompt, LoRARequest("changing", 1, str(path)))], 12)
        assert tokens == [tiny.greedy(merged(model, path), prompt, 12)]
        generate(core, [(prompt, other)], 1)  # takes the only slot


def test_the_faces_take_adapters(adapted, checkpoints):
    llm = LLM(
        str(checkpoints("qwen3")[0]),
        enable_lora=True,
        max_loras=2,
        max_cpu_loras=4,
        dtype="float32",
        num_threads=1,
        kv_cache_memory_bytes=2**22,
        max_model_len=256,
    )
    (prompt,) = make_prompts(1, [20])
    requests = list(adapted("qwen3").requests.values())
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    outputs = llm.generate([prompt] * 3, params, lora_request=requests)
    names = adapted("qwen3").requests
    expected = [adapted("qwen3").expected(name, prompt, 8) for name in names]
    assert [list(output.outputs[0].token_ids) for output in outputs] == expected
    alone = llm.generate(prompt, params, lora_request=requests[1])
    assert list(alone[0].outputs[0].token_ids) == expected[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 32}, "has rank 32, max_lora_rank is 16: raise it"),
        ({"use_dora": True}, "use_dora True, supported is False"),
        ({"bias": "all"}, "bias all, supported is none"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save \['lm_head'\], supported is None"),
        ({"peft_type": "IA3"}, "peft_type IA3, supported is LORA"),
        ({"r": 5}, "has rank 4 for .*, its adapter_config.json says 5"),
        ({"modules": ["lm_head"]}, "changes lm_head, which takes no adapter; these do: down_proj"),
        ({"modules": []}, "changes nothing"),
        (
            {"tensors": {"base_model.model.lm_head.lora_magnitude_vector": torch.ones(2)}},
            "lora_magnitude_vector, which takes no adapter",
        ),
        (
            {
                "modules": ["k_proj"],
                "tensors": {
                    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(
                        4, 64
                    )
                },
            },
            "lacks lora_A or lora_B of model.layers.0.self_attn.q_proj",
        ),
        (
            {
                "tensors": {
                    "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight": torch.ones(4, 65)
                }
            },
            r"has \[4, 65\] and \[96, 4\] for .*up_proj, the model takes \[rank, 64\]",
        ),
        (
            {
                "tensors": {
                    "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight": torch.full(
                        (4, 64), torch.inf
                    )
                }
            },
            "numbers in model.layers.1.mlp.up_proj that are not finite",
        ),
    ],
)
def test_an_adapter_that_cannot_be_used_is_refused_by_name(options, message, checkpoints, tmp_path):
    folder, model = checkpoints("llama")
    path = make_adapter(tmp_path, model, **options)
    core = load(folder, enable_lora=True)
    with pytest.raises(InvalidRequest, match=message):
        generate(core, [([5, 6], LoRARequest("mine", 1, str(path)))])
    assert not core.has_work


def test_an_adapter_that_overflows_the_dtype_is_refused(checkpoints, tmp_path):
    folder, model = checkpoints("llama")
    path = make_adapter(tmp_path, model, lora_alpha=1e6)
    request = LoRARequest("mine", 1, str(path))
    with pytest.raises(InvalidRequest, match=r"are not finite in torch.float16"):
        generate(load(folder, enable_lora=True, dtype="float16"), [([5, 6], request)])


def test_requests_that_make_no_sense_are_refused(adapted, checkpoints, tmp_path):
    one, two = (adapted("qwen3").requests[name] for name in ("one", "two"))
    core = load(checkpoints("qwen3")[0], enable_lora=True)
    core.add(NewRequest("0", [5, 6], greedy_params(4), lora_request=one))
    with pytest.raises(
        InvalidRequest, match=r"lora_int_id 1 is adapter one at .* give two another"
    ):
        core.add(
            NewRequest(
                "1", [5], greedy_params(4), lora_request=LoRARequest("two", 1, two.lora_path)
            )
        )
    with pytest.raises(InvalidRequest, match=r"adapter none: .*adapter_config.json cannot be read"):
        core.add(
            NewRequest("1", [5], greedy_params(4), lora_request=LoRARequest("none", 9, "/nowhere"))
        )
    finish_all(core)
    with pytest.raises(InvalidRequest, match="adapter one was asked for, enable_lora is off"):
        generate(load(checkpoints("qwen3")[0]), [([5], one)])
    with pytest.raises(InvalidRequest, match="lora_int_id is 0"):
        LoRARequest("zero", 0, "/nowhere")
    with pytest.raises(InvalidRequest, match="max_loras is 0"):
        EngineConfig("model", max_loras=0)
