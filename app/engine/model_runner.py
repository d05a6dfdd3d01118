"""Runs scheduled batches on the device: weights, the KV tensor, forward pass, sampling."""

import logging
from pathlib import Path

import torch
from torch import Tensor

from app.engine.config import EngineConfig, ModelConfig
from app.engine.errors import OutOfMemory
from app.engine.kernels.reference import copy_blocks
from app.engine.loader import WeightReader
from app.engine.machine import available_memory_bytes, num_usable_cores
from app.engine.model_inputs import PromptRows, build_inputs
from app.engine.models.llama import LlamaModel
from app.engine.sampler import sample, token_logprobs
from app.engine.sequence import PromptLogprobs, ScheduledBatch, StepResult

logger = logging.getLogger(__name__)

# Shares of the free memory: the rest stays for activations, the embedding model and the system.
CPU_KV_SHARE = 0.4
GPU_KV_SHARE = 0.9
PROMPT_LOGIT_ROWS = 64  # rows of logits made at a time for prompt log probabilities
MIB = 2**20


class ModelRunner:
    """A loaded model with its block pool; `run` is called by one thread only."""

    def __init__(self, config: EngineConfig, model_config: ModelConfig, folder: Path) -> None:
        self._config = config
        self._model_config = model_config
        self._folder = folder
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._dtype = choose_dtype(config.dtype, self._device)
        self._model: LlamaModel | None = None
        self._kv_cache: Tensor | None = None

    def load(self, max_model_len: int) -> None:
        """Read the weights."""
        if self._device.type == "cpu":
            torch.set_num_threads(self._config.num_threads or num_usable_cores())
        with WeightReader(self._folder, self._dtype, self._device) as read_weight:
            self._model = LlamaModel(self._model_config, read_weight, max_model_len, self._device)
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
        config, shape = self._config, self._model_config
        block_bytes = shape.kv_elements_per_token * config.block_size * self._dtype.itemsize
        free_bytes = self._free_memory_bytes()
        pool_bytes = config.kv_cache_memory_bytes
        if pool_bytes is None:
            share = GPU_KV_SHARE if self._device.type == "cuda" else CPU_KV_SHARE
            blocks_per_sequence = -(-max_model_len // config.block_size)
            useful_bytes = config.max_num_seqs * blocks_per_sequence * block_bytes
            pool_bytes = min(int(free_bytes * share), useful_bytes)
        num_blocks = pool_bytes // block_bytes
        if num_blocks < 1 or pool_bytes > free_bytes:
            raise OutOfMemory(
                f"the KV cache would take {pool_bytes // MIB} MiB in blocks of "
                f"{block_bytes // 1024} KiB, {free_bytes // MIB} MiB are free: "
                "set kv_cache_memory_bytes, or free memory"
            )
        # zeros: masked positions are multiplied by 0, so they must not hold NaN.
        self._kv_cache = torch.zeros(
            num_blocks,
            shape.num_layers,
            2,
            shape.num_kv_heads,
            config.block_size,
            shape.head_dim,
            dtype=self._dtype,
            device=self._device,
        )
        logger.info(
            "kv cache allocated num_blocks=%d block_tokens=%d tokens=%d mib=%d free_mib=%d",
            num_blocks,
            config.block_size,
            num_blocks * config.block_size,
            num_blocks * block_bytes // MIB,
            free_bytes // MIB,
        )
        return int(num_blocks)

    @torch.inference_mode()
    def run(self, batch: ScheduledBatch) -> StepResult:
        """Do one step; the answer has one token for each of `batch.sampled`."""
        assert self._model is not None
        assert self._kv_cache is not None
        if batch.block_copies:
            sources, targets = zip(*batch.block_copies, strict=True)
            copy_blocks(self._kv_cache, self._index(sources), self._index(targets))
        inputs = build_inputs(batch, self._config.block_size, self._device)
        hidden = self._model.forward(
            inputs.token_ids, inputs.positions, self._kv_cache, inputs.attention
        )
        prompt_logprobs = tuple(self._prompt_logprobs(hidden, rows) for rows in inputs.prompt_rows)
        if not batch.sampled:
            return StepResult((), prompt_logprobs)
        logits = self._model.logits(hidden[inputs.sampled_rows])
        return StepResult(sample(logits, batch.sampled), prompt_logprobs)

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
