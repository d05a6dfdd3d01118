"""Runs scheduled batches on the device: weights, the KV tensor, forward pass, sampling."""

import logging
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from app.engine.config import EngineConfig
from app.engine.errors import InvalidRequest, OutOfMemory
from app.engine.host_pool import HostPool
from app.engine.kernels.dispatch import choose_kernels
from app.engine.kernels.metadata import KVCache
from app.engine.kernels.reference import copy_blocks
from app.engine.layers.attention import ForwardContext
from app.engine.loader import WeightReader
from app.engine.lora import LoraAdapters
from app.engine.lora_request import LoRARequest
from app.engine.machine import available_memory_bytes, num_usable_cores
from app.engine.model_config import ModelConfig
from app.engine.model_inputs import PromptRows, build_inputs
from app.engine.models.llama import LlamaModel
from app.engine.quantization_config import choose_on_load
from app.engine.sampler import keep_verified, sample, token_logprobs
from app.engine.sequence import PooledStates, PromptLogprobs, ScheduledBatch, StepResult
from app.engine.weight_check import check_leftovers, check_shapes
from app.engine.weights import CheckpointWeights

logger = logging.getLogger(__name__)

# Of the free memory; the rest stays for activations, the embedding model and the system.
CPU_KV_SHARE = 0.4
GPU_SWAP_SHARE = 0.25  # of the host's free memory
GPU_MAX_SWAP_BYTES = 4 * 2**30  # pinning takes time
PROMPT_LOGIT_ROWS = 64  # rows of logits made at a time for prompt log probabilities
MIB = 2**20
GIB = 2**30


class ModelRunner:
    """A loaded model with its block pool; `run` is called by one thread only."""

    def __init__(self, config: EngineConfig, model_config: ModelConfig, folder: Path) -> None:
        self._config = config
        self._model_config = model_config
        self._folder = folder
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._dtype = choose_dtype(config.dtype, self._device)
        self._model: LlamaModel | None = None
        self._kv_cache: KVCache | None = None
        self._host_pool: HostPool | None = None
        self._loras: LoraAdapters | None = None
        if config.enable_lora:
            slots = config.max_loras, config.max_lora_rank
            self._loras = LoraAdapters(*slots, self._dtype, self._device)
        self.weight_bytes = 0

    @property
    def is_gpu(self) -> bool:
        """Whether it computes on a GPU."""
        return self._device.type == "cuda"

    @property
    def block_bytes(self) -> int:
        """Bytes of one block of the pool, scales included."""
        assert self._kv_cache is not None
        return sum(part[0].nbytes for part in self._kv_cache.parts)

    def load(self, max_model_len: int) -> None:
        """Read the weights."""
        if self._device.type == "cpu":
            torch.set_num_threads(self._config.num_threads or num_usable_cores())
        free_bytes = self._free_memory_bytes()
        with WeightReader(self._folder, self._dtype, self._device) as read_tensor:
            check_shapes(read_tensor.shapes(), self._model_config)
            stored = self._model_config.quantization
            on_load = choose_on_load(self._config.quantization, stored)
            kernels = choose_kernels(self._device, self._config.kernels)
            packer = kernels.packer if self._dtype == torch.float32 else None
            weights = CheckpointWeights(read_tensor, on_load, stored, self._loras, packer)
            self._model = LlamaModel(
                self._model_config, weights, max_model_len, self._device, kernels
            )
            check_leftovers(read_tensor.leftovers(), self._model_config)
        self.weight_bytes = max(free_bytes - self._free_memory_bytes(), 0)
        logger.info(
            "model loaded architecture=%s dtype=%s device=%s num_threads=%d",
            self._model_config.architecture,
            self._dtype,
            self._device,
            torch.get_num_threads(),
        )

    def allocate_kv_cache(self, max_model_len: int) -> int:
        """Make the block pool and return its number of blocks.

        The pool takes a share of what the machine has left, and never more than every seat
        filled to `max_model_len` could use.
        """
        config = self._config
        block_bytes = self._token_bytes() * config.block_size
        free_bytes = self._free_memory_bytes()
        pool_bytes = config.kv_cache_memory_bytes
        if pool_bytes is None:
            blocks_per_sequence = -(-max_model_len // config.block_size)
            useful_bytes = config.max_num_seqs * blocks_per_sequence * block_bytes
            pool_bytes = min(self._default_pool_bytes(free_bytes), useful_bytes)
        num_blocks = pool_bytes // block_bytes
        if num_blocks < 1 or pool_bytes > free_bytes:
            raise OutOfMemory(
                f"the KV cache would take {pool_bytes // MIB} MiB in blocks of "
                f"{block_bytes // 1024} KiB, {free_bytes // MIB} MiB are free: "
                "set kv_cache_memory_bytes, or free memory"
            )
        self._kv_cache = self._make_kv_cache(num_blocks)
        logger.info(
            "kv cache allocated num_blocks=%d block_tokens=%d tokens=%d mib=%d free_mib=%d",
            num_blocks,
            config.block_size,
            num_blocks * config.block_size,
            num_blocks * block_bytes // MIB,
            free_bytes // MIB,
        )
        return int(num_blocks)

    def allocate_host_pool(self) -> int:
        """Make the host blocks for swapped sequences, return their number, log the whole sum."""
        assert self._kv_cache is not None
        pool_bytes = self._kv_cache.data.shape[0] * self.block_bytes
        # The block pool of a CPU is not yet touched, so it still counts as free.
        free_bytes = max(available_memory_bytes() - (0 if self.is_gpu else pool_bytes), 0)
        swap_bytes = self._swap_bytes(free_bytes, pool_bytes)
        if swap_bytes > free_bytes:
            raise OutOfMemory(
                f"swap_space is {swap_bytes / GIB:.1f} GiB, the host has "
                f"{free_bytes / GIB:.1f} GiB left: lower it"
            )
        num_blocks = swap_bytes // self.block_bytes
        if num_blocks:
            self._host_pool = HostPool(self._kv_cache, num_blocks)
        logger.info(
            "memory planned weights_mib=%d kv_pool_mib=%d swap_mib=%d num_host_blocks=%d "
            "host_free_mib=%d",
            self.weight_bytes // MIB,
            pool_bytes // MIB,
            swap_bytes // MIB,
            num_blocks,
            (free_bytes - swap_bytes) // MIB,
        )
        return num_blocks

    def _token_bytes(self) -> int:
        """What a token's keys and values take in the pool, over all layers."""
        num_elements = self._model_config.kv_elements_per_token
        if self._config.kv_cache_dtype == "auto":
            return num_elements * self._dtype.itemsize
        num_scales = num_elements // self._model_config.head_dim
        return num_elements + num_scales * torch.float32.itemsize

    def _make_kv_cache(self, num_blocks: int) -> KVCache:
        shape, block_size = self._model_config, self._config.block_size
        # zeros: masked positions are multiplied by 0, so they must not hold NaN.
        dimensions = (num_blocks, shape.num_layers, 2, shape.num_kv_heads, block_size)
        data = (*dimensions, shape.head_dim)
        if self._config.kv_cache_dtype == "auto":
            return KVCache(torch.zeros(data, dtype=self._dtype, device=self._device))
        return KVCache(
            torch.zeros(data, dtype=torch.int8, device=self._device),
            torch.zeros(dimensions, dtype=torch.float32, device=self._device),
        )

    @torch.inference_mode()
    def run(self, batch: ScheduledBatch) -> StepResult:
        """Do one step; the answer has the tokens of each of `batch.sampled`."""
        assert self._model is not None
        assert self._kv_cache is not None
        self._move_blocks(batch)
        slots = self._place_adapters(batch)
        inputs = build_inputs(batch, self._config.block_size, self._device, slots)
        context = ForwardContext(self._kv_cache, inputs.attention, inputs.lora)
        hidden = self._model.forward(inputs.token_ids, context)
        prompt_logprobs = tuple(self._prompt_logprobs(hidden, rows) for rows in inputs.prompt_rows)
        pooled = tuple(self._pooled_states(hidden, rows) for rows in inputs.pooled_rows)
        if not batch.sampled:
            return StepResult((), prompt_logprobs, pooled, self._move_s(batch))
        logits = self._model.logits(hidden[inputs.sampled_rows])
        tokens = keep_verified(batch, sample(logits, batch.sampling_rows))
        return StepResult(tokens, prompt_logprobs, pooled, self._move_s(batch))

    def open_adapter(self, request: LoRARequest, in_use: Collection[int]) -> str:
        """Check and map a request's adapter; a name for what it computes, never used again.

        `in_use` are the `lora_int_id` of live requests. Raises InvalidRequest.
        """
        if self._loras is None:
            raise InvalidRequest(
                f"adapter {request.lora_name} was asked for, enable_lora is off: turn it on"
            )
        return self._loras.open(request, in_use)

    def _place_adapters(self, batch: ScheduledBatch) -> dict[int, int]:
        int_ids = {item.sequence.lora_int_id for item in batch.sequences} - {0}
        return self._loras.place(int_ids) if self._loras and int_ids else {}

    def _move_blocks(self, batch: ScheduledBatch) -> None:
        assert self._kv_cache is not None
        if batch.has_swaps:
            assert self._host_pool is not None
            self._host_pool.move(batch.swap_outs, batch.swap_ins)
        if batch.block_copies:
            sources, targets = zip(*batch.block_copies, strict=True)
            copy_blocks(self._kv_cache, self._index(sources), self._index(targets))

    def _move_s(self, batch: ScheduledBatch) -> float:
        return self._host_pool.seconds() if self._host_pool and batch.has_swaps else 0.0

    def _pooled_states(self, hidden: Tensor, rows: PromptRows) -> PooledStates:
        """The sum of the rows' states; hidden: [T, E]."""
        assert self._model is not None
        states = self._model.final_states(hidden[rows.start_row : rows.start_row + rows.num_rows])
        total = states.double().sum(dim=0).tolist()
        return PooledStates(rows.sequence, rows.start_position, rows.num_rows, tuple(total))

    def _prompt_logprobs(self, hidden: Tensor, rows: PromptRows) -> PromptLogprobs:
        """How likely each prompt token was after those before it."""
        assert self._model is not None
        sequence, result = rows.sequence, []
        num_top = sequence.params.prompt_logprobs or 0
        for start in range(0, rows.num_rows, PROMPT_LOGIT_ROWS):
            num_rows = min(PROMPT_LOGIT_ROWS, rows.num_rows - start)
            first = rows.start_row + start
            logits = self._model.logits(hidden[first : first + num_rows])
            position = rows.start_position + start + 1
            next_tokens = sequence.token_ids[position : position + num_rows]
            result += [
                token_logprobs(row, token_id, num_top)
                for row, token_id in zip(logits, next_tokens, strict=True)
            ]
        return PromptLogprobs(sequence, rows.start_position + 1, tuple(result))

    def _index(self, values: tuple[int, ...]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)

    def _swap_bytes(self, free_bytes: int, pool_bytes: int) -> int:
        if self._config.swap_space is not None:
            return int(self._config.swap_space * GIB)
        if not self.is_gpu:
            return 0
        return min(int(free_bytes * GPU_SWAP_SHARE), GPU_MAX_SWAP_BYTES, pool_bytes)

    def _default_pool_bytes(self, free_bytes: int) -> int:
        """On a GPU all that `gpu_memory_utilization` leaves beside the weights."""
        if self._device.type != "cuda":
            return int(free_bytes * CPU_KV_SHARE)
        total_bytes = torch.cuda.mem_get_info(self._device)[1]
        used_bytes = total_bytes - free_bytes
        return max(int(total_bytes * self._config.gpu_memory_utilization) - used_bytes, 0)

    def _free_memory_bytes(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.mem_get_info(self._device)[0]
        return available_memory_bytes()


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the hardware multiplies it, else float32.

    Measured on a CPU with AVX2 alone (4864 x 896, one thread): bfloat16 is as fast as float32
    for one row, 2.7 times slower for 8 rows and 7.6 times slower for 128.
    """
    if dtype != "auto":
        result = getattr(torch, dtype)
        assert isinstance(result, torch.dtype)
        return result
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    has_bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_bfloat16 else torch.float32
