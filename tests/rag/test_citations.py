import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from app.domain import Cited, TextDelta
from app.rag.citations import CitationStream
from app.rag.lexical import terms
from tests.fakes import make_sources

SOURCES = make_sources(
    "Each employee has fifteen days of paid leave a year. An insert must not exceed 1,024 MB.",
    "TLS 终止代理在端口 443 上监听。它可以访问一个或多个证书。",
    "The index build takes 3 hours on a large collection. Set Proxy.maxDimension to raise it.",
)


def run(*deltas, sources=SOURCES):
    stream = CitationStream(sources, terms)
    events = [event for delta in deltas for event in stream.feed(delta)] + stream.finish()
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == stream.text
    assert [e.citation for e in events if isinstance(e, Cited)] == stream.citations
    return stream


def cited(stream):
    return [(c.number, stream.text[c.start : c.end]) for c in stream.citations]


LEAVE = "Employees have fifteen days of paid leave"


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (f"{LEAVE} [1].", f"{LEAVE} [1]."),
        (f"{LEAVE}. [1]", f"{LEAVE}. [1]"),
        (f"{LEAVE}【1】。", f"{LEAVE}[1]。"),
        (f"{LEAVE} 【1†source】", f"{LEAVE} [1]"),
        (f"{LEAVE} [^1]", f"{LEAVE} [1]"),
        (f"{LEAVE} [Source 1]", f"{LEAVE} [1]"),
        (f"{LEAVE} [来源：1]", f"{LEAVE} [1]"),
        (f"{LEAVE} [1, 9]", f"{LEAVE} [1]"),
        # the second is in another language, of which words tell nothing: it holds
        (f"{LEAVE} [1-3].", f"{LEAVE} [1][2]."),
        (f"{LEAVE} [1–999].", f"{LEAVE} [1][2]."),
        (f"{LEAVE} [2-3].", f"{LEAVE} [2]."),
        (f"{LEAVE} [1 and 3].", f"{LEAVE} [1]."),
        (f"{LEAVE}【来源1、来源3】。", f"{LEAVE}[1]。"),
        (f"{LEAVE} [Source 3, Source 1]", f"{LEAVE} [1]"),
        (f"{LEAVE} [1][1].", f"{LEAVE} [1]."),
        (f"{LEAVE} [9].", f"{LEAVE}."),
        (f"{LEAVE} [9][1].", f"{LEAVE}[1]."),
        (f"{LEAVE} [3].", f"{LEAVE}."),
        (f"  {LEAVE}  \n", LEAVE),
        ("[1] Leave", "Leave"),
        ("See [the page](http://x) for [a", "See [the page](http://x) for [a"),
        ("Use `rows[1]` and\n```\nx[1]\n```", "Use `rows[1]` and\n```\nx[1]\n```"),
        (f"A lone ` here.\n{LEAVE} [1]", f"A lone ` here.\n{LEAVE} [1]"),
    ],
)
def test_markers_are_normalised_or_dropped(written, shown):
    assert run(written).text == shown


def test_a_citation_spans_the_sentence_before_its_marker():
    stream = run(f"Yes. {LEAVE} [1]. An insert is at most 1024 MB. [1]")
    assert cited(stream) == [(1, LEAVE), (1, "An insert is at most 1024 MB.")]
    assert {c.chunk_id for c in stream.citations} == {SOURCES[0].hit.chunk.id}


def test_a_chinese_sentence_is_cited_by_code_points():
    stream = run("好的😀。代理在端口443上监听[2]。")
    assert cited(stream) == [(2, "代理在端口443上监听")]


def test_two_markers_in_a_sentence_vouch_for_a_part_each():
    stream = run(f"{LEAVE} [1], while the index build takes 3 hours [3].")
    assert cited(stream) == [(1, LEAVE), (3, "while the index build takes 3 hours")]


def test_neighbouring_markers_share_a_claim():
    sources = make_sources("Leave is fifteen days.", "Paid leave: fifteen days a year.")
    stream = run("Leave is fifteen days [1] and [2].", sources=sources)
    assert cited(stream) == [(1, "Leave is fifteen days"), (2, "Leave is fifteen days")]


def test_list_marks_are_not_part_of_the_claim():
    stream = run(f"- **Leave**: fifteen days paid [1]\n2. {LEAVE} [1]")
    assert cited(stream) == [(1, "**Leave**: fifteen days paid"), (1, LEAVE)]


PIECES = st.sampled_from(
    [
        LEAVE,
        " [1]",
        "[",
        "]",
        "【2】",
        "[3, 1]",
        "1",
        ",",
        ". ",
        "\n",
        "\n\n",
        " ",
        "`",
        "```",
        "代理在端口443上监听。",
        "[x](y)",
        "[9]",
        "- ",
    ]
)


@given(st.lists(PIECES, max_size=14).map("".join), st.lists(st.integers(0, 200), max_size=12))
def test_any_split_into_deltas_gives_the_same_result(text, cuts):
    bounds = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    split = run(*(text[a:b] for a, b in pairwise(bounds)))
    whole, single = run(text), run(*text)
    assert (split.text, split.citations) == (whole.text, whole.citations)
    assert (single.text, single.citations) == (whole.text, whole.citations)


@given(st.lists(PIECES, max_size=14).map("".join))
def test_every_marker_shown_outside_code_is_a_citation(text):
    stream = run(text.replace("`", ""))
    assert len(re.findall(r"\[\d+\]", stream.text)) == len(stream.citations)


def test_text_before_a_possible_marker_is_not_held_back():
    stream = CitationStream(SOURCES, terms)
    assert stream.feed(f"{LEAVE} [") == [TextDelta(LEAVE)]
    assert stream.feed("1") == []
    assert [type(event) for event in stream.feed("]")] == [TextDelta, Cited]


def test_kept_and_dropped_citations_are_counted():
    def counted():
        return {
            outcome: REGISTRY.get_sample_value("folio_citations_total", {"outcome": outcome}) or 0
            for outcome in ("kept", "dropped")
        }

    before = counted()
    run("Employees have fifteen days of paid leave a year [1][3].")
    assert counted() == {"kept": before["kept"] + 1, "dropped": before["dropped"] + 1}
