"""Random weights are the adversary: whatever they prefer, the answer has the form asked for."""

import dataclasses
import json
import random
import re

import pytest
import torch
from llguidance import LLParserLimits
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from app.engine import (
    LLM,
    AsyncLLM,
    InvalidRequest,
    SamplingParams,
    StructuredOutputsParams,
)
from app.engine.sampler import adjust, sample
from app.engine.sequence import SamplingRow
from app.engine.structured import MAX_GRAMMAR_CHARS, GrammarCompiler
from tests.engine import control, tiny

OPTIONS = {"num_threads": 1, "kv_cache_memory_bytes": 2**22, "dtype": "float32"}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 5},
        "count": {"type": "integer", "minimum": -3, "maximum": 120},
        "kind": {"enum": ["页", "block", None]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["name", "count", "kind"],
    "additionalProperties": False,
}
REGEX = r"(ab|量子){1,3}-[0-9]{2,4}(\.x)?"
CHOICES = ["yes", "yes, of course", "nein", "不是 🙂", '\x7f\n"\\']
# Sums of digits in brackets; a brace of each side.
GBNF = 'root ::= "(" term ")"\nterm ::= [0-9] | [0-9] "+" term'
LARK = 'start: "(" term ")"\nterm: /[0-9]/ | /[0-9]/ "+" term'


def matches_schema(text):
    value = json.loads(text)
    assert value.keys() <= SCHEMA["properties"].keys()
    assert isinstance(value["name"], str)
    assert 1 <= len(value["name"]) <= 5
    assert type(value["count"]) is int
    assert -3 <= value["count"] <= 120
    assert value["kind"] in ("页", "block", None)
    return (
        all(type(tag) is bool for tag in value.get("tags", [])) and len(value.get("tags", ())) < 3
    )


def is_object(text):
    return isinstance(json.loads(text), dict)


def is_sum(text):
    return re.fullmatch(r"\([0-9](\+[0-9])*\)", text) is not None


FORMS = {
    "schema": ({"json": SCHEMA, "disable_any_whitespace": True}, matches_schema),
    "schema-text": ({"json": json.dumps(SCHEMA), "whitespace_pattern": " ?"}, matches_schema),
    "regex": ({"regex": REGEX}, lambda text: re.fullmatch(REGEX, text) is not None),
    "choice": ({"choice": CHOICES}, lambda text: text in CHOICES),
    "object": ({"json_object": True, "disable_any_whitespace": True}, is_object),
    "gbnf": ({"grammar": GBNF}, is_sum),
    "lark": ({"grammar": LARK}, is_sum),
}


def structured(form="choice", **options):
    settings = {"max_tokens": 120, "seed": 0, **options}
    return SamplingParams(structured_outputs=StructuredOutputsParams(**FORMS[form][0]), **settings)


@pytest.fixture(scope="module")
def llm(checkpoints):
    return LLM(str(checkpoints("qwen2")[0]), **OPTIONS)


def answers(llm, params):
    outputs = llm.generate([[5, 6]] * len(params), params)
    return [completion for output in outputs for completion in output.outputs]


def check_form(llm, form, seeds):
    made = answers(llm, [structured(form, seed=seed) for seed in seeds])
    whole = [answer.text for answer in made if answer.finish_reason == "stop"]
    assert all(FORMS[form][1](text) for text in whole)
    assert {answer.finish_reason for answer in made} <= {"stop", "length"}
    assert len(whole) > len(made) / 20  # a JSON object of any content seldom ends in time
    assert len(set(whole)) > 1


@pytest.mark.parametrize("form", FORMS)
def test_every_whole_answer_has_the_form(llm, form):
    check_form(llm, form, range(6))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_every_whole_answer_of_hundreds_of_seeds_has_the_form(llm, form):
    check_form(llm, form, range(6, 206))


def test_an_answer_that_is_cut_short_says_so(llm):
    (cut,) = answers(llm, [structured("schema", max_tokens=5)])
    assert cut.finish_reason == "length"
    (whole,) = answers(llm, [structured("schema")])
    assert whole.text.startswith(cut.text)


def test_other_rows_of_the_batch_stay_as_they_are(llm):
    free = [SamplingParams(seed=s, max_tokens=20, ignore_eos=True) for s in range(3)]
    alone = answers(llm, free)
    mixed = answers(llm, [structured("schema"), *free, structured("regex")])
    assert mixed[1:4] == alone


def test_a_grammar_changes_the_logits_of_its_own_row_only():
    compiler = GrammarCompiler(tiny.train_tokenizer().to_str(), [0], vocab_size=448)
    free, bound = (SamplingRow(*control.make_sequences(name, [1, 2], logprobs=3)) for name in "ab")
    bound.sequence.grammar = compiler.start(StructuredOutputsParams(choice=CHOICES))
    logits = torch.randn(2, 448, generator=torch.Generator().manual_seed(1))
    before = logits.clone()
    together = sample(logits, (bound, free))
    assert torch.equal(logits, before)
    assert together[1] == sample(logits[1:], (free,))[0]
    assert torch.isfinite(adjust(logits[0], bound)).sum() < 20


def test_each_of_several_answers_has_its_own_place(llm):
    made = answers(llm, [structured("schema", n=4)])
    assert all(matches_schema(answer.text) for answer in made)
    assert len({answer.text for answer in made}) == 4


def test_preemption_keeps_the_place(checkpoints, llm):
    params = [structured("schema", seed=seed, max_tokens=100) for seed in range(4)]
    # 16 blocks of 4 tokens, each 3 layers x 2 x 2 heads x 16 x float32: too few for all four
    small = LLM(
        str(checkpoints("qwen2")[0]),
        block_size=4,
        max_model_len=112,
        **{**OPTIONS, "kv_cache_memory_bytes": 28 * 4 * 768},
    )
    assert [a.text for a in answers(small, params)] == [a.text for a in answers(llm, params)]
    assert small.stats().num_preemptions > 0


def test_greedy_answers_have_the_form_too(llm):
    (answer,) = answers(llm, [structured("choice", temperature=0)])
    assert answer.text in CHOICES


def test_only_the_end_token_follows_a_finished_answer(llm):
    params = structured("choice", min_tokens=60, ignore_eos=True)
    (answer,) = answers(llm, [params])
    assert answer.text in CHOICES
    assert (answer.finish_reason, answer.token_ids[-1]) == ("stop", 0)


def test_min_tokens_prefers_the_longer_answer(llm):
    made = answers(llm, [structured("choice", seed=s, min_tokens=4) for s in range(6)])
    assert "yes" not in [answer.text for answer in made]


def test_ignore_eos_goes_on_while_the_grammar_can(llm):
    params = StructuredOutputsParams(regex="a{2,9}")
    made = answers(
        llm,
        [
            SamplingParams(seed=s, max_tokens=50, ignore_eos=True, structured_outputs=params)
            for s in range(4)
        ],
    )
    assert [answer.text for answer in made] == ["a" * 9] * 4


@pytest.mark.parametrize("form", ["schema", "choice", "regex", "gbnf"])
@pytest.mark.parametrize("tag", [".", "<|start|>"], ids=["text", "special"])
def test_thoughts_are_free_until_their_end(llm, form, tag):
    """A full stop or a special token as the tag, made likely."""
    free = StructuredOutputsParams(**FORMS[form][0], thoughts_end=tag)
    params = [
        SamplingParams(
            seed=seed, max_tokens=150, structured_outputs=free, skip_special_tokens=False
        )
        for seed in range(3)
    ]
    bias = {llm.get_tokenizer().token_id(tag): 4}
    params = [dataclasses.replace(each, logit_bias=bias) for each in params]
    whole = [answer for answer in answers(llm, params) if answer.finish_reason == "stop"]
    assert whole
    parts = [answer.text.removesuffix("<|end|>").partition(tag) for answer in whole]
    assert all(FORMS[form][1](rest.lstrip()) for _, _, rest in parts)
    assert any(thoughts for thoughts, _, _ in parts)


def test_a_stop_string_cuts_a_structured_answer(llm):
    (answer,) = answers(llm, [structured("schema", stop='",')])
    assert answer.stop_reason == '",'
    assert '",' not in answer.text


def test_allowed_tokens_narrow_the_grammar_but_never_break_it(llm):
    digit = llm.get_tokenizer().token_id("7")
    params = dataclasses.replace(structured("gbnf"), allowed_token_ids=[digit])
    (answer,) = answers(llm, [params])
    assert re.fullmatch(r"\(7(\+7)*\)", answer.text)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"json": "{"}, "structured_outputs: "),
        ({"json": {"type": "foo"}}, "Invalid type: foo"),
        ({"json": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"json": {"$ref": "http://example.invalid/schema"}}, "not present"),
        ({"json": {"x": {1, 2}}}, "not JSON serializable"),
        ({"regex": "(a"}, "unclosed group|invalid regex"),
        ({"regex": "(?=a)b"}, "look-around|invalid regex"),
        ({"grammar": "start: missing"}, "missing"),
        ({"grammar": "root ::= " + "(" * 3000}, "structured_outputs: "),
        ({"regex": "a" * MAX_GRAMMAR_CHARS}, "limit is 256000"),
        ({"regex": "(" * 60_000 + ")" * 60_000}, "structured_outputs: "),
        ({"choice": ["\ud800"]}, "structured_outputs: "),
    ],
)
def test_what_is_no_grammar_is_refused(llm, params, message):
    with pytest.raises(InvalidRequest, match=message):
        llm.generate("x", SamplingParams(structured_outputs=StructuredOutputsParams(**params)))
    assert llm.stats().num_requests_running == 0


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "has nothing: give exactly one of json"),
        ({"regex": "a", "choice": ["b"]}, "has regex, choice"),
        ({"choice": []}, "choice is empty"),
        ({"json_object": False}, "has nothing"),
    ],
)
def test_exactly_one_form_is_given(params, message):
    with pytest.raises(InvalidRequest, match=message):
        StructuredOutputsParams(**params)


async def test_a_bad_grammar_is_refused_before_the_engine_sees_it(llm):
    async_llm = AsyncLLM.from_core(llm._core)
    bad = SamplingParams(structured_outputs=StructuredOutputsParams(regex="(a"))
    with pytest.raises(InvalidRequest):
        await anext(async_llm.generate("x", bad))
    outputs = [output async for output in async_llm.generate("x", structured("choice"))]
    assert outputs[-1].text in CHOICES
    async_llm.shutdown()


def test_a_grammar_that_becomes_too_costly_ends_its_answer_with_the_reason(llm, monkeypatch):
    monkeypatch.setattr("app.engine.structured.LIMITS", LLParserLimits(step_max_items=1))
    params = StructuredOutputsParams(json={"anyOf": [{"type": "array"}, {"type": "object"}]})
    (answer,) = answers(llm, [SamplingParams(structured_outputs=params)])
    assert answer.finish_reason == "error"
    assert "too costly" in answer.stop_reason


def allowed(mask):
    return [8 * i + bit for i, byte in enumerate(mask) for bit in range(8) if byte >> bit & 1]


def byte_fallback_tokenizer():
    """As Llama 2's: ▁ for a space, bytes for what has no token, special tokens around."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a"]
    tokenizer = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [("▁", "a")], byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def test_byte_fallback_tokenizers_spell_what_they_have_no_token_for():
    tokenizer = byte_fallback_tokenizer()
    grammars = GrammarCompiler(tokenizer.to_str(), [2], vocab_size=300)
    place = grammars.start(StructuredOutputsParams(regex="量 a"))
    ids = tokenizer.encode("量 a").ids
    assert len(ids) == 4
    steps = [allowed(place.after(ids[:length])) for length in range(5)]
    assert all(token_id in step for token_id, step in zip([*ids, 2], steps, strict=True))
    assert steps[4] == [2]


def test_ids_beyond_the_tokenizer_are_never_allowed():
    compiler = GrammarCompiler(tiny.train_tokenizer().to_str(), [0], vocab_size=448)
    mask = compiler.start(StructuredOutputsParams(regex="(?s:.*)")).after([])
    assert len(allowed(mask)) > 200
    assert max(allowed(mask)) < 400


def test_the_place_follows_tokens_that_were_taken_back():
    tokenizer = tiny.train_tokenizer()
    compiler = GrammarCompiler(tokenizer.to_str(), [0], vocab_size=400)
    place, fresh = (compiler.start(StructuredOutputsParams(regex="abc|axd")) for _ in range(2))
    b, x = tokenizer.encode("ab").ids, tokenizer.encode("ax").ids
    place.after(b)
    assert place.after(x) == fresh.after(x)
    assert allowed(place.after([*x, *b])) == [0]  # a draft that the grammar does not allow
    assert place.after(b) == compiler.start(StructuredOutputsParams(regex="abc|axd")).after(b)
    assert place.error is None


def test_drafts_do_not_change_a_structured_answer(checkpoints, llm):
    speculation = {"method": "ngram", "num_speculative_tokens": 4}
    drafting = LLM(str(checkpoints("qwen2")[0]), speculative_config=speculation, **OPTIONS)
    songs = StructuredOutputsParams(choice=["la li lu " * 9, "la li lo " * 9 + "!"])
    params = [
        SamplingParams(max_tokens=90, seed=seed, structured_outputs=songs) for seed in range(3)
    ]
    assert answers(drafting, params) == answers(llm, params)
    assert drafting.stats().num_accepted_tokens > 20


def test_known_grammars_are_compiled_once_and_the_oldest_forgotten(monkeypatch):
    monkeypatch.setattr("app.engine.structured.MAX_CACHED_GRAMMARS", 2)
    compiler = GrammarCompiler(tiny.train_tokenizer().to_str(), [0], vocab_size=400)
    made = [compiler.compile(StructuredOutputsParams(regex=r)) for r in ("a", "b", "a", "c", "b")]
    assert made[0] is made[2]
    assert made[1] is not made[4]


def test_a_model_without_an_end_token_takes_no_grammar():
    compiler = GrammarCompiler(tiny.train_tokenizer().to_str(), [], vocab_size=400)
    with pytest.raises(InvalidRequest, match="end token"):
        compiler.compile(StructuredOutputsParams(regex="a"))
    assert 0 in allowed(compiler.ban(["bad"]).after([]))


def test_a_tokenizer_with_more_tokens_than_the_model_is_cut():
    compiler = GrammarCompiler(tiny.train_tokenizer().to_str(), [0], vocab_size=400)
    row = SamplingRow(*control.make_sequences("r", [1]))
    row.sequence.grammar = compiler.start(StructuredOutputsParams(regex="a+"))
    assert adjust(torch.zeros(300), row).shape == (300,)


LETTERS = SamplingParams(seed=1, max_tokens=60, ignore_eos=True)


def test_bad_words_are_not_written_in_whatever_tokens(llm):
    """Single letters among them: the model would spell a word that has no token."""
    params = [dataclasses.replace(LETTERS, seed=seed) for seed in range(4)]
    plain = answers(llm, params)
    text = "".join(answer.text for answer in plain).replace("\ufffd", "")
    words = [text[at : at + 2] for at in range(0, len(text), 9)]
    assert any(word in answer.text for answer in plain for word in words)
    banned = answers(llm, [dataclasses.replace(each, bad_words=words) for each in params])
    assert all(word not in answer.text for answer in banned for word in words)
    assert all(len(answer.token_ids) == 60 for answer in banned)


def test_a_bad_word_cannot_be_spelt_from_pieces():
    tokenizer = tiny.train_tokenizer()
    ban = GrammarCompiler(tokenizer.to_str(), [0], vocab_size=400).ban(["block", "量子"])
    whole = {tokenizer.token_to_id(piece) for piece in ("k", "o")}
    assert whole <= set(allowed(ban.after([])))
    spelt = [tokenizer.token_to_id(letter) for letter in "bloc"]
    assert whole - set(allowed(ban.after(spelt))) == {tokenizer.token_to_id("k")}
    assert whole <= set(allowed(ban.after(spelt[1:])))


def test_special_tokens_are_no_bad_words_and_do_not_hide_one():
    tokenizer = tiny.train_tokenizer()
    ban = GrammarCompiler(tokenizer.to_str(), [0], vocab_size=400).ban(["ab"])
    a, b = (tokenizer.token_to_id(letter) for letter in "ab")
    assert {0, 1} <= set(allowed(ban.after([a])))
    assert b not in allowed(ban.after([a, 1]))


class CountingMatcher:
    def __init__(self, matcher):
        self._matcher = matcher
        self.num_consumed = 0

    def try_consume_tokens(self, token_ids):
        self.num_consumed += len(token_ids)
        return self._matcher.try_consume_tokens(token_ids)

    def __getattr__(self, name):
        return getattr(self._matcher, name)


def test_a_draft_that_is_taken_back_costs_no_more_the_longer_the_answer():
    tokenizer = tiny.train_tokenizer()
    ban = GrammarCompiler(tokenizer.to_str(), [0], vocab_size=400).ban(["ab"])
    ban._matcher = CountingMatcher(ban._matcher)
    answer = tokenizer.encode("the pages of the cache ").ids * 50
    ban.after(answer)
    before = ban._matcher.num_consumed
    for draft in range(5, 15):
        ban.after([*answer, draft])
    assert ban._matcher.num_consumed == before + 10


def test_the_search_for_bad_words_follows_any_tokens_taken_back():
    tokenizer = tiny.train_tokenizer()
    compiler = GrammarCompiler(tokenizer.to_str(), [0], vocab_size=400)
    a, b, c = (tokenizer.token_to_id(letter) for letter in "abc")
    place, rng = compiler.ban(["ab", "bcb"]), random.Random(0)
    tokens = []
    for _ in range(300):
        tokens = tokens[: rng.randrange(len(tokens) + 1)] if rng.random() < 0.4 else tokens
        tokens = [*tokens, *rng.choices([a, b, c, 0, 1], k=rng.randrange(4))]
        assert place.after(tokens) == compiler.ban(["ab", "bcb"]).after(tokens)
        assert place.error is None


def test_a_grammar_may_ask_for_a_bad_word(llm):
    params = dataclasses.replace(structured("choice"), bad_words=["e", "n", "不", "\n"])
    (answer,) = answers(llm, [params])
    assert answer.text in CHOICES
    assert answer.finish_reason == "stop"


def test_bad_words_choose_among_what_the_grammar_allows(llm):
    made = answers(
        llm, [structured("choice", seed=s, bad_words=["y", "n", "\x7f"]) for s in range(4)]
    )
    assert {answer.text for answer in made} == {"不是 🙂"}


def test_all_other_well_formed_text_may_come():
    compiler = GrammarCompiler(tiny.train_tokenizer().to_str(), [0], vocab_size=400)
    text = compiler.start(StructuredOutputsParams(regex="(?s:.*)"))
    ban = compiler.ban(["no such word"])
    no_byte = tiny.train_tokenizer().token_to_id("ÿ")  # 255 is no part of any text
    for written in ([], [50, 60], [142], [300, 1, 299]):
        expected = {*allowed(text.after([t for t in written if t > 1])), 0, 1}
        assert set(allowed(ban.after(written))) - {no_byte} == expected


def test_allowed_token_ids_are_all_that_is_written(llm):
    params = dataclasses.replace(LETTERS, allowed_token_ids=[40, 41, 42], logit_bias={9: 100})
    (answer,) = answers(llm, [params])
    assert set(answer.token_ids) == {40, 41, 42}


def test_a_ban_that_leaves_nothing_is_lifted(llm):
    params = SamplingParams(allowed_token_ids=[0], min_tokens=5, max_tokens=9)
    (answer,) = answers(llm, [params])
    assert answer.token_ids == (0,) * 5
