"""Weights in 8 and 4 bits: what is lost, what is kept in memory, and that forms agree."""

import gc
import weakref

import pytest
import torch

from app.engine import EngineConfig, InvalidRequest
from app.engine.kernels.dispatch import REFERENCE
from app.engine.layers.quantized import QuantizedWeight
from app.engine.loader import WeightReader, load_model_config
from app.engine.models.llama import LlamaModel
from app.engine.quantization import quantize_int4, quantize_int8
from app.engine.weights import CheckpointWeights, join_parts

CPU = torch.device("cpu")


def random_weight(num_outputs=24, num_inputs=256, seed=0):
    return torch.randn(num_outputs, num_inputs, generator=torch.Generator().manual_seed(seed))


def by_definition(weight):
    """W[o, i] = (data - zero) * scale, one number after the other."""
    num_outputs, num_groups = weight.scale.shape
    result = []
    for output in range(num_outputs):
        row = []
        for group, packed in enumerate(weight.data[output].chunk(num_groups)):
            numbers = packed.tolist()
            if weight.data.dtype == torch.uint8:
                numbers = [byte % 16 for byte in numbers] + [byte // 16 for byte in numbers]
            zero = 0 if weight.zero is None else weight.zero[output, group].item()
            row += [(number - zero) * weight.scale[output, group].item() for number in numbers]
        result.append(row)
    return torch.tensor(result)


def test_8_bits_lose_at_most_half_a_step_and_4_bits_too():
    weight = random_weight()
    for quantize, num_steps in ((quantize_int8, 254), (quantize_int4, 15)):
        quantized = quantize(weight)
        groups = weight.unflatten(1, (quantized.num_groups, -1))
        span = groups.amax(-1) - groups.amin(-1)
        if num_steps == 254:
            span = 2 * groups.abs().amax(-1)
        lost = (quantized.dequantize(torch.float32) - weight).abs()
        largest = lost.unflatten(1, (quantized.num_groups, -1)).amax(-1)
        assert (largest <= 0.51 * span / num_steps).all()


@pytest.mark.parametrize("quantize", [quantize_int8, quantize_int4])
def test_numbers_come_back_as_defined(quantize):
    quantized = quantize(random_weight())
    torch.testing.assert_close(quantized.dequantize(torch.float32), by_definition(quantized))


@pytest.mark.parametrize("quantize", [quantize_int8, quantize_int4])
def test_rows_of_equal_numbers_survive(quantize):
    weight = torch.zeros(3, 128)
    weight[1], weight[2] = 0.25, -3.0
    torch.testing.assert_close(
        quantize(weight).dequantize(torch.float32), weight, rtol=1e-3, atol=0
    )


@pytest.mark.parametrize(
    ("num_inputs", "group_size"), [(256, 128), (576, 64), (96, 32), (48, 16), (40, None)]
)
def test_groups_are_the_largest_that_divide_the_inputs(num_inputs, group_size):
    quantized = quantize_int4(random_weight(4, num_inputs))
    if group_size is None:  # 8 bits
        assert (quantized.data.dtype, quantized.num_groups) == (torch.int8, 1)
    else:
        assert quantized.data.shape == (4, num_inputs // 2)
        assert num_inputs // quantized.num_groups == group_size


def test_memory_is_what_the_bits_say():
    weight = random_weight(64, 1024)
    num_bytes = [sum(t.nbytes for t in q(weight).tensors) for q in (quantize_int8, quantize_int4)]
    assert num_bytes == [64 * 1024 + 64 * 4, 64 * 512 + 64 * 8 * 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [1, 8, 9, 40])
@pytest.mark.parametrize("quantize", [quantize_int8, quantize_int4])
def test_multiplying_equals_multiplying_by_the_numbers(quantize, num_rows, dtype, monkeypatch):
    monkeypatch.setattr("app.engine.layers.quantized.CPU_TILE", 7 * 256)  # several tiles
    quantized = quantize(random_weight().to(dtype))
    x, bias = random_weight(num_rows, 256, seed=1).to(dtype), random_weight(1, 24, seed=2).to(dtype)
    expected = x.double() @ by_definition(quantized).double().T + bias[0].double()
    tolerance = 1e-4 if dtype == torch.float32 else 0.5
    assert (quantized(x, bias[0]).double() - expected).abs().max() < tolerance


def test_an_order_of_the_inputs_is_followed():
    weight, order = random_weight(), torch.randperm(256)
    plain = quantize_int4(weight[:, order])
    ordered = QuantizedWeight(plain.data, plain.scale, plain.zero, order)
    x = random_weight(5, 256, seed=1)
    torch.testing.assert_close(ordered(x, None), plain(x[:, order], None))


def test_parts_of_one_form_are_joined_and_others_stand_side_by_side():
    parts = [random_weight(8 + i, 256, seed=i) for i in range(4)]
    forms = [quantize_int4(parts[0]), quantize_int4(parts[1]), parts[2], quantize_int8(parts[3])]
    joined = join_parts(forms)
    assert len(joined) == 3
    x = random_weight(5, 256, seed=9)
    output = torch.cat([weight(x, None) for weight in joined], dim=-1)
    plain = [form if isinstance(form, torch.Tensor) else by_definition(form) for form in forms]
    torch.testing.assert_close(output, x @ torch.cat(plain).T, rtol=1e-4, atol=1e-4)


def load_weights(folder, quantization, read_tensor):
    weights = CheckpointWeights(read_tensor, quantization)
    return LlamaModel(load_model_config(folder), weights, 64, CPU, REFERENCE)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_loading_never_holds_more_than_a_fused_map_in_full(quantization, checkpoints):
    folder = checkpoints("llama-3-rope-tied")[0]
    alive, most = [], 0
    with WeightReader(folder, torch.float32, CPU) as reader:

        def read_tensor(name):
            nonlocal most
            tensor = reader(name)
            if tensor.ndim == 2:
                alive.append(weakref.ref(tensor))
            most = max(most, sum(reference() is not None for reference in alive))
            return tensor

        model = load_weights(folder, quantization, read_tensor)
    gc.collect()
    assert most <= 3
    assert not any(reference() is not None for reference in alive)
    assert model._head.weights[0] is model._embedding.table


def test_an_unknown_quantization_is_refused_with_the_list():
    with pytest.raises(
        InvalidRequest, match="quantization is int3, known: int8, int4, gptq, awq, None"
    ):
        EngineConfig("model", quantization="int3")
