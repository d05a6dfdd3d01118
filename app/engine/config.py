"""What the engine is told. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from app.engine.errors import InvalidRequest

DType = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["int8", "int4", "gptq", "awq"]
KVCacheDType = Literal["auto", "int8"]
KernelKind = Literal["auto", "torch"]

AT_LEAST_ONE = (
    "block_size",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_num_queued",
    "max_loras",
    "max_lora_rank",
)


@dataclass(frozen=True, slots=True)
class SpeculativeConfig:
    """How to guess tokens: as in the last place where the same n tokens stood (prompt lookup).

    n goes from `prompt_lookup_max` down to `prompt_lookup_min`. Fewer than
    `num_speculative_tokens` are guessed, or none, where more would not pay.
    """

    method: Literal["ngram"] = "ngram"
    num_speculative_tokens: int = 5
    prompt_lookup_max: int = 4
    prompt_lookup_min: int = 2

    def __post_init__(self) -> None:
        if self.method != "ngram":
            raise InvalidRequest(f"speculative method is {self.method}, known: ngram")
        if self.num_speculative_tokens < 1:
            raise InvalidRequest(
                f"num_speculative_tokens is {self.num_speculative_tokens}, it must be at least 1"
            )
        if not 1 <= self.prompt_lookup_min <= self.prompt_lookup_max:
            raise InvalidRequest(
                f"prompt_lookup_min is {self.prompt_lookup_min}, it must be between 1 and "
                f"prompt_lookup_max {self.prompt_lookup_max}"
            )


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How to run a model. None means: chosen from the model and from what the machine has left.

    `model` is a local folder or a hub name. `kv_cache_memory_bytes` is the size of the block
    pool; else, on a GPU, weights and pool take `gpu_memory_utilization` of its memory.
    `swap_space` is the host memory, in GiB, that keeps the blocks of preempted sequences; None is
    0 on a CPU, where the same memory serves better as blocks, and on a GPU a quarter of what the
    host has left, up to 4 and to the size of the block pool.
    `max_num_batched_tokens` is the budget of a step, `max_num_queued` the number of
    requests that may wait. `num_threads` 0 takes every core this process may use.
    `speculative_config` (its fields, as in vLLM) has tokens guessed ahead; None does not.
    `quantization` int8 or int4 makes weights smaller when they are loaded, `kv_cache_dtype` int8
    the block pool; "auto" keeps keys and values in `dtype`. With `enable_lora` a request may name
    an adapter: up to `max_loras` are in memory and in a step, none above `max_lora_rank`.
    `kernels` "torch" computes in plain torch where faster kernels are at hand.
    """

    model: str
    tokenizer: str | None = None
    dtype: DType = "auto"
    max_model_len: int | None = None
    seed: int = 0
    block_size: int = 16
    gpu_memory_utilization: float = 0.9
    kv_cache_memory_bytes: int | None = None
    swap_space: float | None = None
    max_num_seqs: int = 32
    max_num_batched_tokens: int = 512
    max_num_queued: int = 256
    enable_prefix_caching: bool = True
    num_threads: int = 0
    speculative_config: SpeculativeConfig | Mapping[str, Any] | None = None
    quantization: Quantization | None = None
    kv_cache_dtype: KVCacheDType = "auto"
    kernels: KernelKind = "auto"
    enable_lora: bool = False
    max_loras: int = 1
    max_lora_rank: int = 16

    def __post_init__(self) -> None:
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise InvalidRequest(f"{name} is {getattr(self, name)}, it must be at least 1")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise InvalidRequest(
                f"gpu_memory_utilization is {self.gpu_memory_utilization}, it must be above 0 and "
                "at most 1"
            )
        _ = self.speculation
        if self.swap_space is not None and self.swap_space < 0:
            raise InvalidRequest(f"swap_space is {self.swap_space}, it must be at least 0")
        for name, choices in (
            ("dtype", get_args(DType)),
            ("quantization", (*get_args(Quantization), None)),
            ("kv_cache_dtype", get_args(KVCacheDType)),
            ("kernels", get_args(KernelKind)),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise InvalidRequest(f"{name} is {value}, known: {', '.join(map(str, choices))}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise InvalidRequest(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}, below max_num_seqs "
                f"{self.max_num_seqs}: a step could not give each sequence a token"
            )

    @property
    def speculation(self) -> SpeculativeConfig | None:
        """`speculative_config`, checked."""
        given = self.speculative_config
        if given is None or isinstance(given, SpeculativeConfig):
            return given
        try:
            return SpeculativeConfig(**given)
        except TypeError as error:
            known = ", ".join(field.name for field in fields(SpeculativeConfig))
            raise InvalidRequest(f"speculative_config: {error}; its fields are {known}") from error


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """The limits that the scheduler keeps.

    `watermark` is the share of blocks kept for growth, `ageing_steps` the steps of waiting that
    are worth one level of priority, `tenant_queue_share` the share of the queue that the
    requests of one named tenant may take.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_num_queued: int
    max_model_len: int
    watermark: float = 0.01
    ageing_steps: int = 256
    tenant_queue_share: float = 0.5
    max_loras: int = 1
