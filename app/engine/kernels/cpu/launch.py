"""Launches the C++ kernels: checks what they are given, then hands over addresses.

`reference` says what each kernel computes. What a kernel does not take goes to its torch twin:
float16, and heads that are no multiple of 8 numbers or longer than 256.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from app.engine.kernels import reference
from app.engine.kernels.cpu.library import Library
from app.engine.kernels.metadata import AttentionMetadata, AttentionSpec, KVCache, QKNorm

DTYPES = {torch.float32: 0, torch.bfloat16: 1}
SILU, GELU_TANH = 0, 1
HEAD_MULTIPLE, MAX_HEAD_DIM = 8, 256


@dataclass(frozen=True, slots=True)
class CpuKernels:
    """The kernels of a loaded library, under the names of `dispatch.Kernels`."""

    library: Library

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x: [..., E]; weight: [E]; returns [..., E]."""
        if x.dtype not in DTYPES:
            return reference.rms_norm(x, weight, eps)
        rows = _rows(x)
        out = torch.empty(x.shape, dtype=x.dtype)
        self._norm(rows, None, weight, None, out, eps)
        return out

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """The norm of x + residual, and that sum; x, residual: [T, E]."""
        if x.dtype not in DTYPES:
            return reference.add_rms_norm(x, residual, weight, eps)
        residual = residual.contiguous()
        _check_same("residual", residual, x)
        out, total = torch.empty_like(residual), torch.empty_like(residual)
        self._norm(_rows(x), residual, weight, total, out, eps)
        return out, total

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up; gate_up: [T, 2 I], gate first; returns [T, I]."""
        if gate_up.dtype not in DTYPES:
            return reference.silu_mul(gate_up)
        return self._activate(SILU, gate_up)

    def gelu_tanh_mul(self, gate_up: Tensor) -> Tensor:
        """gelu(gate) * up; gate_up: [T, 2 I], gate first; returns [T, I]."""
        if gate_up.dtype not in DTYPES:
            return reference.gelu_tanh_mul(gate_up)
        return self._activate(GELU_TANH, gate_up)

    def rotate(
        self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, norm: QKNorm | None
    ) -> tuple[Tensor, Tensor]:
        """query: [T, H, D]; key: [T, K, D]; cos, sin: [T, R / 2] in the dtype of the heads."""
        dtype = query.dtype
        if dtype not in DTYPES:
            return reference.rotate(query, key, cos, sin, norm)
        num_rows, num_heads, head_dim = query.shape
        num_kv_heads, half = key.shape[1], cos.shape[1]
        query, key = _heads("query", query), _heads("key", key)
        for name, angles in (("cos", cos), ("sin", sin)):
            _check(name, angles, (num_rows, half), dtype)
        if norm is not None:
            _check("q_norm", norm.q_weight, (head_dim,), norm.q_weight.dtype)
            _check("k_norm", norm.k_weight, (head_dim,), norm.q_weight.dtype)
        assert 2 * half <= head_dim, f"{2 * half} numbers of a head of {head_dim} cannot be turned"
        query_out = torch.empty((num_rows, num_heads, head_dim), dtype=dtype)
        key_out = torch.empty((num_rows, num_kv_heads, head_dim), dtype=dtype)
        self.library.functions.rotate(
            DTYPES[dtype],
            DTYPES[dtype if norm is None else norm.q_weight.dtype],
            query.data_ptr(),
            key.data_ptr(),
            None if norm is None else norm.q_weight.data_ptr(),
            None if norm is None else norm.k_weight.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            query_out.data_ptr(),
            key_out.data_ptr(),
            num_rows,
            num_heads,
            num_kv_heads,
            head_dim,
            half,
            query.stride(0),
            key.stride(0),
            0.0 if norm is None else norm.eps,
            torch.get_num_threads(),
        )
        return query_out, key_out

    def store_kv(
        self, key: Tensor, value: Tensor, cache: KVCache, layer: int, slots: Tensor
    ) -> None:
        """key, value: [T, K, D]; slots: [T] int64."""
        if key.dtype not in DTYPES:
            return reference.store_kv(key, value, cache, layer, slots)
        shape = (key.shape[0], cache.data.shape[3], cache.data.shape[5])
        key, value = _heads("key", key), _heads("value", value)
        for name, rows in (("key", key), ("value", value)):
            assert rows.shape == shape, f"{name} is {tuple(rows.shape)}, it must be {shape}"
        assert value.dtype == key.dtype, f"value is {value.dtype}, key is {key.dtype}"
        _check("slots", slots, (key.shape[0],), torch.int64)
        self.library.functions.store_kv(
            DTYPES[key.dtype],
            key.data_ptr(),
            value.data_ptr(),
            key.stride(0),
            value.stride(0),
            slots.data_ptr(),
            key.shape[0],
            *_layer_arguments(cache, layer, key.dtype),
            torch.get_num_threads(),
        )
        return None

    def paged_attention(
        self,
        query: Tensor,
        cache: KVCache,
        layer: int,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
    ) -> Tensor:
        """Each row over its sequence's positions up to itself: [T, H, D] -> [T, H, D]."""
        head_dim = query.shape[2]
        if query.dtype not in DTYPES or head_dim % HEAD_MULTIPLE or head_dim > MAX_HEAD_DIM:
            return reference.paged_attention(query, cache, layer, metadata, spec)
        num_heads, num_kv_heads = query.shape[1], cache.data.shape[3]
        assert num_heads % num_kv_heads == 0, f"{num_heads} heads do not share {num_kv_heads}"
        query = query.contiguous()
        tables = metadata.block_tables
        num_sequences = len(metadata.row_counts)
        _check("query_starts", metadata.query_starts, (num_sequences + 1,), torch.int32)
        _check("context_lens", metadata.context_lens, (num_sequences,), torch.int32)
        _check("block_tables", tables, (num_sequences, tables.shape[1]), torch.int32)
        out = torch.empty_like(query)
        self.library.functions.paged_attention(
            DTYPES[query.dtype],
            query.data_ptr(),
            out.data_ptr(),
            num_heads,
            *_layer_arguments(cache, layer, query.dtype),
            tables.data_ptr(),
            metadata.query_starts.data_ptr(),
            metadata.context_lens.data_ptr(),
            num_sequences,
            tables.shape[1],
            spec.scale,
            spec.softcap or 0.0,
            spec.window or 0,
            torch.get_num_threads(),
        )
        return out

    def _norm(
        self,
        rows: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        total: Tensor | None,
        out: Tensor,
        eps: float,
    ) -> None:
        num_rows, width = rows.shape
        assert weight.dtype in DTYPES, f"the norm's weight is {weight.dtype}"
        _check("weight", weight, (width,), weight.dtype)
        self.library.functions.rms_norm(
            DTYPES[rows.dtype],
            DTYPES[weight.dtype],
            rows.data_ptr(),
            None if residual is None else residual.data_ptr(),
            weight.data_ptr(),
            None if total is None else total.data_ptr(),
            out.data_ptr(),
            num_rows,
            width,
            rows.stride(0),
            eps,
            torch.get_num_threads(),
        )

    def _activate(self, activation: int, gate_up: Tensor) -> Tensor:
        gate_up = gate_up.contiguous()
        num_rows, width = gate_up.shape
        out = torch.empty((num_rows, width // 2), dtype=gate_up.dtype)
        self.library.functions.activate_and_multiply(
            DTYPES[gate_up.dtype],
            activation,
            gate_up.data_ptr(),
            out.data_ptr(),
            num_rows,
            width // 2,
            torch.get_num_threads(),
        )
        return out


def _layer_arguments(
    cache: KVCache, layer: int, dtype: torch.dtype
) -> tuple[int, int | None, int, int, int, int]:
    """Where a layer's keys begin, in numbers and in scales, and the pool's shape."""
    data, scales = cache.data, cache.scales
    _, num_layers, _, num_kv_heads, block_size, head_dim = data.shape
    wanted = dtype if scales is None else torch.int8
    assert data.dtype == wanted, f"the cache is {data.dtype}, it must be {wanted}"
    assert data.is_contiguous() and data.device.type == "cpu", "the cache must be one piece, on CPU"
    assert 0 <= layer < num_layers, f"layer {layer} of {num_layers}"
    tokens_per_layer = 2 * num_kv_heads * block_size
    first = layer * tokens_per_layer
    scale_address = None
    if scales is not None:
        _check("scales", scales, tuple(data.shape[:5]), torch.float32)
        scale_address = scales.data_ptr() + first * scales.itemsize
    return (
        data.data_ptr() + first * head_dim * data.itemsize,
        scale_address,
        num_layers * tokens_per_layer,
        num_kv_heads,
        block_size,
        head_dim,
    )


def _rows(x: Tensor) -> Tensor:
    """[..., E] as [rows, E] with the numbers of a row side by side."""
    if x.dim() == 2 and x.stride(1) == 1:
        return x
    return x.contiguous().view(-1, x.shape[-1])


def _heads(name: str, x: Tensor) -> Tensor:
    """[T, heads, D] with a row's heads side by side, as a slice of fused projections has them."""
    assert x.dim() == 3, f"{name} is {tuple(x.shape)}, it must be [rows, heads, head size]"
    if x.stride(2) == 1 and x.stride(1) == x.shape[2]:
        return x
    return x.contiguous()


def _check(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert tensor.shape == shape, f"{name} is {tuple(tensor.shape)}, it must be {shape}"
    assert tensor.dtype == dtype, f"{name} is {tensor.dtype}, it must be {dtype}"
    assert tensor.is_contiguous(), f"{name} must be contiguous, its strides are {tensor.stride()}"
    assert tensor.device.type == "cpu", f"{name} is on {tensor.device}, it must be on the CPU"


def _check_same(name: str, tensor: Tensor, other: Tensor) -> None:
    _check(name, tensor, tuple(other.shape), other.dtype)
