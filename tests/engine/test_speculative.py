"""Drafts change how many steps an answer takes and nothing else."""

import random
from dataclasses import replace

import pytest

from app.engine import (
    AsyncLLM,
    InvalidRequest,
    SamplingParams,
    SpeculativeConfig,
    StructuredOutputsParams,
)
from app.engine.config import EngineConfig
from app.engine.engine_core import NewRequest, load_engine
from app.engine.speculative import (
    RETRY_STEPS,
    GivenTexts,
    NgramIndex,
    PromptLookup,
    RowCost,
    Speculator,
    num_accepted,
)
from tests.engine import tiny
from tests.engine.control import EOS, Control
from tests.engine.engines import bytes_for_blocks, finish_all, make_prompts

CONFIG = SpeculativeConfig()
DEFAULTS = {"temperature": 0, "max_tokens": 16, "ignore_eos": True}


class FreeRows:
    """A machine on which drafts cost nothing, so that no test depends on the clock."""

    def observe(self, num_rows, seconds):
        pass

    def beside(self, num_rows):
        return 0.0


def load(folder, *, speculates, **options):
    defaults = {"dtype": "float32", "num_threads": 1, "kv_cache_memory_bytes": 2**22}
    config = SpeculativeConfig() if speculates else None
    core = load_engine(EngineConfig(str(folder), speculative_config=config, **(defaults | options)))
    if speculates:
        core.speculator.row_cost = FreeRows()
    return core


def answers(core, requests):
    for request in requests:
        core.add(request)
    finished = finish_all(core)
    return [
        (
            answer.token_ids,
            answer.text,
            answer.finish_reason,
            answer.stop_reason,
            answer.logprobs and [list(entry) for entry in answer.logprobs],
        )
        for request in requests
        for answer in finished[request.request_id].outputs
    ]


def misquoted(tokens, rng):
    """A passage that the answer quotes, with errors."""
    return [token if rng.random() < 0.85 else rng.randrange(2, 300) for token in tokens]


def assert_drafts_change_nothing(folder, params, *, prompts=None, plain=None, **options):
    """Each answer, and one with drafts from passages that misquote it, are the same."""
    rng = random.Random(3)
    prompts = prompts or make_prompts(5, (9, 17))
    requests = [NewRequest(str(i), prompt, params) for i, prompt in enumerate(prompts)]
    expected = answers(load(folder, speculates=False, **(plain or options)), requests)
    ends = [prompt[-2:] for prompt in prompts for _ in range(params.n)]
    passages = [
        end + misquoted(tokens, rng) for end, (tokens, *_) in zip(ends, expected, strict=True)
    ]
    requests = [replace(request, draft_sources=passages) for request in requests]
    core = load(folder, speculates=True, **options)
    assert answers(core, requests) == expected
    stats = core.stats()
    assert 0 < stats.num_accepted_tokens < stats.num_draft_tokens
    return core


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(
            family, marks=() if family in ("llama", "mistral-window") else pytest.mark.slow
        )
        for family in tiny.FAMILIES
    ],
)
def test_greedy_texts_of_every_family_are_the_same(family, checkpoints):
    assert_drafts_change_nothing(checkpoints(family)[0], SamplingParams(**DEFAULTS))


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.9, "seed": 4},
        {"temperature": 1.2, "seed": 5, "top_k": 12, "top_p": 0.9, "min_p": 0.02},
        {"temperature": 0.8, "seed": 6, "n": 3},
        {"presence_penalty": 1.5, "frequency_penalty": 0.8, "repetition_penalty": 1.3},
        {"temperature": 0.7, "seed": 7, "repetition_penalty": 1.4},
        {"logit_bias": {EOS: 30}, "ignore_eos": False, "min_tokens": 7},
        {"logit_bias": {9: 12}, "stop_token_ids": [9], "min_tokens": 5},
        {"bad_words": ["e", "a b"]},
        {"logprobs": 3, "prompt_logprobs": 1},
        {"truncate_prompt_tokens": 3},
        {"structured_outputs": StructuredOutputsParams(regex="[a-z ]{40}"), "ignore_eos": False},
        {"allowed_token_ids": list(range(20, 120)), "temperature": 0.8, "seed": 2},
        {"max_tokens": 6, "temperature": 1.0, "seed": 8},
    ],
    ids=str,
)
def test_texts_of_every_parameter_are_the_same(options, checkpoints):
    assert_drafts_change_nothing(
        checkpoints("qwen2")[0], SamplingParams(**(DEFAULTS | options)), block_size=4
    )


@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_texts_are_the_same_when_sequences_are_preempted(enable_prefix_caching, checkpoints):
    core = assert_drafts_change_nothing(
        checkpoints("llama")[0],
        SamplingParams(**DEFAULTS),
        prompts=make_prompts(2, [20, 30, 25, 40, 33, 18]),
        plain={},
        block_size=4,
        max_model_len=100,
        kv_cache_memory_bytes=bytes_for_blocks(34, 4),
        enable_prefix_caching=enable_prefix_caching,
    )
    assert core.stats().num_preemptions > 0


def test_texts_are_the_same_beside_prompts_in_chunks(checkpoints):
    assert_drafts_change_nothing(
        checkpoints("mistral-window")[0],
        SamplingParams(**DEFAULTS),
        prompts=make_prompts(6, [5, 90, 7, 120, 60]),
        plain={},
        max_num_batched_tokens=24,
        max_num_seqs=4,
        block_size=8,
    )


@pytest.mark.parametrize("include_stop_str_in_output", [True, False])
def test_tokens_after_a_stop_string_in_an_accepted_draft_are_dropped(
    include_stop_str_in_output, checkpoints
):
    folder, prompt = checkpoints("qwen2")[0], make_prompts(5, [9])[0]
    params = SamplingParams(**DEFAULTS)
    [(tokens, text, *_)] = answers(
        load(folder, speculates=False), [NewRequest("a", prompt, params)]
    )
    params = SamplingParams(
        **DEFAULTS,
        stop=text[9:12],
        logprobs=1,
        include_stop_str_in_output=include_stop_str_in_output,
    )
    [expected] = answers(load(folder, speculates=False), [NewRequest("a", prompt, params)])
    core = load(folder, speculates=True)
    request = NewRequest("a", prompt, params, draft_sources=[tokens])
    assert answers(core, [request]) == [expected]
    assert len(expected[0]) < 16
    assert core.stats().num_generation_tokens == len(expected[0])
    assert core.stats().num_accepted_tokens > 0


def test_rejected_drafts_leave_the_prefix_cache_as_it_was(checkpoints):
    """Elsewhere unverified tokens were hashed, and later requests read their keys."""
    folder, prompt = checkpoints("llama")[0], make_prompts(5, [30])[0]
    params = SamplingParams(**DEFAULTS)
    core = assert_drafts_change_nothing(folder, params, prompts=[prompt], block_size=4)
    [(tokens, *_)] = answers(core, [NewRequest("again", prompt, params)])
    follow_up = [*prompt, *tokens, *prompt[:5]]
    plain = load(folder, speculates=False, enable_prefix_caching=False)
    expected = answers(plain, [NewRequest("more", follow_up, params)])
    before = core.stats().num_prefix_hit_tokens
    assert answers(core, [NewRequest("more", follow_up, params)]) == expected
    assert core.stats().num_prefix_hit_tokens - before > len(prompt) + len(tokens) - 8


@pytest.mark.parametrize("speculates", [True, False])
async def test_texts_that_may_be_quoted_are_given_with_the_request(speculates, checkpoints):
    core = load(checkpoints("qwen2")[0], speculates=speculates)
    llm = AsyncLLM.from_core(core)
    try:
        params = SamplingParams(**DEFAULTS)
        [plain] = [o.text async for o in llm.generate("The pages", params) if o.finished]
        num_before = llm.stats().num_accepted_tokens
        stream = llm.generate("The pages", params, draft_texts=["The pages" + plain])
        [quoted] = [output.text async for output in stream if output.finished]
    finally:
        llm.shutdown()
    assert quoted == plain
    assert (llm.stats().num_accepted_tokens > num_before) is speculates
    assert llm.stats().mean_accepted_length >= 1


def test_a_draft_from_outside_the_vocabulary_is_refused(checkpoints):
    core = load(checkpoints("qwen2")[0], speculates=True)
    with pytest.raises(InvalidRequest, match="token id 99999 is outside"):
        core.add(NewRequest("a", [5], SamplingParams(), draft_sources=[[5, 99_999]]))


def test_abort_with_a_draft_in_flight_returns_every_block():
    control = Control(num_blocks=20, draft_accuracy=0.5)
    control.add("a", range(1, 11), n=2, max_tokens=30)
    for _ in range(4):
        control.step()
    control.scheduler.schedule()  # and the step never ends
    control.scheduler.abort("a")
    control.scheduler.check_integrity()
    assert control.kv_cache.num_free_blocks == 20


def test_drafts_never_preempt_and_shrink_to_the_free_blocks():
    control = Control(num_blocks=5, block_size=4, draft_accuracy=1.0, enable_prefix_caching=False)
    control.add("a", range(1, 8), max_tokens=13)
    control.run()
    assert control.scheduler.stats.num_preemptions == 0
    assert control.scheduler.speculator.stats.num_accepted_tokens > 0


def test_drafts_leave_half_of_the_budget_to_prompts():
    control = Control(budget=12, max_num_seqs=4, num_blocks=60, draft_accuracy=1.0)
    for name in "abc":
        control.add(name, [1], max_tokens=50)
    control.step()
    control.add("long", range(1, 60), max_tokens=1)
    batch = control.step()
    news = {item.sequence.request_id: item for item in batch.sequences}
    assert sum(len(item.draft) for item in batch.sequences) <= (12 - 3) // 2
    assert news["long"].num_new_tokens >= (12 - 3) // 2


def test_an_end_token_in_an_accepted_draft_ends_the_answer():
    control = Control(
        next_token=lambda view: EOS if len(view.token_ids) >= 9 else 7, draft_accuracy=1.0
    )
    (sequence,) = control.add("a", [1, 2], max_tokens=30)
    batches = control.run()
    assert sequence.output_token_ids == [7] * 7 + [EOS]
    assert len(batches) < 8


def lookup(prompt, *passages, **options):
    config = SpeculativeConfig(**options)
    given = GivenTexts(config.prompt_lookup_min, passages, prompt)
    drafter = PromptLookup(config, given)
    return lambda tokens, most=5: drafter.propose([*prompt, *tokens], most, 0.0)


def test_the_draft_goes_on_as_the_passage_did():
    propose = lookup([1, 2, 3], [50, 51, 52, 53, 54, 55, 56, 57])
    assert propose([9, 51, 52]) == [53, 54, 55, 56, 57]
    assert propose([9, 51, 52, 53], most=2) == [54, 55]
    assert propose([9, 51, 52, 53, 8, 56, 57]) == []  # nothing follows there


def test_the_longest_match_wins_then_the_newest():
    propose = lookup([1, 2, 70, 1, 2, 71], [6, 1, 2, 72])
    assert propose([8, 1, 2]) == [71, 8, 1, 2, 71]
    assert propose([8, 1, 2, 73, 6, 1, 2]) == [72]
    assert lookup([1, 2, 70], [1, 2, 72])([9, 1, 2], 1) == [70]


def test_what_was_written_repeats_beyond_its_end():
    assert lookup([1])([7, 8, 9, 7, 8]) == [9, 7, 8, 9, 7]


def test_matches_do_not_reach_across_passages():
    propose = lookup([1, 2], [20, 21], [22, 23])
    assert propose([20, 21]) == []
    assert propose([21, 22]) == []


def test_fewer_tokens_than_the_shortest_match_give_no_draft():
    assert lookup([1], [1, 2, 3])([]) == []
    assert lookup([1], [1, 2, 3], prompt_lookup_min=1)([]) == [2, 3]


def test_answers_of_a_request_share_what_was_given_but_not_what_was_written():
    one, other = Speculator(CONFIG).drafters([[5, 6, 7]], [1, 2], 2)
    assert one.propose([1, 2, 8, 9, 3, 8, 9], 1, 0.0) == [3]
    assert other.propose([1, 2, 4, 8, 9], 1, 0.0) == []
    assert other.propose([1, 2, 4, 8, 9, 5, 6], 1, 0.0) == [7]


def test_an_index_finds_what_a_search_finds():
    rng = random.Random(2)
    tokens = [rng.randrange(4) for _ in range(300)]
    index = NgramIndex(2)
    for position, token in enumerate(tokens):
        index.extend([token])
        suffix = tokens[max(position - 3, 0) : position + 1]
        ends = [
            (next((n for n in (4, 3, 2) if tokens[max(end - n, 0) : end] == suffix[-n:]), 0), end)
            for end in range(2, position + 1)
        ]
        length, end = index.longest_match(suffix)
        assert length in (0, 2, 3, 4)
        assert tokens[end - length : end] == suffix[len(suffix) - length :]
        newest = [found for found in ends if found[0] >= 2][-15:]
        assert (length, end) == max(newest, default=(0, 0))


def test_a_draft_is_as_long_as_it_pays():
    drafter = Speculator(CONFIG).drafters([[1, 2, 3, 4, 5, 6, 7, 8]], [9, 1, 2], 1)[0]
    lengths = [len(drafter.propose([9, 1, 2], 9, cost)) for cost in (0.01, 0.2, 0.3, 0.6)]
    assert lengths == [5, 2, 1, 0]


def test_drafts_that_fail_end_and_are_tried_again_now_and_then():
    drafter = Speculator(CONFIG).drafters([[1, 2, 3, 4, 5, 6, 7]], [1, 2], 1)[0]
    lengths = []
    for _ in range(100):
        lengths.append(len(drafter.propose([1, 2], 9, 0.15)))
        drafter.record(lengths[-1], 0)
    assert lengths[:5] == [2, 1, 1, 1, 0]
    assert sum(lengths[20:]) <= 80 / RETRY_STEPS
    for _ in range(4 * RETRY_STEPS):
        lengths.append(len(drafter.propose([1, 2], 9, 0.15)))
        drafter.record(lengths[-1], lengths[-1])
    assert lengths[-1] == 5


def test_longer_matches_are_trusted_apart_from_shorter_ones():
    drafter = Speculator(CONFIG).drafters([[1, 2, 3, 4, 5, 6, 7]], [9, 8], 1)[0]
    for _ in range(30):
        drafter.record(len(drafter.propose([9, 8, 1, 2], 9, 0.15)), 0)
    assert drafter.propose([9, 8, 1, 2], 9, 0.15) == []
    assert drafter.propose([9, 8, 1, 2, 3], 9, 0.15) == [4, 5, 6]


def test_the_cost_of_a_row_is_learned_from_steps():
    cost, rng = RowCost(), random.Random(1)
    for _ in range(200):
        num_rows = rng.randrange(1, 9)
        cost.observe(num_rows, 0.02 + 0.005 * num_rows + rng.uniform(-0.001, 0.001))
    assert cost.beside(1) == pytest.approx(0.2, abs=0.03)
    assert cost.beside(32) == pytest.approx(8 / 9, abs=0.03)


def test_steps_of_one_size_tell_nothing_about_a_row():
    cost = RowCost()
    before = cost.beside(4)
    for _ in range(50):
        cost.observe(4, 0.1)
    assert cost.beside(4) == before


def test_only_the_beginning_that_agrees_is_accepted():
    assert num_accepted((5, 6, 7), [5, 6, 8, 7]) == 2
    assert num_accepted((5, 6), [5, 6, 9]) == 2
    assert num_accepted((5,), [6, 5]) == 0


def test_wrong_settings_are_refused_with_the_limits():
    with pytest.raises(InvalidRequest, match="prompt_lookup_min is 5, it must be between 1 and"):
        SpeculativeConfig(prompt_lookup_min=5)
    with pytest.raises(InvalidRequest, match="num_speculative_tokens is 0"):
        EngineConfig("m", speculative_config={"num_speculative_tokens": 0})
    with pytest.raises(InvalidRequest, match=r"'model'; its fields are method, num_spec"):
        EngineConfig("m", speculative_config={"method": "ngram", "model": "x"})


def test_vllms_spelling_is_understood():
    given = {
        "method": "ngram",
        "num_speculative_tokens": 5,
        "prompt_lookup_max": 4,
        "prompt_lookup_min": 2,
    }
    assert EngineConfig("m", speculative_config=given).speculation == SpeculativeConfig()
