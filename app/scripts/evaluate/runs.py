"""The evaluations themselves: each asks the appliance's retriever and returns figures."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from app.domain import (
    EVERYWHERE,
    Block,
    BlockKind,
    ChunkSpan,
    Evidence,
    ParsedDocument,
    Question,
    SearchHit,
)
from app.rag.chunker import StructureChunker
from app.rag.lexical import query_terms, weigh_query
from app.rag.protocols import Chunker, Embedder, ScoredChunk, Vectors
from app.rag.retriever import HybridRetriever, evidence_features, read_query
from app.rag.text import language_of
from app.scripts.evaluate.index import MemoryIndex, embed_hits, make_hit
from app.scripts.evaluate.measures import (
    Floats,
    auroc,
    fit_logistic,
    ndcg,
    recall,
    reciprocal_rank,
)
from app.scripts.evaluate.sets import Passage, QuestionSet, SetQuestion

Report = Callable[[str, int], object]  # called with what is done and how many more are done
REFUSAL_COST, COST_TOLERANCE = 2.5, 1.02
CANDIDATES = 50
CHUNK_TOKENS = 200
DEPTH = 10


class KnownQueries:
    """An embedder whose queries were embedded ahead, in batches."""

    def __init__(self, embedder: Embedder, texts: Sequence[str]) -> None:
        self.name = embedder.name
        self.dimension = embedder.dimension
        self.max_tokens = embedder.max_tokens
        self.is_multilingual = embedder.is_multilingual
        self.count_tokens = embedder.count_tokens
        self.embed_documents = embedder.embed_documents
        self._embedder = embedder
        self._vectors = dict(zip(texts, embedder.embed_queries(texts), strict=True))

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """Embed what is not known yet."""
        if not all(text in self._vectors for text in texts):
            return self._embedder.embed_queries(texts)
        return np.stack([self._vectors[text] for text in texts])


@dataclass(frozen=True, slots=True)
class Bench:
    """Sets that are searched as one collection."""

    index: MemoryIndex
    embedder: KnownQueries
    retriever: HybridRetriever
    sets: tuple[QuestionSet, ...]


@dataclass(frozen=True, slots=True)
class Figures:
    """One way of searching on one set."""

    ndcg: float
    recall: float
    mrr: float
    held_out_ndcg: float


def make_benches(
    sets: Sequence[QuestionSet], embedder: Embedder, is_merged: bool, report: Report
) -> Iterator[Bench]:
    """Index each set by itself, or all as one collection."""
    vectors = {
        group.name: (hits := list(cut(group, embedder)), embed_set(hits, group, embedder, report))
        for group in sets
    }
    for group in [tuple(sets)] if is_merged else [(one,) for one in sets]:
        hits = [hit for one in group for hit in vectors[one.name][0]]
        index = MemoryIndex(hits, np.concatenate([vectors[one.name][1] for one in group]))
        known = KnownQueries(embedder, [q.text for one in group for q in one.questions])
        yield Bench(index, known, HybridRetriever(known, index, index, CANDIDATES), group)


def embed_set(
    hits: Sequence[SearchHit], group: QuestionSet, embedder: Embedder, report: Report
) -> Vectors:
    """Embed a set's chunks."""
    return embed_hits(hits, embedder, lambda done: report(f"embed {group.name}", done))


def cut(group: QuestionSet, embedder: Embedder) -> Iterator[SearchHit]:
    """Chunks of a set: its passages whole, or cut as the appliance cuts where they are long."""
    chunker = StructureChunker(embedder.count_tokens, CHUNK_TOKENS, 0)
    for passage in group.passages:
        if not group.is_long:
            # The title is a part of the text here: `embedded_text` would shorten it.
            text = f"{passage.title}\n{passage.text}".strip()
            yield make_hit(passage.id, passage.id, "", ChunkSpan(0, len(text), text, (), 0))
            continue
        spans = chunk_passage(passage, chunker)
        for index, span in enumerate(spans):
            yield make_hit(f"{passage.id}#{index}", passage.id, passage.title, span)


def chunk_passage(passage: Passage, chunker: Chunker) -> list[ChunkSpan]:
    """Cut a document at its paragraphs."""
    blocks, start = [], 0
    for paragraph in passage.text.split("\n\n"):
        if paragraph.strip():
            blocks.append(Block(BlockKind.PARAGRAPH, start, start + len(paragraph)))
        start += len(paragraph) + 2
    return chunker.chunk(ParsedDocument(passage.text, passage.title, tuple(blocks)))


def measure_retrieval(bench: Bench, report: Report) -> dict[str, dict[str, Figures]]:
    """Return figures by set and way of searching: dense, lexical, hybrid."""
    return {
        group.name: {
            way: figures_of(rankings, group.questions)
            for way, rankings in rankings_of(bench, group, report).items()
        }
        for group in bench.sets
    }


def rankings_of(bench: Bench, group: QuestionSet, report: Report) -> dict[str, list[list[str]]]:
    """Rank documents for each question, by each leg and by both."""
    limit = CANDIDATES if group.is_long else DEPTH
    rankings: dict[str, list[list[str]]] = {"dense": [], "lexical": [], "hybrid": []}
    for question in group.questions:
        counts = query_terms(question.text)
        weights = weigh_query(
            counts, bench.index.document_frequencies(list(counts)), bench.index.num_chunks()
        )
        [vector] = bench.embedder.embed_queries([question.text])
        dense = bench.index.search_dense(vector, CANDIDATES, EVERYWHERE)
        lexical = bench.index.search_sparse(weights, CANDIDATES, EVERYWHERE)
        evidence = bench.retriever.retrieve(Question(question.text), limit)
        rankings["dense"].append(documents_of(bench.index, dense))
        rankings["lexical"].append(documents_of(bench.index, lexical))
        rankings["hybrid"].append(unique(hit.chunk.document_id for hit in evidence.hits))
        report(f"ask {group.name}", 1)
    return rankings


def documents_of(index: MemoryIndex, results: Sequence[ScoredChunk]) -> list[str]:
    """Rank documents by their best chunk."""
    hits = index.hits([result.chunk_id for result in results])
    return unique(hit.chunk.document_id for hit in hits.values())


def unique(ids: Iterator[str]) -> list[str]:
    """Keep the first of each."""
    return list(dict.fromkeys(ids))


def figures_of(rankings: Sequence[list[str]], questions: Sequence[SetQuestion]) -> Figures:
    """Average over questions; every second one was held out when parameters were chosen."""
    pairs = list(zip(rankings, (question.relevant for question in questions), strict=True))
    return Figures(
        ndcg=mean([ndcg(*pair) for pair in pairs]),
        recall=mean([recall(*pair) for pair in pairs]),
        mrr=mean([reciprocal_rank(*pair) for pair in pairs]),
        held_out_ndcg=mean([ndcg(*pair) for pair in pairs[1::2]]),
    )


def mean(values: Sequence[float]) -> float:
    """Average; 0 of nothing."""
    return float(np.mean(values)) if values else 0.0


@dataclass(frozen=True, slots=True)
class Abstention:
    """How well confidence tells questions whose answer is there from those where it is not.

    Figures are of the held-out half. `answered` and `refused` are what the threshold does to
    either kind. `curve` has, by threshold, the share of all questions that are answered
    (coverage) and the share of those that should not have been (risk). `chosen` is the threshold
    that all questions would choose; `fitted` are the weights of coverage, phrases and margin, and
    the bias, that the other half would choose.
    """

    language: str
    auroc: float
    threshold: float
    chosen: float
    answered: float
    refused: float
    curve: tuple[tuple[float, float, float], ...]
    fitted: tuple[float, ...]


def measure_abstention(bench: Bench, report: Report) -> dict[str, Abstention]:
    """Ask each question with its documents in the collection, and with them taken out."""
    results = {}
    for group in bench.sets:
        present: list[Evidence] = []
        absent: list[Evidence] = []
        for question in group.questions:
            for evidences, hidden in ((present, []), (absent, list(question.relevant))):
                bench.index.hide(hidden)
                evidences.append(bench.retriever.retrieve(Question(question.text), DEPTH * 2))
            report(f"ask {group.name}", 1)
        bench.index.hide([])
        results[group.name] = judge(bench, present, absent)
    return results


def judge(bench: Bench, present: Sequence[Evidence], absent: Sequence[Evidence]) -> Abstention:
    """Compare the evidence of questions with and without an answer."""
    language = language_of(present[0].query)
    scores = [[evidence.confidence for evidence in some[1::2]] for some in (present, absent)]
    threshold = read_query(present[0].query, {}, True).profile.threshold
    return Abstention(
        language=language,
        auroc=auroc(*scores),
        threshold=threshold,
        chosen=choose_threshold(
            *([evidence.confidence for evidence in some] for some in (present, absent))
        ),
        answered=mean([float(evidence.is_sufficient) for evidence in present[1::2]]),
        refused=mean([float(not evidence.is_sufficient) for evidence in absent[1::2]]),
        curve=tuple(risk_coverage(*scores)),
        fitted=tuple(fit(bench, present[::2], absent[::2]).round(2).tolist()),
    )


def choose_threshold(present: Sequence[float], absent: Sequence[float]) -> float:
    """The lowest threshold, in steps of a twentieth, that costs at most 2 % more than the best.

    To refuse what could be answered costs 2.5 times as much as to answer what could not: the
    reader sees what an answer rests on, but not what was withheld. (At 2, two more of the demo
    questions would be refused.)
    """
    costs = {
        step / 20: REFUSAL_COST * mean([float(score < step / 20) for score in present])
        + mean([float(score >= step / 20) for score in absent])
        for step in range(20)
    }
    least = min(costs.values())
    return min(threshold for threshold, cost in costs.items() if cost <= least * COST_TOLERANCE)


def risk_coverage(
    present: Sequence[float], absent: Sequence[float]
) -> Iterator[tuple[float, float, float]]:
    """Yield threshold, coverage and risk in steps of a twentieth."""
    for step in range(20):
        threshold = step / 20
        right = sum(score >= threshold for score in present)
        wrong = sum(score >= threshold for score in absent)
        num_answered = right + wrong
        coverage = num_answered / (len(present) + len(absent))
        yield threshold, round(coverage, 4), round(wrong / max(1, num_answered), 4)


def fit(bench: Bench, present: Sequence[Evidence], absent: Sequence[Evidence]) -> Floats:
    """Fit the confidence's weights: this is how those in PROFILES were found."""
    evidences = [evidence for evidence in (*present, *absent) if evidence.hits]
    features = np.array([features_of(bench, evidence) for evidence in evidences])
    num_present = sum(bool(evidence.hits) for evidence in present)
    is_present = np.array([float(row < num_present) for row in range(len(evidences))])
    return fit_logistic(features, is_present)


def features_of(bench: Bench, evidence: Evidence) -> tuple[float, float, float]:
    """Read off what the confidence was made of."""
    counts = query_terms(evidence.query)
    weights = weigh_query(
        counts, bench.index.document_frequencies(list(counts)), bench.index.num_chunks()
    )
    query = read_query(evidence.query, weights, bench.embedder.is_multilingual)
    return evidence_features(query, evidence.hits)
