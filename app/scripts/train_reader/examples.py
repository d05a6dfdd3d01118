"""Exercises without limit: a question, sources, and the sentences that answer it, if any do."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.domain import Language
from app.rag.replies import REFUSAL
from app.rag.text import language_of
from app.scripts.train_reader.corpus import Grounded, Text
from app.scripts.train_reader.questions import make_question

GROUNDED_SHARE = 0.15
UNANSWERABLE_SHARE = 0.15
SEVERAL_SHARE = 0.15
CHINESE_SHARE = 0.4
NEAR_SHARE = 0.5  # of the distractors, from the answer's own document


@dataclass(frozen=True, slots=True)
class Size:
    """How much there is to read."""

    num_sources: int
    num_sentences: int  # of each, at most


@dataclass(frozen=True, slots=True)
class Example:
    """`answer` holds (sentence, number of its source); empty where no source answers."""

    question: str
    sources: Mapping[int, Sequence[str]]
    answer: tuple[tuple[str, int], ...]
    language: Language

    @property
    def completion(self) -> str:
        """The answer as it is to be written."""
        cited = " ".join(f"{sentence} [{number}]" for sentence, number in self.answer)
        return cited or REFUSAL[self.language]


class Exercises:
    """Draws examples from texts and from real questions."""

    def __init__(self, texts: Sequence[Text], grounded: Sequence[Grounded]) -> None:
        self._by_language: dict[Language, list[Text]] = {
            language: [text for text in texts if text.language == language]
            for language in ("en", "zh")
        }
        self._grounded = list(grounded)

    def draw(self, rng: random.Random, size: Size) -> Example:
        """One example."""
        if self._grounded and rng.random() < GROUNDED_SHARE:
            return self._real(rng, size)
        while True:
            example = self._made_up(rng, size)
            if example is not None:
                return example

    def _real(self, rng: random.Random, size: Size) -> Example:
        item = rng.choice(self._grounded)
        room = size.num_sentences
        start = rng.randint(max(0, item.supporting - room + 1), item.supporting)
        passage = item.sentences[start : start + room]
        others = [rng.choice(self._grounded).sentences[:room] for _ in range(size.num_sources - 1)]
        is_answerable = rng.random() >= UNANSWERABLE_SHARE
        if not is_answerable:
            passage = tuple(s for s in passage if s != item.sentences[item.supporting])
        wanted = (item.sentences[item.supporting],) if is_answerable else ()
        return _shuffled(rng, item.question, [passage, *others], wanted)

    def _made_up(self, rng: random.Random, size: Size) -> Example | None:
        pool = self._by_language["zh" if rng.random() < CHINESE_SHARE else "en"]
        text = rng.choice(pool)
        passage = _passage(text, rng, size)
        wanted = _wanted(passage, rng)
        questions = [make_question(s, language_of(s), rng) for s in wanted]
        if not all(questions):
            return None
        question = rng.choice([" and ", "? ", "; "]).join(map(str, questions))
        others = []
        for _ in range(size.num_sources - 1):
            is_near = rng.random() < NEAR_SHARE
            others.append(_passage(text if is_near else rng.choice(pool), rng, size))
        if rng.random() < UNANSWERABLE_SHARE:
            passage, wanted = tuple(s for s in passage if s not in wanted), ()
        return _shuffled(rng, question, [passage, *others], wanted)


def _passage(text: Text, rng: random.Random, size: Size) -> tuple[str, ...]:
    sentences = text.sentences
    count = rng.randint(min(2, size.num_sentences), size.num_sentences)
    start = rng.randrange(max(1, len(sentences) - count + 1))
    return sentences[start : start + count]


def _wanted(passage: Sequence[str], rng: random.Random) -> tuple[str, ...]:
    count = 2 if len(passage) > 2 and rng.random() < SEVERAL_SHARE else 1
    chosen = sorted(rng.sample(range(len(passage)), count))
    return tuple(dict.fromkeys(passage[i] for i in chosen))


def _shuffled(
    rng: random.Random, question: str, passages: list[Sequence[str]], wanted: Sequence[str]
) -> Example:
    """Number the passages in any order; a sentence is quoted from the first that has it."""
    passages = [passage for passage in passages if passage]
    rng.shuffle(passages)
    sources = dict(enumerate(passages, start=1))
    places = [
        (sentence, next(number for number, own in sources.items() if sentence in own))
        for sentence in wanted
    ]
    return Example(question, sources, tuple(places), language_of(question))
