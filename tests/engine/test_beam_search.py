"""Beam search equals Hugging Face's `generate(num_beams=…)`, whatever the pool and the batch."""

import itertools

import pytest
import torch

from app.engine import LLM, BeamSearchParams, InvalidRequest, PromptTooLong
from app.engine.engine_core import NewRequest
from app.engine.sampling_params import SamplingParams
from tests.engine.control import Control
from tests.engine.engines import bytes_for_blocks, finish_all, load, make_prompts

EOS = 0


@torch.no_grad()
def hugging_face(model, prompt, width, num_tokens, *, eos_token_id=None, length_penalty=1.0):
    """Tokens of the answers, without padding, and their scores."""
    ids = torch.tensor([prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num_tokens,
        num_beams=width,
        num_return_sequences=width,
        do_sample=False,
        early_stopping="never",
        length_penalty=length_penalty,
        eos_token_id=eos_token_id,
        pad_token_id=399,
        return_dict_in_generate=True,
        output_scores=True,
    )
    answers = output.sequences[:, len(prompt) :].tolist()
    if eos_token_id is not None:
        answers = [a[: a.index(eos_token_id) + 1] if eos_token_id in a else a for a in answers]
    return answers, output.sequences_scores.tolist()


def search(core, prompts, params):
    for index, prompt in enumerate(prompts):
        core.add(NewRequest(str(index), prompt, SamplingParams(), beam_search=params))
    finished = finish_all(core)
    return [[list(o.token_ids) for o in finished[str(i)].outputs] for i in range(len(prompts))]


@pytest.mark.parametrize("width", [2, 5])
def test_beams_of_a_fixed_length_equal_hugging_face(width, checkpoints):
    folder, model = checkpoints("llama")
    prompts = make_prompts(5, [1, 9, 30])
    core = load(folder, block_size=4, max_num_batched_tokens=24, max_num_seqs=11)
    answers = search(core, prompts, BeamSearchParams(width, 14, ignore_eos=True))
    expected = [hugging_face(model, prompt, width, 14)[0] for prompt in prompts]
    assert answers == expected


@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 1.0])
def test_beams_that_end_equal_hugging_face(length_penalty, checkpoints):
    """The end token is one that the model likes, so that beams of many lengths end."""
    folder, model = checkpoints("qwen2")
    prompt = make_prompts(6, [17])[0]
    eos = hugging_face(model, prompt, 3, 12)[0][0][10]
    core = load(folder, block_size=4)
    core._limits = type(core._limits)(frozenset([eos]), 256, 400)
    params = BeamSearchParams(3, 12, length_penalty=length_penalty, include_stop_str_in_output=True)
    (answers,) = search(core, [prompt], params)
    expected, scores = hugging_face(
        model, prompt, 3, 12, eos_token_id=eos, length_penalty=length_penalty
    )
    assert any(answer[-1] == eos for answer in expected)
    assert answers == expected
    assert scores == sorted(scores, reverse=True)


def test_a_wide_beam_finds_what_brute_force_finds(checkpoints):
    """All continuations of three tokens out of the few likeliest, scored by the model alone."""
    folder, model = checkpoints("llama")
    prompt = make_prompts(7, [6])[0]
    width = 40
    answers = search(
        load(folder, max_num_seqs=width), [prompt], BeamSearchParams(width, 2, ignore_eos=True)
    )[0]
    with torch.no_grad():
        first = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        likely = first.topk(width).indices.tolist()
        batch = torch.tensor([[*prompt, token] for token in likely])
        second = model(batch).logits[:, -1].log_softmax(-1)
    totals = {
        (token, other): float(first[token] + second[row, other])
        for (row, token), other in itertools.product(enumerate(likely), range(second.shape[1]))
    }
    best = sorted(totals, key=lambda pair: -totals[pair])[:width]
    assert [tuple(answer) for answer in answers] == best


@pytest.mark.parametrize("swap_space", [0.0, 0.01])
@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_beams_under_pressure_choose_the_same(swap_space, enable_prefix_caching, checkpoints):
    folder = checkpoints("llama")[0]
    prompts = make_prompts(8, [21, 13, 18, 9, 20])
    params = BeamSearchParams(4, 12, ignore_eos=True)
    calm = search(load(folder, block_size=4), prompts, params)
    core = load(
        folder,
        block_size=4,
        max_model_len=36,
        kv_cache_memory_bytes=bytes_for_blocks(37, 4),
        swap_space=swap_space,
        enable_prefix_caching=enable_prefix_caching,
    )
    assert search(core, prompts, params) == calm
    assert core.stats().num_preemptions > 0
    assert bool(core.stats().num_swapped_out_blocks) is (swap_space > 0)


def group_without_one_of_its_beams(**options):
    """An older sequence has grown until a beam gave way; its siblings hold blocks and wait."""
    control = Control(num_blocks=16, block_size=4, enable_prefix_caching=False, **options)
    (old,) = control.add("old", range(30, 54), max_tokens=16)
    group = control.add_beams("beams", range(1, 9), BeamSearchParams(3, 12, ignore_eos=True))
    while not any(beam.num_preemptions for beam in group.sequences):
        assert control.scheduler.has_work
        control.step()
    assert any(beam.num_pending_tokens == 0 for beam in group.sequences)
    return control, old, group


@pytest.mark.parametrize("num_host_blocks", [0, 30])
def test_a_beam_comes_back_to_its_siblings_in_spite_of_the_watermark(num_host_blocks):
    """Nobody else runs, so nobody else would free a block."""
    control, old, group = group_without_one_of_its_beams(
        watermark=0.4, num_host_blocks=num_host_blocks
    )
    control.run(max_steps=200)
    assert old.num_output_tokens == 16
    assert len(group.results) == 3


@pytest.mark.parametrize("num_host_blocks", [0, 30])
def test_beams_that_wait_give_way_to_an_urgent_request(num_host_blocks):
    """It goes before the missing beam, and needs the blocks of those that wait for that beam."""
    control, _, group = group_without_one_of_its_beams(num_host_blocks=num_host_blocks)
    control.add("urgent", range(1, 60), max_tokens=1, priority=-1)
    control.run(max_steps=200)
    assert len(group.results) == 3


def test_beams_share_the_blocks_of_their_prompt(checkpoints):
    core = load(checkpoints("llama")[0], block_size=4)
    params = BeamSearchParams(4, 6, ignore_eos=True)
    core.add(NewRequest("0", make_prompts(9, [40])[0], SamplingParams(), beam_search=params))
    while core.stats().num_requests_running < 4:
        core.step()
    stats = core.stats()
    assert stats.num_blocks - stats.num_free_blocks < 10 + 4 + 1
    finish_all(core)


@pytest.mark.parametrize("num_steps", range(5))
def test_a_beam_search_aborted_at_any_step_returns_every_block(num_steps, checkpoints):
    core = load(checkpoints("llama")[0], block_size=4, max_num_batched_tokens=16, max_num_seqs=8)
    params = BeamSearchParams(3, 9, ignore_eos=True)
    core.add(NewRequest("0", make_prompts(9, [30])[0], SamplingParams(), beam_search=params))
    for _ in range(num_steps):
        core.step()
    assert core.abort("0").finished
    core.check_integrity()
    assert core.stats().num_free_blocks == core.stats().num_blocks


def test_the_face_gives_texts_and_tokens_of_prompt_and_answer(checkpoints):
    llm = LLM(str(checkpoints("qwen2")[0]), num_threads=1, kv_cache_memory_bytes=2**22)
    (output,) = llm.beam_search(["The pages"], BeamSearchParams(2, 5, ignore_eos=True))
    prompt = llm.get_tokenizer().encode("The pages")
    best, other = output.sequences
    assert best.tokens[: len(prompt)] == prompt
    assert len(best.tokens) == len(prompt) + 5
    assert best.text == llm.get_tokenizer().decode(best.tokens[len(prompt) :])
    assert best.cum_logprob > other.cum_logprob
    assert best.finish_reason == "length"


def test_what_cannot_be_searched_is_refused_with_the_numbers(checkpoints):
    core = load(checkpoints("llama")[0], block_size=4, kv_cache_memory_bytes=bytes_for_blocks(9, 4))

    def add(width, **options):
        params = BeamSearchParams(width, 8, **options)
        core.add(NewRequest("0", [5] * 10, SamplingParams(), beam_search=params))

    with pytest.raises(PromptTooLong, match="18 tokens for each of 2 beams in 10 blocks"):
        add(2)
    with pytest.raises(InvalidRequest, match="beam_width is 60, it has to compare 120"):
        add(60)
    with pytest.raises(InvalidRequest, match="beam_width is 33, above max_num_seqs 32"):
        core._kv_cache.num_blocks = 10_000
        add(33)
    with pytest.raises(InvalidRequest, match="leave it at 0"):
        add(1, temperature=0.5)
