"""Turns growing token ids into growing text: whole characters only, cut at stop strings.

Decoding and looking for stop strings cost the same for each token, however long the answer: a few
tokens are decoded again, and stop strings are followed character by character.
"""

from collections.abc import Callable, Collection, Sequence
from functools import lru_cache

REPLACEMENT = "\ufffd"
# A character has up to four bytes, so the first three may still be waiting for the last.
MAX_OPEN_CHARACTERS = 3
MAX_CONTEXT_TOKENS = 8
MAX_WINDOW_TOKENS = 32
Decode = Callable[[Sequence[int]], str]


class IncrementalDetokenizer:
    """The text of one answer.

    `text` is everything decoded so far. `visible_text` is what may be shown: without characters
    that are not complete yet and without an end that might become a stop string; it only ever
    grows at its end.

    `prompt_token_ids` are what the answer goes on from: prompt and answer read together as if
    they had been decoded together, so that an answer that begins with a word begins with its
    space. `hidden_token_ids` give no text.
    """

    def __init__(
        self,
        decode: Decode,
        stop_strings: Sequence[str] = (),
        *,
        include_stop: bool = False,
        prompt_token_ids: Sequence[int] = (),
        hidden_token_ids: Collection[int] = (),
    ) -> None:
        self._decode = decode
        self._include_stop = include_stop
        self._hidden = hidden_token_ids
        self._stops = [_StopString(stop) for stop in stop_strings]
        # The text of a token depends on its neighbours, so the last tokens are decoded again with
        # each new one. `_num_told` characters of theirs are in the text already; the first
        # `_num_old` tokens are there for their neighbours' sake only.
        self._window = self._context(prompt_token_ids)
        self._num_told = len(decode(self._window))
        self._num_old = len(self._window)
        self.visible_text = ""
        self._held = ""  # the text's end, which may begin a stop string
        self._num_shown = 0
        self._is_final = False

    @property
    def text(self) -> str:
        """All that was decoded."""
        return self.visible_text + self._held

    def take_new(self) -> str:
        """What has become visible since this was last asked."""
        new = self.visible_text[self._num_shown :]
        self._num_shown = len(self.visible_text)
        return new

    def append(self, token_id: int, *, may_stop: bool = True) -> str | None:
        """Add a token; the stop string that it completed, if any."""
        if token_id in self._hidden:
            return None
        self._window.append(token_id)
        text = self._decode(self._window)
        num_open = min(len(text) - len(text.rstrip(REPLACEMENT)), MAX_OPEN_CHARACTERS)
        if num_open and len(self._window) - self._num_old <= MAX_OPEN_CHARACTERS:
            return None
        new_text = text[self._num_told : len(text) - num_open]
        self._num_told += len(new_text)
        if new_text and not num_open:
            self._keep(len(self._window) - self._num_old, text)
            self._num_old = len(self._window)
        elif len(self._window) > MAX_WINDOW_TOKENS:
            self._keep(MAX_CONTEXT_TOKENS, text)
            self._num_old = 0
        return self._show(new_text, may_stop=may_stop)

    def finish(self, *, may_stop: bool = True) -> str | None:
        """No more tokens: show all, incomplete characters as U+FFFD."""
        if self._is_final:
            return None
        stop = self._show(self._decode(self._window)[self._num_told :], may_stop=may_stop)
        if stop is None:
            self._end(self._held)
        return stop

    def _context(self, prompt_token_ids: Sequence[int]) -> list[int]:
        """As many of the prompt's last tokens as make some whole text, or none."""
        shown = [t for t in prompt_token_ids[-MAX_CONTEXT_TOKENS:] if t not in self._hidden]
        text = ""
        for length in range(1, len(shown) + 1):
            text = self._decode(shown[-length:])
            if text and REPLACEMENT not in text:
                return shown[-length:]
        return [] if text else shown  # a space alone, which some tokenizers drop, has no text

    def _keep(self, num_tokens: int, text: str) -> None:
        """Forget the window's first tokens; `text` is all that it decodes to."""
        num_open = len(text) - self._num_told
        self._window = self._window[-num_tokens:]
        self._num_told = max(len(self._decode(self._window)) - num_open, 0)

    def _show(self, new_text: str, *, may_stop: bool) -> str | None:
        """Add text, up to the first stop string that it completes: of several, the longest."""
        text = self._held + new_text
        start = len(self._held)
        for position, character in enumerate(new_text, start=start + 1):
            done = [stop.text for stop in self._stops if stop.follow(character)]
            if done and may_stop:
                stop = max(done, key=len)
                self._end(text[: position if self._include_stop else position - len(stop)])
                return stop
        num_held = max((stop.num_matched for stop in self._stops), default=0)
        self._held = text[len(text) - num_held :]
        self.visible_text += text[: len(text) - num_held]
        return None

    def _end(self, text: str) -> None:
        self.visible_text += text
        self._held = ""
        self._is_final = True


class _StopString:
    """Looks for a stop string in a text that comes character by character.

    Source: Knuth, Morris and Pratt, 1977.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.num_matched = 0  # how much of it the text ends with, short of all
        self._fallbacks = _fallbacks(text)

    def follow(self, character: str) -> bool:
        """Whether the stop string is complete with this character."""
        while self.num_matched and self.text[self.num_matched] != character:
            self.num_matched = self._fallbacks[self.num_matched - 1]
        self.num_matched += self.text[self.num_matched] == character
        is_complete = self.num_matched == len(self.text)
        if is_complete:
            self.num_matched = self._fallbacks[-1]
        return is_complete


@lru_cache(maxsize=256)
def _fallbacks(text: str) -> tuple[int, ...]:
    """For each beginning of the text: the length of its longest end that also begins it."""
    lengths = [0] * len(text)
    matched = 0
    for position in range(1, len(text)):
        while matched and text[position] != text[matched]:
            matched = lengths[matched - 1]
        matched += text[position] == text[matched]
        lengths[position] = matched
    return tuple(lengths)
