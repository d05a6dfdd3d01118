"""Exercises of random tokens, in the form of the real ones.

In text a small model first learns which words are frequent, for millions of tokens, and only then
to look back. Random tokens leave nothing else to learn: copying comes after a million of them, and
then choosing the sentence that shares tokens with the question.
"""

import random
from dataclasses import dataclass

from tokenizers import Tokenizer

from app.scripts.train_reader.examples import Size
from app.scripts.train_reader.tokens import ASSISTANT, END, USER, Encoded, ids_of, special_id

SENTENCE_TOKENS = (5, 16)
QUESTION_TOKENS = (2, 6)
NUM_FREQUENT = 12  # tokens with which half of the sentences begin, as they do with "The"
UNANSWERABLE_SHARE = 0.15
SEVERAL_SHARE = 0.1
NOISE_SHARE = 0.25  # of a question's tokens, from nowhere


@dataclass(frozen=True, slots=True)
class Nonsense:
    """Draws exercises; `refusals` are the token ids of the refusals."""

    tokenizer: Tokenizer
    refusals: tuple[tuple[int, ...], ...]

    def copy(self, rng: random.Random) -> Encoded:
        """Tokens to be said again."""
        ids = self._tokens(rng, rng.randint(8, 24))
        return Encoded(
            (self._id(USER), *ids, self._id(ASSISTANT), *ids, self._id(END)),
            (1.0,) * (len(ids) + 1),
        )

    def choose(self, rng: random.Random, size: Size, copied_weight: float) -> Encoded:
        """Sentences, and a question of some of the tokens of one or two of them."""
        sources = [
            [self._sentence(rng) for _ in range(rng.randint(1, size.num_sentences))]
            for _ in range(size.num_sources)
        ]
        places = [(n, s) for n, own in enumerate(sources, start=1) for s in own]
        wanted = rng.sample(places, 2 if rng.random() < SEVERAL_SHARE and len(places) > 3 else 1)
        question: list[int] = []
        for _, sentence in wanted:
            most = min(QUESTION_TOKENS[1], len(sentence) - 1)
            question += rng.sample(sentence[1:], rng.randint(QUESTION_TOKENS[0], most))
        question += self._tokens(rng, round(NOISE_SHARE * len(question)))
        rng.shuffle(question)
        if rng.random() < UNANSWERABLE_SHARE:
            question, wanted = self._tokens(rng, len(question)), []
        return self._encoded(rng, question, sources, wanted, copied_weight)

    def _encoded(
        self,
        rng: random.Random,
        question: list[int],
        sources: list[list[list[int]]],
        wanted: list[tuple[int, list[int]]],
        copied_weight: float,
    ) -> Encoded:
        line = ids_of(self.tokenizer, "\n")
        prompt = [*question]
        for number, sentences in enumerate(sources, start=1):
            prompt += [*line, *ids_of(self.tokenizer, f"[{number}]")]
            for sentence in sentences:
                prompt += [*line, *sentence]
        prompt += [*line, *question]
        answer: list[int] = []
        weights: list[float] = []
        for number, sentence in wanted:
            ids = [*sentence, *ids_of(self.tokenizer, f" [{number}]")]
            answer += ids
            weights += [1.0] * 4 + [copied_weight] * (len(ids) - 4)
        if not wanted:
            answer = list(rng.choice(self.refusals))
            weights = [1.0] + [copied_weight] * (len(answer) - 1)
        return Encoded(
            (self._id(USER), *prompt, self._id(ASSISTANT), *answer, self._id(END)),
            (*weights, 1.0),
        )

    def _sentence(self, rng: random.Random) -> list[int]:
        ids = self._tokens(rng, rng.randint(*SENTENCE_TOKENS))
        if rng.random() < 0.5:
            ids[0] = self._first + rng.randrange(NUM_FREQUENT)
        return ids

    def _tokens(self, rng: random.Random, count: int) -> list[int]:
        size = self.tokenizer.get_vocab_size()
        return [rng.randrange(self._first + NUM_FREQUENT, size) for _ in range(count)]

    @property
    def _first(self) -> int:
        return max(self._id(token) for token in (USER, ASSISTANT, END)) + 256  # single bytes

    def _id(self, token: str) -> int:
        return special_id(self.tokenizer, token)
