"""Random weights are the adversary: whatever they prefer, every sentence is a source's own."""

import itertools
import math
import random

import pytest
from tokenizers import Tokenizer

from app.engine import (
    LLM,
    InvalidRequest,
    QuoteOnlyParams,
    QuoteSource,
    SamplingParams,
    SpeculativeConfig,
    StructuredOutputsParams,
)
from app.engine.config import EngineConfig
from app.engine.engine_core import NewRequest, load_engine
from app.engine.quotes import QuoteCompiler, QuoteMask
from tests.engine import tiny

OPTIONS = {"num_threads": 1, "kv_cache_memory_bytes": 2**22, "dtype": "float32"}
REFUSAL = "The documents do not say."
SOURCES = (
    QuoteSource(1, ["The pages are kept apart.", "The pages of the cache hold keys.", "Why?"]),
    QuoteSource(2, ["分块管理键值缓存可以减少内存碎片。", "量子计算利用叠加。", "Why?"]),
    QuoteSource(12, ["Émile mixed 3.14 with 🙂.", "Say <|end|> and go on."]),
)
PROMPTS = ["Where are the pages?", "什么可以减少内存碎片？", "Why? " * 30, "🙂"]
EOS = 0


def quotes(**changes):
    return QuoteOnlyParams(**{"sources": SOURCES, "refusal": REFUSAL, **changes})


def params(quote_only=None, **changes):
    structured = StructuredOutputsParams(quote_only=quote_only or quotes())
    return SamplingParams(
        **{"temperature": 0, "max_tokens": 300, "structured_outputs": structured, **changes}
    )


def sentences_of(text, quote_only):
    """The (sentence, number) pairs that a text is made of; fails where it is made of others."""
    if text == quote_only.refusal:
        return []
    units = {f"{s} [{o.number}]": (s, o.number) for o in quote_only.sources for s in o.sentences}
    found = []
    while text:
        unit = next((unit for unit in units if text.startswith(unit)), None)
        assert unit is not None, f"not in the sources: {text!r}"
        found.append(units[unit])
        text = text[len(unit) :]
        assert not text or text.startswith(" "), text
        text = text[1:]
    assert found, "an empty answer"
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.make_checkpoint(folder, "llama")
    return folder


@pytest.fixture(scope="module")
def model(folder, tmp_path_factory):
    return tiny.make_checkpoint(tmp_path_factory.mktemp("twin"), "llama")


@pytest.fixture(scope="module")
def llm(folder):
    return LLM(str(folder), **OPTIONS)


@pytest.fixture(scope="module")
def compiler(folder):
    return QuoteCompiler((folder / "tokenizer.json").read_text())


def mask_of(compiler, quote_only, *, max_tokens=300, is_greedy=True):
    grammar = compiler.compile(quote_only)
    return QuoteMask(grammar, [EOS], 400, max_tokens=max_tokens, is_greedy=is_greedy)


def allowed(mask, tokens):
    bits = mask.after(list(tokens))
    return {i for i in range(len(bits) * 8) if bits[i // 8] >> i % 8 & 1}


def answers_of(quote_only, tokenizer, max_tokens=300):
    """Every answer that may be given, as tokens with the end token, by brute force."""
    units = [(s, f"{s} [{o.number}]") for o in quote_only.sources for s in o.sentences]
    for count in range(1, quote_only.max_sentences + 1):
        for chosen in itertools.permutations(units, count):
            if len({sentence for sentence, _ in chosen}) == count:
                text = " ".join(unit for _, unit in chosen)
                ids = tokenizer.encode(text, add_special_tokens=False).ids
                if len(ids) < max_tokens:
                    yield (*ids, EOS)
    if quote_only.refusal:
        yield (*tokenizer.encode(quote_only.refusal, add_special_tokens=False).ids, EOS)


@pytest.mark.parametrize("max_tokens", [300, 40])
def test_the_automaton_is_the_set_of_all_answers(compiler, folder, max_tokens):
    wanted = quotes(max_sentences=2)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    following = {}
    for ids in answers_of(wanted, tokenizer, max_tokens):
        for length in range(len(ids)):
            following.setdefault(ids[:length], set()).add(ids[length])
    mask = mask_of(compiler, wanted, max_tokens=max_tokens)
    places = list(following)
    random.Random(7).shuffle(places)  # back and forth, as forks and drafts do
    assert len(places) > 300
    for place in places[:600]:
        assert allowed(mask, place) == following[place], place


def test_only_the_end_follows_what_is_not_allowed(compiler):
    mask = mask_of(compiler, quotes())
    assert allowed(mask, [1, 2, 3]) == {EOS}
    assert EOS not in allowed(mask, [])


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("is_speculative", [False, True])
def test_every_answer_is_made_of_the_sources_sentences(folder, temperature, is_speculative):
    speculation = SpeculativeConfig() if is_speculative else None
    llm = LLM(str(folder), speculative_config=speculation, **OPTIONS)
    n = 8 if temperature else 1
    wanted = params(temperature=temperature, n=n, seed=3)
    outputs = llm.generate(PROMPTS, wanted, use_tqdm=False)
    seen = set()
    for output in outputs:
        for answer in output.outputs:
            said = sentences_of(answer.text, wanted.structured_outputs.quote_only)
            assert len({sentence for sentence, _ in said}) == len(said) <= 3
            assert answer.finish_reason == "stop"
            seen |= set(said) or {None}
    assert len(seen) > (8 if temperature else 1)  # the random model has said most there is to say


def test_the_likeliest_answer_is_taken_by_the_models_logits_and_the_priors(llm, model, folder):
    """Against Hugging Face: at each token the greatest logit plus the prior of what is allowed."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    priors = random.Random(5)
    for prompt in PROMPTS[:2]:
        sources = [
            QuoteSource(s.number, s.sentences, [priors.gauss(0, 4) for _ in s.sentences])
            for s in SOURCES
        ]
        wanted = quotes(
            sources=sources, prior_weight=1.5, refusal_prior=-1.0, end_prior=0.5, max_sentences=2
        )
        expected = best_by_brute_force(model, tokenizer, prompt, wanted)
        [output] = llm.generate([prompt], params(wanted), use_tqdm=False)
        assert output.outputs[0].token_ids == expected


def best_by_brute_force(model, tokenizer, prompt, wanted):
    prior_of = {
        f"{sentence} [{source.number}]": wanted.prior_weight * prior
        for source in wanted.sources
        for sentence, prior in zip(source.sentences, source.priors, strict=True)
    }
    answers = list(answers_of(wanted, tokenizer))
    prompt_ids = tokenizer.encode(prompt).ids
    ids = ()
    while not ids or ids[-1] != EOS:
        left = [answer for answer in answers if answer[: len(ids)] == ids]
        ahead = {}
        for answer in left:
            token = answer[len(ids)]
            ahead.setdefault(token, set()).add(
                current_prior(tokenizer, ids, answer, wanted, prior_of)
            )
        logits = tiny.logprobs(model, prompt_ids, [*ids, 0])[-1]
        ids += (max(ahead, key=lambda token: logits[token].item() + max(ahead[token])),)
    return ids


def current_prior(tokenizer, ids, answer, wanted, prior_of):
    """The prior of the path that an answer takes at a place: its sentence there, or its end."""
    text = tokenizer.decode(list(answer[:-1]), skip_special_tokens=False)
    if text == wanted.refusal:
        return wanted.prior_weight * wanted.refusal_prior
    units, rest = [], text
    while rest:
        unit = next(unit for unit in prior_of if rest.startswith(unit))
        units.append(unit)
        rest = rest[len(unit) + 1 :]
    length, joined = 0, ""
    for unit in units:
        joined += (" " if joined else "") + unit
        length = len(tokenizer.encode(joined, add_special_tokens=False).ids)
        if len(ids) < length:
            return prior_of[unit]
    return wanted.prior_weight * wanted.end_prior


def test_drawn_answers_follow_the_priors(llm):
    """Equal logits (by temperature) and priors that say 3 : 1 give answers about 3 : 1."""
    temperature = 100.0  # the random model's own preferences vanish
    prior = temperature * math.log(3)
    sources = [QuoteSource(1, ["Why?", "The pages are kept apart.", "The pages."], [0, prior, 0])]
    wanted = params(
        quotes(sources=sources, refusal=None, max_sentences=1),
        temperature=temperature,
        n=30,
    )
    outputs = llm.generate(["Which?"] * 8, wanted, use_tqdm=False)
    texts = [answer.text for output in outputs for answer in output.outputs]
    share = sum("kept" in text for text in texts) / len(texts)
    assert 0.5 < share < 0.7  # 3 of 5, two sentences beginning alike


def test_free_rows_beside_quotes_are_not_touched(llm):
    free = SamplingParams(temperature=0, max_tokens=40)
    alone = llm.generate(PROMPTS, free, use_tqdm=False)
    mixed = llm.generate([p for p in PROMPTS for _ in (0, 1)], [free, params()] * 4, use_tqdm=False)
    texts = [output.outputs[0].token_ids for output in mixed]
    assert texts[::2] == [output.outputs[0].token_ids for output in alone]
    for output in mixed[1::2]:
        sentences_of(output.outputs[0].text, quotes())


def test_preemption_and_small_chunks_change_nothing(folder, llm):
    prompts = [*PROMPTS[:2], PROMPTS[3]] * 2
    wanted = [params(temperature=1.0, seed=seed, max_tokens=80) for seed in range(6)]
    whole = [o.outputs[0].token_ids for o in llm.generate(prompts, wanted, use_tqdm=False)]
    tight = LLM(
        str(folder),
        **OPTIONS | {"kv_cache_memory_bytes": 28 * llm.stats().block_bytes // 4},
        block_size=4,
        max_num_seqs=6,
        max_num_batched_tokens=16,
        max_model_len=112,
    )
    outputs = tight.generate(prompts, wanted, use_tqdm=False)
    assert [o.outputs[0].token_ids for o in outputs] == whole
    assert tight.stats().num_preemptions > 0


def test_what_is_forced_takes_one_step(folder):
    core = load_engine(EngineConfig(str(folder), **OPTIONS))
    steps = []
    core.observe_steps(steps.append)
    only = quotes(sources=[QuoteSource(1, ["The pages of the cache hold keys."])], refusal=None)
    core.add(NewRequest("a", core.tokenizer.encode("x"), params(only)))
    while core.has_work:
        [output] = core.step()
    assert output.outputs[0].text == "The pages of the cache hold keys. [1]"
    assert len(steps) == 2  # the prompt with the first token; all others, and the end after them


def test_a_sentence_that_does_not_fit_is_not_begun(llm):
    sources = [QuoteSource(1, ["Why?", "The pages of the cache hold keys and values. " * 3])]
    wanted = params(quotes(sources=sources, refusal=None), max_tokens=12)
    [output] = llm.generate(["x"], wanted, use_tqdm=False)
    assert output.outputs[0].text == "Why? [1]"
    assert output.outputs[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: quotes(sources=[], refusal=None), "neither a sentence nor a refusal"),
        (lambda: QuoteSource(3, ["a", " "]), "source 3 has an empty sentence"),
        (lambda: QuoteSource(3, ["a", "b"], [1.0]), "2 sentences and 1 priors"),
        (lambda: quotes(max_sentences=0), "max_sentences is 0"),
        (lambda: quotes(prior_weight=math.nan), "prior_weight is nan"),
        (lambda: quotes(sources=[QuoteSource(1, ["a"] * 5000)]), "5000 sentences"),
        (
            lambda: StructuredOutputsParams(quote_only=quotes(), regex="a"),
            "regex, quote_only: give exactly one",
        ),
        (
            lambda: StructuredOutputsParams(quote_only=quotes(), thoughts_end="</think>"),
            "no room for thoughts",
        ),
    ],
)
def test_bad_quotes_are_refused_with_the_reason(make, message):
    with pytest.raises(InvalidRequest, match=message):
        make()


def test_a_limit_below_every_quote_cuts_one(llm):
    [output] = llm.generate(["x"], params(max_tokens=2), use_tqdm=False)
    [answer] = output.outputs
    assert answer.finish_reason == "length"
    units = [f"{text} [{s.number}]" for s in SOURCES for text in s.sentences]
    assert any(unit.startswith(answer.text) for unit in [*units, REFUSAL])


def test_a_sentence_that_begins_with_another_and_its_number_is_refused(compiler):
    sources = [QuoteSource(1, ["Why?", "Why? [1] Because."])]
    with pytest.raises(InvalidRequest, match="take numbers in brackets out"):
        compiler.compile(quotes(sources=sources))


def test_logits_without_quotes_are_not_changed(llm, model, folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompts = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
    free = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], free, use_tqdm=False)
    tiny.assert_greedy(model, prompts, [list(o.outputs[0].token_ids) for o in outputs])
