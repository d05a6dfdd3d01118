"""How often the reader chooses the right sentence on documents that it never saw."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.domain import Language
from app.engine import LLM, QuoteOnlyParams, QuoteSource, SamplingParams, StructuredOutputsParams
from app.rag.llm.reader_prompt import reader_prompt
from app.rag.replies import REFUSAL
from app.scripts.train_reader.examples import Example, Exercises, Size

SIZE = Size(3, 6)
MAX_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Measured:
    """Shares of examples: right first sentences, and right decisions to refuse."""

    num_answerable: int
    right_sentences: float
    by_chance: float
    num_all: int
    right_refusals: float
    kept_answers: float


def measure(folder: Path, exercises: Exercises, language: Language, number: int) -> Measured:
    """Ask `number` questions of one language, in quote-only decoding without priors."""
    rng = random.Random(7)
    examples: list[Example] = []
    while len(examples) < number:
        example = exercises.draw(rng, SIZE)
        if example.language == language:
            examples.append(example)
    llm = LLM(str(folder), dtype="float32", max_model_len=2048)
    answerable = [item for item in examples if item.answer]
    chosen = _ask(llm, answerable, may_refuse=False)
    free = _ask(llm, examples, may_refuse=True)
    unanswerable = [i for i, item in enumerate(examples) if not item.answer]
    answered = [i for i, item in enumerate(examples) if item.answer]
    right = [
        any(text.startswith(f"{sentence} [") for sentence, _ in item.answer)
        for item, text in zip(answerable, chosen, strict=True)
    ]
    sizes = [sum(map(len, item.sources.values())) for item in answerable]
    return Measured(
        num_answerable=len(answerable),
        right_sentences=_share(right),
        by_chance=sum(len(i.answer) / n for i, n in zip(answerable, sizes, strict=True))
        / max(1, len(sizes)),
        num_all=len(examples),
        right_refusals=_share([free[i] == REFUSAL[language] for i in unanswerable]),
        kept_answers=_share([free[i] != REFUSAL[language] for i in answered]),
    )


def _ask(llm: LLM, examples: Sequence[Example], *, may_refuse: bool) -> list[str]:
    chats = [
        [{"role": "user", "content": reader_prompt(item.question, item.sources)}]
        for item in examples
    ]
    params = [
        SamplingParams(
            temperature=0.0,
            max_tokens=MAX_TOKENS,
            structured_outputs=StructuredOutputsParams(
                quote_only=_quotes(item, may_refuse=may_refuse)
            ),
        )
        for item in examples
    ]
    return [output.outputs[0].text for output in llm.chat(chats, params, use_tqdm=False)]


def _quotes(example: Example, *, may_refuse: bool) -> QuoteOnlyParams:
    sources = [
        QuoteSource(number, list(dict.fromkeys(own))) for number, own in example.sources.items()
    ]
    refusal = REFUSAL[example.language] if may_refuse else None
    return QuoteOnlyParams(sources, refusal=refusal, max_sentences=1)


def _share(values: Sequence[bool]) -> float:
    return sum(values) / max(1, len(values))
