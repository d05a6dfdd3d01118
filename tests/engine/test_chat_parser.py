import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine import LLM, InvalidRequest, SamplingParams
from app.engine.chat_format import (
    THINK_TAGS,
    TOOL_FORMATS,
    ChatFormat,
    detect_chat_format,
    force_tool_calls,
    named_chat_format,
)
from app.engine.chat_parser import ChatParser, ContentDelta, ReasoningDelta, ToolCallDelta

CALL = '{"name": "find", "arguments": {"city": "Zürich", "days": 2}}'
LLAMA_CALL = CALL.replace("arguments", "parameters")
ARGUMENTS = '{"city": "Zürich", "days": 2}'
FOUND = ("find", ARGUMENTS)


def parse(text, tools=None, *, reasoning=True, prompt="", cuts=(), names=("find", "sum")):
    """(reasoning, content, calls) of a text that comes in pieces."""
    chat_format = ChatFormat(TOOL_FORMATS.get(tools), THINK_TAGS if reasoning else None)
    parser = ChatParser(chat_format, prompt=prompt, tool_names=names)
    edges = [0, *sorted(cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(edges)]
    deltas = [delta for piece in pieces for delta in parser.feed(piece)] + parser.finish()
    calls = [delta for delta in deltas if isinstance(delta, ToolCallDelta)]
    assert [call.index for call in calls] == list(range(len(calls)))
    assert len({call.id for call in calls}) == len(calls)
    return (
        "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta)),
        "".join(delta.text for delta in deltas if isinstance(delta, ContentDelta)),
        [(call.name, call.arguments) for call in calls],
    )


EXAMPLES = [
    ("hermes", f"<tool_call>\n{CALL}\n</tool_call>", "", [FOUND]),
    ("hermes", f"Let me look.\n<tool_call>{CALL}</tool_call>\n", "Let me look.", [FOUND]),
    ("hermes", "\n".join([f"<tool_call>\n{CALL}\n</tool_call>"] * 2), "", [FOUND] * 2),
    ("hermes", f"<tool_call>\n{CALL}", "", [FOUND]),
    ("hermes", '<tool_call>{"name": "sum"}</tool_call> done', "done", [("sum", "{}")]),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"x": "</tool_call> } \\" {"}}</tool_call>',
        "",
        [("f", '{"x": "</tool_call> } \\" {"}')],
    ),
    ("hermes", '<tool_call>{"name":"f","arguments":"{\\"a\\": 1}"}', "", [("f", '{"a": 1}')]),
    ("llama3_json", LLAMA_CALL, "", [FOUND]),
    ("llama3_json", f" \n{LLAMA_CALL}; {LLAMA_CALL}", "", [FOUND] * 2),
    ("llama3_json", f"<|python_tag|>{LLAMA_CALL}", "", [FOUND]),
    ("llama3_json", f"Well: {LLAMA_CALL}", f"Well: {LLAMA_CALL}", []),
    ("mistral", f"[TOOL_CALLS] [{CALL}, {CALL}]", "", [FOUND] * 2),
    ("mistral", f"[TOOL_CALLS]find[ARGS]{ARGUMENTS}[TOOL_CALLS]find{ARGUMENTS}", "", [FOUND] * 2),
    ("mistral", f"Hm. [TOOL_CALLS]find[CALL_ID]abc123XYZ[ARGS]{ARGUMENTS}", "Hm.", [FOUND]),
    ("granite", f"<|tool_call|>[{CALL}]", "", [FOUND]),
    ("granite", f"<tool_call>[{CALL}]", "", [FOUND]),
    ("granite", f"<|tool_call|>[{CALL}]<|/tool_call|>", "", [FOUND]),
    ("phi4_mini_json", f"functools[{CALL}]", "", [FOUND]),
]
# Nothing of these may be lost.
MALFORMED = [
    ("hermes", "<tool_call>"),
    ("hermes", "a <tool_call> b"),
    ("hermes", '<tool_call>{"name": "find", "arguments": {"city": </tool_call> after'),
    ("hermes", '<tool_call>{"arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": 3}</tool_call>'),
    ("hermes", '<tool_call>{"name": "find", "arguments": 7}</tool_call>'),
    ("hermes", '<tool_call>{"name": "find"]</tool_call>'),
    ("hermes", "<tool_call>[]</tool_call> <tool_cal"),
    ("hermes", '<tool_call>{"name": "find", "argu'),
    ("hermes", "<tool_call>" + "[" * 5000 + "]" * 5000),
    ("llama3_json", '{"answer": 42} and more'),
    ("llama3_json", '{"name": "Bob", "parameters": {}}'),
    ("llama3_json", "<|python_tag|>print(1)"),
    ("mistral", "[TOOL_CALLS] none needed"),
    ("mistral", "[TOOL_CALLS]find[ARGS]"),
    ("mistral", "[TOOL_CALLS]" + "x" * 600 + "{}"),
    ("granite", "<|tool_call|>[{}]"),
    ("phi4_mini_json", "import functools\n\n@functools.cache"),
]


@pytest.mark.parametrize(("tools", "text", "content", "calls"), EXAMPLES)
def test_each_family_writes_calls_its_own_way(tools, text, content, calls):
    assert parse(text, tools) == ("", content, calls)


@pytest.mark.parametrize(("tools", "text", "content", "calls"), EXAMPLES)
def test_cuts_between_any_two_characters_change_nothing(tools, text, content, calls):
    singles = parse(text, tools, cuts=range(len(text)))
    halves = {str(parse(text, tools, cuts=[cut])) for cut in range(len(text))}
    assert {str(singles), *halves} == {str(("", content, calls))}


@pytest.mark.parametrize(("tools", "text"), MALFORMED)
def test_what_only_looks_like_a_call_is_content(tools, text):
    assert parse(text, tools) == ("", text, [])
    assert parse(text, tools, cuts=range(len(text))) == ("", text, [])


def test_a_good_call_after_a_bad_one_is_found():
    text = f"<tool_call>oops</tool_call> <tool_call>{CALL}</tool_call>"
    assert parse(text, "hermes") == ("", "<tool_call>oops</tool_call>", [FOUND])


def test_without_tools_on_offer_tags_are_content():
    text = f"<tool_call>{CALL}</tool_call> "
    assert parse(text, "hermes", names=()) == ("", text, [])


@pytest.mark.parametrize(
    ("text", "prompt", "expected"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", "", ("Hm.", "Yes.")),
        ("\n<think>Hm.</think>Yes.", "", ("Hm.", "Yes.")),
        ("Hm.\n</think>\n\nYes.", "…assistant\n<think>\n", ("Hm.", "Yes.")),
        ("<think>\n\n</think>\n\nYes.", "", ("", "Yes.")),
        ("<think>no end ", "", ("no end", "")),
        ("<think>a < b </thin k> c", "", ("a < b </thin k> c", "")),
        ("Yes <think>no</think> ", "", ("", "Yes <think>no</think> ")),
        (" <thinking>", "", ("", " <thinking>")),
        ("Yes.", "<think>\n\n</think>\n\n", ("", "Yes.")),
        ("", "", ("", "")),
    ],
)
def test_thoughts_are_kept_apart(text, prompt, expected):
    for cuts in ((), range(len(text))):
        assert parse(text, "hermes", prompt=prompt, cuts=cuts)[:2] == expected


def test_a_call_in_thoughts_is_a_thought_and_one_after_them_a_call():
    tag = f"<tool_call>{CALL}</tool_call>"
    assert parse(f"<think>{tag}</think>\n{tag}", "hermes") == (tag, "", [FOUND])


def test_without_reasoning_tags_stay_in_the_content():
    assert parse("<think>a</think>b", reasoning=False)[1] == "<think>a</think>b"


TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|tool_call|>"]
CALLS = ["functools", "<|python_tag|>", CALL, LLAMA_CALL, f"[{CALL}]", "find[ARGS]{}", "; ", "{"]
NOISE = ["]", "\n", " ", "<", "text 量", '"', "\\"]
FRAGMENTS = st.sampled_from([*TAGS, *CALLS, *NOISE])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(FRAGMENTS, max_size=8).map("".join),
    st.sampled_from(sorted(TOOL_FORMATS)),
    st.data(),
)
def test_any_text_in_any_pieces_gives_the_same_and_loses_nothing(text, tools, data):
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=12))
    whole = parse(text, tools)
    assert parse(text, tools, cuts=cuts) == whole
    assert parse(text, tools, cuts=range(len(text))) == whole
    if not whole[2] and not text.lstrip().startswith("<think>"):
        assert whole[1] == text


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet='<tool_cal>/{}"nme: ', max_size=40))
def test_noise_near_tags_is_shown_as_it_is(text):
    content = parse(text, "hermes", reasoning=False, cuts=range(len(text)))[1]
    assert content == text


def test_content_is_told_as_soon_as_it_can_be():
    parser = ChatParser(ChatFormat(TOOL_FORMATS["hermes"]), tool_names=["find"])
    assert parser.feed("Hello") == [ContentDelta("Hello")]
    assert parser.feed(" wor") == [ContentDelta(" wor")]
    assert parser.feed("ld <to") == [ContentDelta("ld")]
    assert parser.feed("p>") == [ContentDelta(" <top>")]


def test_ids_have_the_length_that_the_family_wants():
    parser = ChatParser(ChatFormat(TOOL_FORMATS["mistral"]), tool_names=["find"])
    (call,) = parser.feed(f"[TOOL_CALLS][{CALL}]")
    assert len(call.id) == 9
    assert call.id.isalnum()


@pytest.mark.parametrize(
    ("template", "tools", "has_thoughts"),
    [
        ('… <tool_call>\\n{"name": …}\\n</tool_call> … </think>', "hermes", True),
        ("… [AVAILABLE_TOOLS] … [TOOL_CALLS] …", "mistral", False),
        ("… <|tool_call|> … <tool_call> …", "granite", False),
        ("… <|python_tag|> …", "llama3_json", False),
        ("plain", None, False),
        (None, None, False),
    ],
)
def test_the_template_tells_the_family(template, tools, has_thoughts):
    found = detect_chat_format(template)
    assert (found.tools and found.tools.name) == tools
    assert (found.reasoning is not None) == has_thoughts


def test_formats_can_be_set_by_name():
    named = named_chat_format(ChatFormat(), "mistral", "think")
    assert named == ChatFormat(TOOL_FORMATS["mistral"], THINK_TAGS)
    with pytest.raises(InvalidRequest, match="tool_parser is x, known: hermes, llama3_json"):
        named_chat_format(ChatFormat(), "x", None)


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find",
            "parameters": {
                "$defs": {"city": {"enum": ["Zürich", "Wien"]}},
                "properties": {
                    "city": {"$ref": "#/$defs/city"},
                    "days": {"type": "integer", "minimum": 1, "maximum": 9},
                },
                "required": ["city", "days"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": 'say "hi"', "parameters": {"maxProperties": 0}}},
]


@pytest.fixture(scope="module")
def llm(checkpoints):
    return LLM(
        str(checkpoints("qwen2")[0]),
        num_threads=1,
        kv_cache_memory_bytes=2**22,
        dtype="float32",
    )


@pytest.mark.parametrize("tools", [*TOOL_FORMATS, None])
def test_forced_calls_are_calls_that_the_parser_reads(llm, tools):
    tool_format = TOOL_FORMATS.get(tools)
    params = [
        SamplingParams(
            max_tokens=110,
            seed=seed,
            structured_outputs=force_tool_calls(
                TOOLS, tool_format, llm.get_tokenizer().token_id, is_parallel=seed > 1
            ),
        )
        for seed in range(4)
    ]
    outputs = [output.outputs[0] for output in llm.generate([[5, 6]] * 4, params)]
    whole = [output.text for output in outputs if output.finish_reason == "stop"]
    assert whole
    for text in whole:
        _, content, calls = parse(text, tools or "llama3_json", names=["find", 'say "hi"'])
        assert (content, bool(calls)) == ("", True)
        for name, arguments in calls:
            assert name == 'say "hi"' or json.loads(arguments)["city"] in ("Zürich", "Wien")


def test_a_named_tool_is_called_once(llm):
    grammar = force_tool_calls(
        TOOLS, TOOL_FORMATS["hermes"], llm.get_tokenizer().token_id, name="find"
    )
    params = SamplingParams(max_tokens=200, seed=3, structured_outputs=grammar)
    text = llm.generate("x", params)[0].text
    assert [name for name, _ in parse(text, "hermes")[2]] == ["find"]


def test_a_tag_that_is_a_token_is_written_as_one(llm):
    """The tiny tokenizer has special tokens; text never becomes one by itself."""
    start = TOOL_FORMATS["hermes"].starts[0]
    grammar = force_tool_calls(TOOLS, TOOL_FORMATS["hermes"], {start: 1}.get)
    params = SamplingParams(max_tokens=3, seed=3, structured_outputs=grammar)
    assert llm.generate("x", params)[0].outputs[0].token_ids[0] == 1


def test_a_tool_that_is_not_there_cannot_be_forced():
    with pytest.raises(InvalidRequest, match="names fly, the tools are: find, say"):
        force_tool_calls(TOOLS, None, lambda tag: None, name="fly")
