"""Questions made from a sentence: some of its words, in another order and form, in a frame."""

import random
import re
from collections.abc import Sequence

from app.domain import Language
from app.rag.lexical import segmenter

WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
STOP_WORDS = (
    "a an the of in on at to for and or but nor so yet is are was were be been being am do does "
    "did has have had having it its this that these those they their them he his him she her we "
    "our you your i my as by from with without into than then there here not no can could may "
    "might must shall should will would about which who whom whose what when where why how if "
    "such also more most some any each all both other only very "
    "的 了 是 在 和 与 或 及 有 为 以 而 但 并 也 都 就 被 把 从 到 对 "
    "将 于 之 其 这 那 这个 那个 它 他 她 我 你 您 们 会 能 可以 一个 "
)
STOP = frozenset(STOP_WORDS.split())
FRAMES: dict[Language, dict[str, Sequence[str]]] = {
    "en": {
        "number": (
            "how many {}?",
            "what number of {}?",
            "how much {}?",
            "when {}?",
            "{}: how many?",
        ),
        "name": ("who {}?", "which {}?", "what is the name of {}?", "where {}?", "{} by whom?"),
        "any": (
            "what is {}?",
            "what {}?",
            "how does {}?",
            "why {}?",
            "what about {}?",
            "{}?",
            "{}",
            "what does {}?",
            "tell me about {}",
            "how is {}?",
            "can {}?",
            "which {}?",
            "explain {}",
        ),
    },
    "zh": {
        "number": ("{}是多少？", "{}有多少？", "{}是什么时候？", "什么时候{}？", "{}有几个？"),
        "name": ("谁{}？", "{}是谁？", "哪个{}？", "{}叫什么？", "{}在哪里？"),
        "any": (
            "{}是什么？",
            "什么是{}？",
            "如何{}？",
            "为什么{}？",
            "{}有哪些？",
            "怎么{}？",
            "{}？",
            "{}",
            "{}是怎样的？",
            "请介绍{}",
            "关于{}，文档怎么说？",
            "{}可以吗？",
        ),
    },
}
MAX_WORDS = 9


def make_question(sentence: str, language: Language, rng: random.Random) -> str | None:
    """A question that the sentence answers; None where too little is left to ask with."""
    words = _words(sentence, language)
    content = [i for i, word in enumerate(words) if word.lower() not in STOP]
    if len(content) < 3:
        return None
    hidden = rng.choice(content)  # what is asked for
    left = [i for i in content if i != hidden]
    count = rng.randint(2, max(2, min(MAX_WORDS, len(left))))
    start = rng.randint(0, len(left) - count)
    near = rng.random() < 0.5  # words that stand together, or from anywhere
    kept = left[start : start + count] if near else sorted(rng.sample(left, count))
    if rng.random() < 0.2:
        rng.shuffle(kept)
    chosen = [_bent(words[i], language, rng) for i in kept]
    if near and rng.random() < 0.5:  # with the small words between
        chosen = [words[i] for i in range(min(kept), max(kept) + 1) if i != hidden]
    frame = rng.choice(FRAMES[language][_kind(words[hidden], hidden)])
    question = frame.format(("" if language == "zh" else " ").join(chosen))
    return question[:1].upper() + question[1:] if rng.random() < 0.6 else question


def _words(sentence: str, language: Language) -> list[str]:
    if language == "en":
        return WORD.findall(sentence)
    return [word for word in segmenter().cut(sentence) if WORD.match(word)]


def _kind(word: str, position: int) -> str:
    if any(character.isdigit() for character in word):
        return "number"
    return "name" if position and word[:1].isupper() else "any"


def _bent(word: str, language: Language, rng: random.Random) -> str:
    """Another form of the word, as a question may have it."""
    if language == "zh" or rng.random() < 0.6:
        return word
    if len(word) > 5 and rng.random() < 0.5:
        return re.sub(r"(?:ing|ed|es|s|ly)$", "", word)
    return word.lower()
