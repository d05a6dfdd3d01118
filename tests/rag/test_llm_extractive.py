import re

import pytest

from app.domain import GenerationRequest, Source
from app.rag.citations import CitationStream
from app.rag.lexical import terms
from app.rag.llm.extractive import ExtractiveGenerator
from tests.fakes import FakeEmbedder, make_hit, make_sources

LEAVE = make_sources(
    "The handbook was printed in 2019. Each employee has fifteen days of paid leave a year. "
    "It can be carried over to March. The canteen opens at noon.",
    "Visitors sign in at the desk. They wear a badge.",
)


async def answer(question, sources, *, language="en", embedder=None):
    request = GenerationRequest((), question, tuple(sources), language, 500, 0.0)
    generator = ExtractiveGenerator(terms, embedder=embedder)
    return "".join([piece.text async for piece in generator.generate(request)])


async def test_the_sentence_that_holds_the_answer_is_quoted_with_its_number():
    text = await answer("How many days of paid leave does an employee have?", LEAVE)
    assert text.startswith("Each employee has fifteen days of paid leave a year. [1]")
    assert "badge" not in text


async def test_every_quote_passes_the_check_of_citations():
    question = "How many days of paid leave does an employee have, and when does the canteen open?"
    text = await answer(question, LEAVE)
    stream = CitationStream(LEAVE, terms)
    stream.feed(text)
    stream.finish()
    assert stream.text == text
    assert len(stream.citations) == len(re.findall(r"\[\d\]", text)) >= 2


async def test_a_sentence_that_leans_on_the_one_before_brings_it_along():
    text = await answer("Can leave be carried over to March?", LEAVE)
    assert "paid leave a year. [1] It can be carried over to March. [1]" in text


async def test_a_question_in_two_parts_gets_the_sentence_that_follows():
    sources = make_sources(
        "A vector has up to 32,768 dimensions. Set Proxy.maxDimension for more. Goodbye."
    )
    text = await answer("How many dimensions has a vector, and what raises them?", sources)
    assert "32,768 dimensions. [1] Set Proxy.maxDimension for more. [1]" in text


async def test_a_list_is_quoted_with_the_sentence_that_opens_it():
    sources = make_sources(
        "Reranking\n\nIt matters. There are these strategies:\n\n- Weighted\n- Fusion\n\nThe end."
    )
    text = await answer("Which reranking strategies are there?", sources)
    assert "There are these strategies: [1]\n\n- Weighted [1]\n- Fusion [1]" in text


async def test_the_row_that_is_asked_for_is_quoted_and_not_the_head_of_the_table():
    sources = make_sources("Search limits\n\nVectors | Limit\ntopk (results) | 16,384\nnq | 100")
    text = await answer("What is the maximum topk?", sources)
    assert text.startswith("- topk (results) | 16,384 [1]")
    assert "Vectors" not in text


async def test_a_heading_is_never_the_answer_to_itself():
    sources = make_sources("What is the largest insert?\n\nAt most 1,024 MB. Set by gRPC.")
    text = await answer("What is the largest insert?", sources)
    assert text.startswith("At most 1,024 MB. [1]")


async def test_chinese_is_quoted_without_gaps():
    sources = make_sources("本手册于2019年印制。员工每年享有十五天带薪年假。食堂中午开放。")
    text = await answer("员工每年有多少天年假？", sources, language="zh")
    assert text.startswith("员工每年享有十五天带薪年假。[1]")


async def test_sources_in_another_language_are_announced():
    text = await answer("paid leave 有多少天？", LEAVE, language="zh")
    assert text.startswith("文档（英文）中写道：\n\n")


async def test_nothing_is_said_twice():
    one = "Each employee has fifteen days of paid leave a year."
    text = await answer("How many days of paid leave?", make_sources(one, one, f"{one} Enjoy."))
    assert text.count("fifteen") == 1


@pytest.mark.parametrize(
    ("written", "quoted"),
    [
        ("Leave is fifteen days.[12] More.", "Leave is fifteen days. [1]"),
        ("Leave is in days[3] of fifteen.", "Leave is in days[\u20603] of fifteen. [1]"),
        ("Leave is in days [1, 3] of fifteen.", "Leave is in days [\u20601, 3] of fifteen. [1]"),
        ("Leave is in days [1-3] of fifteen.", "Leave is in days [\u20601-3] of fifteen. [1]"),
        ("-  Leave:\tfifteen   days", "- Leave: fifteen days [1]"),
    ],
)
async def test_numbers_and_marks_of_the_document_are_not_taken_for_ours(written, quoted):
    assert await answer("Leave in days?", make_sources(written)) == quoted


async def test_headings_of_the_chunk_count_for_what_stands_under_them():
    hits = [
        make_hit("It is at most 64 of them.", heading_path=("Limits", "Partitions"), id="a"),
        make_hit("It is at most 16 of them.", heading_path=("Limits", "Shards"), id="b"),
    ]
    sources = [Source(number, hit) for number, hit in enumerate(hits, start=1)]
    text = await answer("How many shards can there be?", sources)
    assert text.startswith("It is at most 16 of them. [2]")


async def test_an_embedder_reads_the_best_sentences_again():
    text = await answer("How many days of paid leave?", LEAVE, embedder=FakeEmbedder())
    assert "fifteen days of paid leave a year. [1]" in text


async def test_an_embedder_without_chinese_is_not_asked_about_it():
    class English(FakeEmbedder):
        is_multilingual = False

        def embed_queries(self, texts):
            raise AssertionError("asked")

    sources = make_sources("员工每年享有十五天带薪年假。")
    assert await answer("年假有几天？", sources, language="zh", embedder=English())
