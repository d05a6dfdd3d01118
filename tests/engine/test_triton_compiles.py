"""The GPU kernels compile to machine code, which the interpreter does not promise."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

SHARED_MEMORY = 99 * 1024  # bytes that a program has on the smaller of today's GPUs


@pytest.mark.slow
def test_kernels_compile_and_fit_the_shared_memory_of_any_gpu(tmp_path):
    """In a process of its own, since here Triton interprets."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "error", "-m", "tests.engine.compile_triton", "cuda", "90"]
    done = subprocess.run(
        command,
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kernels = [line.split() for line in done.stdout.splitlines()]
    names = {name for name, _ in kernels}
    assert names == {"_norm", "_rotate", "_gated", "_store", "_attend", "_merge"}
    assert max(int(size) for _, size in kernels) <= SHARED_MEMORY
