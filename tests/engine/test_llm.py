import asyncio
import dataclasses
import subprocess
import sys
import threading
from itertools import pairwise

import pytest

from app.engine import (
    LLM,
    AsyncLLM,
    EngineConfig,
    EngineOverloaded,
    EngineStopped,
    GenerationFailed,
    InvalidRequest,
    PromptTooLong,
    SamplingParams,
)
from app.engine.engine_core import load_engine
from app.engine.options import EngineOptions, SamplingOptions

OPTIONS = {"num_threads": 1, "kv_cache_memory_bytes": 2**22, "dtype": "float32"}
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(checkpoints):
    return LLM(str(checkpoints("qwen2")[0]), **OPTIONS)


@pytest.fixture
def core(checkpoints):
    return load_engine(EngineConfig(str(checkpoints("qwen2")[0]), max_num_queued=8, **OPTIONS))


@pytest.fixture
def async_llm(core):
    llm = AsyncLLM.from_core(core)
    yield llm
    llm.shutdown()
    assert core.stats().num_free_blocks == core.stats().num_blocks


async def last_of(stream):
    last = None
    async for output in stream:
        last = output
    return last


async def wait_until(condition):
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  the engine's thread sets no event for tests
            await asyncio.sleep(0.005)


def test_the_first_example_of_any_user_runs(llm):
    outputs = llm.generate("解释一下量子计算的基本原理", max_tokens=10)
    assert outputs[0].outputs[0].text == outputs[0].text
    assert outputs[0].finished


def test_prompts_come_as_texts_tokens_or_both(llm):
    ids = llm.get_tokenizer().encode("The pages")
    forms = ["The pages", {"prompt": "The pages"}, {"prompt_token_ids": ids}, ids]
    texts = {llm.generate(form, GREEDY)[0].text for form in forms}
    assert len(texts) == 1


def test_each_prompt_may_have_its_own_params(llm):
    params = [SamplingParams(max_tokens=n, ignore_eos=True) for n in (2, 5, 3)]
    outputs = llm.generate(["a", "b", "c"], params)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [2, 5, 3]
    assert [output.prompt for output in outputs] == ["a", "b", "c"]


def test_as_many_params_as_prompts_are_needed(llm):
    with pytest.raises(InvalidRequest, match="2 sampling_params for 1 prompts"):
        llm.generate(["a"], [GREEDY, GREEDY])


def test_chat_uses_the_models_template(llm):
    messages = [{"role": "user", "content": "Why?"}]
    output = llm.chat(messages, GREEDY)[0]
    assert list(output.prompt_token_ids) == llm.get_tokenizer().apply_chat_template(messages)


def test_more_prompts_than_the_queue_takes_are_fed_bit_by_bit(checkpoints):
    llm = LLM(str(checkpoints("qwen2")[0]), max_num_queued=2, max_num_seqs=2, **OPTIONS)
    assert len(llm.generate([[5]] * 20, GREEDY)) == 20


def test_a_refused_prompt_leaves_nothing_behind(llm):
    with pytest.raises(PromptTooLong, match="600 tokens, the model takes 512"):
        llm.generate([[5] * 9, [5] * 600], GREEDY)
    assert llm.stats().num_requests_running == 0
    assert llm.stats().num_free_blocks == llm.stats().num_blocks


def test_token_ids_outside_the_vocabulary_are_refused(llm):
    with pytest.raises(InvalidRequest, match="token id 100000"):
        llm.generate([[5, 100_000]], GREEDY)


def test_stop_strings_cut_the_text(llm):
    whole = llm.generate("The pages", GREEDY)[0].text
    stop = whole[3:5]
    cut = llm.generate("The pages", dataclasses.replace(GREEDY, stop=stop))[0].outputs[0]
    assert cut.text == whole[: whole.index(stop)]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)


def test_a_stop_token_is_no_part_of_the_text(llm):
    whole = llm.generate("The pages", GREEDY)[0].outputs[0]
    token_id = whole.token_ids[4]
    params = dataclasses.replace(GREEDY, stop_token_ids=[token_id])
    cut = llm.generate("The pages", params)[0].outputs[0]
    length = whole.token_ids.index(token_id)
    assert cut.token_ids == whole.token_ids[: length + 1]
    assert cut.text == llm.get_tokenizer().decode(whole.token_ids[:length])


def test_logprobs_name_the_token_and_its_rivals(llm):
    params = dataclasses.replace(GREEDY, logprobs=2, max_tokens=4)
    output = llm.generate("The pages", params)[0].outputs[0]
    assert len(output.logprobs) == 4
    first = output.logprobs[0][output.token_ids[0]]
    assert first.rank == 1
    assert len(output.logprobs[0]) == 2
    chosen = zip(output.logprobs, output.token_ids, strict=True)
    total = sum(entry[token].logprob for entry, token in chosen)
    assert output.cumulative_logprob == pytest.approx(total)


def test_prompt_logprobs_agree_with_generated_ones(llm):
    """A generated text, sent again as a prompt, has the same log probabilities."""
    params = dataclasses.replace(GREEDY, logprobs=0)
    first = llm.generate([[5, 6, 7]], params)[0]
    tokens = first.outputs[0].token_ids
    again = llm.generate(
        {"prompt_token_ids": [5, 6, 7, *tokens]}, SamplingParams(max_tokens=1, prompt_logprobs=0)
    )[0]
    assert again.prompt_logprobs[0] is None
    repeated = [e[t].logprob for e, t in zip(again.prompt_logprobs[3:], tokens, strict=True)]
    written = [e[t].logprob for e, t in zip(first.outputs[0].logprobs, tokens, strict=True)]
    assert repeated == pytest.approx(written, abs=1e-4)


def test_several_answers_differ_and_are_numbered(llm):
    params = SamplingParams(n=3, max_tokens=12, seed=1, ignore_eos=True)
    output = llm.generate("The pages", params)[0]
    assert [answer.index for answer in output.outputs] == [0, 1, 2]
    assert len({answer.token_ids for answer in output.outputs}) == 3


def test_a_seed_gives_the_same_text_in_any_batch(llm):
    seeded = SamplingParams(seed=11, max_tokens=16, ignore_eos=True)
    alone = llm.generate("The pages", seeded)[0].text
    others = [SamplingParams(max_tokens=9, top_k=5), GREEDY, seeded, SamplingParams(top_p=0.5)]
    together = llm.generate(["x y z", "blocks", "The pages", "q"], others)[2].text
    assert alone == together


def test_min_tokens_holds_off_the_end(llm):
    eos_lover = SamplingParams(
        temperature=0, logit_bias={0: 100}, min_tokens=5, max_tokens=9, skip_special_tokens=False
    )
    output = llm.generate("The pages", eos_lover)[0].outputs[0]
    assert len(output.token_ids) == 6
    assert (output.token_ids[-1], output.finish_reason) == (0, "stop")


def test_options_name_every_field_of_the_config():
    fields = {field.name for field in dataclasses.fields(EngineConfig)}
    assert EngineOptions.__annotations__.keys() == fields - {"model"}
    assert SamplingOptions.__annotations__.keys() <= {
        field.name for field in dataclasses.fields(SamplingParams)
    }


def test_importing_the_engine_loads_neither_the_app_nor_torch():
    code = (
        "import sys; from app.engine import SamplingParams, EngineConfig; assert 'torch' not in "
        "sys.modules; from app.engine import LLM; bad = {'fastapi', 'pymilvus', 'transformers', "
        "'pydantic_settings', 'app.config'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


async def test_a_stream_grows_and_ends_like_the_batch(async_llm, llm):
    texts = [output.text async for output in async_llm.generate("The pages", GREEDY, "a")]
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert texts[-1] == llm.generate("The pages", GREEDY)[0].text


async def test_many_streams_share_the_engine(async_llm, llm):
    prompts = [[5 + i] * (i + 1) for i in range(8)]
    outputs = await asyncio.gather(*(last_of(async_llm.generate(p, GREEDY)) for p in prompts))
    expected = [output.text for output in llm.generate(prompts, GREEDY)]
    assert [output.text for output in outputs] == expected


async def test_abort_ends_the_stream_and_frees_the_blocks(async_llm):
    stream = async_llm.generate([5, 6], LONG, "a")
    await anext(stream)
    await async_llm.abort("a")
    output = await last_of(stream)
    assert (output.finished, output.outputs[0].finish_reason) == (True, "abort")
    stats = async_llm.stats()
    assert stats.num_free_blocks == stats.num_blocks


async def test_closing_the_stream_aborts_the_request(async_llm):
    stream = async_llm.generate([5, 6], LONG)
    await anext(stream)
    await stream.aclose()
    await wait_until(lambda: async_llm.stats().num_requests_running == 0)


async def test_cancelling_the_reader_aborts_the_request(async_llm):
    task = asyncio.create_task(last_of(async_llm.generate([5, 6], LONG)))
    await wait_until(lambda: async_llm.stats().num_requests_running == 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await wait_until(lambda: async_llm.stats().num_requests_running == 0)


async def test_refusals_reach_the_caller(async_llm):
    with pytest.raises(PromptTooLong):
        await last_of(async_llm.generate([5] * 600, GREEDY))
    with pytest.raises(InvalidRequest):
        await last_of(async_llm.generate([], GREEDY))


async def test_a_full_queue_refuses(async_llm, core):
    entered, may_go_on = threading.Event(), threading.Event()
    step = core.step

    def blocked():
        entered.set()
        may_go_on.wait(20)
        return step()

    core.step = blocked
    tasks = [asyncio.create_task(last_of(async_llm.generate([5], GREEDY)))]
    await wait_until(entered.is_set)
    tasks += [asyncio.create_task(last_of(async_llm.generate([5], GREEDY))) for _ in range(11)]
    await wait_until(lambda: len(async_llm._commands) == 11)
    may_go_on.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    refused = [result for result in results if isinstance(result, EngineOverloaded)]
    assert len(refused) == 11 - 8
    assert sum(getattr(r, "finished", False) for r in results) == 12 - len(refused)


async def test_a_failed_step_fails_its_requests_and_the_engine_goes_on(async_llm, core):
    step = core.step

    def fail():
        core.step = step
        raise RuntimeError("device lost")

    core.step = fail
    with pytest.raises(GenerationFailed, match="device lost"):
        await last_of(async_llm.generate([5], GREEDY))
    assert (await last_of(async_llm.generate([5], GREEDY))).finished


async def test_shutdown_ends_running_streams(async_llm):
    stream = async_llm.generate([5, 6], LONG)
    await anext(stream)
    async_llm.shutdown()
    with pytest.raises(EngineStopped):
        await last_of(stream)
    with pytest.raises(EngineStopped):
        await last_of(async_llm.generate([5], GREEDY))


async def test_salts_keep_tenants_apart(async_llm):
    prompt = list(range(5, 70))
    for salt, cached in (("one", 0), ("two", 0), ("one", 64)):
        output = await last_of(async_llm.generate(prompt, GREEDY, cache_salt=salt))
        assert output.num_cached_tokens == cached
