import time

import pytest

from app.rag.replies import REFUSAL, is_refusal, refusal, small_talk


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (REFUSAL["en"], True),
        (" the documents do not answer this question [1]", True),
        (f"**{REFUSAL['zh']}**", True),
        ("The documents do not answer this question fully, but leave is 15 days [1].", False),
        ("", False),
    ],
)
def test_a_refusal_is_recognised(text, expected):
    assert is_refusal(text) is expected


@pytest.mark.parametrize(
    "text", ["Hello!", "你好！", "  THANK   you. ", "谢谢~", "Who are you?", "再见"]
)
def test_small_talk_gets_a_reply(text):
    assert small_talk(text, "en")


@pytest.mark.parametrize(
    "text", ["Hello world in Rust?", "你好吗是什么歌", "help with leave", "?", ""]
)
def test_a_question_is_no_small_talk(text):
    assert small_talk(text, "en") is None


def test_a_refusal_mentions_passages_only_where_there_are_some():
    assert refusal("en", num_sources=0) == REFUSAL["en"]
    assert refusal("zh", num_sources=2).startswith(REFUSAL["zh"])
    assert "来源" in refusal("zh", num_sources=2)


def test_a_long_message_costs_no_time():
    started = time.process_time()
    assert small_talk("a" + "." * 1_000_000 + "a", "en") is None
    assert time.process_time() - started < 1
