"""From a question to evidence: two searches, one ranking, and how far it can be trusted.

The dense and the lexical leg run side by side. Their scores are added on scales that mean the
same for every question (a cosine, and the share of the best lexical score that is possible), so
that a leg which finds nothing fitting has little to say; ranks alone cannot express that. The
best chunks are then read, and those that say the question's words side by side move up. Where a
reranker is there, it has the last word on their order, but not on how far they can be trusted.

Every parameter is in `PROFILES` or in capitals below. They were chosen on every second question
of the sets that `app.scripts.evaluate` reads, and checked on the others.
"""

import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

from app import tracing
from app.domain import (
    Evidence,
    HitScores,
    Language,
    Question,
    SearchHit,
    SearchScope,
    SearchTimings,
)
from app.errors import StoreUnavailable
from app.metrics import retrieval_latency
from app.rag.lexical import query_terms, term_id, terms, weigh_query
from app.rag.protocols import ChunkReader, Embedder, Reranker, ScoredChunk, VectorStore
from app.rag.text import CJK, language_of

# Chunks that are read to order them again; what lies deeper moves up too rarely to pay.
NUM_READ = 20
# What a chunk gains that holds every two neighbouring words of the question side by side.
PHRASE_WEIGHT = 0.3
# The fused scores of these ranks are the background that the best chunk stands out of: deep
# enough that a few good chunks do not count as background.
BACKGROUND_RANKS = slice(4, 10)
# Chunks that share this much of their terms say the same.
DUPLICATE_OVERLAP = 0.9
# A question with fewer terms of its own is read together with the one before.
MIN_OWN_TERMS = 2
MAX_QUESTIONS_BACK = 3
MAX_SEARCHES_AT_A_TIME = 16
SEARCH_TIMEOUT_S = 20.0

CHINESE_RUN = re.compile(f"[{CJK}]+")
REFERENCE = re.compile(
    r"\b(?:it|its|itself|they|them|their|theirs|he|him|his|she|her|hers|these|those"
    r"|this(?! (?:document|manual|file|text|page))|(?:that|this|which|the \w+) ones?"
    r"|the (?:former|latter|same|other|above)|what about|how about)\b"
    r"|^(?:and|but)\b"
    r"|(?<!其)它|(?<![其吉])[他她]|这(?!份|本|篇)|(?<!刹)那|(?<![极尤耳与])其(?![他它中实次余])"
    r"|(?<!应)该(?!不|怎|如|用)|上述|前者|后者|呢[？?]?$",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Profile:
    """What is tuned for a language.

    `dense_weight` is the dense leg's share of the fused score. The confidence is a logistic
    function of coverage, phrase share and margin; `background` stands in for ranks that a small
    collection does not have. From `threshold` on, the evidence can carry an answer.
    """

    dense_weight: float
    background: float
    coverage_weight: float
    phrase_weight: float
    margin_weight: float
    bias: float
    threshold: float


PROFILES: Mapping[Language, Profile] = {
    "en": Profile(0.5, 0.41, 2.4, 0.7, 4.4, -3.2, 0.3),
    "zh": Profile(0.5, 0.24, 2.9, 2.1, 4.9, -4.9, 0.3),
}
# Of an embedding model that knows no Chinese only its Latin words and numbers can be of use.
FOREIGN_DENSE_WEIGHT = 0.1


class HybridRetriever:
    """Implements Retriever on an embedder, a vector store and the chunks in SQL."""

    def __init__(
        self,
        embedder: Embedder,
        store: VectorStore,
        chunk_reader: ChunkReader,
        candidates: int,
        reranker: Reranker | None = None,
        timeout_s: float = SEARCH_TIMEOUT_S,
    ) -> None:
        self._embedder = embedder
        self._store = store
        self._chunk_reader = chunk_reader
        self._candidates = candidates
        self._reranker = reranker
        self._timeout_s = timeout_s
        self._executor = ThreadPoolExecutor(2 * MAX_SEARCHES_AT_A_TIME, "retrieval")

    def retrieve(self, question: Question, limit: int) -> Evidence:
        """Find the best chunks, at most `limit`, and judge them. Raises StoreUnavailable."""
        watch = Stopwatch()
        with watch.time("total"):
            query = self._read(standalone_query(question))
            dense, lexical = self._search(query, self._resolve(question.scope), watch)
            with watch.time("rank"):
                ranked = self._rank(query, fuse(dense, lexical, query), limit)
            # Judged by the fused scores, for which the profiles were fitted.
            confidence = confidence_of(query, ranked)
            hits = self._rerank(query, ranked, watch)[:limit]
        return Evidence(
            query=query.text,
            hits=tuple(hits),
            confidence=confidence,
            is_sufficient=confidence >= query.profile.threshold,
            timings=watch.timings(),
        )

    def _resolve(self, scope: SearchScope) -> SearchScope:
        """Put the documents that match in place of the filter."""
        if scope.filter is None:
            return scope
        return replace(scope, filter=None, document_ids=self._chunk_reader.documents_in(scope))

    def _read(self, text: str) -> "Query":
        counts = query_terms(text)
        weights = weigh_query(
            counts,
            self._chunk_reader.document_frequencies(list(counts)),
            self._chunk_reader.num_chunks(),
        )
        return read_query(text, weights, self._embedder.is_multilingual)

    def _search(
        self, query: "Query", scope: SearchScope, watch: "Stopwatch"
    ) -> tuple[list[ScoredChunk], list[ScoredChunk]]:
        """Run both legs; a store that hangs keeps its threads, but not the caller."""
        legs = [
            self._executor.submit(copy_context().run, self._search_dense, query, scope, watch),
            self._executor.submit(copy_context().run, self._search_lexical, query, scope, watch),
        ]
        deadline = time.monotonic() + self._timeout_s
        try:
            dense, lexical = (leg.result(max(0.0, deadline - time.monotonic())) for leg in legs)
        except TimeoutError:
            raise StoreUnavailable(
                f"the search took longer than {self._timeout_s:g} s: the vector store is busy or "
                "does not answer, see the status page"
            ) from None
        finally:
            for leg in legs:
                leg.cancel()
        return dense, lexical

    def _search_dense(
        self, query: "Query", scope: SearchScope, watch: "Stopwatch"
    ) -> list[ScoredChunk]:
        with watch.time("embed"):
            [vector] = self._embedder.embed_queries([query.text])
        with watch.time("dense"):
            return self._store.search_dense(vector, self._candidates, scope)

    def _search_lexical(
        self, query: "Query", scope: SearchScope, watch: "Stopwatch"
    ) -> list[ScoredChunk]:
        with watch.time("lexical"):
            return self._store.search_sparse(query.weights, self._candidates, scope)

    def _rank(self, query: "Query", fused: Mapping[str, HitScores], limit: int) -> list[SearchHit]:
        scores = {id: fused_score(hit, query) for id, hit in fused.items()}
        best = sorted(scores, key=lambda id: -scores[id])[: max(limit, NUM_READ)]
        found = self._chunk_reader.hits(best)
        hits = [
            replace(found[id], score=scores[id], scores=fused[id]) for id in best if id in found
        ]
        return without_duplicates(rank(query, hits))

    def _rerank(
        self, query: "Query", ranked: list[SearchHit], watch: "Stopwatch"
    ) -> list[SearchHit]:
        if self._reranker is None:
            return ranked
        with watch.time("rerank"):
            return self._reranker.rerank(query.text, ranked)


class Stopwatch:
    """Times the steps of one search, for its evidence, the metrics and the trace."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def time(self, step: str) -> Iterator[None]:
        """Time a step, whether it ends well or not."""
        started = time.perf_counter()
        try:
            with tracing.span("retrieve" if step == "total" else step):
                yield
        finally:
            self._seconds[step] = time.perf_counter() - started
            retrieval_latency.labels(step).observe(self._seconds[step])

    def timings(self) -> SearchTimings:
        """What was timed so far."""
        return SearchTimings(**{f"{step}_s": value for step, value in self._seconds.items()})


@dataclass(frozen=True, slots=True)
class Query:
    """A question as it is searched: `weights` are those of its terms by rarity.

    `pairs` are neighbouring terms, or neighbouring characters where it is Chinese.
    """

    text: str
    weights: Mapping[int, float]
    pairs: frozenset[tuple[str, str]]
    profile: Profile
    dense_weight: float

    @property
    def best_lexical_score(self) -> float:
        """The score of a chunk that says every term about once."""
        return sum(self.weights.values())


def read_query(text: str, weights: Mapping[int, float], knows_chinese: bool) -> Query:
    """Take a question apart; the weights are those of its terms."""
    language = language_of(text)
    profile = PROFILES[language]
    is_foreign = language == "zh" and not knows_chinese
    return Query(
        text=text,
        weights=weights,
        pairs=frozenset(pairs_of(text)),
        profile=profile,
        dense_weight=FOREIGN_DENSE_WEIGHT if is_foreign else profile.dense_weight,
    )


def fuse(
    dense: Sequence[ScoredChunk], lexical: Sequence[ScoredChunk], query: Query
) -> dict[str, HitScores]:
    """Bring both legs' results together, each score on a scale of about 0 to 1."""
    dense_scores = {hit.chunk_id: max(0.0, hit.score) for hit in dense}
    best = query.best_lexical_score
    lexical_scores = {hit.chunk_id: hit.score / best for hit in lexical} if best else {}
    return {
        id: HitScores(dense=dense_scores.get(id), lexical=lexical_scores.get(id))
        for id in [*dense_scores, *(id for id in lexical_scores if id not in dense_scores)]
    }


def fused_score(scores: HitScores, query: Query) -> float:
    """Add the legs' scores by weight; a leg that did not find the chunk adds nothing."""
    dense, lexical = scores.dense or 0.0, scores.lexical or 0.0
    return query.dense_weight * dense + (1 - query.dense_weight) * lexical


def rank(query: Query, hits: Sequence[SearchHit]) -> list[SearchHit]:
    """Order hits by fused score and shared phrases, best first."""
    scored = [
        replace(hit, score=hit.score + PHRASE_WEIGHT * phrase_share(query, read(hit)))
        for hit in hits
    ]
    return sorted(scored, key=lambda hit: -hit.score)


def confidence_of(query: Query, ranked: Sequence[SearchHit]) -> float:
    """Judge from the best hit, 0 to 1: does it cover the question, and does it stand out?"""
    if not ranked:
        return 0.0
    profile = query.profile
    coverage, phrases, margin = evidence_features(query, ranked)
    return 1 / (
        1
        + math.exp(
            -profile.bias
            - profile.coverage_weight * coverage
            - profile.phrase_weight * phrases
            - profile.margin_weight * margin
        )
    )


def evidence_features(query: Query, ranked: Sequence[SearchHit]) -> tuple[float, float, float]:
    """Return coverage, phrase share and margin of the best hit."""
    best = read(ranked[0])
    found = sum(weight for term, weight in query.weights.items() if term in best.term_ids)
    coverage = found / query.best_lexical_score if query.weights else 0.0
    num_background = BACKGROUND_RANKS.stop - BACKGROUND_RANKS.start
    background = [hit.score for hit in ranked[BACKGROUND_RANKS]]
    background += [query.profile.background] * (num_background - len(background))
    margin = ranked[0].score - sum(background) / num_background
    return coverage, phrase_share(query, best), margin


def without_duplicates(ranked: Sequence[SearchHit]) -> list[SearchHit]:
    """Leave out hits that say the same as a better one."""
    kept: list[SearchHit] = []
    for hit in ranked:
        if not any(overlap(read(hit), read(other)) >= DUPLICATE_OVERLAP for other in kept):
            kept.append(hit)
    return kept


@dataclass(frozen=True, slots=True)
class Reading:
    """What a chunk says, under its title and headings: terms, and which stand side by side."""

    text: str
    term_ids: frozenset[int]
    own_term_ids: frozenset[int]
    pairs: frozenset[tuple[str, str]]


def read(hit: SearchHit) -> Reading:
    """Read a chunk with its title and headings, as it was indexed."""
    span = hit.chunk.span
    return read_text("\n".join([hit.document_title, *span.heading_path]), span.text)


@lru_cache(maxsize=2048)
def read_text(heading: str, text: str) -> Reading:
    """Take a text apart (1 to 3 ms for a chunk, hence kept for the next question)."""
    above, own = list(terms(heading)), list(terms(text))
    own_term_ids = frozenset(map(term_id, own))
    return Reading(
        text=f"{heading}\n{text}",
        term_ids=own_term_ids | frozenset(map(term_id, above)),
        own_term_ids=own_term_ids,
        pairs=frozenset([*pairwise(above), *pairwise(own)]),
    )


def pairs_of(text: str) -> list[tuple[str, str]]:
    """Return neighbouring terms of a question; of Chinese, neighbouring characters."""
    words = [pair for pair in pairwise(terms(text)) if not CHINESE_RUN.search("".join(pair))]
    return words + [pair for run in CHINESE_RUN.findall(text) for pair in pairwise(run)]


def phrase_share(query: Query, reading: Reading) -> float:
    """Tell which share of the question's pairs stands side by side in the text, 0 to 1."""
    if not query.pairs:
        return 0.0
    found = sum(
        "".join(pair) in reading.text if CHINESE_RUN.match(pair[0]) else pair in reading.pairs
        for pair in query.pairs
    )
    return found / len(query.pairs)


def overlap(a: Reading, b: Reading) -> float:
    """Jaccard index of the chunks' own terms."""
    return len(a.own_term_ids & b.own_term_ids) / max(1, len(a.own_term_ids | b.own_term_ids))


def standalone_query(question: Question) -> str:
    """Put the user's questions before in front of one that cannot be understood without them."""
    earlier = [message.content for message in question.history if message.role == "user"]
    parts = [question.text.strip()]
    while earlier and len(parts) <= MAX_QUESTIONS_BACK and is_follow_up(parts[0]):
        parts.insert(0, earlier.pop().strip())
    return "\n".join(parts)


def is_follow_up(text: str) -> bool:
    """True where a question points back ("it", "它") or says too little by itself."""
    return bool(REFERENCE.search(text)) or len(query_terms(text)) < MIN_OWN_TERMS
