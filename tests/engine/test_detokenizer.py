from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from app.engine.detokenizer import IncrementalDetokenizer
from tests.engine import tiny


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.train_tokenizer()


def decode_with(tokenizer):
    return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True)


def bytes_as_tokens(text):
    """One token for each byte, so that every character longer than one is split."""
    return list(text.encode())


def decode_bytes(token_ids):
    return bytes(token_ids).decode(errors="replace")


def stream(detokenizer, token_ids):
    """What is visible after each token, and the stop string that ended it."""
    seen = []
    for token_id in token_ids:
        stop = detokenizer.append(token_id)
        seen.append(detokenizer.visible_text)
        if stop is not None:
            return seen, stop
    stop = detokenizer.finish()
    return [*seen, detokenizer.visible_text], stop


def test_characters_appear_whole():
    seen, _ = stream(IncrementalDetokenizer(decode_bytes), bytes_as_tokens("a量🙂"))
    assert seen == ["a", "a", "a", "a量", "a量", "a量", "a量", "a量🙂", "a量🙂"]


def test_an_incomplete_end_becomes_a_replacement_character():
    seen, _ = stream(IncrementalDetokenizer(decode_bytes), bytes_as_tokens("a量")[:-1])
    assert seen[-1] == "a\ufffd"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 255), max_size=40))
def test_any_bytes_end_as_they_decode_together(token_ids):
    seen, _ = stream(IncrementalDetokenizer(decode_bytes), token_ids)
    assert seen[-1] == decode_bytes(token_ids)
    assert all(later.startswith(earlier) for earlier, later in pairwise(seen))


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_text_of_a_byte_level_tokenizer_comes_back(tokenizer, text):
    ids = tokenizer.encode(text).ids
    seen, _ = stream(IncrementalDetokenizer(decode_with(tokenizer)), ids)
    assert seen[-1] == tokenizer.decode(ids)


def test_spaces_between_words_of_a_sentencepiece_tokenizer_are_kept():
    """A special token between words must not swallow the space of the next one."""
    vocab = {"▁Hello": 0, "▁world": 1, "<s>": 2, "</s>": 3}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<s>"))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.decoder = decoders.Metaspace()
    seen, _ = stream(IncrementalDetokenizer(decode_with(tokenizer)), [0, 3, 1, 1])
    assert seen[-1] == "Hello world world"


def test_a_stop_string_across_tokens_is_never_shown():
    detokenizer = IncrementalDetokenizer(decode_bytes, ["STOP"])
    seen, stop = stream(detokenizer, bytes_as_tokens("go STOP on"))
    assert stop == "STOP"
    assert seen[-1] == "go "
    assert all("S" not in text for text in seen)


def test_what_only_began_like_a_stop_string_is_shown_late():
    seen, stop = stream(IncrementalDetokenizer(decode_bytes, ["STOP"]), bytes_as_tokens("STO!"))
    assert stop is None
    assert seen == ["", "", "", "STO!", "STO!"]


def test_held_back_text_is_shown_at_the_end():
    seen, _ = stream(IncrementalDetokenizer(decode_bytes, ["STOP"]), bytes_as_tokens("STO"))
    assert seen[-1] == "STO"


def test_the_stop_string_that_begins_first_wins():
    detokenizer = IncrementalDetokenizer(lambda ids: "".join("abcde"[i] for i in ids), ["d", "bcd"])
    detokenizer.append(0)
    detokenizer.append(1)
    detokenizer.append(2)
    assert detokenizer.append(3) == "bcd"
    assert detokenizer.visible_text == "a"


def test_the_stop_string_can_be_kept():
    detokenizer = IncrementalDetokenizer(decode_bytes, ["ST"], include_stop=True)
    seen, _ = stream(detokenizer, bytes_as_tokens("a ST b"))
    assert seen[-1] == "a ST"


def test_stop_strings_do_not_count_before_min_tokens():
    detokenizer = IncrementalDetokenizer(decode_bytes, ["a"])
    assert detokenizer.append(ord("a"), may_stop=False) is None
    assert detokenizer.append(ord("b")) is None
    assert detokenizer.append(ord("a")) == "a"
    assert detokenizer.visible_text == "ab"
