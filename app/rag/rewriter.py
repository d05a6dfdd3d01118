"""Rewrites a follow-up question to one that stands alone, by the language model that answers.

A search for "and how much is it?" finds nothing; the model knows from the conversation what "it"
is. It has little time, and what it writes is only searched for when its words are those of the
conversation. Everything else leaves the question as it was.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Iterable
from contextlib import aclosing
from dataclasses import replace

from app.domain import GenerationRequest, Question
from app.errors import FolioError
from app.metrics import rewrites
from app.rag.prompt import build_rewrite_prompt
from app.rag.protocols import Generator
from app.rag.text import language_of

logger = logging.getLogger(__name__)

MAX_TOKENS = 64
# Of the question's own terms the rewriting keeps at least this share, and of its own terms at
# least the other share are in the conversation: a model that answers or invents does neither.
MIN_KEPT = 0.5
MIN_KNOWN = 0.75
LABEL = re.compile(r"^(?:Rewritten question|Question|改写后的问题|问题)\s*[:：]\s*", re.IGNORECASE)
QUOTES = "\"'“”「」`* "

Terms = Callable[[str], Iterable[str]]


class QuestionRewriter:
    """Implements Rewriter on a generator.

    `is_follow_up` tells which questions need it, `terms` cuts a text into its content terms.
    """

    def __init__(
        self,
        generator: Generator,
        is_follow_up: Callable[[str], bool],
        terms: Terms,
        timeout_s: float = 4.0,
    ) -> None:
        self._generator = generator
        self._is_follow_up = is_follow_up
        self._terms = terms
        self._timeout_s = timeout_s

    async def rewrite(self, question: Question) -> Question:
        """Return the question without the turns before it, or as it was."""
        has_turns = any(turn.role == "user" for turn in question.history)
        if not has_turns or not self._is_follow_up(question.text):
            return question
        try:
            text = first_line(await asyncio.wait_for(self._write(question), self._timeout_s))
        except TimeoutError:
            outcome = "late"
        except FolioError as error:
            logger.warning("question not rewritten code=%s reason=%s", error.code, error)
            outcome = "failed"
        else:
            outcome = "rewritten" if self._is_faithful(text, question) else "rejected"
        rewrites.labels(outcome).inc()
        return replace(question, text=text, history=()) if outcome == "rewritten" else question

    async def _write(self, question: Question) -> str:
        language = language_of(question.text)
        request = GenerationRequest(
            messages=build_rewrite_prompt(question.text, question.history, language),
            question=question.text,
            sources=(),
            language=language,
            max_tokens=MAX_TOKENS,
            temperature=0.0,
            tenant=question.tenant,
        )
        text = ""
        async with aclosing(self._generator.generate(request)) as pieces:
            async for piece in pieces:
                text += piece.text
                if "\n" in text.strip():
                    break
        return text

    def _is_faithful(self, text: str, question: Question) -> bool:
        """Whether a rewriting says what was asked, in words of the conversation."""
        said = " ".join(turn.content for turn in question.history if turn.role != "system")
        own, new = set(self._terms(question.text)), set(self._terms(text))
        known = own | set(self._terms(said))
        if not new or language_of(text) != language_of(question.text):
            return False
        return len(own & new) >= MIN_KEPT * len(own) and len(known & new) >= MIN_KNOWN * len(new)


def first_line(text: str) -> str:
    """Take the question out of what a model wrote: its first line, without label and quotes."""
    lines = text.strip().splitlines()
    return LABEL.sub("", lines[0].strip(QUOTES)).strip(QUOTES) if lines else ""
