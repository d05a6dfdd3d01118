"""The benchmark of the GPU kernels, as far as it goes without a GPU."""

import pytest
import torch
import typer
from typer.testing import CliRunner

from app.scripts.benchmark.__main__ import cli
from app.scripts.benchmark.kernels import Shape, attention_s, fused_s, known_bandwidth, kv_bytes

CPU = torch.device("cpu")
SHAPE = Shape(num_heads=4, num_kv_heads=2, head_dim=16, hidden_size=32, intermediate_size=48)


def one_second(run):
    run()
    return 1.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    result = CliRunner().invoke(cli, ["kernels"])
    assert result.exit_code == 2
    assert "torch finds none here" in result.output


def test_an_unknown_device_needs_its_bandwidth():
    assert known_bandwidth("NVIDIA H200") == 4.8e12
    with pytest.raises(typer.BadParameter, match=r"Voodoo 2 is not known .*--bandwidth-gb-s"):
        known_bandwidth("Voodoo 2")


def test_the_bytes_counted_are_those_of_keys_and_values():
    rows = torch.zeros(3, 100, 2, 2, 16, dtype=torch.bfloat16)  # batch, context, k and v, heads
    assert kv_bytes(SHAPE, 3, 100, is_int8=False) == rows.nbytes
    scales = torch.zeros(rows.shape[:-1])
    assert kv_bytes(SHAPE, 3, 100, is_int8=True) == rows.to(torch.int8).nbytes + scales.nbytes


@pytest.mark.parametrize("is_int8", [False, True])
def test_each_kernel_can_be_called(is_int8):
    assert attention_s(SHAPE, 2, 20, is_int8, CPU, one_second) == 1.0
    times = fused_s(SHAPE, 5, CPU, one_second)
    assert set(times) == {"rms_norm", "add_rms_norm", "rotate", "silu_mul", "store_kv"}
