"""How often the quotes hold the answer, on real questions with the gold passage among three."""

import json
import re
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from app.domain import GenerationRequest, Source
from app.rag.lexical import inverse_document_frequency, query_terms, term_weights, terms
from app.rag.llm.extractive import ExtractiveGenerator
from tests.fakes import make_hit

DATA = Path(__file__).parents[3] / "shared" / "data"
NUM_QUESTIONS = 300


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def letters(text):
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).lower())


class Passages:
    """A set's passages, searched by words."""

    def __init__(self, name):
        rows = read_lines(DATA / "retrieval" / name / "corpus.jsonl")
        self.rows = {row["_id"]: row for row in rows}
        self.postings = defaultdict(list)
        for id, row in self.rows.items():
            for term, weight in term_weights(f"{row['title']}\n{row['text']}").items():
                self.postings[term].append((id, weight))

    def sources(self, question, gold):
        """The gold passage and the two best others, best first."""
        scores = Counter({gold: 0.0})
        for term, count in query_terms(question).items():
            found = self.postings.get(term, [])
            rarity = inverse_document_frequency(len(found), len(self.rows))
            for id, weight in found:
                scores[id] += count * rarity * weight
        others = [id for id, _ in scores.most_common(3) if id != gold][:2]
        best_first = sorted([gold, *others], key=lambda id: -scores[id])
        return tuple(Source(number, self.hit(id)) for number, id in enumerate(best_first, 1))

    def hit(self, id):
        return make_hit(self.rows[id]["text"], title=self.rows[id]["title"], id=id)


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"the test data is not at {DATA}")
@pytest.mark.parametrize(
    ("name", "language", "least"), [("squad2_en", "en", 0.87), ("cmrc2018_zh", "zh", 0.88)]
)
async def test_the_quotes_hold_the_gold_answer(name, language, least, record_property):
    passages = Passages(name)
    rows = [row for row in read_lines(DATA / "qa" / f"{name}.jsonl") if row["answerable"]]
    rows = rows[:: max(1, len(rows) // NUM_QUESTIONS)]
    generator = ExtractiveGenerator(terms)
    num_held = 0
    for row in rows:
        sources = passages.sources(row["question"], row["evidence_ids"][0])
        request = GenerationRequest((), row["question"], sources, language, 1000, 0.0)
        text = letters("".join([piece.text async for piece in generator.generate(request)]))
        num_held += any(letters(answer) in text for answer in row["answers"])
    record_property("share", num_held / len(rows))
    assert num_held / len(rows) >= least
