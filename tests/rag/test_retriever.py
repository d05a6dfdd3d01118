import json
import threading
from dataclasses import replace
from importlib import resources

import pytest

from app.domain import Comparison, HitScores, Message, Question, SearchScope
from app.errors import StoreUnavailable
from app.rag.lexical import query_terms, term_weights, weigh_query
from app.rag.protocols import ChunkVectors, ScoredChunk
from app.rag.retriever import (
    PROFILES,
    HybridRetriever,
    evidence_features,
    fuse,
    fused_score,
    is_follow_up,
    phrase_share,
    rank,
    read_query,
    read_text,
    standalone_query,
    without_duplicates,
)
from tests.fakes import FakeEmbedder, FakeVectorStore, make_hit

PASSAGES = (
    "An insert operation must not exceed 1,024 MB in size. This is a limit imposed by gRPC.",
    "Milvus supports four consistency levels: strong, bounded staleness, session, eventually.",
    "The nprobe parameter determines the scope of a search within the collection.",
    "A collection may hold up to 64 partitions, and each partition its own segments.",
    "浏览器将在端口 443（HTTPS 端口）上与该 IP 地址进行通信。",
    "SNI 扩展允许一台服务器拥有多个 HTTPS 证书并提供多个域名。",
    "Let's Encrypt 是 Linux 基金会的一个项目，它免费提供证书。",
)


class EnglishEmbedder(FakeEmbedder):
    """An embedder to which all Chinese is the same."""

    is_multilingual = False

    def embed_documents(self, texts):
        return super().embed_documents([t.encode("ascii", "ignore").decode() for t in texts])


class FakeReader:
    """Implements ChunkReader over hits."""

    def __init__(self, hits):
        self.by_id = {hit.chunk.id: hit for hit in hits}
        self.terms = [term_weights(hit.chunk.span.text).keys() for hit in hits]

    def hits(self, chunk_ids):
        return {id: self.by_id[id] for id in chunk_ids if id in self.by_id}

    def document_frequencies(self, term_ids):
        counts = {id: sum(id in terms for terms in self.terms) for id in term_ids}
        return {id: n for id, n in counts.items() if n}

    def num_chunks(self):
        return len(self.by_id)

    def documents_in(self, scope):
        """Those whose chunk has the number that the filter names as its id."""
        assert isinstance(scope.filter, Comparison)
        return tuple(
            hit.chunk.document_id
            for hit in self.by_id.values()
            if hit.chunk.id == scope.filter.value
        )


def make_hits(*texts, **chunk):
    return [make_hit(text, document_id=f"doc-{n}", **chunk) for n, text in enumerate(texts)]


def make_retriever(hits, *, embedder=None, store=None, reader=None, **options):
    embedder, store = embedder or FakeEmbedder(), store or FakeVectorStore()
    chunks = [hit.chunk for hit in hits]
    dense = embedder.embed_documents([chunk.span.text for chunk in chunks])
    store.upsert(
        [
            ChunkVectors(c.id, c.document_id, c.collection_id, v, term_weights(c.span.text))
            for c, v in zip(chunks, dense, strict=True)
        ]
    )
    return HybridRetriever(embedder, store, reader or FakeReader(hits), candidates=50, **options)


def texts_of(evidence):
    return [hit.chunk.span.text for hit in evidence.hits]


def make_query(text, knows_chinese=True):
    counts = query_terms(text)
    return read_query(text, weigh_query(counts, {}, 1000), knows_chinese)


@pytest.mark.parametrize(
    "question, place",
    [
        ("Which consistency levels does Milvus support?", 1),
        ("What does nprobe determine?", 2),
        ("HTTPS 使用哪个端口？", 4),
        ("Let's Encrypt 是哪个基金会的项目？", 6),
    ],
)
def test_the_passage_comes_first_in_either_language(question, place):
    retriever = make_retriever(make_hits(*PASSAGES), embedder=EnglishEmbedder())
    evidence = retriever.retrieve(Question(question), 3)
    assert texts_of(evidence)[0] == PASSAGES[place]
    assert evidence.is_sufficient
    assert len(evidence.hits) == 3


@pytest.mark.parametrize(
    "question", ["How much is a burger with fries in Paris?", "作者的出生年份和星座？"]
)
def test_a_question_about_something_else_is_not_sufficient(question):
    evidence = make_retriever(make_hits(*PASSAGES)).retrieve(Question(question), 3)
    assert not evidence.is_sufficient


def test_an_empty_library_gives_no_hits_and_no_confidence():
    evidence = make_retriever([make_hit("x")], reader=FakeReader([])).retrieve(Question("x y"), 3)
    assert (evidence.hits, evidence.confidence, evidence.is_sufficient) == ((), 0.0, False)


def test_confidence_is_higher_where_the_passage_is_there():
    question = Question("Which consistency levels does Milvus support?")
    there = make_retriever(make_hits(*PASSAGES)).retrieve(question, 3)
    gone = make_retriever(make_hits(*PASSAGES[2:])).retrieve(question, 3)
    assert 0 <= gone.confidence < 0.5 < there.confidence <= 1


def test_each_hit_keeps_the_score_of_each_leg():
    hits = make_retriever(make_hits(*PASSAGES)).retrieve(Question("consistency levels"), 7).hits
    assert hits[0].scores.dense > 0
    assert hits[0].scores.lexical > 0
    assert any(hit.scores.lexical is None for hit in hits)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_search_stays_in_the_collections_asked_for():
    hits = [
        make_hit("levels of consistency", collection_id="a", id="1"),
        make_hit("consistency levels", collection_id="b", id="2"),
    ]
    question = Question("consistency levels", scope=SearchScope(("a",)))
    assert [h.chunk.id for h in make_retriever(hits).retrieve(question, 5).hits] == ["1"]


def test_search_stays_in_the_documents_that_match_the_filter():
    hits = make_hits("levels of consistency", "consistency levels", "levels")

    def found(value):
        scope = SearchScope(filter=Comparison("id", "eq", value))
        question = Question("consistency levels", scope=scope)
        return [hit.chunk.id for hit in make_retriever(hits).retrieve(question, 5).hits]

    assert found(hits[0].chunk.id) == [hits[0].chunk.id]
    assert found("none") == []


@pytest.mark.parametrize(
    ("scope", "found"),
    [
        (SearchScope(), ["1", "2", "3"]),
        (SearchScope(()), []),
        (SearchScope(document_ids=()), []),
        (SearchScope((), document_ids=("x",)), []),
        (SearchScope(("a", "b"), document_ids=("y",)), ["2"]),
        (SearchScope(("a",), document_ids=("y",)), []),
        (SearchScope(("a", "c")), ["1"]),
    ],
)
def test_nothing_outside_the_scope_is_ever_found(scope, found):
    hits = [
        make_hit("consistency levels", collection_id="a", document_id="x", id="1"),
        make_hit("levels of consistency of clusters", collection_id="b", document_id="y", id="2"),
        make_hit("consistency levels in a table", collection_id="b", document_id="z", id="3"),
    ]
    past = history("Which consistency levels are there?")
    question = Question("And what levels are they?", history=past, scope=scope)
    evidence = make_retriever(hits).retrieve(question, 5)
    assert sorted(hit.chunk.id for hit in evidence.hits) == found
    assert evidence.is_sufficient is bool(found)


def test_chunks_that_sql_does_not_know_are_left_out():
    hits = make_hits(*PASSAGES)
    retriever = make_retriever(hits, reader=FakeReader(hits[2:]))
    assert PASSAGES[1] not in texts_of(retriever.retrieve(Question("consistency levels"), 7))


def test_near_duplicates_give_their_place_to_others():
    double = make_hit(PASSAGES[1] + " ", document_id="copy")
    evidence = make_retriever([*make_hits(*PASSAGES), double]).retrieve(
        Question("Which consistency levels does Milvus support?"), 3
    )
    assert len({text.strip() for text in texts_of(evidence)}) == 3


def test_different_texts_are_no_duplicates():
    hits = make_hits(*PASSAGES)
    assert without_duplicates(hits) == hits


def test_both_legs_run_at_the_same_time():
    meeting = threading.Barrier(2, timeout=5)

    class MeetingStore(FakeVectorStore):
        def search_dense(self, *args):
            meeting.wait()
            return super().search_dense(*args)

        def search_sparse(self, *args):
            meeting.wait()
            return super().search_sparse(*args)

    retriever = make_retriever(make_hits(*PASSAGES), store=MeetingStore())
    assert retriever.retrieve(Question("consistency levels"), 1).hits


@pytest.mark.parametrize("leg", ["search_dense", "search_sparse"])
def test_a_store_that_does_not_answer_is_not_hidden(leg):
    class BrokenStore(FakeVectorStore):
        pass

    def fail(self, *args):
        raise StoreUnavailable("gone")

    setattr(BrokenStore, leg, fail)
    retriever = make_retriever(make_hits(*PASSAGES), store=BrokenStore())
    with pytest.raises(StoreUnavailable):
        retriever.retrieve(Question("consistency levels"), 1)


@pytest.mark.parametrize("leg", ["search_dense", "search_sparse"])
def test_a_store_that_hangs_is_not_waited_for_longer_than_the_limit(leg):
    gate = threading.Event()

    class HangingStore(FakeVectorStore):
        pass

    def hang(self, *args):
        gate.wait(60)
        return []

    setattr(HangingStore, leg, hang)
    retriever = make_retriever(make_hits(*PASSAGES), store=HangingStore(), timeout_s=0.05)
    with pytest.raises(StoreUnavailable, match=r"longer than 0\.05 s"):
        retriever.retrieve(Question("consistency levels"), 1)
    gate.set()


def test_each_step_of_a_search_is_timed():
    hits = make_hits(*PASSAGES)
    timings = make_retriever(hits).retrieve(Question("consistency levels"), 1).timings
    assert timings.rerank_s is None
    for step in (timings.embed_s, timings.dense_s, timings.lexical_s, timings.rank_s):
        assert 0 <= step <= timings.total_s
    reranked = make_retriever(hits, reranker=Backwards())
    assert reranked.retrieve(Question("consistency levels"), 1).timings.rerank_s >= 0


def test_a_leg_that_finds_nothing_leaves_the_other_its_order():
    dense = [ScoredChunk("a", 0.9), ScoredChunk("b", 0.5)]
    query = make_query("consistency levels")
    fused = fuse(dense, [], query)
    assert sorted(fused, key=lambda id: -fused_score(fused[id], query)) == ["a", "b"]
    assert fused["a"] == HitScores(dense=0.9, lexical=None)


def test_lexical_scores_are_shares_of_the_best_possible_one():
    query = make_query("consistency levels")
    best = ScoredChunk("a", query.best_lexical_score)
    assert fuse([], [best], query) == {"a": HitScores(dense=None, lexical=1.0)}


def test_a_question_without_terms_is_searched_by_meaning_alone():
    query = make_query("what is it?")
    fused = fuse([ScoredChunk("a", 0.4)], [], query)
    assert fused_score(fused["a"], query) == pytest.approx(0.2)


def test_a_model_without_chinese_hardly_counts_for_chinese_questions():
    dense, lexical = [ScoredChunk("wrong", 0.9)], [ScoredChunk("right", 8.0)]
    foreign = make_query("端口通信", knows_chinese=False)
    fused = fuse(dense, lexical, foreign)
    assert fused_score(fused["right"], foreign) > fused_score(fused["wrong"], foreign)
    assert make_query("端口通信").dense_weight > foreign.dense_weight
    assert make_query("which port", knows_chinese=False).dense_weight == 0.5


def test_words_side_by_side_lift_a_chunk():
    hits = make_hits("the levels were checked for consistency", "about consistency levels")
    ranked = rank(make_query("consistency levels"), hits)
    assert ranked[0].chunk.span.text == "about consistency levels"


def test_phrases_of_chinese_are_neighbouring_characters():
    query = make_query("端口通信")
    assert phrase_share(query, read_text("", "浏览器在端口上通信")) == pytest.approx(2 / 3)
    assert phrase_share(query, read_text("", "证书")) == 0


def test_a_small_collection_is_judged_against_the_usual_background():
    query = make_query("consistency levels")
    [hit] = rank(query, make_hits("consistency levels"))
    coverage, phrases, margin = evidence_features(query, [hit])
    assert (coverage, phrases) == (1.0, 1.0)
    assert margin == pytest.approx(hit.score - query.profile.background)


def test_the_title_and_headings_count_as_text():
    hits = [
        make_hit("It is raised in the file.", heading_path=("Limits", "Proxy.maxDimension"), id="1")
    ]
    query = make_query("Proxy.maxDimension")
    assert evidence_features(query, rank(query, hits))[0] == 1.0


@pytest.mark.parametrize(
    "text",
    [
        *(
            "And how much does it cost?",
            "Why?",
            "What about the second one?",
            "Is that one faster than Redis?",
            "How do they differ?",
        ),
        *("它的作者是谁？", "为什么？", "那第二个呢？", "这个怎么配置？", "其默认值是多少？"),
    ],
)
def test_questions_that_point_back_are_follow_ups(text):
    assert is_follow_up(text)


@pytest.mark.parametrize(
    "text",
    [
        "Which consistency levels does Milvus support?",
        "How many dimensions can a vector have by default?",
        "What does this document say about partitions?",
        "Why can a Milvus search return fewer than topk results?",
        "How many collections can one Milvus instance hold?",
        "每个容器应该运行几个 Uvicorn 进程？",
        "土耳其的首都与其他城市有什么区别？",
        "HTTPS 默认使用哪个端口通信？",
        "其他容器平台应该怎样部署 FastAPI？",
        "SNI 扩展有什么作用？",
    ],
)
def test_questions_that_stand_alone_are_not(text):
    assert not is_follow_up(text)


def history(*questions):
    return tuple(
        message
        for question in questions
        for message in (Message("user", question), Message("assistant", "So it is."))
    )


def test_a_follow_up_is_searched_with_the_question_before():
    question = Question("它收费吗？", history=history("Let's Encrypt 是谁的项目？"))
    assert standalone_query(question) == "Let's Encrypt 是谁的项目？\n它收费吗？"


def test_a_chain_of_follow_ups_reaches_back_to_what_it_is_about():
    past = history("Unrelated question about partitions in Milvus", "What is nprobe for?", "Why?")
    question = Question("And what does it cost?", history=past)
    assert standalone_query(question).split("\n") == [
        *("Unrelated question about partitions in Milvus", "What is nprobe for?", "Why?"),
        "And what does it cost?",
    ]


def test_a_question_that_stands_alone_forgets_the_conversation():
    question = Question(
        "Which consistency levels does Milvus support?", history=history("What is nprobe for?")
    )
    assert standalone_query(question) == question.text


def test_a_follow_up_finds_what_it_is_about():
    retriever = make_retriever(make_hits(*PASSAGES))
    past = history("Which consistency levels does Milvus support?")
    evidence = retriever.retrieve(Question("How many are they?", history=past), 1)
    assert texts_of(evidence) == [PASSAGES[1]]
    assert evidence.query.startswith("Which consistency levels")


class Backwards:
    """A reranker that turns the order around."""

    name = "backwards"

    def rerank(self, query, hits):
        return [
            replace(hit, scores=replace(hit.scores, rerank=score))
            for score, hit in enumerate(hits[::-1])
        ]


def test_the_reranker_has_the_last_word_on_the_order_but_not_on_confidence():
    question = Question("Which consistency levels does Milvus support?")
    hits = make_hits(*PASSAGES)
    plain = make_retriever(hits).retrieve(question, 7)
    reranked = make_retriever(hits, reranker=Backwards()).retrieve(question, 7)
    assert texts_of(reranked) == texts_of(plain)[::-1]
    assert reranked.confidence == plain.confidence
    assert [hit.scores.rerank for hit in reranked.hits] == [0, 1, 2, 3, 4, 5, 6]


def test_the_reranker_reads_more_hits_than_are_asked_for():
    question = Question("Which consistency levels does Milvus support?")
    plain = make_retriever(make_hits(*PASSAGES)).retrieve(question, 7)
    evidence = make_retriever(make_hits(*PASSAGES), reranker=Backwards()).retrieve(question, 1)
    assert texts_of(evidence) == texts_of(plain)[-1:]


def test_thresholds_are_those_that_the_calibration_chose():
    """`evaluate abstention` over the sets of the test data writes the file, with its curves."""
    kept = json.loads(resources.files("app.rag").joinpath("calibration.json").read_text())
    chosen = {one["language"]: one["chosen"] for one in kept.values()}
    assert chosen == {language: profile.threshold for language, profile in PROFILES.items()}
    assert all(len(one["curve"]) == 20 and one["auroc"] >= 0.85 for one in kept.values())
