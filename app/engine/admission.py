"""Which requests are refused before they wait, with the numbers that forbid them. No torch."""

from app.engine.config import SchedulerConfig
from app.engine.cost_model import CostModel
from app.engine.errors import EngineOverloaded, InvalidRequest, PromptTooLong
from app.engine.kv_cache_manager import KVCacheManager
from app.engine.policy import WaitingQueue
from app.engine.sequence import Sequence

MAX_PRIORITY = 1000  # bounds how many later requests may go before one that waits
NO_TENANT = ""  # may fill the queue


class Admission:
    """What can never run is refused for good, what finds no room in the queue for a while."""

    def __init__(
        self,
        config: SchedulerConfig,
        kv_cache: KVCacheManager,
        waiting: WaitingQueue,
        costs: CostModel,
    ) -> None:
        self._config = config
        self._kv_cache = kv_cache
        self._waiting = waiting
        self._costs = costs

    def check(self, sequence: Sequence, n: int, *, is_beam_search: bool) -> None:
        """Raise InvalidRequest, PromptTooLong or EngineOverloaded; `n` counts its sequences."""
        config = self._config
        if not sequence.token_ids:
            raise InvalidRequest("the prompt is empty: it needs at least one token")
        num_answer_tokens = 1 if sequence.pooling is None else 0
        if sequence.num_tokens + num_answer_tokens > config.max_model_len:
            raise PromptTooLong(
                f"prompt has {sequence.num_tokens} tokens, the model takes "
                f"{config.max_model_len} with at least {num_answer_tokens} for the answer: "
                "shorten the prompt"
            )
        self._check_size(sequence, n if is_beam_search else 1)
        if n > config.max_num_seqs:
            name = "beam_width" if is_beam_search else "n"
            raise InvalidRequest(f"{name} is {n}, above max_num_seqs {config.max_num_seqs}")
        if abs(sequence.priority) > MAX_PRIORITY:
            raise InvalidRequest(
                f"priority is {sequence.priority}, it must be between -{MAX_PRIORITY} and "
                f"{MAX_PRIORITY}"
            )
        self._check_queue(sequence.tenant)

    def _check_size(self, sequence: Sequence, num_beams: int) -> None:
        """Each answer can run alone, beams must be there together: that must fit."""
        size = self._kv_cache.block_size
        num_tokens = sequence.num_tokens + sequence.max_output_tokens
        num_blocks = self._kv_cache.blocks_for(num_tokens) * num_beams
        if num_blocks > self._kv_cache.num_blocks:
            beams = f" for each of {num_beams} beams" if num_beams > 1 else ""
            raise PromptTooLong(
                f"prompt and answer may take {num_tokens} tokens{beams} in {num_blocks} blocks of "
                f"{size}, the KV cache has {self._kv_cache.num_blocks} blocks: lower max_tokens "
                "or raise kv_cache_memory_bytes"
            )

    def queue_limit(self, tenant: str) -> int:
        """How many requests of a tenant may wait at a time."""
        limit = self._config.max_num_queued
        if tenant == NO_TENANT:
            return limit
        return max(int(limit * self._config.tenant_queue_share), 1)

    def _check_queue(self, tenant: str) -> None:
        num_waiting, limit = len(self._waiting), self._config.max_num_queued
        if num_waiting >= limit:
            raise EngineOverloaded(
                f"{num_waiting} requests are waiting, the queue takes {limit}: try again later",
                self._costs.retry_after_s(num_waiting),
            )
        if tenant == NO_TENANT:
            return
        num_own = self._waiting.num_waiting_by_tenant().get(tenant, 0)
        share = self.queue_limit(tenant)
        if num_own >= share:
            raise EngineOverloaded(
                f"{num_own} requests of this tenant are waiting, the queue takes {share} of one "
                "tenant: try again later",
                self._costs.retry_after_s(num_own),
            )
