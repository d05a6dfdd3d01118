"""The engine without its faces: schedule → run → postprocess, one step at a time.

Not thread-safe: one thread at a time may call it.
"""

import logging
import random
import time
from collections.abc import Collection, Iterable
from collections.abc import Sequence as ListOf
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from app.engine.beam_search import BeamGroup, BeamSearchParams
from app.engine.config import EngineConfig, SchedulerConfig
from app.engine.cost_model import CostModel
from app.engine.errors import InvalidRequest
from app.engine.kv_cache_manager import KVCacheManager
from app.engine.loader import find_model, load_default_sampling_params, load_model_config
from app.engine.lora_request import LoRARequest
from app.engine.model_config import ModelConfig
from app.engine.model_runner import ModelRunner
from app.engine.outputs import EmbeddingRequestOutput, EngineStats, RequestOutput
from app.engine.pooling import PoolingParams, PoolingRequest
from app.engine.quotes import ForcedTokens
from app.engine.request import BeamRequest, Request
from app.engine.sampling_params import SamplingParams, StructuredOutputsParams
from app.engine.scheduler import Scheduler
from app.engine.sequence import (
    GenerationLimits,
    ScheduledBatch,
    Sequence,
    StepResult,
)
from app.engine.speculative import Drafter, SpeculationStats, Speculator
from app.engine.stats import Observe, StepRecorder
from app.engine.structured import GrammarCompiler
from app.engine.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

DEFAULT_MAX_MODEL_LEN = 32_768
Output = RequestOutput | EmbeddingRequestOutput


class Runner(Protocol):
    """What computes a batch: the model runner, or a fake without a model."""

    def run(self, batch: ScheduledBatch) -> StepResult: ...
    def open_adapter(self, request: LoRARequest, in_use: Collection[int]) -> str: ...


@dataclass(frozen=True, slots=True)
class NewRequest:
    """A request, its prompt in tokens; `cache_salt` keeps tenants' prefixes apart.

    `tenant` is who shares the engine fairly with others. With `pooling` an embedding is asked
    for, with `beam_search` the best answers; then `params` do not matter. `draft_sources` are
    passages in tokens that the answer may quote. `lora_request` is the adapter to answer with.
    """

    request_id: str
    prompt_token_ids: ListOf[int]
    params: SamplingParams
    prompt: str | None = None
    priority: int = 0
    cache_salt: str = ""
    pooling: PoolingParams | None = None
    tenant: str = ""
    beam_search: BeamSearchParams | None = None
    draft_sources: ListOf[ListOf[int]] = ()
    lora_request: LoRARequest | None = None


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
        self.grammars = GrammarCompiler(
            tokenizer.to_json(),
            limits.eos_token_ids,
            max(limits.vocab_size, tokenizer.vocab_size),
        )
        self.default_sampling_params = SamplingParams()
        self.max_model_len = limits.max_model_len
        self.block_bytes = 0
        self._runner = runner
        self._scheduler = scheduler
        self._kv_cache = kv_cache
        self._limits = limits
        self.speculator = scheduler.speculator
        self._random = random.Random(seed)
        self._requests: dict[str, Request | BeamRequest | PoolingRequest] = {}
        self._recorder = StepRecorder()
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

    def queue_limit(self, tenant: str) -> int:
        """How many requests of a tenant may wait at a time."""
        return self._scheduler.queue_limit(tenant)

    def add(self, new: NewRequest) -> None:
        """Queue a request; raise InvalidRequest, PromptTooLong or EngineOverloaded."""
        params = new.params
        self.check_token_ids(
            chain(
                new.prompt_token_ids,
                params.stop_token_ids,
                params.logit_bias,
                params.allowed_token_ids or (),
                *new.draft_sources,
            )
        )
        self._check_dimensions(new)
        if new.beam_search is not None:
            self._add_beam_search(new, new.beam_search)
            return
        sequences = self._make_sequences(new, new.params, new.params.n)
        self._scheduler.add(sequences)
        self._requests[new.request_id] = (
            Request(new.prompt, sequences, self.tokenizer)
            if new.pooling is None
            else PoolingRequest(sequences[0], new.pooling)
        )

    def _add_beam_search(self, new: NewRequest, search: BeamSearchParams) -> None:
        params = search.sampling_params(self._limits)
        group = BeamGroup(self._make_sequences(new, params, search.beam_width), search)
        self._scheduler.add(group.sequences, group)
        self._requests[new.request_id] = BeamRequest(new.prompt, group, search, self.tokenizer)

    def abort(self, request_id: str) -> Output | None:
        """End a request now, between steps; its last output, or None if it is not running."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return None
        self._scheduler.abort(request_id)
        request.close()
        self._recorder.ended(request.timeline, request.sequences)
        self._recorder.tell(0)
        return request.output()

    def abort_all(self) -> list[str]:
        """End everything, as after a failed step; the ids of what was running."""
        self._scheduler.abort_all()
        for request in self._requests.values():
            self._recorder.ended(request.timeline, request.sequences)
        self._recorder.tell(0)
        request_ids = list(self._requests)
        self._requests.clear()
        return request_ids

    def observe_steps(self, observe: Observe) -> None:
        """Have a function told of each step; the engine's thread runs it, so it must be quick."""
        self._recorder.observe = observe

    def step(self) -> list[Output]:
        """Compute one batch; the new outputs of the requests that got a token or ended."""
        batch = self._scheduler.schedule()
        if not batch.sequences:
            return []
        for item in batch.sequences:
            self._recorder.scheduled(self._requests[item.sequence.request_id].timeline)
        start = time.perf_counter()
        result = self._runner.run(batch)
        compute_s = time.perf_counter() - start - result.move_s
        self._scheduler.observe(batch, compute_s, result.move_s)
        if self.speculator is not None and batch.num_new_tokens == batch.num_sampling_rows:
            self.speculator.row_cost.observe(batch.num_new_tokens, compute_s)
        num_taken = self._scheduler.finish_step(batch, result.tokens)
        for entry in result.prompt_logprobs:
            self._generating(entry.sequence).add_prompt_logprobs(entry.start, entry.logprobs)
        changed: list[Request | BeamRequest | PoolingRequest] = [
            *self._add_tokens(batch, result, num_taken),
            *self._add_states(result),
        ]
        for request in changed:
            if request.is_finished:
                self._forget(request)
        self._recorder.tell(batch.num_new_tokens)
        outputs = (request.output() for request in changed)
        return [output for output in outputs if output is not None]

    def check_integrity(self) -> None:
        """Assert the invariants of scheduler and cache."""
        assert set(self._requests) == self._scheduler.request_ids
        self._scheduler.check_integrity()

    def stats(self) -> EngineStats:
        """Numbers for metrics."""
        scheduler, prefix = self._scheduler.stats, self._kv_cache.stats
        drafts = self.speculator.stats if self.speculator else SpeculationStats()
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
            num_drafts=drafts.num_drafts,
            num_draft_tokens=drafts.num_draft_tokens,
            num_accepted_tokens=drafts.num_accepted_tokens,
            num_requests_swapped=scheduler.num_swapped,
            num_host_blocks=self._kv_cache.num_host_blocks,
            num_free_host_blocks=self._kv_cache.num_free_host_blocks,
            num_swap_preemptions=scheduler.num_swap_preemptions,
            num_swapped_out_blocks=scheduler.num_swapped_out_blocks,
            num_swapped_in_blocks=scheduler.num_swapped_in_blocks,
            block_bytes=self.block_bytes,
            num_reserved_slots=scheduler.num_reserved_slots,
            num_held_tokens=scheduler.num_held_tokens,
            num_waiting_by_tenant=scheduler.num_waiting_by_tenant,
        )

    def _add_tokens(
        self, batch: ScheduledBatch, result: StepResult, num_taken: list[int]
    ) -> list[Request | BeamRequest]:
        """Hand the tokens to their requests; those that have something new to show."""
        changed: dict[str, Request | BeamRequest] = {}
        for sequence, tokens, count in zip(batch.sampled, result.tokens, num_taken, strict=True):
            request = self._requests[sequence.request_id]
            assert not isinstance(request, PoolingRequest)
            changed[request.request_id] = request
            if isinstance(request, BeamRequest):
                self._num_generation_tokens += count
                continue  # its tokens are chosen by the group
            num_before = sequence.num_output_tokens - count
            stop = request.add_tokens(sequence, tokens[:count])
            if stop is not None:
                self._scheduler.stop_at_string(sequence, stop.text, stop.num_output_tokens)
            self._num_generation_tokens += sequence.num_output_tokens - num_before
        for request in changed.values():
            if request.timeline.first_token is None:
                self._num_prompt_tokens += request.sequences[0].num_prompt_tokens
            self._recorder.got_tokens(request.timeline)
        return [
            request
            for request in changed.values()
            if request.is_finished or isinstance(request, Request)
        ]

    def _add_states(self, result: StepResult) -> list[PoolingRequest]:
        """Hand pooled states to their requests; those that have all."""
        changed: list[PoolingRequest] = []
        for states in result.pooled:
            request = self._requests[states.sequence.request_id]
            assert isinstance(request, PoolingRequest)
            request.add_states(states)
            if request.is_finished:
                self._num_prompt_tokens += states.sequence.num_prompt_tokens
                changed.append(request)
        return changed

    def _forget(self, request: Request | BeamRequest | PoolingRequest) -> None:
        del self._requests[request.request_id]
        self._recorder.ended(request.timeline, request.sequences)

    def _generating(self, sequence: Sequence) -> Request:
        request = self._requests[sequence.request_id]
        assert isinstance(request, Request)
        return request

    def _make_sequences(
        self, new: NewRequest, params: SamplingParams, count: int
    ) -> list[Sequence]:
        seed = self._random.getrandbits(63) if params.seed is None else params.seed
        bad_words = params.bad_words
        prompt = self._truncate(new)
        drafters = self._drafters(new, prompt, count)
        salt = self._prefix_salt(new)
        sequences = [
            Sequence(
                request_id=new.request_id,
                index=index,
                token_ids=list(prompt),
                params=params,
                limits=self._limits,
                seed=seed,
                salt=salt,
                tenant=new.tenant,
                lora_int_id=new.lora_request.lora_int_id if new.lora_request else 0,
                priority=new.priority,
                bad_words=self.grammars.ban(bad_words) if bad_words else None,
                pooling=new.pooling.pooling_type if new.pooling else None,
                drafter=drafters[index],
            )
            for index in range(count)
        ]
        if params.structured_outputs is not None:
            for sequence in sequences:
                self._constrain(sequence, params.structured_outputs)
        return sequences

    def _constrain(self, sequence: Sequence, structured: StructuredOutputsParams) -> None:
        """Give a new sequence its form; quotes bring priors, and drafts that are never wrong."""
        if structured.quote_only is None:
            sequence.grammar = self.grammars.start(structured)
            return
        mask = self.grammars.quote(
            structured.quote_only,
            sequence.max_output_tokens,
            is_greedy=sequence.params.is_greedy,
        )
        sequence.grammar = sequence.prior = mask
        sequence.drafter = ForcedTokens(mask, sequence.num_prompt_tokens)

    def _prefix_salt(self, new: NewRequest) -> str:
        """Keeps apart the prefixes of tenants, and those that different adapters computed."""
        adapter = None if new.lora_request is None else self.open_adapter(new.lora_request)
        return repr((new.cache_salt, adapter))

    def open_adapter(self, request: LoRARequest) -> str:
        """Check an adapter's files; a name for what it computes. Raises InvalidRequest."""
        in_use = {s.lora_int_id for r in self._requests.values() for s in r.sequences}
        return self._runner.open_adapter(request, in_use)

    def _drafters(self, new: NewRequest, prompt: list[int], count: int) -> ListOf[Drafter | None]:
        if self.speculator is None or new.pooling is not None or new.beam_search is not None:
            return [None] * count
        return self.speculator.drafters(new.draft_sources, prompt, count)

    def _truncate(self, new: NewRequest) -> list[int]:
        """The prompt's last tokens, as many as `truncate_prompt_tokens` keeps."""
        limit = new.params.truncate_prompt_tokens
        if limit is None:
            return list(new.prompt_token_ids)
        return list(new.prompt_token_ids[-(limit if limit > 0 else self.max_model_len - 1) :])

    def check_token_ids(self, token_ids: Iterable[int]) -> None:
        """Raise InvalidRequest for one that is outside the vocabulary."""
        for token_id in token_ids:
            if not 0 <= token_id < self._limits.vocab_size:
                raise InvalidRequest(
                    f"token id {token_id} is outside the vocabulary of {self._limits.vocab_size}"
                )

    def _check_dimensions(self, new: NewRequest) -> None:
        wanted, size = new.pooling and new.pooling.dimensions, self._limits.hidden_size
        if wanted and size and wanted > size:
            raise InvalidRequest(f"dimensions is {wanted}, embeddings of this model have {size}")


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
        num_blocks,
        config.block_size,
        num_host_blocks=runner.allocate_host_pool(),
        enable_prefix_caching=config.enable_prefix_caching,
    )
    costs = CostModel.assumed(runner.weight_bytes, runner.block_bytes, is_gpu=runner.is_gpu)
    limits = SchedulerConfig(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_num_queued=config.max_num_queued,
        max_model_len=max_model_len,
        max_loras=config.max_loras,
    )
    speculator = Speculator(config.speculation) if config.speculation else None
    core = EngineCore(
        runner,
        Scheduler(limits, kv_cache, speculator, costs),
        kv_cache,
        tokenizer,
        GenerationLimits(
            model_config.eos_token_ids,
            max_model_len,
            model_config.vocab_size,
            model_config.hidden_size,
        ),
        config.seed,
    )
    core.block_bytes = runner.block_bytes
    core.default_sampling_params = load_default_sampling_params(folder)
    return core


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
