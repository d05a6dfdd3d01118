"""Norm, rotation and gated activation of rows, each in one pass, in Triton; twins in `reference`.

Sums and products are made in float32 and rounded where the twins round. Dimensions as there.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from app.engine.kernels.checks import check_device, check_dtype, check_shape
from app.engine.kernels.metadata import QKNorm

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
COLUMNS = 1024  # of a gated activation, for one program
MAX_NORM_SIZE = 2**15  # a row has to fit the registers of one program

SQRT_2_OVER_PI: tl.constexpr = tl.constexpr(0.7978845608028654)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `reference.rms_norm`."""
    rows = x.view(-1, x.shape[-1])
    out = torch.empty_like(rows, memory_format=torch.contiguous_format)
    _launch_norm(out, rows, rows, rows, weight, eps, has_residual=False)
    return out.view(x.shape)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As `reference.add_rms_norm`."""
    out, total = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    _launch_norm(out, x, residual, total, weight, eps, has_residual=True)
    return out, total


def rotate(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, norm: QKNorm | None
) -> tuple[Tensor, Tensor]:
    """As `reference.rotate`; one program for each head of each row, queries and keys together."""
    num_rows, num_heads, head_dim = query.shape
    num_kv_heads, half = key.shape[1], cos.shape[1]
    num_rest = head_dim - 2 * half
    check_shape("query", query, (num_rows, num_heads, head_dim))
    check_shape("key", key, (num_rows, num_kv_heads, head_dim))
    check_shape("cos", cos, (num_rows, half))
    check_shape("sin", sin, (num_rows, half))
    check_dtype("query", query, *FLOATS)
    for name, tensor in {"key": key, "cos": cos, "sin": sin}.items():
        check_dtype(name, tensor, query.dtype)
    check_device({"query": query, "key": key, "cos": cos, "sin": sin})
    assert num_rest >= 0, f"{2 * half} dimensions to turn, a head has {head_dim}"
    if norm is not None:
        check_shape("q_weight", norm.q_weight, (head_dim,))
        check_shape("k_weight", norm.k_weight, (head_dim,))
    new_query, new_key = (
        torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (query, key)
    )
    _rotate[(num_rows, num_heads + num_kv_heads)](
        new_query,
        new_key,
        query,
        key,
        cos,
        sin,
        query if norm is None else norm.q_weight,
        key if norm is None else norm.k_weight,
        0.0 if norm is None else norm.eps,
        *query.stride()[:2],
        *key.stride()[:2],
        cos.stride(0),
        sin.stride(0),
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        HALF=half,
        HALF_TILE=triton.next_power_of_2(half),
        REST_TILE=triton.next_power_of_2(num_rest) if num_rest else 0,
        HAS_NORM=norm is not None,
        num_warps=1,
        enable_fp_fusion=True,
    )
    return new_query, new_key


def silu_mul(gate_up: Tensor) -> Tensor:
    """As `reference.silu_mul`."""
    return _launch_gated(gate_up, is_gelu=False)


def gelu_tanh_mul(gate_up: Tensor) -> Tensor:
    """As `reference.gelu_tanh_mul`."""
    return _launch_gated(gate_up, is_gelu=True)


def _launch_norm(
    out: Tensor,
    x: Tensor,
    residual: Tensor,
    total: Tensor,
    weight: Tensor,
    eps: float,
    *,
    has_residual: bool,
) -> None:
    num_rows, size = x.shape
    check_shape("x", x, (num_rows, size))
    check_shape("residual", residual, (num_rows, size))
    check_shape("weight", weight, (size,))
    check_dtype("x", x, *FLOATS)
    check_dtype("residual", residual, x.dtype)
    check_dtype("weight", weight, *FLOATS)
    check_device({"x": x, "residual": residual, "weight": weight})
    assert size <= MAX_NORM_SIZE, f"rows of {size} to norm, at most {MAX_NORM_SIZE}"
    tile = triton.next_power_of_2(size)
    _norm[(num_rows,)](
        out,
        x,
        residual,
        total,
        weight,
        eps,
        x.stride(0),
        residual.stride(0),
        SIZE=size,
        TILE=tile,
        HAS_RESIDUAL=has_residual,
        num_warps=min(max(tile // 512, 1), 16),
        enable_fp_fusion=True,
    )


def _launch_gated(gate_up: Tensor, *, is_gelu: bool) -> Tensor:
    num_rows, width = gate_up.shape
    check_shape("gate_up", gate_up, (num_rows, width))
    check_dtype("gate_up", gate_up, *FLOATS)
    assert width % 2 == 0, f"gate_up has {width} columns: gate and up must be as wide"
    size = width // 2
    out = torch.empty((num_rows, size), dtype=gate_up.dtype, device=gate_up.device)
    tile = min(triton.next_power_of_2(size), COLUMNS)
    _gated[(num_rows, triton.cdiv(size, tile))](
        out,
        gate_up,
        gate_up.stride(0),
        SIZE=size,
        TILE=tile,
        IS_GELU=is_gelu,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return out


@triton.jit
def _normed(wide, scale, weights):
    """Rounded to the weight's dtype before and after the product, as the twin does."""
    rounded = (wide * scale).to(weights.dtype).to(tl.float32)
    return (weights.to(tl.float32) * rounded).to(weights.dtype)


@triton.jit
def _norm(
    out,
    x,
    residual,
    total,
    weight,
    eps,
    stride_x,
    stride_residual,
    SIZE: tl.constexpr,
    TILE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, TILE)
    inside = column < SIZE
    rows = tl.load(x + row * stride_x + column, mask=inside, other=0.0)
    wide = rows.to(tl.float32)
    if HAS_RESIDUAL:
        wide += tl.load(residual + row * stride_residual + column, mask=inside, other=0.0)
        rounded = wide.to(rows.dtype)
        tl.store(total + row * SIZE + column, rounded, mask=inside)
        wide = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / SIZE + eps)
    weights = tl.load(weight + column, mask=inside, other=0.0)
    result = _normed(wide, scale, weights).to(rows.dtype)
    tl.store(out + row * SIZE + column, result, mask=inside)


@triton.jit
def _rotate(
    new_query,
    new_key,
    query,
    key,
    cos,
    sin,
    q_weight,
    k_weight,
    eps,
    stride_query_row,
    stride_query_head,
    stride_key_row,
    stride_key_head,
    stride_cos,
    stride_sin,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    HALF_TILE: tl.constexpr,
    REST_TILE: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    cos += row * stride_cos
    sin += row * stride_sin
    if head < NUM_HEADS:
        source = query + row * stride_query_row + head * stride_query_head
        target = new_query + (row * NUM_HEADS + head) * HEAD_DIM
        _rotate_head(
            target, source, cos, sin, q_weight, eps, HEAD_DIM, HALF, HALF_TILE, REST_TILE, HAS_NORM
        )
    else:
        head -= NUM_HEADS
        source = key + row * stride_key_row + head * stride_key_head
        target = new_key + (row * NUM_KV_HEADS + head) * HEAD_DIM
        _rotate_head(
            target, source, cos, sin, k_weight, eps, HEAD_DIM, HALF, HALF_TILE, REST_TILE, HAS_NORM
        )


@triton.jit
def _rotate_head(
    target,
    source,
    cos,
    sin,
    weight,
    eps,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    HALF_TILE: tl.constexpr,
    REST_TILE: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    dim = tl.arange(0, HALF_TILE)
    inside = dim < HALF
    dtype = source.dtype.element_ty
    first = tl.load(source + dim, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + HALF + dim, mask=inside, other=0.0).to(tl.float32)
    squares = tl.sum(first * first, axis=0) + tl.sum(second * second, axis=0)
    if REST_TILE > 0:
        rest = 2 * HALF + tl.arange(0, REST_TILE)
        beyond = rest < HEAD_DIM
        unturned = tl.load(source + rest, mask=beyond, other=0.0).to(tl.float32)
        squares += tl.sum(unturned * unturned, axis=0)
    if HAS_NORM:
        scale = tl.rsqrt(squares / HEAD_DIM + eps)
        weights = tl.load(weight + dim, mask=inside, other=0.0)
        first = _normed(first, scale, weights).to(dtype).to(tl.float32)
        weights = tl.load(weight + HALF + dim, mask=inside, other=0.0)
        second = _normed(second, scale, weights).to(dtype).to(tl.float32)
        if REST_TILE > 0:
            weights = tl.load(weight + rest, mask=beyond, other=0.0)
            unturned = _normed(unturned, scale, weights).to(tl.float32)
    if REST_TILE > 0:
        tl.store(target + rest, unturned.to(dtype), mask=beyond)
    c = tl.load(cos + dim, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(sin + dim, mask=inside, other=0.0).to(tl.float32)
    tl.store(target + dim, (first * c - second * s).to(dtype), mask=inside)
    tl.store(target + HALF + dim, (second * c + first * s).to(dtype), mask=inside)


@triton.jit
def _gated(
    out,
    gate_up,
    stride_row,
    SIZE: tl.constexpr,
    TILE: tl.constexpr,
    IS_GELU: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = column < SIZE
    at = gate_up + row * stride_row + column
    gate = tl.load(at, mask=inside, other=0.0)
    up = tl.load(at + SIZE, mask=inside, other=0.0).to(tl.float32)
    wide = gate.to(tl.float32)
    if IS_GELU:  # (1 + tanh(z)) / 2 is the logistic function of 2 z
        z = SQRT_2_OVER_PI * (wide + 0.044715 * wide * wide * wide)
        activated = wide / (1 + tl.exp(-2 * z))
    else:
        activated = wide / (1 + tl.exp(-wide))
    result = activated.to(gate.dtype).to(tl.float32) * up
    tl.store(out + row * SIZE + column, result.to(gate.dtype), mask=inside)
