"""Turns weights into 8 or 4 bits, and reads those that a checkpoint holds as GPTQ or AWQ.

Dimensions: G groups of inputs that share a scale; P numbers in an int32 of a checkpoint.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from app.engine.errors import UnsupportedModel
from app.engine.layers.quantized import QuantizedWeight

GROUP_SIZES = (128, 64, 32, 16)  # the largest that divides a weight's inputs
# AWQ puts column AWQ_ORDER[i] of eight into the i-th four bits of an int32 (Lin et al., 2023).
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
CHUNK_ROWS = 4096  # quantised at a time, so that the work in float32 stays small


@dataclass(frozen=True, slots=True)
class PackedTensors:
    """A module's tensors in a checkpoint; scales: [G, out]; `from_gptq` has the other shapes."""

    name: str
    qweight: Tensor
    qzeros: Tensor
    scales: Tensor
    group_index: Tensor | None = None


def quantize_int8(weight: Tensor) -> QuantizedWeight:
    """Symmetric, one scale for each output; weight: [out, in]."""
    chunks = [_int8_rows(rows) for rows in torch.split(weight, CHUNK_ROWS)]
    data, scale = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return QuantizedWeight(data, scale)


def quantize_int4(weight: Tensor) -> QuantizedWeight:
    """From the least to the largest number of each group; in 8 bits where no group size divides.

    weight: [out, in].
    """
    group_size = next((size for size in GROUP_SIZES if weight.shape[1] % size == 0), None)
    if group_size is None:
        return quantize_int8(weight)
    chunks = [_int4_rows(rows, group_size) for rows in torch.split(weight, CHUNK_ROWS)]
    data, scale, zero = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return QuantizedWeight(data, scale, zero)


def pack_nibbles(numbers: Tensor) -> Tensor:
    """[out, G, n] of 0 … 15 -> [out, G * n / 2] uint8, as `QuantizedWeight` has it."""
    low, high = numbers.to(torch.uint8).chunk(2, dim=-1)
    return (low | (high << 4)).flatten(1)


def unpack_int32(packed: Tensor, bits: int) -> Tensor:
    """The numbers in each int32, lowest bits first: [...] int32 -> [..., P] uint8."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=packed.device)
    numbers: Tensor = (packed.unsqueeze(-1) >> shifts) & (2**bits - 1)
    return numbers.to(torch.uint8)


def _int8_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    wide = weight.float()
    # Rounded to the dtype of the rows it will meet, so that kernels in that dtype lose nothing.
    scale = (wide.abs().amax(1, keepdim=True) / 127).to(weight.dtype).float()
    scale = torch.where(scale > 0, scale, 1.0)
    return (wide / scale).round().clamp(-127, 127).to(torch.int8), scale


def _int4_rows(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.unflatten(weight.float(), 1, (-1, group_size))
    # With 0 in the range, `zero` is within 0 … 15, where float16 is fine enough.
    low, high = wide.amin(-1, keepdim=True).clamp(max=0), wide.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / 15).half().float()
    scale = torch.where(scale > 0, scale, 1.0)
    zero = (-low / scale).half()
    numbers = (wide / scale + zero.float()).round().clamp(0, 15)
    return pack_nibbles(numbers), scale.half().squeeze(-1), zero.squeeze(-1)


def from_gptq(tensors: PackedTensors, bits: int, zero_offset: int) -> QuantizedWeight:
    """A module as GPTQ stores it (Frantar et al., 2022): numbers packed along the inputs.

    qweight: [in / P, out]; qzeros: [G, out / P]; group_index: [in], which group an input is in.
    """
    numbers = unpack_int32(tensors.qweight, bits)  # [in / P, out, P]
    numbers = numbers.transpose(0, 1).flatten(1)
    # The first layout stores zeros minus one, within the same bits.
    zero = unpack_int32(tensors.qzeros, bits).flatten(1).T + zero_offset
    zero = zero & (2**bits - 1)
    _check_groups(tensors.name, numbers.shape[1], tensors.scales.shape[0])
    order = _input_order(tensors.group_index, tensors.scales.shape[0], tensors.name)
    if order is not None:
        numbers = numbers[:, order]
    scale = tensors.scales.T.contiguous()
    if bits == 4:
        grouped = torch.unflatten(numbers, 1, (scale.shape[1], -1))
        return QuantizedWeight(pack_nibbles(grouped), scale, zero.to(scale.dtype), order)
    data = (numbers.to(torch.int16) - 128).to(torch.int8)
    return QuantizedWeight(data, scale, zero.to(scale.dtype) - 128, order)


def from_awq(tensors: PackedTensors) -> QuantizedWeight:
    """A module as AWQ stores it: numbers packed along the outputs, in AWQ_ORDER.

    qweight: [in, out / 8]; qzeros: [G, out / 8].
    """
    column = torch.tensor(AWQ_ORDER, device=tensors.qweight.device).argsort()
    numbers = unpack_int32(tensors.qweight, 4)[..., column].flatten(1).T
    zero = unpack_int32(tensors.qzeros, 4)[..., column].flatten(1).T
    scale = tensors.scales.T.contiguous()
    _check_groups(tensors.name, numbers.shape[1], scale.shape[1])
    grouped = torch.unflatten(numbers, 1, (scale.shape[1], -1))
    return QuantizedWeight(pack_nibbles(grouped), scale, zero.to(scale.dtype))


def _input_order(group_index: Tensor | None, num_groups: int, name: str) -> Tensor | None:
    """The inputs group by group, or None where they are so already; group_index: [in]."""
    if group_index is None:
        return None
    num_inputs = group_index.shape[0]
    sizes = group_index.bincount(minlength=num_groups)
    if (sizes != num_inputs // num_groups).any():
        raise UnsupportedModel(
            f"{name}.g_idx has groups of {sizes.min()} to {sizes.max()} inputs: only groups of "
            "one size are supported"
        )
    order = group_index.argsort(stable=True)
    is_sorted = bool((order[1:] > order[:-1]).all())
    return None if is_sorted else order


def _check_groups(name: str, num_inputs: int, num_groups: int) -> None:
    if num_inputs % (2 * num_groups):
        raise UnsupportedModel(
            f"{name} has {num_inputs} inputs in {num_groups} groups: only groups of one even size "
            "are supported"
        )
