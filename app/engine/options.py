"""The keyword options of `LLM` and `AsyncLLM`, under vLLM's names."""

import logging
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from app.engine.config import (
    DType,
    EngineConfig,
    KernelKind,
    KVCacheDType,
    Quantization,
    SpeculativeConfig,
)
from app.engine.errors import InvalidRequest
from app.engine.lora_request import LoRARequest

logger = logging.getLogger(__name__)

DTYPE_ALIASES = {"half": "float16", "float": "float32"}


class EngineOptions(TypedDict, total=False):
    """The fields of `EngineConfig` besides `model`."""

    tokenizer: str | None
    dtype: DType | Literal["half", "float"]
    max_model_len: int | None
    seed: int
    block_size: int
    gpu_memory_utilization: float
    kv_cache_memory_bytes: int | None
    swap_space: float | None
    max_num_seqs: int
    max_num_batched_tokens: int
    max_num_queued: int
    enable_prefix_caching: bool
    num_threads: int
    kernels: KernelKind
    speculative_config: SpeculativeConfig | Mapping[str, Any] | None
    quantization: Quantization | None
    kv_cache_dtype: KVCacheDType
    enable_lora: bool
    max_loras: int
    max_lora_rank: int


class VLLMOptions(EngineOptions, total=False):
    """What vLLM's users also write, and what it means here.

    `tensor_parallel_size` must be 1: the engine runs on one device. `trust_remote_code` has no
    effect: code from a checkpoint never runs. Nor have `enforce_eager` and `disable_log_stats`:
    nothing is captured, and nothing is logged for each step; nor `max_cpu_loras`: adapters without
    a slot stay in their files.
    """

    tensor_parallel_size: int
    trust_remote_code: bool
    enforce_eager: bool
    disable_log_stats: bool
    max_cpu_loras: int | None


class RequestOptions(TypedDict, total=False):
    """What goes with a request besides its prompt and params: fields of `NewRequest`."""

    priority: int
    cache_salt: str
    lora_request: LoRARequest | None
    tenant: str


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams` that are often set."""

    n: int
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stop: list[str] | str
    max_tokens: int | None


def make_config(model: str, options: VLLMOptions) -> EngineConfig:
    """The engine's config from the options of a face; raise InvalidRequest for what is not there.

    A dtype may also be written as an alias, or be torch's own.
    """
    values: dict[str, Any] = dict(options)  # what remains after the options without a field
    num_devices = values.pop("tensor_parallel_size", 1)
    if num_devices != 1:
        raise InvalidRequest(
            f"tensor_parallel_size is {num_devices}, the engine runs on one device: leave it at 1"
        )
    if values.pop("trust_remote_code", False):
        logger.warning("trust_remote_code has no effect: code from a checkpoint never runs")
    for name in VLLMOptions.__annotations__.keys() - EngineOptions.__annotations__.keys():
        values.pop(name, None)
    dtype = str(values.get("dtype", "auto")).removeprefix("torch.")
    return EngineConfig(model, **values | {"dtype": DTYPE_ALIASES.get(dtype, dtype)})
