"""The lexical leg: text to weighted terms, in English, Chinese and code, without a corpus.

A document's weights are the saturated term frequencies of BM25 with a fixed average length, so
that a chunk's vector never changes when others come or go. How rare a term is goes into the
query's vector (`weigh_query`). Terms are known by a stable hash.
"""

import logging
import math
import re
import unicodedata
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache

import snowballstemmer

from app.rag.protocols import SparseVector

with warnings.catch_warnings():
    # jieba 0.42 has escape sequences that Python 3.11 warns of when it compiles them.
    warnings.simplefilter("ignore")
    import jieba

# BM25's own: the saturation and length parameters everybody starts from. The average length is
# that of a chunk of 200 tokens after stop words are gone.
SATURATION = 1.2
LENGTH_WEIGHT = 0.75
AVERAGE_NUM_TERMS = 80

# Question words and function words; Chinese ones after jieba has cut.
ENGLISH_FUNCTION_WORDS = """
    a about above after again against all also am an and any are as at be because been before
    being below between both but by can cannot could did do does doing don down during each few
    for from further had has have having he her here hers herself him himself his how i if in into
    is it its itself just me more most my myself no nor not of off on once only or other our ours
    ourselves out over own s same shall she should so some such t than that the their theirs them
    themselves then there these they this those through to too under until up very was we were
    what when where which while who whom whose why will with would you your yours yourself
    yourselves
"""
CHINESE_FUNCTION_WORDS = """
    的 了 着 过 得 地 之 是 在 有 和 与 及 或 而 且 并 但 也 都 就 还 又 很 更 最 不 没 没有
    这 那 其 此 该 些 个 们 我 你 您 他 她 它 我们 你们 他们 她们 它们 这个 那个 这些 那些
    哪 哪个 哪些 哪里 哪种 哪位 什么 怎么 怎样 怎么样 如何 为何 为什么 何时 何地 是否 有没有
    多少 多大 多久 几 几个 谁 吗 呢 吧 啊 呀 嘛 么 请问 由 被 把 将 对 对于 从 向 往 到 于 以
    以及 为 为了 因 因为 所以 如果 的话 可以 能 能够 会 要 应 应该 应当 让 使 给 跟 同 等 等等
    来 去 上 下 中 里 时 时候 后 前 当 一 一个 一些 一种 每 每个 某 某个
"""
STOP_WORDS = frozenset(ENGLISH_FUNCTION_WORDS.split()) | frozenset(CHINESE_FUNCTION_WORDS.split())

MAX_RUN_CHARACTERS = 500  # Chinese prose has a mark every few dozen

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# A number with its commas and points, a run of CJK, or a word with what joins code together:
# Proxy.maxDimension, allow_origins, multi-vector, x86-64.
TOKEN = re.compile(
    rf"(?P<number>\d+(?:[.,]\d+)*(?![^\W{CJK}]))"
    rf"|(?P<cjk>[{CJK}]+)"
    rf"|(?P<word>[^\W{CJK}]+(?:[.'’:/-][^\W{CJK}]+)*)"
)
CAMEL_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
WORD_PART = re.compile(r"[^\W_]+")
CONTRACTION = re.compile(r"['’](?:s|t|d|m|re|ve|ll)$", re.IGNORECASE)


def term_weights(text: str) -> dict[int, float]:
    """Weigh the terms of a document by saturated frequency; one term weighs less than 2.2."""
    counts = Counter(terms(text))
    length = counts.total() / AVERAGE_NUM_TERMS
    damping = SATURATION * (1 - LENGTH_WEIGHT + LENGTH_WEIGHT * length)
    weights: dict[int, float] = {}
    for term, count in counts.items():
        weights[term_id(term)] = count * (SATURATION + 1) / (count + damping)
    return weights


def query_terms(text: str) -> dict[int, float]:
    """Weigh the terms of a query by how often it says them."""
    return {term_id(term): float(count) for term, count in Counter(terms(text)).items()}


def weigh_query(
    query: SparseVector, document_frequencies: Mapping[int, int], num_chunks: int
) -> dict[int, float]:
    """Put the rarity of each term on the query: its inverse document frequency, above 0."""
    return {
        term: weight * inverse_document_frequency(document_frequencies.get(term, 0), num_chunks)
        for term, weight in query.items()
    }


def inverse_document_frequency(document_frequency: int, num_chunks: int) -> float:
    """BM25's inverse document frequency with one added, which keeps it above 0.

    Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009.
    """
    num_without = max(0, num_chunks - document_frequency)
    return math.log(1 + (num_without + 0.5) / (document_frequency + 0.5))


def term_id(term: str) -> int:
    """Hash a term to 31 bits, the same on every machine: it fits a signed SQL integer."""
    return zlib.crc32(term.encode()) & 0x7FFF_FFFF


def terms(text: str) -> Iterator[str]:
    """Yield the terms of a text in order, without stop words."""
    for match in TOKEN.finditer(unicodedata.normalize("NFKC", text)):
        token = match.group()
        if match.lastgroup == "number":
            yield token.replace(",", "")
        elif match.lastgroup == "cjk":
            yield from chinese_words(token)
        else:
            yield from word_terms(token)


def word_terms(token: str) -> Iterator[str]:
    """Yield a word's stem; a compound or identifier comes whole and in its parts."""
    parts = [
        hump
        for part in WORD_PART.findall(CONTRACTION.sub("", token))
        for hump in CAMEL_HUMP.split(part)
    ]
    if len(parts) > 1:
        yield token.lower()
    for part in parts:
        word = part.lower()
        if word not in STOP_WORDS:
            yield stem(word)


@lru_cache(maxsize=100_000)
def stem(word: str) -> str:
    """Fold accents and cut an English word to its Snowball stem."""
    folded = unicodedata.normalize("NFKD", word)
    plain = "".join(c for c in folded if not unicodedata.combining(c))
    stemmed: str = snowballstemmer.stemmer("english").stemWord(plain)
    return stemmed


def chinese_words(run: str) -> Iterator[str]:
    """Cut a run of Chinese into words; a long word comes with the words inside it.

    Very long runs are cut blindly first: jieba's time grows with the square of a run.
    """
    for start in range(0, len(run), MAX_RUN_CHARACTERS):
        for word in segmenter().cut_for_search(run[start : start + MAX_RUN_CHARACTERS]):
            if word not in STOP_WORDS:
                yield word


@lru_cache(maxsize=1)
def segmenter() -> jieba.Tokenizer:
    """Load jieba's dictionary (one second, once).

    jieba's own loading is not used: it logs, and it unmarshals a cache file out of the shared
    temporary folder, where another user of the machine could have put it.
    """
    jieba.setLogLevel(logging.WARNING)
    tokenizer = jieba.Tokenizer()
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer
