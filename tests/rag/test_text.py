import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.rag.text import language_of, split_sentences


def sentences(text):
    return [text[start:end] for start, end in split_sentences(text)]


@pytest.mark.parametrize(
    "expected",
    [
        ["Dr. Smith met J. R. Brown at 3.5 km.", "He left at 5 p.m. on Friday."],
        ["See Fig. 3 for more!", '"Is it?" she said.', "The U.S. Army came, i.e. soon."],
        ["It costs $1.50 a year.", "Use app.py or v1.2.3 now.", "2 are left."],
        ["Wait...", "What?!", "(He knew.)", "Then it ended."],
    ],
)
def test_english_stops_end_sentences_where_abbreviations_and_numbers_do_not(expected):
    assert sentences(" ".join(expected)) == expected


@pytest.mark.parametrize(
    "expected",
    [
        ["他说：“你好。”", "然后走了。", "第二句！", "真的？", "最后……"],
        ["版本 1.5 版发布了。", "共有20张.", "使用 FastAPI 0.1。"],
        ["（见上文。）", "另一句；仍是这句。"],
    ],
)
def test_chinese_stops_end_sentences(expected):
    assert sentences("".join(expected)) == expected


def test_lists_rows_headings_and_code_stay_whole():
    parts = [
        "Search limits",
        "Vectors | Limit",
        "topk (number. Of results) | 16,384",
        "- One. Two.",
        "2) Three. Four.",
        "A paragraph.",
        "```\nx = 1.  \ny = 2\n```",
        "The end.",
    ]
    text = f"{parts[0]}\n\n" + "\n".join(parts[1:])
    assert sentences(text) == parts


def test_a_long_list_item_is_cut_into_its_sentences():
    first = "- " + "word " * 60 + "end."
    assert sentences(f"{first} Second one.") == [first, "Second one."]


def test_wrapped_lines_are_joined_and_short_ones_are_not():
    wrapped = "This line was wrapped by whoever wrote the\nfile, and goes on here."
    assert sentences(f"{wrapped} Next.") == [wrapped, "Next."]
    assert sentences("Name: Ann\nAge: 5") == ["Name: Ann", "Age: 5"]


@given(st.text(alphabet=st.sampled_from("ab .!?。，\n-|`12“”#（）中文DrU.S")))
def test_nothing_but_white_space_is_lost(text):
    spans = split_sentences(text)
    assert spans == sorted(spans)
    assert all(start < end for start, end in spans)
    kept = "".join(text[start:end] for start, end in spans)
    assert "".join(kept.split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("SNI 扩展有什么作用？", "zh"),
        ("allow_credentials 设为 True 时，allow_origins 可以写成 ['*'] 吗？", "zh"),
        ("What does 结转 mean?", "en"),
        ("How?", "en"),
        ("42", "en"),
    ],
)
def test_the_language_is_that_of_what_carries_the_text(text, language):
    assert language_of(text) == language
