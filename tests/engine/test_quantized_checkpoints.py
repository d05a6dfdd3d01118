"""GPTQ and AWQ checkpoints, packed here number by number.

They give the tokens of Hugging Face's model with the numbers that they stand for.
"""

import json

import pytest
import torch
from safetensors.torch import save_file

from app.engine import InvalidRequest, UnsupportedModel
from app.engine.engine_core import NewRequest
from app.engine.layers.quantized import QuantizedWeight
from app.engine.model_config import parse_model_config
from app.engine.quantization_config import parse_quantization
from tests.engine import tiny
from tests.engine.engines import finish_all, greedy_params, load, make_prompts

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def pack(numbers, bits, order=None):
    """Rows of numbers [n][m] to int32 [n][m / per], lowest bits first."""
    per = 32 // bits
    packed = []
    for row in numbers:
        words = [0] * (len(row) // per)
        for word in range(len(words)):
            for place in range(per):
                column = place if order is None else order[place]
                words[word] |= row[word * per + column] << (bits * place)
        packed.append([word - 2**32 if word >= 2**31 else word for word in words])
    return torch.tensor(packed, dtype=torch.int32)


class RandomModule:
    """Random numbers, zeros and scales of a map, and the float weight that they stand for."""

    def __init__(self, shape, bits, group_size, seed, shuffles=False):
        generator = torch.Generator().manual_seed(seed)
        num_outputs, num_inputs = shape
        self.bits = bits
        group_size = num_inputs if group_size == -1 else group_size
        self.num_groups = num_inputs // group_size
        top = 2**bits
        self.numbers = torch.randint(0, top, shape, generator=generator)
        self.zeros = torch.randint(1, top, (num_outputs, self.num_groups), generator=generator)
        scales = torch.rand(self.zeros.shape, generator=generator) + 0.5
        self.scales = (scales * 0.5 / top).half()
        self.group_index = torch.arange(num_inputs) // group_size
        if shuffles:
            self.group_index = self.group_index[torch.randperm(num_inputs, generator=generator)]

    def weight(self):
        zeros, scales = self.zeros[:, self.group_index], self.scales.float()[:, self.group_index]
        return (self.numbers - zeros) * scales

    def gptq(self, zero_offset=1):
        zeros = (self.zeros - zero_offset).T.tolist()
        return {
            "qweight": pack(self.numbers.tolist(), self.bits).T.contiguous(),
            "qzeros": pack(zeros, self.bits),
            "scales": self.scales.T.contiguous(),
            "g_idx": self.group_index.int(),
        }

    def awq(self):
        return {
            "qweight": pack(self.numbers.T.tolist(), self.bits, AWQ_ORDER),
            "qzeros": pack(self.zeros.T.tolist(), self.bits, AWQ_ORDER),
            "scales": self.scales.T.contiguous(),
        }


def make_quantized(folder, family, config, make_module, store, keep=()):
    """Save a checkpoint whose maps are packed, but for those named in `keep`.

    Returns Hugging Face's model with the numbers that they stand for.
    """
    model = tiny.make_checkpoint(folder, family)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for seed, (name, module) in enumerate(model.named_modules()):
        if not isinstance(module, torch.nn.Linear) or name == "lm_head" or name.endswith(keep):
            continue
        packed = make_module(module.weight.shape, seed)
        module.weight.data = packed.weight()
        del state[f"{name}.weight"]
        state |= {f"{name}.{part}": tensor for part, tensor in store(packed).items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"quantization_config": config}))
    return model


def check_tokens(folder, model, **options):
    prompts = make_prompts(1, [5, 40])
    core = load(folder, **options)
    for index, prompt in enumerate(prompts):
        core.add(NewRequest(str(index), prompt, greedy_params(12)))
    outputs = finish_all(core)
    for index, prompt in enumerate(prompts):
        tokens = list(outputs[str(index)].outputs[0].token_ids)
        assert tokens == tiny.greedy(model, prompt, 12)
    return core


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}


@pytest.mark.parametrize(
    ("bits", "group_size", "shuffles", "layout"),
    [
        (4, 32, False, "gptq"),
        (4, 16, True, "gptq"),
        (4, -1, False, "gptq_v2"),
        (8, 32, True, "gptq"),
        (8, -1, False, "gptq_v2"),
    ],
)
def test_gptq_equals_hugging_face(bits, group_size, shuffles, layout, tmp_path):
    config = GPTQ | {"bits": bits, "group_size": group_size, "checkpoint_format": layout}
    model = make_quantized(
        tmp_path,
        "llama",
        config,
        lambda shape, seed: RandomModule(shape, bits, group_size, seed, shuffles),
        lambda module: module.gptq(1 if layout == "gptq" else 0),
    )
    check_tokens(tmp_path, model, quantization="gptq")


@pytest.mark.parametrize("group_size", [32, -1])
@pytest.mark.parametrize("family", ["qwen2", "llama-3-rope-tied"])  # with biases; tied
def test_awq_equals_hugging_face(family, group_size, tmp_path):
    model = make_quantized(
        tmp_path,
        family,
        AWQ | {"group_size": group_size},
        lambda shape, seed: RandomModule(shape, 4, group_size, seed),
        RandomModule.awq,
    )
    check_tokens(tmp_path, model)


def test_modules_that_were_not_converted_are_read_as_they_are(tmp_path):
    model = make_quantized(
        tmp_path,
        "llama",
        AWQ | {"modules_to_not_convert": ["k_proj", "down_proj"]},
        lambda shape, seed: RandomModule(shape, 4, 32, seed),
        RandomModule.awq,
        keep=("k_proj", "down_proj"),
    )
    check_tokens(tmp_path, model)


def test_one_order_of_inputs_for_all_keeps_the_fused_maps_whole(tmp_path):
    """As quantisers make them: q, k and v see the same inputs, so they share the order."""

    def make_module(shape, seed):
        module = RandomModule(shape, 4, 16, seed)
        order = torch.randperm(shape[1], generator=torch.Generator().manual_seed(shape[1]))
        module.group_index = module.group_index[order]
        return module

    model = make_quantized(tmp_path, "llama", GPTQ, make_module, RandomModule.gptq)
    core = check_tokens(tmp_path, model)
    qkv = core._runner._model._layers[0].attention.qkv
    assert [type(weight) for weight in qkv.weights] == [QuantizedWeight]


def test_a_zero_that_wrapped_around_is_zero(tmp_path):
    """The first layout stores 0 as -1: all four bits set."""

    def make_module(shape, seed):
        module = RandomModule(shape, 4, 32, seed)
        module.zeros[:] = 0
        return module

    def store(module):
        tensors = module.gptq(0)
        tensors["qzeros"] = torch.full_like(tensors["qzeros"], -1)
        return tensors

    check_tokens(tmp_path, make_quantized(tmp_path, "llama", GPTQ, make_module, store))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "bitsandbytes"}, r"bitsandbytes are not .* gptq \(4 or 8 bits"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        (GPTQ | {"bits": 3}, "bits in quantization_config is 3, supported is 4 or 8"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format .* is marlin"),
        (GPTQ | {"dynamic": {"+:.*down.*": {"bits": 8}}}, r"dynamic: \+:\.\*down"),
        (AWQ | {"bits": 8}, "bits .* is 8, supported is 4"),
        (AWQ | {"version": "gemv"}, "version .* is gemv, supported is gemm"),
        (AWQ | {"zero_point": False}, "zero_point .* is False"),
    ],
)
def test_other_layouts_are_refused_by_name(config, message):
    with pytest.raises(UnsupportedModel, match=message):
        parse_quantization(config)


def test_groups_of_several_sizes_are_refused(tmp_path):
    def make_module(shape, seed):
        module = RandomModule(shape, 4, 32, seed)
        module.group_index[0] = 1
        return module

    make_quantized(tmp_path, "llama", GPTQ, make_module, RandomModule.gptq)
    with pytest.raises(UnsupportedModel, match=r"q_proj.g_idx has groups of 31 to 33 inputs"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("asked", "message"),
    [("int8", "is int8, .* quantised with awq already"), ("gptq", "gptq, the checkpoint's is awq")],
)
def test_asking_for_another_quantization_is_refused(asked, message, tmp_path):
    make_quantized(
        tmp_path,
        "llama",
        AWQ,
        lambda shape, seed: RandomModule(shape, 4, 32, seed),
        RandomModule.awq,
    )
    with pytest.raises(InvalidRequest, match=message):
        load(tmp_path, quantization=asked)


def test_a_plain_checkpoint_has_no_quantization(checkpoints):
    settings = json.loads((checkpoints("llama")[0] / "config.json").read_text())
    assert parse_model_config(settings).quantization is None
    with pytest.raises(InvalidRequest, match="awq, the checkpoint's is None"):
        load(checkpoints("llama")[0], quantization="awq")
