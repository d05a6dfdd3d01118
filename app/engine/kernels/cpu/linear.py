"""Linear maps in C++ on weights of 32, 16, 8 or 4 bits, which are widened as they are read.

Dimensions: P panels of 16 outputs side by side.

CPU ms, AVX2, one thread, float32 rows, beside oneDNN's packed and torch's plain float32 weights:

    9728 x 896   float32  bfloat16  int8  int4   oneDNN  torch
      1 row          1.4       0.7   0.5   0.7      2.1    2.2
      8 rows         4.9       4.0   3.8   3.2      4.3    8.5
     32 rows         9.1       8.5   8.2   7.9      9.7   15.2
    512 rows         117       117   108   122      132    122
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from app.engine.kernels.cpu.launch import DTYPES
from app.engine.kernels.cpu.library import Library

PANEL = 16
BLOCK = 256  # inputs that are summed before they are added, where no smaller group has a scale
WEIGHT_DTYPES = {**DTYPES, torch.int8: 2, torch.uint8: 3}


@dataclass(frozen=True, slots=True)
class PanelWeight:
    """W [out, in] in panels; x W^T + b is summed in float32, each row by itself.

    panels: [P, in, 16] float32, bfloat16 or int8; or [P, in, 8] uint8 with two numbers of 0 … 15
    in a byte, output i in its low half and i + 8 in its high half. scales, zeros: [P, B, 16]
    float32, B blocks of `block_size` inputs; weight = (number - zero) * scale.
    """

    library: Library
    panels: Tensor
    num_outputs: int
    block_size: int
    scales: Tensor | None = None
    zeros: Tensor | None = None

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x: [T, in] float32 or bfloat16; bias: [out]; returns [T, out] in the dtype of x."""
        num_rows, num_inputs = x.shape
        panels, scales, zeros = self.panels, self.scales, self.zeros
        assert num_inputs == panels.shape[1], f"{num_inputs} inputs, not {panels.shape[1]}"
        assert x.device.type == "cpu", f"x is on {x.device}, it must be on the CPU"
        if x.stride(1) != 1:
            x = x.contiguous()
        if bias is not None:
            assert bias.shape == (self.num_outputs,), f"bias is {tuple(bias.shape)}"
            bias = bias.float().contiguous()
        out = torch.empty((num_rows, self.num_outputs), dtype=x.dtype)
        self.library.functions.linear(
            DTYPES[x.dtype],
            WEIGHT_DTYPES[panels.dtype],
            x.data_ptr(),
            x.stride(0),
            num_rows,
            panels.data_ptr(),
            None if scales is None else scales.data_ptr(),
            None if zeros is None else zeros.data_ptr(),
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            self.num_outputs,
            num_inputs,
            self.block_size,
            torch.get_num_threads(),
        )
        return out

    def rows(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Some rows of W; index: [n] int64; returns [n, in]."""
        assert self.panels.dtype != torch.uint8, "rows of 4 bits are not read one by one"
        panel, lane = index // PANEL, index % PANEL
        rows = self.panels[panel, :, lane].float()
        if self.scales is not None:
            scales = self.scales[panel, :, lane].repeat_interleave(self.block_size, dim=1)
            rows *= scales[:, : rows.shape[1]]
        return rows.to(dtype)


@dataclass(frozen=True, slots=True)
class PanelPacker:
    """Puts weights into panels."""

    library: Library

    def plain(self, weight: Tensor) -> PanelWeight:
        """weight: [out, in] float32 or bfloat16."""
        return PanelWeight(self.library, in_panels(weight), weight.shape[0], BLOCK)

    def quantized(
        self, numbers: Tensor, scale: Tensor, zero: Tensor | None, num_bits: int
    ) -> PanelWeight:
        """(number - zero) * scale; numbers: [out, in] in 8 bits, or 4; scale, zero: [out, groups].

        A scale of a whole row is repeated for each block of inputs.
        """
        num_outputs, num_inputs = numbers.shape
        num_groups = scale.shape[1]
        block_size = num_inputs // num_groups
        if num_groups == 1:
            block_size, num_groups = BLOCK, -(-num_inputs // BLOCK)
        panels = in_panels(numbers)
        if num_bits == 4:
            panels = panels[..., : PANEL // 2] | (panels[..., PANEL // 2 :] << 4)
        scales, zeros = (
            None if values is None else in_panels(values.float().expand(-1, num_groups))
            for values in (scale, zero)
        )
        return PanelWeight(self.library, panels, num_outputs, block_size, scales, zeros)


def in_panels(weight: Tensor) -> Tensor:
    """[out, n] -> [P, n, 16], the last panel filled up with zeros."""
    num_outputs, width = weight.shape
    missing = -num_outputs % PANEL
    if missing:
        weight = torch.cat([weight, weight.new_zeros((missing, width))])
    return weight.view(-1, PANEL, width).transpose(1, 2).contiguous()
