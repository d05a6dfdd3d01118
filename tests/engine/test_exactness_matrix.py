"""Token-exact against Hugging Face for every family, over how the tokens come to be computed.

Every two values of any two dimensions meet in at least one case (pairwise cover of the product).
"""

import itertools
import random

import pytest
import torch

from app.engine import SamplingParams
from app.engine.cost_model import CostModel
from app.engine.engine_core import NewRequest
from app.engine.loader import load_model_config
from app.engine.speculative import RowCost
from tests.engine import tiny
from tests.engine.engines import greedy_params, load, make_prompts

NUM_TOKENS = 12
LENGTHS = (1, 7, 17, 40, 70)  # the windows of the tiny models are 24
FORKED = 3  # the prompt that is answered four times
FLOAT32_NOISE = 1e-3  # of log probabilities

DIMENSIONS = {
    "family": tuple(tiny.FAMILIES),
    "max_num_seqs": (1, 4, 16),
    "budget": (16, 23, 200),
    "block_size": (4, 5, 16, 32),
    "memory": ("roomy", "recompute", "swap"),
    "prefix": ("off", "hit"),
    "drafts": ("off", "on"),
    "kernels": ("auto", "torch"),
    "others": ("none", "forks", "cancelled"),
}


def pairwise_cases():
    """Cases in which all pairs of values occur, each made to cover many new pairs."""

    def pairs(values):
        return set(itertools.combinations(enumerate(values), 2))

    product = itertools.product(*DIMENSIONS.values())
    left = set().union(*map(pairs, product))
    rng, cases = random.Random(0), []
    while left:
        pair = dict(min(left))
        tries = [
            [pair.get(i, rng.choice(values)) for i, values in enumerate(DIMENSIONS.values())]
            for _ in range(50)
        ]
        best = max(tries, key=lambda values: len(pairs(values) & left))
        left -= pairs(best)
        cases.append(dict(zip(DIMENSIONS, best, strict=True)))
    return cases


class Traffic:
    """Requests that share the engine with the greedy ones: forks, and some that are cancelled."""

    def __init__(self, core, kind):
        self._core, self._kind = core, kind
        self._rng = random.Random(5)
        self._doomed = []

    def start(self, prompts):
        if self._kind == "forks":
            params = SamplingParams(n=4, seed=3, max_tokens=8, logprobs=0, ignore_eos=True)
            self._core.add(NewRequest("forks", prompts[FORKED], params))
        for number in range(12 if self._kind == "cancelled" else 0):
            params = SamplingParams(n=self._rng.choice([1, 3]), max_tokens=30, ignore_eos=True)
            prompt = self._rng.choice(prompts)[: self._rng.randrange(1, 30)]
            self._doomed.append(f"doomed-{number}")
            self._core.add(NewRequest(self._doomed[-1], prompt, params, priority=-1))

    def between_steps(self):
        if self._doomed and self._rng.random() < 0.5:
            self._core.abort(self._doomed.pop(self._rng.randrange(len(self._doomed))))


def run(core, prompts, kind):
    """All greedy answers, and the forks; every invariant after each step."""
    traffic, finished = Traffic(core, kind), {}
    traffic.start(prompts)
    for index, prompt in enumerate(prompts):
        core.add(NewRequest(str(index), prompt, greedy_params(NUM_TOKENS)))
    while core.has_work:
        finished.update({o.request_id: o for o in core.step() if o.finished})
        core.check_integrity()
        traffic.between_steps()
    assert core.stats().num_free_blocks == core.stats().num_blocks
    forks = finished["forks"].outputs if "forks" in finished else []
    return [list(finished[str(i)].outputs[0].token_ids) for i in range(len(prompts))], forks


def name(case):
    return "-".join(map(str, case.values()))


def load_case(case, folder):
    size = case["block_size"]
    num_blocks = 1000 if case["memory"] == "roomy" else -(-100 // size)
    block_bytes = size * load_model_config(folder).kv_elements_per_token * 4
    return load(
        folder,
        block_size=size,
        max_num_seqs=case["max_num_seqs"],
        max_num_batched_tokens=case["budget"],
        max_model_len=90,
        kv_cache_memory_bytes=num_blocks * block_bytes,
        swap_space=0.01 if case["memory"] == "swap" else 0,
        enable_prefix_caching=case["prefix"] == "hit",
        kernels=case["kernels"],
        speculative_config={"prompt_lookup_min": 1} if case["drafts"] == "on" else None,
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", pairwise_cases(), ids=name)
def test_tokens_equal_hugging_faces(case, checkpoints, monkeypatch):
    monkeypatch.setattr(CostModel, "prefers_swap", lambda *_: True)
    monkeypatch.setattr(RowCost, "beside", lambda *_: 0.0)  # every draft pays
    folder, model = checkpoints(case["family"])
    prompts = make_prompts(1, LENGTHS)
    core = load_case(case, folder)
    others = case["others"] if case["max_num_seqs"] >= 4 else "none"  # n = 4 takes four seats
    for _ in range(2 if case["prefix"] == "hit" else 1):
        answers, forks = run(core, prompts, others)
        tiny.assert_greedy(model, prompts, answers)
        for fork in forks:
            assert_as_likely_as_hugging_face_says(model, prompts[FORKED], fork)
    assert_it_happened(case, core.stats())


def assert_as_likely_as_hugging_face_says(model, prompt, output):
    tokens = list(output.token_ids)
    ours = [entry[token].logprob for entry, token in zip(output.logprobs, tokens, strict=True)]
    theirs = tiny.logprobs(model, prompt, tokens).gather(1, torch.tensor(tokens)[:, None])
    assert ours == pytest.approx(theirs[:, 0].tolist(), abs=FLOAT32_NOISE)


def assert_it_happened(case, stats):
    """What the case is about took place."""
    is_crowded = case["max_num_seqs"] > 1 and case["block_size"] < 32  # 32: too coarse to collide
    assert stats.num_preemptions > 0 or case["memory"] == "roomy" or not is_crowded
    assert stats.num_swap_preemptions > 0 or case["memory"] != "swap" or not is_crowded
    assert stats.num_prefix_hit_tokens > 0 or case["prefix"] == "off" or case["memory"] != "roomy"
    assert stats.num_draft_tokens > 0 or case["drafts"] == "off"
