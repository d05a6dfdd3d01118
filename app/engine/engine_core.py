"""The engine without its faces: schedule → run → postprocess, one step at a time.

Not thread-safe: one thread at a time may call it.
"""

import logging
import random
from collections.abc import Sequence as ListOf
from dataclasses import dataclass
from typing import Protocol

from app.engine.config import EngineConfig, ModelConfig, SchedulerConfig
from app.engine.errors import InvalidRequest
from app.engine.kv_cache_manager import KVCacheManager
from app.engine.loader import find_model, load_model_config
from app.engine.model_runner import ModelRunner
from app.engine.outputs import EngineStats, RequestOutput
from app.engine.request import Request
from app.engine.sampling_params import SamplingParams
from app.engine.scheduler import Scheduler
from app.engine.sequence import (
    GenerationLimits,
    ScheduledBatch,
    Sequence,
    StepResult,
)
from app.engine.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

DEFAULT_MAX_MODEL_LEN = 32_768


class Runner(Protocol):
    """What computes a batch: the model runner, or a fake without a model."""

    def run(self, batch: ScheduledBatch) -> StepResult: ...


@dataclass(frozen=True, slots=True)
class NewRequest:
    """A request, its prompt in tokens; `cache_salt` keeps tenants' prefixes apart."""

    request_id: str
    prompt_token_ids: ListOf[int]
    params: SamplingParams
    prompt: str | None = None
    priority: int = 0
    cache_salt: str = ""


class EngineCore:
    """Requests in, outputs after each step."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        kv_cache: KVCacheManager,
        tokenizer: Tokenizer,
        limits: GenerationLimits,
        seed: int = 0,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_model_len = limits.max_model_len
        self._runner = runner
        self._scheduler = scheduler
        self._kv_cache = kv_cache
        self._limits = limits
        self._random = random.Random(seed)
        self._requests: dict[str, Request] = {}
        self._num_prompt_tokens = 0
        self._num_generation_tokens = 0

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return self._scheduler.has_work

    @property
    def has_queue_room(self) -> bool:
        """Whether one more request may wait."""
        return self._scheduler.has_queue_room

    def add(self, new: NewRequest) -> None:
        """Queue a request; raise InvalidRequest, PromptTooLong or EngineOverloaded."""
        self._check_token_ids(new)
        sequences = self._make_sequences(new)
        self._scheduler.add(sequences)
        self._requests[new.request_id] = Request(new.prompt, sequences, self.tokenizer)

    def abort(self, request_id: str) -> RequestOutput | None:
        """End a request now, between steps; its last output, or None if it is not running."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return None
        self._scheduler.abort(request_id)
        request.close()
        return request.output()

    def abort_all(self) -> list[str]:
        """End everything, as after a failed step; the ids of what was running."""
        self._scheduler.abort_all()
        request_ids = list(self._requests)
        self._requests.clear()
        return request_ids

    def step(self) -> list[RequestOutput]:
        """Compute one batch; the new outputs of the requests that got a token."""
        batch = self._scheduler.schedule()
        if not batch.sequences:
            return []
        result = self._runner.run(batch)
        self._scheduler.finish_step(batch, result.tokens)
        self._num_prompt_tokens += batch.num_new_tokens - len(result.tokens)
        self._num_generation_tokens += len(result.tokens)
        for entry in result.prompt_logprobs:
            request = self._requests[entry.sequence.request_id]
            request.add_prompt_logprobs(entry.start, entry.logprobs)
        return self._collect(batch, result)

    def check_integrity(self) -> None:
        """Assert the invariants of scheduler and cache."""
        assert set(self._requests) == self._scheduler.request_ids
        self._scheduler.check_integrity()

    def stats(self) -> EngineStats:
        """Numbers for metrics."""
        scheduler, prefix = self._scheduler.stats, self._kv_cache.stats
        return EngineStats(
            num_requests_running=scheduler.num_running,
            num_requests_waiting=scheduler.num_waiting,
            num_blocks=self._kv_cache.num_blocks,
            num_free_blocks=self._kv_cache.num_free_blocks,
            num_preemptions=scheduler.num_preemptions,
            num_prompt_tokens=self._num_prompt_tokens,
            num_generation_tokens=self._num_generation_tokens,
            num_prefix_queried_tokens=prefix.num_queried_tokens,
            num_prefix_hit_tokens=prefix.num_hit_tokens,
        )

    def _collect(self, batch: ScheduledBatch, result: StepResult) -> list[RequestOutput]:
        changed: dict[str, Request] = {}
        for sequence, token in zip(batch.sampled, result.tokens, strict=True):
            request = changed.setdefault(sequence.request_id, self._requests[sequence.request_id])
            stop = request.add_token(sequence, token)
            if stop is not None:
                self._scheduler.stop_at_string(sequence, stop)
        for request_id, request in changed.items():
            if request.is_finished:
                del self._requests[request_id]
        return [request.output() for request in changed.values()]

    def _make_sequences(self, new: NewRequest) -> list[Sequence]:
        params = new.params
        seed = self._random.getrandbits(63) if params.seed is None else params.seed
        bad_words = self._bad_word_ids(params)
        return [
            Sequence(
                request_id=new.request_id,
                index=index,
                token_ids=list(new.prompt_token_ids),
                params=params,
                limits=self._limits,
                seed=seed,
                salt=new.cache_salt,
                priority=new.priority,
                bad_word_ids=bad_words,
            )
            for index in range(params.n)
        ]

    def _bad_word_ids(self, params: SamplingParams) -> tuple[tuple[int, ...], ...]:
        """Each bad word as it is written at the start of a text and after a space."""
        spellings = [spelling for word in params.bad_words for spelling in (word, f" {word}")]
        return tuple(
            tuple(self.tokenizer.encode(spelling, add_special_tokens=False))
            for spelling in spellings
        )

    def _check_token_ids(self, new: NewRequest) -> None:
        named = [*new.prompt_token_ids, *new.params.stop_token_ids, *new.params.logit_bias]
        for token_id in named:
            if not 0 <= token_id < self._limits.vocab_size:
                raise InvalidRequest(
                    f"token id {token_id} is outside the vocabulary of {self._limits.vocab_size}"
                )


def load_engine(config: EngineConfig) -> EngineCore:
    """Find, read and set up a model; raise ModelNotFound, UnsupportedModel or OutOfMemory."""
    folder = find_model(config.model)
    model_config = load_model_config(folder)
    tokenizer = Tokenizer.load(find_model(config.tokenizer) if config.tokenizer else folder)
    wanted_len = choose_max_model_len(config, model_config)
    runner = ModelRunner(config, model_config, folder)
    runner.load(wanted_len)
    num_blocks = runner.allocate_kv_cache(wanted_len)
    max_model_len = min(wanted_len, num_blocks * config.block_size)
    if max_model_len < wanted_len:
        logger.warning(
            "max_model_len lowered to what the kv cache holds from=%d to=%d",
            wanted_len,
            max_model_len,
        )
    kv_cache = KVCacheManager(
        num_blocks, config.block_size, enable_prefix_caching=config.enable_prefix_caching
    )
    limits = SchedulerConfig(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_num_queued=config.max_num_queued,
        max_model_len=max_model_len,
    )
    return EngineCore(
        runner,
        Scheduler(limits, kv_cache),
        kv_cache,
        tokenizer,
        GenerationLimits(model_config.eos_token_ids, max_model_len, model_config.vocab_size),
        config.seed,
    )


def choose_max_model_len(config: EngineConfig, model_config: ModelConfig) -> int:
    """What the caller asked for, else what the model was trained for, within reason."""
    limit = model_config.max_positions
    if config.max_model_len is None:
        return min(limit, DEFAULT_MAX_MODEL_LEN)
    if config.max_model_len > limit:
        raise InvalidRequest(
            f"max_model_len is {config.max_model_len}, the model takes {limit}: lower it"
        )
    return config.max_model_len
