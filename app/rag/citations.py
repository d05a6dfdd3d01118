"""Markers in streamed text: found, verified against their chunk, and bound to its id.

Whatever the deltas, the outcome is the same. Markers in the shapes that models write (`[1]`,
`[1, 2]`, `[1-3]`, `【1】`, `[source 1]`) leave as `[n]`; a marker with an unknown number, or whose
sentence its chunk does not support (`entailment`), does not leave at all. Code is passed on as it
is.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from app.domain import Citation, Cited, Source, TextDelta
from app.metrics import citations_checked
from app.rag.entailment import Meanings, Passage, Terms
from app.rag.text import MARKER, split_sentences

MAX_MARKER_WIDTH = 40
OPENING = "[【［"
CLOSING = re.compile(r"[\]】］]")
UNCLOSED = re.compile(r"[\[【［][^\[【［\]】］\n]*")
BACKTICKS = re.compile(r"`+")
NUMBERS = re.compile(r"(\d+)(?:\s*[-–—~～]\s*(\d+))?")  # one, or the first and last of several
PLAIN = re.compile(r"[^\s`\[【［]+")
PLAIN_IN_CODE = re.compile(r"[^\s`]+")
# What may stand before a claim without being part of it: list marks, and the full stop of the
# sentence before, where its marker came first.
BEFORE_CLAIM = re.compile(
    r"(?:(?:[-*+•>#|]+|\(?\d{1,3}[.)、])[ \t]+|[\s.,;:!?。，、；：！？)）”\"]+)*"
)


class CitationStream:
    """Turns deltas of generated text into events; `text` and `citations` hold what has left.

    Without `meanings`, claims are judged by words alone.
    """

    def __init__(
        self, sources: Sequence[Source], terms: Terms, meanings: Meanings | None = None
    ) -> None:
        self._passages = {source.number: Passage(source, terms, meanings) for source in sources}
        self._terms = terms
        self._pending = ""
        self._fence = ""  # the backticks that opened the code we are in
        self._claim: tuple[int, int] | None = None
        self._last_marker_end = 0
        self.text = ""
        self.citations: list[Citation] = []

    def may_block(self, delta: str) -> bool:
        """Whether more text would close a marker, whose claim is then held against its chunk."""
        return bool(CLOSING.search(delta))

    def feed(self, delta: str) -> list[TextDelta | Cited]:
        """Take more text; return what can be shown of it."""
        self._pending += delta
        return _merged(self._take(is_last=False))

    def finish(self) -> list[TextDelta | Cited]:
        """The text has ended: return what was held back, without white space at the end."""
        return _merged(self._take(is_last=True))

    def append(self, text: str) -> list[TextDelta | Cited]:
        """Add text of our own, after the end."""
        return [self._show(text)]

    def _take(self, *, is_last: bool) -> Iterator[TextDelta | Cited]:
        """Eat the pending text token by token, up to one that more text could still change."""
        while rest := self._pending.lstrip():
            space = self._pending[: -len(rest)]
            if "\n" in space and len(self._fence) < 3:
                self._fence = ""  # code within a line does not go on in the next
            token = self._first_token(rest, is_last=is_last)
            if not token:
                return
            self._pending = rest[len(token) :]
            space = space if self.text else ""
            marker = None if self._fence else MARKER.fullmatch(token)
            if marker:
                yield from self._cite(marker, space)
            else:
                yield self._show(space + token)
            if token[0] == "`":
                self._fence = "" if token == self._fence else self._fence or token

    def _first_token(self, text: str, *, is_last: bool) -> str:
        """A word, a run of backticks, a marker or a bracket; empty while it is not certain."""
        if text[0] in OPENING and not self._fence:
            return _bracketed(text, is_last=is_last)
        plain = PLAIN_IN_CODE if self._fence else PLAIN
        match = plain.match(text) or BACKTICKS.match(text)
        assert match, "any other character begins a token"
        is_open = text[0] == "`" and match.end() == len(text) and not is_last
        return "" if is_open else match.group()

    def _show(self, text: str) -> TextDelta:
        self.text += text
        return TextDelta(text)

    def _cite(self, marker: re.Match[str], space: str) -> Iterator[TextDelta | Cited]:
        """Show the numbers that hold; without any, leave no gap."""
        claim = self._find_claim()
        for number in dict.fromkeys(self._numbers(marker.group(1))):
            passage = self._passages.get(number)
            if not passage or not claim or not passage.supports(self.text[slice(*claim)]):
                citations_checked.labels("dropped").inc()
                continue
            citations_checked.labels("kept").inc()
            citation = Citation(number, passage.chunk_id, *claim)
            if citation in self.citations:
                continue
            yield self._show(f"{space}[{number}]")
            self._claim, self._last_marker_end, space = claim, len(self.text), ""
            self.citations.append(citation)
            yield Cited(citation)
        if rest := space.rstrip(" \t"):
            yield self._show(rest)

    def _numbers(self, text: str) -> Iterator[int]:
        """The numbers that a marker names, those of ranges (`1-3`) as far as there are sources."""
        for first, last in NUMBERS.findall(text):
            yield int(first)
            yield from range(int(first) + 1, min(int(last or 0), len(self._passages)) + 1)

    def _find_claim(self) -> tuple[int, int] | None:
        """What the next marker vouches for: its sentence, from the marker before it on.

        Where nothing is said in between (`[1] and [2]`), the claim of the marker before.
        """
        line = self.text.rfind("\n") + 1
        sentences = split_sentences(self.text[line:])
        if not sentences:
            return None
        start, end = (line + offset for offset in sentences[-1])
        found = BEFORE_CLAIM.match(self.text, max(start, self._last_marker_end))
        start = found.end() if found else start
        if any(True for _ in self._terms(self.text[start:end])):
            return start, end
        return self._claim if self._claim and self._claim[0] >= line else None


def _bracketed(text: str, *, is_last: bool) -> str:
    """The marker that the text begins with, or a lone bracket; empty while it is not closed."""
    unclosed = UNCLOSED.match(text)
    assert unclosed, "called at an opening bracket"
    if unclosed.end() > MAX_MARKER_WIDTH:
        return text[0]
    if unclosed.end() == len(text):
        return text[0] if is_last else ""
    marker = MARKER.match(text)
    return marker.group() if marker else text[0]


def _merged(events: Iterable[TextDelta | Cited]) -> list[TextDelta | Cited]:
    """Join neighbouring deltas; they come word by word."""
    merged: list[TextDelta | Cited] = []
    for event in events:
        last = merged[-1] if merged else None
        if isinstance(event, TextDelta) and isinstance(last, TextDelta):
            merged[-1] = TextDelta(last.text + event.text)
        else:
            merged.append(event)
    return merged
