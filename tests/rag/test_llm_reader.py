"""The reader that ships, in the engine: whatever it chooses, it quotes and cites."""

import asyncio
import json
import re
from dataclasses import replace

import pytest

from app.domain import GenerationRequest
from app.engine import AsyncLLM
from app.errors import GeneratorUnavailable
from app.rag.lexical import terms
from app.rag.llm import ExtractiveGenerator, ReaderGenerator
from app.rag.llm.reader import READER_FOLDER, ReaderWeights
from app.rag.replies import REFUSAL
from tests.fakes import make_sources

TEXTS = (
    "Each employee has fifteen days of paid leave a year. Leave is asked for in writing.",
    "The canteen opens at noon. Guests pay with a card. It is closed on Sundays.",
    "访客需要在前台领取临时工牌。工牌必须在当天晚上归还。",
)
REQUEST = GenerationRequest(
    messages=(),
    question="How many days of paid leave does an employee have?",
    sources=make_sources(*TEXTS),
    language="en",
    max_tokens=400,
    temperature=1.0,
)
QUOTE = re.compile(r"(.+?) \[(\d+)\]")


@pytest.fixture(scope="module")
def llm():
    llm = AsyncLLM(model=str(READER_FOLDER), kv_cache_memory_bytes=1 << 24, num_threads=1)
    yield llm
    llm.shutdown()


@pytest.fixture(scope="module")
def weights():
    return ReaderWeights.load(READER_FOLDER)


async def answer(llm, weights, request):
    reader = ReaderGenerator(llm, ExtractiveGenerator(terms), REFUSAL, weights)
    return "".join([piece.text async for piece in reader.generate(request)])


def assert_quoted(text):
    quotes = QUOTE.findall(text)
    assert quotes
    assert " ".join(f"{sentence.strip()} [{number}]" for sentence, number in quotes) == text
    for sentence, number in quotes:
        assert sentence.strip() in TEXTS[int(number) - 1]


@pytest.mark.parametrize("prior_weight", [0.0, 4.0])
async def test_every_sentence_of_an_answer_is_a_sources(llm, weights, prior_weight):
    chosen = replace(weights, prior_weight=prior_weight, refusal_prior=-100.0)
    questions = [REQUEST.question, "When is the canteen closed?", "zzz"]
    texts = await asyncio.gather(
        *(answer(llm, chosen, replace(REQUEST, question=question)) for question in questions)
    )
    if prior_weight:
        for text in texts:
            assert_quoted(text)
    else:  # without the prior the refusal may win too
        assert [assert_quoted(text) for text in texts if text != REFUSAL["en"]]


async def test_the_sentence_asked_for_comes_first(llm, weights):
    text = await answer(llm, weights, REQUEST)
    assert text.startswith("Each employee has fifteen days of paid leave a year. [1]")
    asked = replace(REQUEST, question="访客在哪里领取临时工牌？", language="zh")
    assert (await answer(llm, weights, asked)).startswith("访客需要在前台领取临时工牌。 [3]")


async def test_a_high_enough_bar_is_a_refusal_in_the_questions_language(llm, weights):
    barred = replace(weights, prior_weight=4.0, refusal_prior=100.0)
    assert await answer(llm, barred, REQUEST) == REFUSAL["en"]
    assert await answer(llm, barred, replace(REQUEST, language="zh")) == REFUSAL["zh"]


def test_what_ships_is_small_and_says_whether_it_answers_by_default():
    files = list(READER_FOLDER.iterdir())
    assert sum(file.stat().st_size for file in files) < 60e6
    assert all(file.stat().st_size < 16e6 for file in files)
    assert json.loads((READER_FOLDER / "reader.json").read_text())["is_default"] is False


def test_a_folder_without_a_reader_is_refused_by_name(tmp_path):
    with pytest.raises(GeneratorUnavailable, match=r"lacks reader\.json"):
        ReaderWeights.load(tmp_path)


def test_fitted_weights_are_read_as_they_were_written(tmp_path):
    weights = ReaderWeights(False, 0.5, -2.0, 1.5, 2)
    weights.save(tmp_path)
    assert ReaderWeights.load(tmp_path) == weights
