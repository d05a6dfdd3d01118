"""Adapters of the model that is loaded: reading PEFT's files, and which of them are in memory.

    open(request)                    place(ids of a step)
───────────────────► known, checked, ────────────────────► in one of max_loras slots,
                     memory-mapped   ◄──────────────────── least recently used goes first
"""

import json
import logging
import math
import re
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from app.engine.errors import InvalidRequest
from app.engine.layers.lora import LoraPart
from app.engine.lora_request import LoRARequest

logger = logging.getLogger(__name__)

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
TENSOR_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<matrix>[AB])\.weight")
# Settings of PEFT that change what an adapter computes, and how they have to be.
REQUIRED: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, []),
    "layer_replication": (None, []),
}


class LoraAdapters:
    """The slots of every map of the model, and the adapters that requests have named."""

    def __init__(
        self, max_loras: int, max_lora_rank: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._num_slots = max_loras
        self._dtype = dtype
        self._device = device
        self._max_rank = max_lora_rank
        self._parts: dict[str, LoraPart] = {}
        self._known: dict[int, Adapter] = {}
        self._slots: OrderedDict[Adapter, int] = OrderedDict()  # least recently used first
        self._num_opened = 0

    def attach(self, name: str, shape: tuple[int, int], start: int) -> LoraPart:
        """Make empty slots for a module of `shape` (out, in).

        The module's outputs begin at column `start` of its fused map.
        """
        rows = (self._num_slots, self._max_rank)
        a, b = (
            torch.zeros((*rows, size), dtype=self._dtype, device=self._device)
            for size in reversed(shape)
        )
        self._parts[name] = LoraPart(start, a, b)
        return self._parts[name]

    def open(self, request: LoRARequest, in_use: Collection[int]) -> str:
        """Check an adapter's files and map them; a name for what it computes, never used again.

        Raises InvalidRequest. Adapters that are neither `in_use` (ids) nor in a slot are
        forgotten: their files may change, and be opened under another name.
        """
        for int_id, known in [*self._known.items()]:
            is_replaced = int_id == request.lora_int_id and known.request != request
            if int_id not in in_use and (is_replaced or known not in self._slots):
                self._forget(known)
        adapter = self._known.get(request.lora_int_id)
        if adapter is None:
            self._num_opened += 1
            adapter = Adapter.open(request, self._num_opened, self._max_rank, self._parts)
            self._known[request.lora_int_id] = adapter
            logger.info("adapter opened name=%s rank=%d", request.lora_name, adapter.rank)
        elif adapter.request != request:
            raise InvalidRequest(
                f"lora_int_id {request.lora_int_id} is adapter {adapter.request.lora_name} at "
                f"{adapter.request.lora_path}: give {request.lora_name} another id"
            )
        return adapter.version

    def place(self, lora_int_ids: Collection[int]) -> dict[int, int]:
        """The slot of each adapter of a step, after those that had none were put into one."""
        adapters = [self._known[int_id] for int_id in sorted(lora_int_ids)]
        assert len(adapters) <= self._num_slots, "the scheduler keeps a step within max_loras"
        for adapter in adapters:
            if adapter in self._slots:
                self._slots.move_to_end(adapter)
        for adapter in adapters:
            if adapter not in self._slots:
                slot = self._free_slot()
                self._fill(slot, adapter)
                self._slots[adapter] = slot
        return {adapter.request.lora_int_id: self._slots[adapter] for adapter in adapters}

    def _free_slot(self) -> int:
        free = set(range(self._num_slots)) - set(self._slots.values())
        return min(free) if free else self._slots.popitem(last=False)[1]

    def _fill(self, slot: int, adapter: "Adapter") -> None:
        for name, part in self._parts.items():
            part.clear(slot)
            if name in adapter.scales:
                part.write(slot, *adapter.matrices(name))
        logger.info("adapter placed name=%s slot=%d", adapter.request.lora_name, slot)

    def _forget(self, adapter: "Adapter") -> None:
        del self._known[adapter.request.lora_int_id]
        self._slots.pop(adapter, None)


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """An adapter whose files were checked; `scales` holds each module's factor, by its name."""

    request: LoRARequest
    version: str
    rank: int
    scales: Mapping[str, float]
    file: Any  # safetensors has no types for its handles

    @classmethod
    def open(
        cls, request: LoRARequest, number: int, max_rank: int, parts: Mapping[str, LoraPart]
    ) -> "Adapter":
        """Read the config and check every matrix; raise InvalidRequest."""
        folder, name = Path(request.lora_path).expanduser(), request.lora_name
        config = _read_config(folder, name)
        file = _open_weights(folder, name)
        scales: dict[str, float] = {}
        largest = 0
        for module in _modules(name, file.keys(), parts):
            a, b = (file.get_tensor(_tensor_name(module, matrix)) for matrix in "AB")
            rank = a.shape[0]
            _check_matrices(name, module, (a, b), parts[module])
            if rank > max_rank:
                raise InvalidRequest(
                    f"adapter {name} has rank {rank}, max_lora_rank is {max_rank}: raise it"
                )
            scales[module] = _scale(name, module, rank, config)
            _check_finite(name, module, (a, b.float() * scales[module]), parts[module])
            largest = max(largest, rank)
        return cls(request, f"{name}#{number}", largest, scales, file)

    def matrices(self, module: str) -> tuple[Tensor, Tensor]:
        """A [r, in] and B [r, out], B scaled."""
        a, b = (self.file.get_tensor(_tensor_name(module, matrix)) for matrix in "AB")
        return a, b.T.float() * self.scales[module]


def _tensor_name(module: str, matrix: str) -> str:
    return f"base_model.model.{module}.lora_{matrix}.weight"


def _read_config(folder: Path, name: str) -> Mapping[str, Any]:
    path = folder / CONFIG_FILE
    try:
        config: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidRequest(
            f"adapter {name}: {path} cannot be read ({error}): name a folder in PEFT's layout"
        ) from error
    for setting, allowed in REQUIRED.items():
        if config.get(setting, allowed[0]) not in allowed:
            raise InvalidRequest(
                f"adapter {name} has {setting} {config[setting]}, supported is {allowed[0]}"
            )
    return config


def _open_weights(folder: Path, name: str) -> Any:
    path = folder / WEIGHTS_FILE
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InvalidRequest(
            f"adapter {name}: {path} cannot be read ({error}): save it as safetensors"
        ) from error


def _modules(name: str, tensors: Sequence[str], parts: Mapping[str, LoraPart]) -> list[str]:
    """The modules that the tensors adapt, each of which has to be a map of the model."""
    matrices: dict[str, set[str]] = {}
    for tensor in tensors:
        found = TENSOR_NAME.fullmatch(tensor)
        module = found["module"] if found else tensor
        if found is None or module not in parts:
            possible = ", ".join(sorted({part.rpartition(".")[2] for part in parts}))
            raise InvalidRequest(
                f"adapter {name} changes {module}, which takes no adapter; these do: {possible}"
            )
        matrices.setdefault(module, set()).add(found["matrix"])
    if not matrices:
        raise InvalidRequest(f"adapter {name} changes nothing: its {WEIGHTS_FILE} is empty")
    for module, have in matrices.items():
        if len(have) < 2:
            raise InvalidRequest(f"adapter {name} lacks lora_A or lora_B of {module}")
    return list(matrices)


def _check_matrices(
    name: str, module: str, matrices: tuple[Tensor, Tensor], part: LoraPart
) -> None:
    a, b = matrices
    num_inputs, num_outputs = part.a.shape[-1], part.b.shape[-1]
    if a.shape[1:] != (num_inputs,) or b.shape != (num_outputs, a.shape[0]):
        raise InvalidRequest(
            f"adapter {name} has {list(a.shape)} and {list(b.shape)} for {module}, the model takes "
            f"[rank, {num_inputs}] and [{num_outputs}, rank]: it was made for another model"
        )


def _check_finite(name: str, module: str, matrices: tuple[Tensor, Tensor], part: LoraPart) -> None:
    """A number that is none would spread: the rows of other adapters multiply it by zero."""
    a, b = (matrix.to(part.a.dtype) for matrix in matrices)
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise InvalidRequest(
            f"adapter {name} has numbers in {module} that are not finite in {part.a.dtype}"
        )


def _scale(name: str, module: str, rank: int, config: Mapping[str, Any]) -> float:
    wanted = _for_module(config.get("rank_pattern"), module, config.get("r"))
    if wanted != rank:
        raise InvalidRequest(
            f"adapter {name} has rank {rank} for {module}, its {CONFIG_FILE} says {wanted}"
        )
    alpha = float(_for_module(config.get("alpha_pattern"), module, config.get("lora_alpha", 8)))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _for_module(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that matches the end of the module's name."""
    for pattern, value in (patterns or {}).items():
        with suppress(re.error):
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                return value
    return default
