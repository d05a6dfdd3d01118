"""What a stream's outputs hold, and how answers end."""

import dataclasses

import pytest

from app.engine import AsyncLLM, EngineConfig, RequestOutputKind, SamplingParams
from app.engine.engine_core import NewRequest, load_engine
from tests.engine import engines, tiny

PARAMS = SamplingParams(seed=3, n=2, max_tokens=25, ignore_eos=True, logprobs=1)
DELTA = dataclasses.replace(PARAMS, output_kind=RequestOutputKind.DELTA)


@pytest.fixture
def core(checkpoints):
    return load_engine(
        EngineConfig(
            str(checkpoints("qwen2")[0]),
            dtype="float32",
            num_threads=1,
            kv_cache_memory_bytes=2**22,
        )
    )


def run(core, params, prompt=(5, 6, 7)):
    core.add(NewRequest("r", list(prompt), params))
    outputs = []
    while core.has_work:
        outputs += core.step()
    return outputs


def test_deltas_add_up_to_the_whole(core):
    whole = run(core, PARAMS)[-1]
    first, *later = run(core, DELTA)
    for output in later:
        first = first.followed_by(output)
    assert first.outputs == whole.outputs
    assert len(later) > 20


def test_deltas_hold_only_what_is_new(core):
    outputs = run(core, dataclasses.replace(DELTA, prompt_logprobs=0))
    assert {len(answer.token_ids) for output in outputs for answer in output.outputs} == {1}
    assert outputs[0].prompt_logprobs is not None
    assert all(output.prompt_logprobs is None for output in outputs[1:])


def test_a_prompt_that_is_computed_again_is_not_told_again(checkpoints):
    core = engines.load(
        checkpoints("qwen2")[0],
        block_size=4,
        max_model_len=90,
        max_num_seqs=8,
        max_num_batched_tokens=16,
        kv_cache_memory_bytes=engines.bytes_for_blocks(24, 4),
    )
    params = dataclasses.replace(DELTA, n=3, prompt_logprobs=0)
    first, *later = run(core, params, prompt=range(5, 46))
    assert core.stats().num_preemptions > 0
    assert len(first.prompt_logprobs) == 41
    assert all(output.prompt_logprobs is None for output in later)


def test_an_answer_that_ended_is_not_told_again(core):
    lover = SamplingParams(
        n=2, seed=1, max_tokens=30, stop=["e", "a"], output_kind=RequestOutputKind.DELTA
    )
    outputs = run(core, lover)
    ends = [answer.index for output in outputs for answer in output.outputs if answer.finished]
    assert sorted(ends) == [0, 1]
    assert outputs[-1].finished


def test_only_the_end_is_told_where_nothing_else_is_wanted(core):
    (only,) = run(core, dataclasses.replace(PARAMS, output_kind=RequestOutputKind.FINAL_ONLY))
    assert only == dataclasses.replace(run(core, PARAMS)[-1], metrics=only.metrics)


async def test_a_slow_reader_gets_all_deltas_as_one(core):
    whole = run(core, PARAMS)[-1]
    llm = AsyncLLM.from_core(core)
    stream = llm.generate([5, 6, 7], DELTA)
    total = await anext(stream)
    while llm.stats().num_requests_running:  # the loop is not given a chance to read
        pass
    rest = [output async for output in stream]
    for output in rest:
        total = total.followed_by(output)
    llm.shutdown()
    assert total.outputs == whole.outputs
    assert len(rest) < 20


def test_without_detokenizing_there_are_tokens_only(core):
    plain = run(core, PARAMS)[-1].outputs[0]
    silent = run(core, dataclasses.replace(PARAMS, detokenize=False))[-1].outputs[0]
    assert (silent.text, silent.token_ids) == ("", plain.token_ids)


@pytest.mark.parametrize(("limit", "kept"), [(2, [6, 7]), (9, [5, 6, 7]), (-1, [5, 6, 7])])
def test_a_prompt_is_truncated_from_its_beginning(core, limit, kept):
    params = dataclasses.replace(PARAMS, truncate_prompt_tokens=limit)
    assert list(run(core, params)[-1].prompt_token_ids) == kept


def test_a_prompt_is_truncated_to_what_the_model_takes(core):
    params = SamplingParams(max_tokens=None, truncate_prompt_tokens=-1)
    output = run(core, params, prompt=[5] * 600)[-1]
    assert len(output.prompt_token_ids) == core.max_model_len - 1


def test_each_of_several_end_tokens_ends(checkpoints, core, tmp_path):
    """`generation_config.json` may name several, and a request more."""
    first, second, third = run(core, PARAMS)[-1].outputs[0].token_ids[3:6]
    folder = tmp_path / "model"
    tiny.make_checkpoint(folder, "qwen2")
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": [{second}, 0]}}')
    other = load_engine(
        EngineConfig(str(folder), dtype="float32", num_threads=1, kv_cache_memory_bytes=2**22)
    )
    params = dataclasses.replace(PARAMS, ignore_eos=False)
    by_eos = run(other, params)[-1].outputs[0]
    by_id = run(other, dataclasses.replace(params, stop_token_ids=[first]))[-1].outputs[0]
    ignoring = dataclasses.replace(params, ignore_eos=True, stop_token_ids=[third])
    late = run(other, ignoring)[-1].outputs[0]
    assert (by_eos.token_ids[-1], by_eos.finish_reason, by_eos.stop_reason) == (
        second,
        "stop",
        None,
    )
    assert (by_id.token_ids[-1], by_id.stop_reason) == (first, first)
    assert (late.token_ids[-1], late.stop_reason) == (third, third)
