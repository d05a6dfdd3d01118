from itertools import pairwise

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

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


def test_the_stop_string_that_ends_first_wins_and_of_several_the_longest():
    detokenizer = IncrementalDetokenizer(decode_bytes, ["d", "bcd", "abcde"])
    seen, stop = stream(detokenizer, bytes_as_tokens("abcdef"))
    assert (seen[-1], stop) == ("a", "bcd")


@settings(max_examples=300, deadline=None)
@given(
    st.text(alphabet="ab🙂", max_size=30),
    st.lists(st.text(alphabet="ab🙂", min_size=1, max_size=5), min_size=1, max_size=3),
    st.data(),
)
def test_stop_strings_cut_alike_however_the_text_is_split(text, stops, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=9)))
    pieces = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
    seen, stop = stream(
        IncrementalDetokenizer(lambda ids: "".join(pieces[i] for i in ids), stops),
        range(len(pieces)),
    )
    found = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    expected = min(found, default=None)
    assert stop == (expected and expected[2])
    assert seen[-1] == (text[: expected[0] + expected[1]] if expected else text)
    assert all(later.startswith(earlier) for earlier, later in pairwise(seen))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=5), max_size=15))
def test_tokens_of_several_bytes_end_as_they_decode_together(tokens):
    seen, _ = stream(
        IncrementalDetokenizer(lambda ids: decode_bytes(b"".join(tokens[i] for i in ids))),
        range(len(tokens)),
    )
    assert seen[-1] == decode_bytes(b"".join(tokens))
    assert all(later.startswith(earlier) for earlier, later in pairwise(seen))


def sentencepiece_like():
    """As Llama 2's: ▁ for a space, one token for each byte, the first space dropped."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [*"▁abcdefghijklmnopqrstuvwxyz.", "▁a", "▁th", "▁the", "er"]
    merges = [("▁", "a"), ("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("e", "r")]
    vocab = {piece: number for number, piece in enumerate([*pieces, "▁t"])}
    tokenizer = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


SENTENCEPIECE = sentencepiece_like()
TEXTS = st.text(alphabet="a there.量é🙂\n", max_size=25)


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.integers(0, 60))
@example(" ", 1)
def test_an_answer_goes_on_where_the_prompt_ends(text, num_prompt):
    """Sentencepiece tokenizers drop a text's first space, but not an answer's."""
    ids = SENTENCEPIECE.encode(text).ids
    whole = SENTENCEPIECE.decode(ids)
    prompt = SENTENCEPIECE.decode(ids[:num_prompt])
    assume("\ufffd" not in prompt)
    detokenizer = IncrementalDetokenizer(
        decode_with(SENTENCEPIECE), prompt_token_ids=ids[:num_prompt], hidden_token_ids={0, 1, 2}
    )
    seen, _ = stream(detokenizer, ids[num_prompt:])
    assert prompt + seen[-1] == whole
    assert all("\ufffd" not in text for text in seen)


def test_special_tokens_between_the_bytes_of_a_character_are_no_hindrance():
    detokenizer = IncrementalDetokenizer(decode_bytes, hidden_token_ids={999})
    seen, _ = stream(detokenizer, [0xE9, 999, 0x87, 999, 999, 0x8F])
    assert seen[-1] == "量"


def test_bytes_that_never_become_characters_do_not_hold_the_rest_back():
    seen, _ = stream(IncrementalDetokenizer(decode_bytes), [0x80] * 50)
    assert len(seen[40]) > 30


@pytest.mark.parametrize("tokens", [[0x80], [ord("a")], [999], bytes_as_tokens("ab")])
def test_the_work_for_a_token_does_not_grow_with_the_answer(tokens):
    lengths = []

    def decode(token_ids):
        lengths.append(len(token_ids))
        return decode_bytes(token_ids)

    stops = ["ab" * 50 + "!", "a" * 100 + "!"]
    detokenizer = IncrementalDetokenizer(decode, stops, hidden_token_ids={999})
    for token_id in tokens * 300:
        detokenizer.append(token_id)
    assert max(lengths, default=0) <= 40
    assert len(lengths) <= 3 * 300 * len(tokens) + 5


def test_what_is_new_is_told_once():
    detokenizer = IncrementalDetokenizer(decode_bytes, ["STOP"])
    told = []
    for token_id in bytes_as_tokens("go 量 ST"):
        detokenizer.append(token_id)
        told.append(detokenizer.take_new())
    detokenizer.finish()
    assert told[4:6] == ["", "量"]
    assert "".join([*told, detokenizer.take_new()]) == "go 量 ST"


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
