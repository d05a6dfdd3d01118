"""Which kernels a device runs: one frozen set of functions, chosen when the model is loaded."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from app.engine.kernels import reference
from app.engine.kernels.cpu.launch import CpuKernels
from app.engine.kernels.cpu.library import Library, load_library
from app.engine.kernels.cpu.linear import PanelPacker
from app.engine.kernels.metadata import AttentionMetadata, AttentionSpec, KVCache, QKNorm


@dataclass(frozen=True, slots=True)
class Kernels:
    """What a decoder layer calls; `reference` has what each one means, with the shapes."""

    store_kv: Callable[[Tensor, Tensor, KVCache, int, Tensor], None]
    paged_attention: Callable[[Tensor, KVCache, int, AttentionMetadata, AttentionSpec], Tensor]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    rotate: Callable[[Tensor, Tensor, Tensor, Tensor, QKNorm | None], tuple[Tensor, Tensor]]
    silu_mul: Callable[[Tensor], Tensor]
    gelu_tanh_mul: Callable[[Tensor], Tensor]
    # Packs weights for linear maps on float32 rows; None: torch's and oneDNN's are used.
    packer: PanelPacker | None = None


REFERENCE = Kernels(
    store_kv=reference.store_kv,
    paged_attention=reference.paged_attention,
    rms_norm=reference.rms_norm,
    add_rms_norm=reference.add_rms_norm,
    rotate=reference.rotate,
    silu_mul=reference.silu_mul,
    gelu_tanh_mul=reference.gelu_tanh_mul,
)


def choose_kernels(device: torch.device, kind: str = "auto") -> Kernels:
    """The fastest set that the device can run, or the plain torch one if `kind` is "torch".

    "cuda" is NVIDIA or AMD, both through Triton; CPUs have C++ where it is compiled.
    """
    if kind == "torch":
        return REFERENCE
    if device.type == "cuda":
        return triton_kernels()
    library = load_library() if device.type == "cpu" else None
    return REFERENCE if library is None else cpu_kernels(library)


def cpu_kernels(library: Library) -> Kernels:
    """The set for CPUs; linear maps where they were measured to win, which is not everywhere."""
    cpu = CpuKernels(library)
    is_measured = library.instruction_set in ("avx2", "avx512")
    return Kernels(
        store_kv=cpu.store_kv,
        paged_attention=cpu.paged_attention,
        rms_norm=cpu.rms_norm,
        add_rms_norm=cpu.add_rms_norm,
        rotate=cpu.rotate,
        silu_mul=cpu.silu_mul,
        gelu_tanh_mul=cpu.gelu_tanh_mul,
        packer=PanelPacker(library) if is_measured else None,
    )


def triton_kernels() -> Kernels:
    """The set for GPUs."""
    # Imported where there is a GPU only: torch's builds for one bring Triton, CPU builds do not.
    from app.engine.kernels import triton_attention, triton_rows  # noqa: PLC0415

    return Kernels(
        store_kv=triton_attention.store_kv,
        paged_attention=triton_attention.paged_attention,
        rms_norm=triton_rows.rms_norm,
        add_rms_norm=triton_rows.add_rms_norm,
        rotate=triton_rows.rotate,
        silu_mul=triton_rows.silu_mul,
        gelu_tanh_mul=triton_rows.gelu_tanh_mul,
    )
