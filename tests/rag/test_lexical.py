import subprocess
import sys
import time
from collections import Counter

import pytest

from app.rag.lexical import (
    inverse_document_frequency,
    query_terms,
    term_id,
    term_weights,
    terms,
    weigh_query,
)


def test_english_words_are_stemmed_and_function_words_dropped():
    assert list(terms("What are the DIMENSIONS of the vectors?")) == ["dimens", "vector"]


def test_possessives_and_contractions_lose_their_ending():
    assert list(terms("The Normans' king's crown, don't")) == ["norman", "king", "crown"]


def test_an_identifier_is_kept_whole_and_in_its_parts():
    assert list(terms("set Proxy.maxDimension")) == [
        *("set", "proxy.maxdimension", "proxi", "max", "dimens")
    ]
    assert list(terms("allow_origins")) == ["allow_origins", "allow", "origin"]
    assert list(terms("HTTPServer")) == ["httpserver", "http", "server"]


def test_a_number_is_one_term_with_or_without_thousands_separators():
    assert list(terms("65,536 or 65536, version 2.4")) == ["65536", "65536", "version", "2.4"]


def test_chinese_is_cut_into_words_and_the_words_inside_long_words():
    found = list(terms("南京市长江大桥的长度是多少？"))
    assert {"长江大桥", "大桥", "长度"} <= set(found)
    assert not {"的", "是", "多少"} & set(found)


def test_mixed_text_keeps_both_languages():
    assert {"fastapi", "工作", "进程"} <= set(terms("怎样让 FastAPI 启动多个工作进程"))


def test_full_width_and_accented_letters_fold():
    assert list(terms("ＨＴＴＰ２ naïve")) == list(terms("HTTP2 naive"))


def test_weights_saturate_with_frequency_and_fall_with_length():
    once, often = term_weights("milvus"), term_weights("milvus " * 50)
    long = term_weights("milvus " + " ".join(f"word{n}" for n in range(300)))
    id = term_id("milvus")
    assert once[id] < often[id] < 2.2
    assert long[id] < once[id]


def test_a_chunks_weights_do_not_depend_on_anything_but_its_text():
    assert term_weights("hybrid search 混合检索") == term_weights("hybrid search 混合检索")


def test_term_ids_are_the_same_on_every_machine_and_fit_a_signed_integer():
    assert term_id("milvus") == 725768567
    assert all(0 <= term_id(word) < 2**31 for word in ("milvus", "检索", "proxy.maxdimension"))


def test_query_terms_match_document_terms_across_inflection():
    assert query_terms("searching").keys() <= term_weights("they searched").keys()


def test_rare_terms_weigh_more_and_unknown_ones_most():
    query = query_terms("common rare unknown")
    weights = weigh_query(query, {term_id("common"): 900, term_id("rare"): 2}, 1000)
    common, rare, unknown = (weights[term_id(w)] for w in ("common", "rare", "unknown"))
    assert 0 < common < rare < unknown


def test_a_term_in_every_chunk_still_weighs_something():
    assert inverse_document_frequency(1000, 1000) > 0
    assert inverse_document_frequency(1001, 1000) > 0


@pytest.mark.parametrize("text", ["", " \n", "…！？", "\ud800", "🕙", "\x00"])
def test_texts_without_words_have_no_terms(text):
    assert term_weights(text) == {}


def test_the_dictionary_is_loaded_without_noise_and_without_a_cache_file(tmp_path):
    code = "from app.rag.lexical import term_weights; assert term_weights('中文分词')"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={"TMPDIR": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_a_long_run_of_chinese_is_cut_in_linear_time():
    started = time.process_time()
    counts = Counter(terms("人工智能" * 10_000))
    assert counts["人工智能"] > 9_800
    assert time.process_time() - started < 10
