"""What can go wrong around the engine thread: no caller is left waiting, no block is lost."""

import asyncio
import dataclasses
import gc
import threading

import pytest

from app.engine import (
    AsyncLLM,
    EngineConfig,
    EngineOverloaded,
    EngineStopped,
    GenerationFailed,
    InvalidRequest,
    PoolingParams,
    RequestOutputKind,
    SamplingParams,
)
from app.engine.async_llm import MAX_FAILED_STEPS
from app.engine.engine_core import load_engine

OPTIONS = {"num_threads": 1, "kv_cache_memory_bytes": 2**22, "dtype": "float32"}
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)


@pytest.fixture
def core(checkpoints):
    return load_engine(EngineConfig(str(checkpoints("qwen2")[0]), **OPTIONS))


@pytest.fixture
def llm(core):
    llm = AsyncLLM.from_core(core)
    yield llm
    llm.shutdown()
    assert core.stats().num_free_blocks == core.stats().num_blocks
    core.check_integrity()


async def last_of(stream):
    return [output async for output in stream][-1]


async def wait_until(condition):
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  the engine's thread sets no event for tests
            await asyncio.sleep(0.005)


class Gate:
    """Holds the engine thread before its next step."""

    def __init__(self, core):
        self._core, self._step = core, core.step
        self.is_waiting, self._open = threading.Event(), threading.Event()
        core.step = self._wait

    def _wait(self):
        self.is_waiting.set()
        assert self._open.wait(20)
        return self._step()

    def open(self):
        self._core.step = self._step
        self._open.set()


async def test_engine_that_dies_fails_every_stream_and_all_later_ones(llm, core):
    gate = Gate(core)
    streams = [asyncio.create_task(last_of(llm.generate([5, 6], LONG)))]
    await wait_until(gate.is_waiting.is_set)
    streams += [asyncio.create_task(last_of(llm.generate([5, 6], LONG))) for _ in range(2)]
    await wait_until(lambda: len(llm._commands) == 2)

    def die(*_):
        raise SystemExit("lost")

    core.add = die
    gate.open()
    results = await asyncio.gather(*streams, return_exceptions=True)
    assert {type(result) for result in results} == {EngineStopped}
    with pytest.raises(EngineStopped, match="the engine died of an unexpected SystemExit"):
        await last_of(llm.generate([5], GREEDY))
    with pytest.raises(EngineStopped, match="the engine died"):
        llm.check_health()


async def test_steps_that_go_on_failing_are_a_matter_of_health(llm, core):
    step = core.step

    def fail():
        raise RuntimeError("device lost")

    core.step = fail
    for _ in range(MAX_FAILED_STEPS):
        llm.check_health()
        with pytest.raises(GenerationFailed, match="device lost"):
            await last_of(llm.generate([5], GREEDY))
    with pytest.raises(EngineStopped, match="the last 3 steps failed"):
        llm.check_health()
    core.step = step
    assert (await last_of(llm.generate([5], GREEDY))).finished
    llm.check_health()


@pytest.mark.parametrize("num_steps", [0, 1, 2, 5])
async def test_abort_at_any_step_returns_all_blocks(llm, core, num_steps):
    outputs = await llm.submit(list(range(5, 45)), LONG)
    for _ in range(num_steps):
        await anext(outputs)
    await outputs.aclose()
    await wait_until(lambda: not llm.is_busy)
    assert core.stats().num_free_blocks == core.stats().num_blocks


async def test_refused_request_raises_before_anything_is_read(llm, core):
    with pytest.raises(InvalidRequest):
        await llm.submit([], GREEDY)
    gate = Gate(core)
    admitted = [await llm.submit([5], GREEDY)]
    await wait_until(gate.is_waiting.is_set)
    waiting = [asyncio.create_task(llm.submit([5], GREEDY)) for _ in range(3)]
    await wait_until(lambda: len(llm._commands) == 3)
    core.add, add = _full, core.add
    gate.open()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    core.add = add
    assert {type(result) for result in results} == {EngineOverloaded}
    assert (await last_of(admitted[0])).finished


def _full(new):
    raise EngineOverloaded("full", 1.0)


async def test_slow_reader_gets_the_whole_text_in_few_states(llm):
    outputs = await llm.submit("The pages", GREEDY)
    await wait_until(lambda: not llm.is_busy)
    states = [output async for output in outputs]
    assert [len(state.outputs[0].token_ids) for state in states] == [12]


async def test_outputs_hold_all_or_the_news_or_come_at_the_end_alone(llm):
    params = dataclasses.replace(GREEDY, n=2, temperature=1, seed=3, logprobs=0, max_tokens=100)
    kinds = {}
    for kind in RequestOutputKind:
        wanted = dataclasses.replace(params, output_kind=kind)
        kinds[kind] = [output.outputs async for output in llm.generate("The pages", wanted)]
    whole = kinds[RequestOutputKind.CUMULATIVE][-1]
    assert kinds[RequestOutputKind.FINAL_ONLY] == [whole]
    deltas = kinds[RequestOutputKind.DELTA]
    assert len(deltas) > 1
    for index, answer in enumerate(whole):
        pieces = [piece for delta in deltas for piece in delta if piece.index == index]
        assert "".join(piece.text for piece in pieces) == answer.text
        assert sum((piece.token_ids for piece in pieces), ()) == answer.token_ids
        assert sum((piece.logprobs for piece in pieces), ()) == answer.logprobs


async def test_dropped_stream_is_aborted(llm):
    stream = llm.generate([5, 6], LONG)
    await anext(stream)
    del stream
    gc.collect()
    await wait_until(lambda: not llm.is_busy)


async def test_cancelled_embedding_is_aborted(llm, core):
    gate = Gate(core)
    task = asyncio.create_task(llm.embed([5] * 40))
    await wait_until(gate.is_waiting.is_set)
    task.cancel()
    gate.open()
    await asyncio.gather(task, return_exceptions=True)
    await wait_until(lambda: not llm.is_busy)


async def test_embeddings_share_the_engine_with_answers(llm):
    answer, embedding = await asyncio.gather(
        last_of(llm.generate("The pages", GREEDY)),
        llm.embed("The pages", PoolingParams("mean")),
    )
    assert len(answer.outputs[0].token_ids) == 12
    assert embedding.outputs.hidden_size == 64


def test_many_event_loops_share_an_engine_and_one_that_closes_takes_its_requests_along(llm, core):
    texts = []
    gate = Gate(core)

    async def leave():
        outputs = await llm.submit([5, 6], LONG)
        await anext(outputs)

    async def stay():
        texts.append((await last_of(llm.generate("The pages", GREEDY))).text)

    threads = [threading.Thread(target=asyncio.run, args=(work(),)) for work in (stay, leave, stay)]
    threads[0].start()
    assert gate.is_waiting.wait(20)
    for thread in threads[1:]:
        thread.start()
    asyncio.run(wait_until(lambda: len(llm._commands) == 2))
    gate.open()
    for thread in threads:
        thread.join(20)
    assert len(texts) == 2
    assert texts[0] == texts[1] != ""
    asyncio.run(wait_until(lambda: not llm.is_busy))


def test_shutdown_twice_and_from_several_threads_is_one(llm):
    threads = [threading.Thread(target=llm.shutdown) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    llm.shutdown()
    with pytest.raises(EngineStopped, match="shut down"):
        llm.check_health()


async def test_steps_are_observed(llm):
    steps = []
    llm.observe_steps(steps.append)
    await last_of(llm.generate([5, 6, 7], GREEDY))
    outputs = await llm.submit([8, 9], LONG)
    await anext(outputs)
    await outputs.aclose()
    await wait_until(lambda: not llm.is_busy)
    assert steps[0].num_tokens == 3
    assert sum(len(step.first_token_s) for step in steps) == 2
    assert sum(len(step.inter_token_s) for step in steps) >= 11
    done, aborted = [request for step in steps for request in step.finished]
    assert (done.finish_reason, done.num_prompt_tokens, done.num_generation_tokens) == (
        "length",
        3,
        12,
    )
    assert aborted.finish_reason == "abort"
    assert done.latency_s >= done.queue_s + done.prefill_s + done.decode_s - 1e-6
