"""What launchers ask of their tensors before a kernel reads memory by address."""

import torch
from torch import Tensor


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """The tensor has this shape, and its last dimension lies in one piece."""
    assert tuple(tensor.shape) == shape, f"{name} is {tuple(tensor.shape)}, it must be {shape}"
    assert tensor.stride(-1) == 1, f"{name} has stride {tensor.stride(-1)} at the end, not 1"


def check_dtype(name: str, tensor: Tensor, *dtypes: torch.dtype) -> None:
    """The tensor has one of these dtypes."""
    assert tensor.dtype in dtypes, f"{name} is {tensor.dtype}, it must be one of {dtypes}"


def check_device(tensors: dict[str, Tensor]) -> None:
    """All tensors are on one device."""
    devices = {name: tensor.device for name, tensor in tensors.items()}
    assert len(set(devices.values())) == 1, f"the tensors are on different devices: {devices}"
