"""Sentences and language of English and Chinese text: pure functions, without a model.

The extractive answerer quotes these sentences and the citation check reads them, so both agree on
where a sentence starts. It imports nothing of ours but the domain.
"""

import re

from app.domain import Language

CJK = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
CJK_CHARACTER = re.compile(f"[{CJK}]")
LATIN_WORD = re.compile(rf"[^\W\d_{CJK}][^\W{CJK}]*")

CLOSERS = "\"'”’)]）」』】》〉*_`"
OPENERS = "\"'“‘(（「『【《〈[*_`"
# A possible end of a sentence, with the quotes, brackets and notes ("[12]") right behind it.
FULL_STOP = re.compile(rf"(?:[。！？!?…]+|\.+)(?:\[\d{{1,3}}\]|[{re.escape(CLOSERS)}])*")
LIST_MARK = re.compile(
    r"[ \t]*(?:[-*+•◦▪‣·–—]|\(?\d{1,3}[.)、）]|[a-zA-Z][.)]|#{1,6})[ \t]+|[ \t]*\|"
)
# What is taken for the number of a source, in the shapes that models write: [1], [1, 2], [1-3],
# 【来源 1】, [^1], [1†…]. Group 1 holds the numbers.
_LABEL = r"(?:\^|(?:sources?|documents?|docs?|passages?|来源|文档|资料|引用)\s*[:：#]?\s*)?"
_NEXT = r"\s*(?:[,，、;；&]|and\b|和|与|及|[-–—~～])\s*"
MARKER = re.compile(
    rf"[\[【［]\s*{_LABEL}(\d{{1,3}}(?:{_NEXT}{_LABEL}\d{{1,3}})*)(?:†[^\]】］]*)?\s*[\]】］]",
    re.IGNORECASE,
)
CODE_FENCE = re.compile(r"[ \t]*(?:```|~~~)")
LAST_WORD = re.compile(rf"[^\s{re.escape(OPENERS)}]+$")
INITIALS = re.compile(r"(?:[A-Za-z]\.)*[A-Z]\.")
NUMBERING = re.compile(r"\(?[0-9]{1,3}\.")
ABBREVIATION = re.compile(
    "mr|mrs|ms|dr|prof|rev|hon|st|sr|jr|sen|rep|gov|gen|col|lt|sgt|capt|pres|supt|e.g|i.e|eg|ie|vs|"
    "cf|al|approx|ca|no|nos|fig|figs|eq|eqs|sec|ch|vol|vols|ed|eds|pp|p|art|para|inc|ltd|co|corp|"
    "dept|univ|est|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|mon|tue|wed|thu|fri|sat|sun|"
    "a.m|p.m|u.s|u.k|u.n|ph.d|b.c|a.d|resp|incl|excl|max|min".replace(".", r"\."),
    re.IGNORECASE,
)
# A line shorter than this, without a full stop, was ended on purpose: no soft wrap.
MIN_WRAPPED_WIDTH = 40
CELL_BORDER = " | "  # as the parsers write table rows
MAX_WHOLE_ITEM = 240


def language_of(text: str) -> Language:
    """Tell the language by what carries the text: Chinese characters against Latin words."""
    num_cjk = len(CJK_CHARACTER.findall(text))
    num_words = len(LATIN_WORD.findall(text))
    return "zh" if num_cjk > 0.4 * (num_cjk + num_words) else "en"


def split_sentences(text: str) -> list[tuple[int, int]]:
    """Cut a text into sentences, as half-open offsets without the white space around them.

    List items, table rows, headings and code blocks stay whole; abbreviations, initials and
    numbers do not end a sentence; lines that were only wrapped are joined.
    """
    spans: list[tuple[int, int]] = []
    for start, end, is_prose in _units(text):
        if is_prose:
            spans.extend(_prose_sentences(text, start, end))
        else:
            spans.append((start, end))
    stripped = (_strip(text, start, end) for start, end in spans)
    return [(start, end) for start, end in stripped if start < end]


def _units(text: str) -> list[tuple[int, int, bool]]:
    """Code blocks, table rows, list items and paragraphs, each with whether it is prose to cut."""
    units: list[tuple[int, int, bool]] = []
    start = position = 0
    is_code = False
    lines = text.splitlines(keepends=True)
    for before, line in zip(["", *lines], lines, strict=False):
        is_fence = bool(CODE_FENCE.match(line))
        if not is_code and (is_fence or _starts_unit(before, line)):
            units.append((start, position, not _is_whole(text[start:position])))
            start = position
        position += len(line)
        if is_fence and is_code:
            units.append((start, position, False))
            start = position
        is_code ^= is_fence
    return [*units, (start, position, not is_code and not _is_whole(text[start:position]))]


def _starts_unit(before: str, line: str) -> bool:
    """Whether a line begins something new, rather than going on with the line before it."""
    if not line.strip() or LIST_MARK.match(line) or CELL_BORDER in line:
        return True
    last = before.rstrip()
    if not last or CELL_BORDER in last:
        return True
    width = len(last) + len(CJK_CHARACTER.findall(last))
    return width < MIN_WRAPPED_WIDTH


def _is_whole(unit: str) -> bool:
    """Whether a unit is quoted as it stands: a table row, or a list item of moderate length."""
    if CELL_BORDER in unit:
        return True
    return bool(LIST_MARK.match(unit)) and len(unit) <= MAX_WHOLE_ITEM


def _prose_sentences(text: str, start: int, end: int) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    mark = LIST_MARK.match(text, start, end)
    for match in FULL_STOP.finditer(text, mark.end() if mark else start, end):
        if _ends_sentence(text, start, match):
            spans.append((start, match.end()))
            start = match.end()
    return [*spans, (start, end)]


def _ends_sentence(text: str, start: int, match: re.Match[str]) -> bool:
    """Whether a stop is the end of a sentence, by what stands before and after it."""
    after = text[match.end() : match.end() + 2]
    if match.group()[0] in "。！？…":
        return not after[:1] or after[0] not in "，、；：,;:。"
    if CJK_CHARACTER.match(after):
        before = text[match.start() - 1 : match.start()]
        return not before.isascii() or match.group()[0] in "!?"
    if after and not after[0].isspace():
        return False
    following = text[match.end() : match.end() + 40].lstrip().lstrip(OPENERS)[:1]
    if following.islower():
        return False
    return match.group()[0] != "." or not _is_abbreviation(text[start : match.start() + 1])


def _is_abbreviation(sentence: str) -> bool:
    found = LAST_WORD.search(sentence)
    if not found:
        return False
    word = found.group()
    if NUMBERING.fullmatch(word):
        return not sentence[: found.start()].strip()
    return bool(ABBREVIATION.fullmatch(word.rstrip(".")) or INITIALS.fullmatch(word))


def _strip(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end
