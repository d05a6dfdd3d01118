"""Chunks: cut to the character, nothing lost, within the limit, along the structure."""

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain import Block, BlockKind, Box, ParsedDocument
from app.errors import InvalidInput
from app.rag.chunker import StructureChunker, embedded_text
from app.rag.parsers.builder import DocumentBuilder

MAX_TOKENS = 64
NUM_SPECIAL = 2


def count_words(texts):
    """A tokenizer like BERT's: words and signs are tokens, Chinese characters each one."""
    return [NUM_SPECIAL + len(re.findall(r"[一-鿿]|[a-zA-Z0-9]+|[^\w\s]", text)) for text in texts]


def count_bytes(texts):
    """A tokenizer of the worst kind: each byte is a token."""
    return [NUM_SPECIAL + len(text.encode()) for text in texts]


def chunk(document, max_tokens=MAX_TOKENS, overlap=0, count=count_words):
    return StructureChunker(count, max_tokens, overlap).chunk(document)


def build(*parts, title="T"):
    """A document from (kind, text) pairs; `h1` … `h6` are headings."""
    builder = DocumentBuilder()
    for kind, text in parts:
        if kind.startswith("h"):
            builder.heading(text, int(kind[1]))
        else:
            builder.add(BlockKind(kind), text)
    return builder.build(title)


def words(count, start=0):
    return " ".join(f"w{n}" for n in range(start, start + count))


kinds = st.sampled_from(["h1", "h2", "h3", "paragraph", "list_item", "table", "code", "caption"])
letters = st.text(alphabet="ab 一二。.!？\n\t|-é𝒳", min_size=1, max_size=300)
repeated = st.builds(lambda text, times: text * times, letters, st.integers(1, 30))
documents = st.builds(
    lambda parts, title: build(*parts, title=title),
    st.lists(st.tuples(kinds, st.one_of(letters, repeated)), max_size=25),
    st.text(max_size=80),
)


@given(documents)
@settings(max_examples=150, deadline=None)
def test_chunks_cut_the_text_in_order_and_lose_only_whitespace(document):
    spans = chunk(document)

    assert [span.text for span in spans] == [document.text[s.start : s.end] for s in spans]
    borders = [0, *(offset for span in spans for offset in (span.start, span.end))]
    borders.append(len(document.text))
    assert borders == sorted(borders)
    lost = "".join(
        document.text[end:start] for end, start in zip(borders[::2], borders[1::2], strict=True)
    )
    assert not lost.strip()
    assert all(span.text.strip() for span in spans)


@given(documents, st.sampled_from([count_words, count_bytes]), st.sampled_from([0, 20]))
@settings(max_examples=150, deadline=None)
def test_no_chunk_is_over_the_limit_with_its_headings(document, count, overlap):
    spans = chunk(document, 100, overlap, count)

    counted = count([embedded_text(document.title, span) for span in spans])
    assert [span.num_tokens for span in spans] == counted
    assert all(num_tokens <= 100 for num_tokens in counted)


@pytest.mark.parametrize("sign", ["a", "é", "一", "ก", "𝐄"])
def test_a_long_title_of_any_script_leaves_room_for_the_text(sign):
    document = build(("h1", "a"), ("paragraph", words(200)), title=sign * 80)
    spans = chunk(document, 100, 0, count_bytes)
    assert max(span.num_tokens for span in spans) <= 100


@given(documents)
@settings(max_examples=50, deadline=None)
def test_overlap_only_moves_starts_backwards(document):
    spans = chunk(document, overlap=16)

    assert all(span.text == document.text[span.start : span.end] for span in spans)
    assert all(b.start >= a.start and b.end > a.end for a, b in pairwise(spans))
    assert all(not document.text[a.end : b.start].strip() for a, b in pairwise(spans))


@given(st.integers(0, 40), st.integers(0, 40))
def test_text_outside_of_blocks_is_not_lost(before, after):
    text = words(before) + "\n\nBLOCK\n\n" + words(after, 100)
    block = Block(BlockKind.PARAGRAPH, text.index("BLOCK"), text.index("BLOCK") + 5)
    spans = chunk(ParsedDocument(text, "T", (block,)))

    assert " ".join(" ".join(s.text for s in spans).split()) == " ".join(text.split())


def test_a_section_that_fits_is_one_chunk_with_its_heading():
    document = build(("h1", "A"), ("paragraph", words(50)), ("h1", "B"), ("paragraph", words(50)))

    assert [span.text.split()[0] for span in chunk(document)] == ["A", "B"]


def test_small_sections_of_one_parent_are_packed_together():
    parts = [("h1", "Top"), ("paragraph", words(3))]
    for n in range(4):
        parts += [("h2", f"Sub {n}"), ("paragraph", words(5))]
    (span,) = chunk(build(*parts))

    assert span.text.count("Sub") == 4


def test_a_heading_is_never_left_at_the_end_of_a_chunk():
    parts = []
    for n in range(12):
        parts += [("h2", f"Heading {n}"), ("paragraph", words(17 + 5 * (n % 7)))]
    spans = chunk(build(*parts))

    assert not [span for span in spans if re.search(r"Heading \d+\Z", span.text)]


def test_a_heading_goes_with_what_it_heads_even_where_the_chunk_before_has_room():
    heading = "Head " + words(11)
    document = build(("paragraph", words(20)), ("h1", heading), ("paragraph", words(45)))

    assert [span.text.split()[0] for span in chunk(document)] == ["w0", "Head"]


def test_small_sections_beside_each_other_are_packed_together():
    parts = [("h1", "Top"), ("paragraph", words(56))]
    for n in range(3):
        parts += [("h2", f"Sub {n}"), ("paragraph", words(5))]
    spans = chunk(build(*parts))

    assert [span.text.count("Sub") for span in spans] == [0, 3]
    assert spans[1].heading_path == ("Top",)


def test_heading_path_holds_the_headings_above_the_chunk():
    document = build(
        ("h1", "Book"),
        ("h2", "Part"),
        ("paragraph", words(55)),
        ("paragraph", words(55)),
        ("h2", "Other"),
        ("paragraph", words(55)),
    )
    assert [(span.heading_path, span.text.split()[0]) for span in chunk(document)] == [
        ((), "Book"),
        (("Book", "Part"), "w0"),
        (("Book",), "Other"),
    ]


def test_code_that_fits_is_kept_whole():
    code = "\n".join(f"line {n}" for n in range(20))
    document = build(("paragraph", words(40)), ("code", code), ("paragraph", words(40)))

    assert code in [span.text for span in chunk(document)]


def test_rows_of_a_split_table_stand_under_its_first_row():
    rows = ["Name | Price", *(f"item {n} | {n}" for n in range(60))]
    spans = chunk(build(("h1", "Prices"), ("table", "\n".join(rows))))

    assert len(spans) > 2
    assert spans[0].heading_path == ()
    assert {span.heading_path for span in spans[1:]} == {("Prices", "Name | Price")}
    lines = [line for span in spans for line in span.text.splitlines() if line]
    assert lines == ["Prices", *rows]


@pytest.mark.parametrize(
    ("sentence", "end"),
    [("这是一个关于水的句子，它说了一些事。", "。"), ("This is a short one! ", "!")],
)
def test_long_paragraphs_are_cut_between_sentences(sentence, end):
    spans = chunk(build(("paragraph", sentence * 40)))

    assert len(spans) > 3
    assert all(span.text.endswith(end) for span in spans)


def test_a_line_without_any_border_is_cut_all_the_same():
    spans = chunk(build(("paragraph", "x" * 50_000)))

    assert "".join(span.text for span in spans) == "x" * 50_000
    assert max(len(span.text) for span in spans) <= 10 * MAX_TOKENS


def test_overlap_repeats_the_last_sentences_but_not_past_a_heading():
    sentences = " ".join(f"Sentence number {n} is here." for n in range(30))
    document = build(("h1", "A"), ("paragraph", sentences), ("h1", "B"), ("paragraph", sentences))
    spans = chunk(document, overlap=12)

    overlaps = [max(0, a.end - b.start) for a, b in pairwise(spans)]
    opens_section = [span.text.startswith(("A", "B")) for span in spans[1:]]
    assert [overlap > 0 for overlap in overlaps] == [not opens for opens in opens_section]


def test_page_and_boxes_are_those_of_the_lines_in_the_chunk():
    lines = [f"Line {n} has six words here." for n in range(20)]
    text = " ".join(lines)
    boxes = tuple(Box(1 + n // 10, 0.1, n % 10 / 10, 0.9, n % 10 / 10 + 0.1) for n in range(20))
    block = Block(BlockKind.PARAGRAPH, 0, len(text), page=1, boxes=boxes)
    spans = chunk(ParsedDocument(text, "T", (block,), num_pages=2))

    assert spans[0].page == 1
    assert spans[0].boxes[0] == boxes[0]
    assert spans[-1].boxes[-1] == boxes[-1]
    assert all(len(span.boxes) < 12 for span in spans)
    assert set(boxes) == {box for span in spans for box in span.boxes}


def test_the_title_is_embedded_but_not_twice():
    (span,) = chunk(build(("paragraph", "text")))
    assert embedded_text("Manual", span) == "Manual\ntext"

    _, second = chunk(build(("h1", "Manual"), ("paragraph", words(55)), ("paragraph", words(55))))
    assert embedded_text("Manual", second).splitlines()[0] == "Manual"


def test_empty_document_has_no_chunks():
    assert chunk(ParsedDocument("", "T", ())) == []


@pytest.mark.parametrize(("size", "overlap"), [(63, 0), (100, 51), (100, -1)])
def test_settings_that_cannot_work_are_refused(size, overlap):
    with pytest.raises(InvalidInput):
        StructureChunker(count_words, size, overlap)


def line_box(number, width):
    return Box(1, 0.1, number / 100, 0.1 + width, (number + 1) / 100)


def test_boxes_follow_the_width_of_lines_where_the_block_does_not_keep_them():
    """Forty narrow lines (a list beside a picture), then ten wide ones that hold as much text."""
    text = words(400)
    boxes = tuple(line_box(n, 0.1 if n < 40 else 0.4) for n in range(50))
    block = Block(BlockKind.PARAGRAPH, 0, len(text), page=1, boxes=boxes)
    spans = chunk(ParsedDocument(text, "", (block,), 1), max_tokens=110)

    middle = next(span for span in spans if span.start <= len(text) // 2 < span.end)
    share = (middle.start / len(text), middle.end / len(text))
    expected = [
        box
        for n, box in enumerate(boxes)
        if (n + 1) * 0.0125 > share[0] + 0.002 and n * 0.0125 < share[1] - 0.002 and n < 40
    ] + [box for n, box in enumerate(boxes) if n >= 40 and 0.5 + (n - 40) * 0.05 < share[1] - 0.006]
    assert list(middle.boxes) == expected


def test_rows_of_a_table_have_their_own_boxes():
    rows = [f"{n} | {words(20)}" if n % 2 else f"{n} | x" for n in range(12)]
    text = "\n".join(rows)
    boxes = tuple(line_box(n, 0.8) for n in range(12))
    block = Block(BlockKind.TABLE, 0, len(text), page=1, boxes=boxes)
    spans = chunk(ParsedDocument(text, "", (block,), 1))

    assert len(spans) > 2
    first = 0
    for span in spans:
        num_rows = span.text.count("\n") + 1
        assert span.boxes == boxes[first : first + num_rows]
        first += num_rows
