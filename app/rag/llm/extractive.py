"""Answers in the documents' own words: the sentences that most likely hold the answer, quoted.

It serves where no language model can be loaded, at once and without inventing anything. Quoted
are as many of the best sentences as it takes to make it probable that the answer is among them.
"""

import asyncio
import math
import re
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, replace

from app.domain import Generation, GenerationRequest, GeneratorInfo, Source, Usage
from app.rag.llm.sentence_scores import Sentence, Terms, read_sentences, score_sentences
from app.rag.protocols import Embedder
from app.rag.text import CELL_BORDER, CJK, CJK_CHARACTER, LIST_MARK, MARKER, language_of

# Quote until the answer is this probable to be among the quotes, but no more than so many.
ENOUGH = 0.9
MAX_QUOTES = 3
MAX_LIST_ITEMS = 8
# A sentence this unlikely, next to the best, only distracts.
MIN_SHARE_OF_BEST = 0.05
# Quotes that share this much of their terms say the same.
SAME = 0.7
# So many of the best by words are read by the embedder as well (5 ms each on a CPU).
NUM_EMBEDDED = 8
COSINE_WEIGHT = 6.0

LEAD_IN = {
    ("en", "zh"): "The documents, which are in Chinese, say:",
    ("zh", "en"): "文档（英文）中写道：",
}
# "[12]" in a document is a note, or an index in code: never one of our numbers.
NOTE = re.compile(r"(?<=[.,;:!?。，；：！？”’\"')）])\[\d{1,3}\]")
# Such a sentence is only understood with the one before it.
LEANS_BACK = re.compile(
    r"(?:therefore|thus|hence|so|it|its|they|their|these|this|that|those|he|she|his|her|such|however"
    r"|but|also|in this case|otherwise)\b|因此|所以|这|那|它|其|他|她|该|但|此|并且|而且|同时|否则",
    re.IGNORECASE,
)
# "…, and which …?": the second half of the answer tends to come next.
ASKS_TWICE = re.compile(
    r"\b(?:and|or) (?:what|which|how|where|when|why|who)\b|[?？].+[?？]|[，,](?:又|以及)",
    re.IGNORECASE,
)
WORD_JOINER = "\u2060"
WORD = re.compile(rf"\s*(?:[{CJK}]{{1,4}}|[^\s{CJK}]+)|\s+")  # all of a text, word by word
SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Quote:
    """A sentence to quote; e to its score is in proportion to how probably it holds the answer."""

    sentence: Sentence
    score: float


@dataclass(frozen=True, slots=True)
class Line:
    """A quote as it is written: `number` is its source's; items stand on lines of their own."""

    number: int
    text: str
    is_item: bool


class ExtractiveGenerator:
    """Implements Generator by quoting.

    `terms` cuts a text into its content terms. `embedder`, if given, also reads the best
    sentences. `note` says why no language model answers, and how to get one.
    """

    max_prompt_tokens = 1_000_000

    def __init__(self, terms: Terms, *, embedder: Embedder | None = None, note: str = "") -> None:
        self._terms = terms
        self._embedder = embedder
        self.info = GeneratorInfo("extractive", "quotes from the documents", note)

    def count_tokens(self, text: str) -> int:
        """Words and Chinese characters; nothing here depends on a tokenizer."""
        return len(text.split()) + len(CJK_CHARACTER.findall(text))

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Generation]:
        """Stream the quotes word by word."""
        text = await asyncio.to_thread(self._write, request)
        words = WORD.findall(text)
        for word in words[: request.max_tokens]:
            yield Generation(word)
            await asyncio.sleep(0)
        is_cut = len(words) > request.max_tokens
        usage = Usage(num_completion_tokens=min(len(words), request.max_tokens))
        yield Generation("", "length" if is_cut else "stop", usage)

    def _write(self, request: GenerationRequest) -> str:
        sentences = self.read(request.sources)
        quotes = select(self.rank(request.question, sentences))
        if quotes and ASKS_TWICE.search(request.question):
            quotes[1:1] = following(quotes[0], sentences)
        quotes = with_antecedents(quotes, sentences)
        lines = list(quoted_lines(quotes, sentences))
        if lines and (lead_in := LEAD_IN.get((request.language, language_of(lines[0].text)))):
            return f"{lead_in}\n\n{joined(lines)}"
        return joined(lines)

    def read(self, sources: Sequence[Source]) -> list[Sentence]:
        """The sentences of the sources."""
        return read_sentences(sources, self._terms)

    def rank(
        self, question: str, sentences: Sequence[Sentence], num_embedded: int = NUM_EMBEDDED
    ) -> list[Quote]:
        """What can be quoted, most probable first; with an embedder the best by words alone."""
        scores = score_sentences(question, sentences, self._terms)
        quotes = [Quote(*pair) for pair in zip(sentences, scores, strict=True)]
        quotes = [quote for quote in quotes if not quote.sentence.is_heading] or quotes
        quotes.sort(key=lambda quote: -quote.score)
        if self._embedder and (self._embedder.is_multilingual or language_of(question) == "en"):
            quotes = self._read_again(question, quotes[:num_embedded], self._embedder)
        return quotes

    def _read_again(
        self, question: str, quotes: Sequence[Quote], embedder: Embedder
    ) -> list[Quote]:
        [query] = embedder.embed_queries([question])
        vectors = embedder.embed_documents([quote.sentence.text for quote in quotes])
        again = [
            replace(quote, score=quote.score + COSINE_WEIGHT * float(cosine))
            for quote, cosine in zip(quotes, vectors @ query, strict=True)
        ]
        return sorted(again, key=lambda quote: -quote.score)


def select(ranked: Sequence[Quote]) -> list[Quote]:
    """Take the best, until the answer is probably among them; nothing is said twice."""
    weights = [math.exp(quote.score - ranked[0].score) for quote in ranked]
    enough = ENOUGH * sum(weights)
    selected: list[Quote] = []
    so_far = 0.0
    for quote, weight in zip(ranked, weights, strict=True):
        if so_far >= enough or len(selected) == MAX_QUOTES or weight < MIN_SHARE_OF_BEST:
            break
        so_far += weight
        if not any(_says_same(quote, other) for other in selected):
            selected.append(quote)
    return selected


def following(quote: Quote, sentences: Sequence[Sentence]) -> list[Quote]:
    """The sentence after a quote, where it goes on with the same."""
    index = sentences.index(quote.sentence) + 1
    after = sentences[index] if index < len(sentences) else quote.sentence
    goes_on = after.source == quote.sentence.source and not after.is_heading and not after.is_first
    return [Quote(after, quote.score)] if goes_on else []


def with_antecedents(quotes: Sequence[Quote], sentences: Sequence[Sentence]) -> list[Quote]:
    """Put the sentence before in front of each that only makes sense behind it."""
    whole: dict[Sentence, Quote] = {}
    for quote in quotes:
        sentence = quote.sentence
        if LEANS_BACK.match(quotable(sentence)) and not sentence.is_first:
            before = sentences[sentences.index(sentence) - 1]
            whole.setdefault(before, Quote(before, quote.score))
        whole.setdefault(sentence, quote)
    return list(whole.values())


def quoted_lines(quotes: Sequence[Quote], sentences: Sequence[Sentence]) -> Iterator[Line]:
    """The quotes in reading order, the source of the best first; with lists that they open."""
    best_first = list(dict.fromkeys(quote.sentence.source.number for quote in quotes))
    chosen = {(quote.sentence.source.number, quote.sentence.position) for quote in quotes}
    for number in best_first:
        own = [sentence for sentence in sentences if sentence.source.number == number]
        num_items = 0
        for sentence in own:
            is_chosen = (number, sentence.position) in chosen
            is_item = is_list_item(sentence.text)
            if is_chosen or (is_item and num_items):
                num_items = max(0, num_items - 1)
                yield Line(number, quotable(sentence), is_item or CELL_BORDER in sentence.text)
            else:
                num_items = 0
            if is_chosen and sentence.text.endswith((":", "：")):
                num_items = MAX_LIST_ITEMS


def is_list_item(text: str) -> bool:
    """Whether it stands in a list; a line with # is a comment in code."""
    return bool(LIST_MARK.match(text)) and not text.startswith("#")


def joined(lines: Sequence[Line]) -> str:
    """The lines as Markdown, each followed by the number of its source."""
    parts: list[str] = []
    for before, line in zip([None, *lines], lines, strict=False):
        is_chinese = language_of(line.text) == "zh"
        if before is None:
            separator = ""
        elif line.is_item:
            separator = "\n" if before.is_item else "\n\n"
        elif before.is_item or before.number != line.number:
            separator = "\n\n"
        else:
            separator = "" if is_chinese else " "
        mark = "- " if line.is_item else ""
        gap = "" if is_chinese else " "
        parts.append(f"{separator}{mark}{line.text}{gap}[{line.number}]")
    return "".join(parts)


def quotable(sentence: Sentence) -> str:
    """A sentence as it is quoted: on one line, without list marks and without notes' numbers."""
    text = LIST_MARK.sub("", sentence.text, count=1) if LIST_MARK.match(sentence.text) else ""
    text = SPACE.sub(" ", NOTE.sub("", text or sentence.text)).strip()
    return MARKER.sub(lambda note: f"{note.group()[0]}{WORD_JOINER}{note.group()[1:]}", text)


def _says_same(quote: Quote, other: Quote) -> bool:
    terms, others = set(quote.sentence.terms), set(other.sentence.terms)
    return len(terms & others) >= SAME * max(1, min(len(terms), len(others)))
