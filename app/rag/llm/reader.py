"""Answers in the documents' own words, chosen by a small language model that can write no others.

The engine lets nothing through but sentences of the sources with their numbers, or the refusal
(evidence-constrained decoding). What retrieval says of a sentence is a prior for the model.
"""

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from app.domain import Generation, GenerationRequest, GeneratorInfo, Language
from app.engine import QuoteOnlyParams, QuoteSource, SamplingParams, StructuredOutputsParams
from app.errors import GeneratorUnavailable
from app.rag.llm.engine import EngineGenerator
from app.rag.llm.extractive import NUM_EMBEDDED, WORD, ExtractiveGenerator, quotable
from app.rag.llm.reader_prompt import reader_prompt

if TYPE_CHECKING:  # the engine's faces load torch
    from app.engine import AsyncLLM

READER = "reader"  # as LLM_MODEL names it
READER_FOLDER = Path(__file__).with_name("built_in_reader")
READER_MODEL = "folio-reader"
NOTE = (
    "The built-in reader answers: it quotes your documents; choose a model for free-form answers."
)


@dataclass(frozen=True, slots=True)
class ReaderWeights:
    """How much retrieval's scores count beside the model's logits, fitted on questions.

    `is_default` says that the reader has passed the bar to answer where no other model is there.
    """

    is_default: bool
    prior_weight: float
    refusal_prior: float
    end_prior: float
    max_sentences: int = 3

    @classmethod
    def load(cls, folder: Path) -> "ReaderWeights":
        """Read `reader.json`; raise GeneratorUnavailable where it is not there."""
        path = folder / "reader.json"
        if not path.is_file():
            raise GeneratorUnavailable(
                f"{folder} holds no reader, it lacks reader.json: train one with python -m "
                "app.scripts.train_reader, or set LLM_MODEL to another model"
            )
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def save(self, folder: Path) -> None:
        """Write `reader.json`."""
        text = json.dumps(asdict(self), indent=1) + "\n"
        (folder / "reader.json").write_text(text, encoding="utf-8")


class ReaderGenerator(EngineGenerator):
    """Implements Generator on a reader; `ranker` scores the sentences that it may choose from.

    It reads the `num_read` sentences that score best. `refusals` are the answers that say that
    the documents hold none.
    """

    def __init__(
        self,
        llm: "AsyncLLM",
        ranker: ExtractiveGenerator,
        refusals: Mapping[Language, str],
        weights: ReaderWeights,
        *,
        num_read: int = NUM_EMBEDDED,
        timeout_s: float = 120.0,
    ) -> None:
        super().__init__(llm, READER_MODEL, timeout_s=timeout_s)
        self.info = GeneratorInfo("reader", READER_MODEL, NOTE)
        self._ranker = ranker
        self._refusals = refusals
        self._weights = weights
        self._num_read = num_read

    @property
    def max_prompt_tokens(self) -> int:
        """As the ranker's: of all that it is given the reader sees a few sentences."""
        return self._ranker.max_prompt_tokens

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Generation]:
        """Stream word by word: the engine makes a whole sentence at once."""
        async with aclosing(super().generate(request)) as pieces:
            async for piece in pieces:
                for word in WORD.findall(piece.text):
                    yield Generation(word)
                if piece.finish_reason is not None:
                    yield replace(piece, text="")

    def prepare(self, request: GenerationRequest) -> tuple[list[int], SamplingParams]:
        """The question with the best sentences, in reading order; and these as all it may say."""
        sentences = self._ranker.read(request.sources)
        ranked = self._ranker.rank(request.question, sentences, self._num_read)
        places = {sentence: place for place, sentence in enumerate(sentences)}
        best = sorted(ranked[: self._num_read], key=lambda quote: places[quote.sentence])
        lines: dict[int, dict[str, float]] = {}
        for quote in best:
            own = lines.setdefault(quote.sentence.source.number, {})
            if text := quotable(quote.sentence):
                own.setdefault(text, quote.score)
        question = request.question.strip().split("\n")[-1]
        content = reader_prompt(question, {number: list(own) for number, own in lines.items()})
        prompt = self.encode([{"role": "user", "content": content}])
        quote_only = QuoteOnlyParams(
            [QuoteSource(n, list(own), list(own.values())) for n, own in lines.items() if own],
            refusal=self._refusals[request.language],
            max_sentences=self._weights.max_sentences,
            prior_weight=self._weights.prior_weight,
            refusal_prior=self._weights.refusal_prior,
            end_prior=self._weights.end_prior,
        )
        params = SamplingParams(
            temperature=0.0,
            max_tokens=min(request.max_tokens, self.room_after(prompt)),
            structured_outputs=StructuredOutputsParams(quote_only=quote_only),
        )
        return prompt, params
