"""Compile the GPU kernels for a GPU that is not here, down to its machine code.

    python -m tests.engine.compile_triton cuda 90

The launchers run on tensors of the CPU with a stand-in for the driver; what they would launch is
compiled instead. Prints a line for each kernel: its name and the bytes of shared memory it takes.
Others to try: cuda 80, cuda 120, hip gfx942.
"""

import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from app.engine.kernels import dispatch
from app.engine.kernels.metadata import AttentionMetadata, AttentionSpec, KVCache, QKNorm

# Query and key/value heads, head size, int8 cache, window, softcap: Qwen2.5-7B, Gemma 2 9B.
SHAPES = [(28, 4, 128, False, None, None), (16, 8, 256, True, 4096, 50.0)]


class Driver:
    def __init__(self, target):
        self._target = target

    def get_current_target(self):
        return self._target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def compile_only(function, run=JITFunction.run):
    def compile_(*args, grid, warmup, **options):
        kernel = run(function, *args, grid=grid, warmup=True, **options)
        sys.stdout.write(f"{function.__name__} {kernel.metadata.shared}\n")

    return compile_


def run_attention(kernels, shape):
    num_heads, num_kv_heads, head_dim, is_int8, window, softcap = shape
    dims = (70, 1, 2, num_kv_heads, 16, head_dim)
    dtype = torch.int8 if is_int8 else torch.bfloat16
    scales = torch.empty(dims[:-1]) if is_int8 else None
    cache = KVCache(torch.empty(dims, dtype=dtype), scales)
    positions = [999, *range(80, 100)]
    tables = [list(range(63)), list(range(63, 70))]
    metadata = AttentionMetadata.build(positions, [0] * 21, [1, 20], tables, torch.device("cpu"))
    heads = torch.empty(21, num_heads + 2 * num_kv_heads, head_dim, dtype=torch.bfloat16)
    query, key, value = heads.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    kernels.store_kv(key, value, cache, 0, metadata.slots)
    spec = AttentionSpec(head_dim**-0.5, window, softcap)
    kernels.paged_attention(query, cache, 0, metadata, spec)


def run_rows(kernels):
    x, weight = torch.empty(3, 3584, dtype=torch.bfloat16), torch.empty(3584)
    kernels.rms_norm(x, weight.bfloat16(), 1e-6)
    kernels.add_rms_norm(x, x, weight, 1e-6)
    heads = torch.empty(3, 10, 96, dtype=torch.bfloat16)
    query, key, _ = heads.split([6, 2, 2], dim=1)
    angles = torch.empty(3, 40, dtype=torch.bfloat16)
    weights = torch.empty(2, 96, dtype=torch.bfloat16)
    for norm in (None, QKNorm(*weights, 1e-6)):
        kernels.rotate(query, key, angles, angles, norm)
    kernels.silu_mul(x)
    kernels.gelu_tanh_mul(x)


def main(backend, architecture):
    is_cuda = backend == "cuda"
    target = GPUTarget(
        backend, int(architecture) if is_cuda else architecture, 32 if is_cuda else 64
    )
    driver.set_active(Driver(target))
    JITFunction.run = lambda function, *args, **options: compile_only(function)(*args, **options)
    kernels = dispatch.triton_kernels()
    run_rows(kernels)
    for shape in SHAPES:
        run_attention(kernels, shape)


if __name__ == "__main__":
    main(*sys.argv[1:])
