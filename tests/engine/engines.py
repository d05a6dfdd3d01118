"""Small engines and their traffic, for the tests that compare tokens."""

import random

from app.engine import SamplingParams
from app.engine.config import EngineConfig
from app.engine.engine_core import NewRequest, load_engine


def load(folder, **options):
    defaults = {
        "dtype": "float32",
        "num_threads": 1,
        "kv_cache_memory_bytes": 2**22,
        "max_model_len": 256,
    }
    return load_engine(EngineConfig(str(folder), **(defaults | options)))


def bytes_for_blocks(num_blocks, block_size):
    """Pool size of most tiny models: 3 layers, 2 key/value heads of 16, float32."""
    return num_blocks * block_size * 3 * 2 * 2 * 16 * 4


def make_prompts(seed, lengths):
    rng = random.Random(seed)
    return [[rng.randrange(2, 300) for _ in range(length)] for length in lengths]


def greedy_params(num_tokens=24, **options):
    return SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, **options)


def finish_all(core):
    """Step until done, with every invariant after each step; final outputs by request id."""
    finished = {}
    while core.has_work:
        finished.update({o.request_id: o for o in core.step() if o.finished})
        core.check_integrity()
    assert core.stats().num_free_blocks == core.stats().num_blocks
    return finished


def generate(core, prompts, params):
    """Answers to all prompts at once, in their order."""
    for index, prompt in enumerate(prompts):
        core.add(NewRequest(str(index), prompt, params))
    finished = finish_all(core)
    return [finished[str(index)].outputs[0] for index in range(len(prompts))]


def tokens_in_a_cancel_storm(core, prompts, rng, num_doomed):
    """Greedy answers to four prompts while sixty other requests come and are aborted.

    Before each step all but a number of these drawn from `num_doomed` are gone.
    """
    for index, prompt in enumerate(prompts):
        core.add(NewRequest(str(index), prompt, greedy_params()))
    finished, doomed, num_added = {}, [], 0
    while core.has_work:
        if num_added < 60:
            doomed.append(f"doomed-{num_added}")
            prompt = prompts[num_added % 4][: rng.randrange(1, 9)] + [rng.randrange(2, 300)] * 9
            params = SamplingParams(n=rng.choice([1, 3]), max_tokens=40, ignore_eos=True)
            core.add(NewRequest(doomed[-1], prompt, params, priority=rng.choice([-1, 0])))
            num_added += 1
        while len(doomed) > rng.randrange(num_doomed.start, num_doomed.stop):
            core.abort(doomed.pop(rng.randrange(len(doomed))))
        finished.update({o.request_id: o for o in core.step() if o.finished})
        core.check_integrity()
    return [list(finished[str(i)].outputs[0].token_ids) for i in range(4)]
