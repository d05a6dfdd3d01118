"""The control plane with a fake runner, which checks each batch as a device would suffer it."""

from app.engine.config import SchedulerConfig
from app.engine.kv_cache_manager import KVCacheManager
from app.engine.sampling_params import SamplingParams
from app.engine.scheduler import Scheduler
from app.engine.sequence import GenerationLimits, SampledToken, Sequence

EOS = 0
LIMITS = GenerationLimits(frozenset([EOS]), max_model_len=64, vocab_size=100)


def make_sequences(
    request_id,
    prompt,
    *,
    max_tokens=8,
    n=1,
    salt="",
    priority=0,
    limits=LIMITS,
    **options,
):
    params = SamplingParams(n=n, max_tokens=max_tokens, **options)
    return [
        Sequence(request_id, i, list(prompt), params, limits, salt=salt, priority=priority)
        for i in range(n)
    ]


class FakeRunner:
    """Keeps what each slot holds, as (salt, tokens up to it), and checks what each row sees.

    A token's keys and values depend on everything before it: so a slot that holds another
    prefix, or was lost, shows at the first read.
    """

    def __init__(self, kv_cache, next_token):
        self._size = kv_cache.block_size
        self._slots = {}
        self._next_token = next_token

    def run(self, batch):
        copied = {}
        for source, target in batch.block_copies:
            for offset in range(self._size):
                copied[target, offset] = self._slots.get((source, offset))
        self._slots.update(copied)
        written = set()
        for item in batch.sequences:
            self._write(item, written)
        for item in batch.sequences:
            self._check_visible(item)
        return [SampledToken(self._next_token(sequence)) for sequence in batch.sampled]

    def _write(self, item, written):
        sequence = item.sequence
        start = sequence.num_computed_tokens
        for position in range(start, start + item.num_new_tokens):
            slot = self._slot(sequence, position)
            assert slot not in written, "two rows write one slot"
            written.add(slot)
            self._slots[slot] = self._value(sequence, position)

    def _check_visible(self, item):
        sequence = item.sequence
        for position in range(sequence.num_computed_tokens + item.num_new_tokens):
            held = self._slots.get(self._slot(sequence, position))
            assert held == self._value(sequence, position), f"garbage at position {position}"

    def _slot(self, sequence, position):
        return sequence.block_table[position // self._size], position % self._size

    @staticmethod
    def _value(sequence, position):
        return sequence.salt, tuple(sequence.token_ids[: position + 1])


class Control:
    """Scheduler, cache and fake runner; checks every invariant after each step."""

    def __init__(
        self,
        *,
        num_blocks=16,
        block_size=4,
        max_num_seqs=4,
        budget=16,
        max_num_queued=100,
        max_model_len=64,
        enable_prefix_caching=True,
        watermark=0.0,
        next_token=lambda sequence: 7,
        **options,
    ):
        self.kv_cache = KVCacheManager(
            num_blocks, block_size, enable_prefix_caching=enable_prefix_caching, **options
        )
        self.config = SchedulerConfig(
            max_num_seqs, budget, max_num_queued, max_model_len, watermark
        )
        self.scheduler = Scheduler(self.config, self.kv_cache)
        self.runner = FakeRunner(self.kv_cache, next_token)

    def add(self, request_id, prompt, **options):
        sequences = make_sequences(request_id, prompt, **options)
        self.scheduler.add(sequences)
        return sequences

    def step(self):
        batch = self.scheduler.schedule()
        assert batch.num_new_tokens <= self.config.max_num_batched_tokens
        assert len(batch.sampled) <= self.config.max_num_seqs
        assert all(item.num_new_tokens > 0 for item in batch.sequences)
        assert batch.sequences or not self.scheduler.has_work, "work, but no progress"
        self.scheduler.finish_step(batch, self.runner.run(batch))
        self.scheduler.check_integrity()
        return batch

    def run(self, max_steps=10_000):
        """Step until nothing is left; returns the batches."""
        batches = []
        while self.scheduler.has_work:
            assert len(batches) < max_steps, "it does not end"
            batches.append(self.step())
        assert self.kv_cache.num_free_blocks == self.kv_cache.num_blocks
        return batches
