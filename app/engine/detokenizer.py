"""Turns growing token ids into growing text: whole characters only, cut at stop strings."""

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
Decode = Callable[[Sequence[int]], str]


class IncrementalDetokenizer:
    """The text of one answer.

    `text` is everything decoded so far. `visible_text` is what may be shown: without characters
    that are not complete yet and without an end that might become a stop string.
    """

    def __init__(
        self, decode: Decode, stop_strings: Sequence[str] = (), *, include_stop: bool = False
    ) -> None:
        self._decode = decode
        self._stop_strings = stop_strings
        self._include_stop = include_stop
        self._token_ids: list[int] = []
        # Tokens from `_prefix` on are decoded again with each new one, because the text of a
        # token depends on its neighbours; those before `_read` are in `text` already.
        self._prefix = 0
        self._read = 0
        self.text = ""
        self._is_final = False

    @property
    def visible_text(self) -> str:
        """What may be shown; it only ever grows at its end."""
        if self._is_final:
            return self.text
        return self.text[: len(self.text) - self._num_held_back()]

    def append(self, token_id: int, *, may_stop: bool = True) -> str | None:
        """Add a token; the stop string that it completed, if any."""
        self._token_ids.append(token_id)
        window = self._decode(self._token_ids[self._prefix :])
        if window.endswith(REPLACEMENT):
            return None
        return self._extend(window, may_stop=may_stop)

    def finish(self, *, may_stop: bool = True) -> str | None:
        """No more tokens: show all, incomplete characters as U+FFFD."""
        window = self._decode(self._token_ids[self._prefix :])
        stop = None if self._is_final else self._extend(window, may_stop=may_stop)
        self._is_final = True
        return stop

    def _extend(self, window: str, *, may_stop: bool) -> str | None:
        known = self._decode(self._token_ids[self._prefix : self._read])
        new_text = window[len(known) :]
        if not new_text:  # a special token: keep the neighbour that spacing depends on
            return None
        self._prefix, self._read = self._read, len(self._token_ids)
        num_before = len(self.text)
        self.text += new_text
        return self._cut_at_stop(num_before) if may_stop else None

    def _cut_at_stop(self, num_before: int) -> str | None:
        """Cut at the stop string that begins first among those that the new text completes."""
        found = [
            (start, stop)
            for stop in self._stop_strings
            if (start := self.text.find(stop, max(num_before - len(stop) + 1, 0))) >= 0
        ]
        if not found:
            return None
        start, stop = min(found)
        self.text = self.text[: start + len(stop) if self._include_stop else start]
        self._is_final = True
        return stop

    def _num_held_back(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = max(map(len, self._stop_strings), default=0)
        for length in range(min(longest - 1, len(self.text)), 0, -1):
            if any(stop.startswith(self.text[-length:]) for stop in self._stop_strings):
                return length
        return 0
