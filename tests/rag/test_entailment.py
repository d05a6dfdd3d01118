import threading
import time

import numpy as np
import pytest

from app.rag.entailment import MAX_KEPT, Meanings, Passage
from app.rag.lexical import terms
from tests.fakes import FakeEmbedder, make_sources

SOURCES = make_sources(
    "Each employee has fifteen days of paid leave a year. An insert must not exceed 1,024 MB.",
    "TLS 终止代理在端口 443 上监听。它可以访问一个或多个证书。",
    "The index build takes 3 hours on a large collection. Set Proxy.maxDimension to raise it.",
    "The company was founded by Ada Meyer in Berlin. Backups are enabled before an upgrade.",
    "系统支持自动备份，最多保留三十天。管理员可以删除旧的备份。",
)


@pytest.mark.parametrize(
    ("claim", "number", "is_supported"),
    [
        ("Employees get fifteen days of paid leave each year", 1, True),
        ("Employees get twenty free lunches in the canteen", 1, False),
        ("An insert must not exceed 2,048 MB", 1, False),
        ("An insert must not exceed 1024 MB.", 1, True),
        ("The index build takes three hours", 3, True),
        ("把 Proxy.maxDimension 调大", 3, True),
        ("把 Proxy.minDimension2 的 value 调大", 3, False),
        ("The proxy listens on port 443", 2, True),
        ("The proxy listens on port 80", 2, False),
        ("证书由代理访问", 2, True),
        ("员工每年享有年假", 2, False),
    ],
)
def test_a_claim_is_held_against_its_chunk(claim, number, is_supported):
    assert Passage(SOURCES[number - 1], terms).supports(claim) is is_supported


@pytest.mark.parametrize(
    ("claim", "number"),
    [
        ("Each employee has no days of paid leave a year", 1),
        ("The index build never takes 3 hours on a large collection", 3),
        ("The company was founded by Ada Keller in Berlin", 4),
        ("Backups are enabled after an upgrade", 4),
        ("Backups are disabled before an upgrade", 4),
        ("系统不支持自动备份", 5),
        ("系统支持自动备份，最多保留 90 天", 5),
        ("系统支持自动备份，至少保留三十天", 5),
    ],
)
def test_a_claim_that_turns_its_chunk_round_is_not_supported(claim, number):
    assert not Passage(SOURCES[number - 1], terms).supports(claim)


@pytest.mark.parametrize(
    ("claim", "number"),
    [
        ("An insert must not exceed 1,024 MB", 1),
        ("An insert is at most 1024 MB", 1),
        ("The company was founded in Berlin by Ada Meyer", 4),
        ("系统支持自动备份，最多保留三十天", 5),
    ],
)
def test_a_claim_that_says_the_same_is_supported(claim, number):
    assert Passage(SOURCES[number - 1], terms).supports(claim)


class Turned(FakeEmbedder):
    """Every text means the same, or nothing in common; counts its calls."""

    def __init__(self, *, is_same, is_multilingual=True):
        super().__init__(2)
        self.is_same = is_same
        self.is_multilingual = is_multilingual
        self.embedded = []

    def embed_documents(self, texts):
        self.embedded += texts
        angles = [0.0 if self.is_same else number * 1.6 for number in range(len(texts))]
        return np.array([[np.cos(a), np.sin(a)] for a in angles], dtype=np.float32)


UNSURE = "Every worker gets paid leave of fifteen days"
FOREIGN = "员工享有带薪假期"


def test_a_claim_in_other_words_is_decided_by_its_meaning():
    judged = [
        Passage(SOURCES[0], terms, Meanings(Turned(is_same=same))).supports(UNSURE)
        for same in (True, False)
    ]
    assert judged == [True, False]


def test_a_claim_in_another_language_is_decided_by_a_multilingual_embedder():
    judged = [
        Passage(SOURCES[0], terms, Meanings(Turned(is_same=same))).supports(FOREIGN)
        for same in (True, False)
    ]
    assert judged == [True, False]


def test_an_embedder_without_chinese_is_not_asked_about_it():
    embedder = Turned(is_same=False, is_multilingual=False)
    meanings = Meanings(embedder)
    assert Passage(SOURCES[4], terms, meanings).supports("管理员可以删除备份")
    assert Passage(SOURCES[0], terms, meanings).supports(FOREIGN)
    assert embedder.embedded == []


def test_a_quote_does_not_wait_for_the_embedder():
    embedder = Turned(is_same=False)
    passage = Passage(SOURCES[0], terms, Meanings(embedder))
    assert passage.supports("Each employee has fifteen days of paid leave a year.")
    assert embedder.embedded == []


def test_sentences_are_embedded_once():
    embedder = Turned(is_same=True)
    meanings = Meanings(embedder)
    for claim in (UNSURE, f"{UNSURE} or so", UNSURE):
        Passage(SOURCES[0], terms, meanings).supports(claim)
    assert len(embedder.embedded) == len(set(embedder.embedded)) == 4


def test_an_embedder_that_hangs_leaves_the_claim_to_its_words():
    is_released = threading.Event()

    class Stuck(FakeEmbedder):
        def embed_documents(self, texts):
            is_released.wait(5)
            return super().embed_documents(texts)

    passage = Passage(SOURCES[0], terms, Meanings(Stuck(), timeout_s=0.05))
    started = time.monotonic()
    by_words = Passage(SOURCES[0], terms).supports(UNSURE)
    assert passage.supports(UNSURE) is by_words
    assert time.monotonic() - started < 2
    is_released.set()


def test_no_more_vectors_are_kept_than_there_is_room_for():
    meanings = Meanings(FakeEmbedder(), timeout_s=60)
    for number in range(3):
        texts = [f"sentence {number} {n}" for n in range(MAX_KEPT // 2)]
        assert meanings.cosine("a claim", texts) is not None
    assert len(meanings._kept) <= MAX_KEPT
