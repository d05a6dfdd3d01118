"""Random requests, forks, beams, drafts, swaps and aborts; every invariant after every step.

`FakeRunner` is the naive model: it keeps what each slot holds and checks what each row reads.
"""

import hashlib
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.engine.beam_search import BeamSearchParams
from app.engine.cost_model import CostModel
from app.engine.errors import EngineOverloaded, InvalidRequest, PromptTooLong
from app.engine.kv_cache_manager import hash_128
from app.engine.sequence import FinishReason
from tests.engine.control import EOS, Control, likely_tokens


def weak_hash(data):
    """Two bits: nearly every lookup is a collision, so contents have to decide."""
    return bytes([hash_128(data)[0] & 3])


def next_token(sequence):
    """A function of the sequence's own history, as a model is; 0 ends it."""
    text = f"{sequence.index}:{sequence.salt}:{sequence.token_ids}"
    return hashlib.blake2b(text.encode(), digest_size=1).digest()[0] % 12


SETTINGS = st.fixed_dictionaries(
    {
        "num_blocks": st.integers(6, 24),
        "num_host_blocks": st.sampled_from([0, 2, 7, 40]),
        "block_size": st.sampled_from([1, 2, 4, 8]),
        "max_num_seqs": st.integers(2, 8),
        "budget": st.integers(8, 40),
        "max_num_queued": st.integers(1, 12),
        "enable_prefix_caching": st.booleans(),
        "hash_function": st.sampled_from([hash_128, weak_hash]),
        "watermark": st.sampled_from([0.0, 0.2, 0.6]),
        "draft_accuracy": st.sampled_from([None, 0.3, 0.9]),
        "ageing_steps": st.sampled_from([1, 7, 256]),
    }
)


def expected_output(sequence):
    """What the sequence must hold, made by itself from its prompt alone."""
    tokens = sequence.token_ids[: sequence.num_prompt_tokens]
    twin = type(sequence)("twin", sequence.index, list(tokens), sequence.params, sequence.limits)
    twin.salt = sequence.salt
    while twin.num_output_tokens < sequence.num_output_tokens:
        twin.token_ids.append(next_token(twin))
    return twin.token_ids


class RandomCosts(CostModel):
    """Both kinds of preemption in turn, swap more often."""

    def __init__(self, rng):
        super().__init__()
        self._random = rng

    def prefers_swap(self, num_blocks, num_tokens):
        return self._random.random() < 0.7


def expected_beams(prompt, salt, search):
    """The same search without blocks, batches or a scheduler."""
    live, finished = [(0.0, [])], []
    for length in range(1, search.max_tokens + 1):
        grown = [
            (-(total + entry.logprob), rank, entry.token_id)
            for rank, (total, answer) in enumerate(live)
            for entry in likely_tokens(salt, prompt + answer, 2 * search.beam_width)
        ]
        best = sorted(grown)[: 2 * search.beam_width]
        ranked = [(-cost, [*live[rank][1], token_id]) for cost, rank, token_id in best]
        is_end = [answer[-1] == EOS or length == search.max_tokens for _, answer in ranked]
        finished += [
            (total / length, answer)
            for (total, answer), ends in zip(ranked[: search.beam_width], is_end, strict=False)
            if ends
        ]
        finished = sorted(finished, key=lambda pair: -pair[0])[: search.beam_width]
        live = [pair for pair, ends in zip(ranked, is_end, strict=True) if not ends]
        live = live[: search.beam_width]
        is_full = len(finished) == search.beam_width
        if is_full and live and live[0][0] / search.max_tokens <= finished[-1][0]:
            break
    return [tuple(answer) for _, answer in finished]


class Storm:
    """Drives a control plane with random traffic and remembers what was promised."""

    def __init__(self, seed, options):
        self.random = random.Random(seed)
        self.control = Control(next_token=next_token, costs=RandomCosts(self.random), **options)
        self.live = {}
        self.groups = {}
        self.prompts = []
        self.num_added = 0

    def add(self):
        rng, control = self.random, self.control
        prompt = self.prompt()
        request_id = f"r{self.num_added}"
        try:
            self.live[request_id] = control.add(
                request_id,
                prompt,
                n=rng.choice([1, 1, 1, 2, 3]) if control.config.max_num_seqs > 2 else 1,
                max_tokens=rng.randrange(1, 20),
                salt=rng.choice(["", "", "tenant"]),
                tenant=rng.choice(["", "a", "b", "c"]),
                priority=rng.choice([0, 0, 0, -1, 1]),
                min_tokens=0,
                ignore_eos=rng.random() < 0.3,
            )
            self.num_added += 1
        except (PromptTooLong, EngineOverloaded):
            control.scheduler.check_integrity()
        except ValueError as error:
            assert "above max_num_seqs" in str(error)

    def add_beams(self):
        rng, prompt = self.random, self.prompt()
        search = BeamSearchParams(rng.randrange(1, 4), rng.randrange(1, 9))
        salt, request_id = rng.choice(["", "tenant"]), f"beams{self.num_added}"
        try:
            group = self.control.add_beams(
                request_id,
                prompt,
                search,
                salt=salt,
                tenant=rng.choice(["", "a"]),
                priority=rng.choice([-1, 0, 1]),
            )
        except (InvalidRequest, EngineOverloaded):
            return
        self.groups[request_id] = group, list(prompt), salt, search
        self.num_added += 1

    def prompt(self):
        """One sent before, one that begins as others do, or a new one."""
        rng = self.random
        if self.prompts and rng.random() < 0.3:
            return rng.choice(self.prompts)
        shared = [1 + i % 5 for i in range(40)][: rng.choice([0, 3, 8, 16, 24])]
        self.prompts.append(shared + [rng.randrange(1, 4) for _ in range(rng.randrange(1, 12))])
        return self.prompts[-1]

    def step(self):
        rng = self.random
        for _ in range(rng.choice([0, 0, 0, 1, 1, 4])):
            self.add()
        if rng.random() < 0.1:
            self.add_beams()
        running = [*self.live, *self.groups]
        if running and rng.random() < 0.05:
            self.abort(rng.choice(running))
        if rng.random() < 0.003:
            self.control.kv_cache.reset_prefix_cache()
        self.control.step()
        self.settle()

    def abort(self, request_id):
        self.control.scheduler.abort(request_id)
        self.control.scheduler.check_integrity()
        self.groups.pop(request_id, None)

    def settle(self):
        for request_id, (group, prompt, salt, search) in list(self.groups.items()):
            if all(sequence.is_finished for sequence in group.sequences):
                del self.groups[request_id]
                answers = [result.token_ids for result in group.results]
                assert answers == expected_beams(prompt, salt, search)
        for request_id, sequences in list(self.live.items()):
            if all(sequence.is_finished for sequence in sequences):
                del self.live[request_id]
                for sequence in sequences:
                    self.check(sequence)

    @staticmethod
    def check(sequence):
        assert sequence.token_ids == expected_output(sequence)
        if not sequence.params.ignore_eos:
            assert EOS not in sequence.output_token_ids[:-1]
        if sequence.finish_reason is FinishReason.LENGTH:
            assert sequence.num_output_tokens == sequence.max_output_tokens

    def run(self, num_steps):
        for _ in range(num_steps):
            self.step()
        self.control.run()
        self.settle()
        assert not self.live, "a request was lost"
        assert not self.groups, "a beam search was lost"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), options=SETTINGS)
def test_no_block_leaks_and_no_row_reads_garbage_under_random_traffic(seed, options):
    Storm(seed, options).run(60)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(20))
def test_invariants_hold_for_a_hundred_thousand_steps(seed):
    rng = random.Random(seed)
    options = {
        "num_blocks": rng.randrange(8, 25),
        "num_host_blocks": rng.choice([0, 3, 12, 60]),
        "ageing_steps": rng.choice([1, 20, 256]),
        "block_size": rng.choice([1, 2, 4, 8]),
        "max_num_seqs": rng.randrange(3, 9),
        "budget": rng.randrange(9, 40),
        "max_num_queued": 12,
        "enable_prefix_caching": seed % 4 > 0,
        "hash_function": weak_hash if seed % 2 else hash_128,
        "watermark": 0.1,
        "draft_accuracy": rng.choice([None, 0.3, 0.9]),
    }
    Storm(seed, options).run(5_000)
