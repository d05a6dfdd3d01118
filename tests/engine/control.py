"""The control plane with a fake runner, which checks each batch as a device would suffer it."""

import hashlib
import math
import random
from dataclasses import dataclass
from itertools import accumulate, islice

from app.engine.beam_search import BeamGroup
from app.engine.config import SchedulerConfig, SpeculativeConfig
from app.engine.kv_cache_manager import KVCacheManager
from app.engine.sampling_params import SamplingParams
from app.engine.scheduler import Scheduler
from app.engine.sequence import GenerationLimits, SampledToken, Sequence, TokenLogprob
from app.engine.speculative import Speculator, num_accepted

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
    tenant="",
    limits=LIMITS,
    **options,
):
    params = SamplingParams(n=n, max_tokens=max_tokens, **options)
    return [
        Sequence(
            request_id,
            i,
            list(prompt),
            params,
            limits,
            salt=salt,
            priority=priority,
            tenant=tenant,
        )
        for i in range(n)
    ]


def likely_tokens(salt, token_ids, count):
    """What a fake model says of the next token, the likeliest of 32 first."""
    text = f"{salt}:{token_ids}"
    scores = [byte / 32 for byte in hashlib.blake2b(text.encode(), digest_size=32).digest()]
    total = math.log(sum(map(math.exp, scores)))
    order = sorted(range(32), key=lambda token_id: -scores[token_id])[:count]
    return tuple(TokenLogprob(t, scores[t] - total, i + 1) for i, t in enumerate(order))


@dataclass(frozen=True)
class View:
    """What a fake model sees of a sequence, its draft included."""

    index: int
    salt: str
    token_ids: list

    @classmethod
    def of_row(cls, row):
        return cls(row.sequence.index, row.sequence.salt, row.token_ids)


class Oracle:
    """A drafter that knows the model and errs now and then."""

    def __init__(self, sequence, next_token, rng, accuracy):
        self._sequence = sequence
        self._next_token = next_token
        self._rng = rng
        self._accuracy = accuracy

    def propose(self, token_ids, max_tokens, row_cost):
        tokens = list(token_ids)
        for _ in range(min(self._rng.randrange(6), max_tokens)):
            truth = self._next_token(View(self._sequence.index, self._sequence.salt, tokens))
            is_right = self._rng.random() < self._accuracy
            tokens.append(truth if is_right else truth + 1)
        return tokens[len(token_ids) :]

    def record(self, num_drafted, num_accepted):
        assert 0 <= num_accepted <= num_drafted


class FakeRunner:
    """Keeps what each slot holds, as a hash of all up to it, and checks what each row sees.

    A token's keys and values depend on everything before it: so a slot that holds another
    prefix, or was lost, shows at the first read. Host slots are kept and checked alike.
    """

    def __init__(self, kv_cache, next_token):
        self._size = kv_cache.block_size
        self._slots = {}
        self._host_slots = {}
        self._next_token = next_token

    def run(self, batch):
        self._swap(batch)
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
        rows = iter(batch.sampling_rows)
        return [self._answer(item, rows) for item in batch.sequences for _ in item.sampled]

    def _answer(self, item, rows):
        """The tokens of a sequence's rows, up to the first that its draft did not foresee."""
        sequence = item.sequence
        if sequence.params.logprobs is not None:
            next(rows)
            best = likely_tokens(sequence.salt, sequence.token_ids, sequence.params.logprobs)
            return (SampledToken(best[0].token_id, (best[0], *best)),)
        mine = [self._next_token(View.of_row(row)) for row in islice(rows, len(item.draft) + 1)]
        count = num_accepted(item.draft, mine)
        return tuple(SampledToken(token_id) for token_id in mine[: count + 1])

    def _swap(self, batch):
        for block, host_block in batch.swap_outs:
            for offset in range(self._size):
                self._host_slots[host_block, offset] = self._slots.get((block, offset))
        for host_block, block in batch.swap_ins:
            for offset in range(self._size):
                self._slots[block, offset] = self._host_slots.pop((host_block, offset))

    def _write(self, item, written):
        sequence = item.sequence
        start = sequence.num_computed_tokens
        end = start + item.num_new_tokens
        for position, value in enumerate(prefix_values(item, end)[start:], start):
            slot = self._slot(sequence, position)
            assert slot not in written, "two rows write one slot"
            written.add(slot)
            self._slots[slot] = value

    def _check_visible(self, item):
        sequence = item.sequence
        end = sequence.num_computed_tokens + item.num_new_tokens
        for position, value in enumerate(prefix_values(item, end)):
            held = self._slots.get(self._slot(sequence, position))
            assert held == value, f"garbage at position {position}"

    def _slot(self, sequence, position):
        return sequence.block_table[position // self._size], position % self._size


def prefix_values(item, end):
    """A number for each position, which stands for the salt and all tokens up to there.

    A draft's rows hold what its tokens make: garbage for anyone else, once rejected.
    """
    sequence = item.sequence
    tokens = [*sequence.token_ids, *item.draft][:end]
    chained = accumulate(tokens, lambda before, token: hash((before, token)), initial=sequence.salt)
    return list(chained)[1:]


class Control:
    """Scheduler, cache and fake runner; checks every invariant after each step."""

    def __init__(
        self,
        *,
        num_blocks=16,
        num_host_blocks=0,
        block_size=4,
        max_num_seqs=4,
        budget=16,
        max_num_queued=100,
        max_model_len=64,
        enable_prefix_caching=True,
        watermark=0.0,
        ageing_steps=256,
        costs=None,
        next_token=lambda sequence: 7,
        draft_accuracy=None,
        **options,
    ):
        self.kv_cache = KVCacheManager(
            num_blocks,
            block_size,
            num_host_blocks=num_host_blocks,
            enable_prefix_caching=enable_prefix_caching,
            **options,
        )
        self.config = SchedulerConfig(
            max_num_seqs, budget, max_num_queued, max_model_len, watermark, ageing_steps
        )
        speculator = None if draft_accuracy is None else Speculator(SpeculativeConfig())
        self.scheduler = Scheduler(self.config, self.kv_cache, speculator, costs)
        self.runner = FakeRunner(self.kv_cache, next_token)
        self.next_token = next_token
        self.draft_accuracy = draft_accuracy
        self.random = random.Random(1)

    def add(self, request_id, prompt, **options):
        sequences = make_sequences(request_id, prompt, **options)
        for sequence in sequences if self.draft_accuracy is not None else ():
            sequence.drafter = Oracle(sequence, self.next_token, self.random, self.draft_accuracy)
        self.scheduler.add(sequences)
        return sequences

    def add_beams(self, request_id, prompt, search, **options):
        params = search.sampling_params(LIMITS)
        sequences = [
            Sequence(request_id, i, list(prompt), params, LIMITS, **options)
            for i in range(search.beam_width)
        ]
        group = BeamGroup(sequences, search)
        self.scheduler.add(sequences, group)
        return group

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
        assert self.kv_cache.num_free_host_blocks == self.kv_cache.num_host_blocks
        return batches
