"""The texts that the reader learns from: documents cut into sentences, and real questions.

Never the evaluation sets; `overlap.py` checks that.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from selectolax.lexbor import LexborHTMLParser

from app.domain import Language
from app.rag.text import language_of, split_sentences

# Debian packages of documentation under the Expat licence, with text in both languages.
DEBIAN_PACKAGES = ("debmake-doc",)
SENTENCE_CHARS = range(12, 320)
MIN_SENTENCES = 6  # of a document that distractors can come from
SPACE = re.compile(r"\s+")
NUMBERS = re.compile(r"\[\d+\]")
# Frames of the grounded questions: where the question and the passage stand in each.
FRAMES = (
    re.compile(
        r'^Question: "?(?P<question>[^\n]+?)"?\n+Context: "?(?P<passage>.+?)"?(?:\n+Answer:)?$',
        re.S,
    ),
    re.compile(
        r'^Given the following passage\n+"(?P<passage>.+?)",\n+.*Question: (?P<question>[^\n]+)$',
        re.S,
    ),
    re.compile(
        r"^Extract the answer .+?\nQuestion: (?P<question>[^\n]+)\nContext: (?P<passage>.+)$", re.S
    ),
    re.compile(
        r"^Given the following context:\n+(?P<passage>.+?)"
        r"\n+answer the following question:\n+(?P<question>[^\n]+)$",
        re.S,
    ),
    re.compile(
        r"^(?P<question>[^\n]+)"
        r"\n+Answer the above question based on the context below:\n+(?P<passage>.+)$",
        re.S,
    ),
)
END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class Text:
    """A document in one language: the sentences of each paragraph."""

    name: str
    language: Language
    origin: str
    paragraphs: tuple[tuple[str, ...], ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        """All sentences in order."""
        return tuple(sentence for paragraph in self.paragraphs for sentence in paragraph)


@dataclass(frozen=True, slots=True)
class Grounded:
    """A real question with the sentences of its passage, of which one holds the answer."""

    question: str
    sentences: tuple[str, ...]
    supporting: int  # index
    origin: str  # the data set


def read_texts(data: Path, docs: Path, work: Path) -> list[Text]:
    """All licensed texts: textbooks in `data`, our own `docs`, packages of Debian."""
    texts = [*_textbooks(data), *_markdown(docs), *_debian(work)]
    return [text for text in texts if len(text.sentences) >= MIN_SENTENCES]


def read_grounded(data: Path) -> list[Grounded]:
    """Questions whose answer stands in a sentence of their passage; each passage question once."""
    found: dict[str, Grounded] = {}
    with (data / "t0_grounded_qa.jsonl").open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if row["template"].startswith("sciq"):
                continue  # its licence forbids commercial use
            for frame in FRAMES:
                if match := frame.match(row["prompt"].strip()):
                    answer = row["completion"].removesuffix(END_OF_TEXT).strip()
                    item = _grounded(match["question"], match["passage"], answer)
                    if item is not None:
                        origin = row["template"].partition("_")[0]
                        found.setdefault(item.question, replace(item, origin=origin))
                    break
    return list(found.values())


def _grounded(question: str, passage: str, answer: str) -> Grounded | None:
    sentences = _sentences(passage)
    holding = [i for i, s in enumerate(sentences) if answer and answer.lower() in s.lower()]
    if not holding or len(sentences) < 2:
        return None
    asked = set(question.lower().split())
    best = max(holding, key=lambda i: len(asked & set(sentences[i].lower().split())))
    return Grounded(question.strip(), sentences, best, "")


def _textbooks(data: Path) -> Iterator[Text]:
    with (data / "openstax_ccby_text.jsonl").open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            yield _text("openstax", f"{row['book']}/{row['file']}", row["paragraphs"])


def _markdown(docs: Path) -> Iterator[Text]:
    for path in sorted(docs.rglob("*.md")):
        prose = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)
        lines = [re.sub(r"[`*#>|]|\]\([^)]*\)|\[", "", line) for line in prose.split("\n")]
        yield _text("folio", str(path.relative_to(docs)), lines)


def _debian(work: Path) -> Iterator[Text]:
    """Packages are fetched once; without Debian's tools the reader learns from the rest."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return
    for package in DEBIAN_PACKAGES:
        folder = work / package
        if not folder.is_dir():
            work.mkdir(parents=True, exist_ok=True)
            subprocess.run(["apt-get", "download", package], cwd=work, check=True, timeout=600)
            [archive] = work.glob(f"{package}_*.deb")
            subprocess.run(["dpkg-deb", "-x", archive, folder], check=True, timeout=600)
        for path in sorted(folder.rglob("*.html")):
            if re.search(r"\.(?:zh-cn|zh-tw|en)\.html$|ch\d\d\.html$", path.name):
                tree = LexborHTMLParser(path.read_text(encoding="utf-8", errors="replace"))
                paragraphs = [node.text() for node in tree.css("p, li")]
                yield _text(package, f"{package}/{path.name}", paragraphs)


def _text(origin: str, name: str, paragraphs: list[str]) -> Text:
    cut = tuple(filter(None, map(_sentences, paragraphs)))
    return Text(name, language_of(" ".join(paragraphs)), origin, cut)


def _sentences(text: str) -> tuple[str, ...]:
    plain = NUMBERS.sub("", SPACE.sub(" ", text)).strip()
    cut = (plain[start:end].strip() for start, end in split_sentences(plain))
    return tuple(sentence for sentence in cut if len(sentence) in SENTENCE_CHARS)
