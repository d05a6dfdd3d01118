"""The weights of a checkpoint as the models ask for them, in the form that the engine keeps."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from app.engine.kernels.cpu.linear import PanelPacker, PanelWeight
from app.engine.layers.embedding import Embedding
from app.engine.layers.linear import Linear, Weight, make_weight
from app.engine.layers.lora import LoraPart
from app.engine.layers.quantized import QuantizedWeight, join
from app.engine.lora import LoraAdapters
from app.engine.quantization import (
    PackedTensors,
    from_awq,
    from_gptq,
    quantize_int4,
    quantize_int8,
)
from app.engine.quantization_config import CheckpointQuantization

Quantize = Callable[[Tensor], QuantizedWeight]
QUANTIZE: dict[str, Quantize] = {"int8": quantize_int8, "int4": quantize_int4}


class ReadTensor(Protocol):
    """A checkpoint's tensors by name."""

    def __call__(self, name: str) -> Tensor:
        """In the engine's dtype."""
        ...

    def stored(self, name: str) -> Tensor:
        """In the dtype of the checkpoint."""
        ...

    def __contains__(self, name: str) -> bool: ...


class CheckpointWeights:
    """Implements `models.Weights` on a checkpoint's tensors.

    With `quantization`, each linear map is quantised as soon as it is read, so that there is
    never more than one in full. The head takes 8 bits in either case, because its error goes
    straight into the logits. So does an embedding that is tied to it, one table for both; one of
    its own stays in full: a step reads few of its rows. What a checkpoint holds quantised, as
    `stored` says, is kept so, and the rest of it in full, as its makers left it.

    With a `packer`, which is for float32 rows, linear maps take panels, and what the checkpoint
    holds in bfloat16 stays so: it is widened as it is read, which loses nothing.
    """

    def __init__(
        self,
        read_tensor: ReadTensor,
        quantization: str | None = None,
        stored: CheckpointQuantization | None = None,
        loras: LoraAdapters | None = None,
        packer: PanelPacker | None = None,
    ) -> None:
        self._read_tensor = read_tensor
        self._stored = stored
        self._loras = loras
        self._quantize = None if quantization is None else QUANTIZE[quantization]
        self._packer = packer

    def tensor(self, name: str) -> Tensor:
        """One tensor by its whole name."""
        return self._read_tensor(name)

    def linear(self, names: Sequence[str], *, has_bias: bool) -> Linear:
        """One map whose output is those of the named modules side by side."""
        parts = [self._part(name, self._quantize) for name in names]
        biases = [self._read_tensor(f"{name}.bias") for name in names] if has_bias else None
        bias = torch.cat(biases) if biases else None
        return Linear(join_parts(parts, self._packer), bias, self._attach(names, parts))

    def embedding(self, name: str, *, is_tied: bool) -> Embedding:
        """The table of token embeddings; `is_tied` says that the head multiplies by it too."""
        full = self._read_matrix(name)
        dtype = full.dtype if self._packer is None else torch.float32
        if not is_tied:
            return Embedding(full, dtype)
        table = full if self._quantize is None else quantize_int8(full)
        return Embedding(table if self._packer is None else pack(table, self._packer), dtype)

    def head(self, embedding: Embedding, *, is_tied: bool) -> Linear:
        """The map to the vocabulary; with tied embeddings the embedding itself."""
        if is_tied:
            table = embedding.table
            return Linear((table,) if isinstance(table, PanelWeight) else join_parts([table]))
        part = self._part("lm_head", None if self._quantize is None else quantize_int8)
        return Linear(join_parts([part], self._packer))

    def _attach(
        self, names: Sequence[str], parts: Sequence[Tensor | QuantizedWeight]
    ) -> tuple[LoraPart, ...]:
        """Room for adapters of the modules; experts take none."""
        if self._loras is None or ".experts." in names[0]:
            return ()
        attached, start = [], 0
        for name, part in zip(names, parts, strict=True):
            num_outputs, num_inputs = part.shape
            attached.append(self._loras.attach(name, (num_outputs, num_inputs), start))
            start += num_outputs
        return tuple(attached)

    def _part(self, name: str, quantize: Quantize | None) -> Tensor | QuantizedWeight:
        if self._stored is not None and f"{name}.qweight" in self._read_tensor:
            return self._read_stored(name, self._stored)
        weight = self._read_matrix(name)
        return weight if quantize is None else quantize(weight)

    def _read_matrix(self, name: str) -> Tensor:
        full_name = f"{name}.weight"
        if self._packer is not None:
            weight = self._read_tensor.stored(full_name)
            if weight.dtype == torch.bfloat16:
                return weight
        return self._read_tensor(full_name)

    def _read_stored(self, name: str, stored: CheckpointQuantization) -> QuantizedWeight:
        read, group_index = self._read_tensor.stored, f"{name}.g_idx"
        tensors = PackedTensors(
            name=name,
            qweight=read(f"{name}.qweight"),
            qzeros=read(f"{name}.qzeros"),
            scales=read(f"{name}.scales"),
            group_index=read(group_index) if group_index in self._read_tensor else None,
        )
        if stored.method == "awq":
            return from_awq(tensors)
        return from_gptq(tensors, stored.bits, stored.zero_offset)


def join_parts(
    parts: Sequence[Tensor | QuantizedWeight], packer: PanelPacker | None = None
) -> tuple[Weight, ...]:
    """Matrices [out, in] side by side, neighbours of one form as one weight."""
    joined: list[Tensor | QuantizedWeight] = []
    for part in parts:
        both = join_two(joined[-1], part) if joined else None
        if both is None:
            joined.append(part)
        else:
            joined[-1] = both
    return tuple(_final_form(part, packer) for part in joined)


def join_two(
    one: Tensor | QuantizedWeight, other: Tensor | QuantizedWeight
) -> Tensor | QuantizedWeight | None:
    """Both as one, or None where their forms differ."""
    if isinstance(one, QuantizedWeight):
        return join(one, other) if isinstance(other, QuantizedWeight) else None
    return torch.cat([one, other]) if isinstance(other, Tensor) else None


def pack(weight: Tensor | QuantizedWeight, packer: PanelPacker) -> PanelWeight:
    """In panels; its inputs are in their own order."""
    if isinstance(weight, Tensor):
        return packer.plain(weight)
    assert weight.order is None
    num_bits = 4 if weight.data.dtype == torch.uint8 else 8
    return packer.quantized(weight.numbers(), weight.scale, weight.zero, num_bits)


def _final_form(part: Tensor | QuantizedWeight, packer: PanelPacker | None) -> Weight:
    if packer is not None and (isinstance(part, Tensor) or part.order is None):
        return pack(part, packer)
    return make_weight([part]) if isinstance(part, Tensor) else part
