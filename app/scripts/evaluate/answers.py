"""Many questions asked and judged, from a file and of whoever answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.domain import AskedQuestion
from app.errors import InvalidInput
from app.rag.evaluation import Given, Judged, figures_of, judge, question_of
from app.scripts.evaluate.measures import auroc
from app.scripts.evaluate.sets import read_lines


@dataclass(frozen=True, slots=True)
class AnswersReport:
    """Averages over all questions that allow the measure, and each question by itself."""

    num_questions: int
    figures: Mapping[str, float]
    questions: tuple[Judged, ...]


def read_questions(path: Path) -> list[AskedQuestion]:
    """A question file: JSON lines with `question`, and of `answers`, `documents`, `answerable`.

    The rows of the QA sets are read too. Raises InvalidInput with the line that is wrong.
    """
    questions = [
        question_of(row, f"{path}, line {number}")
        for number, row in enumerate(read_lines(path), start=1)
    ]
    if not questions:
        raise InvalidInput(f"{path} holds no questions")
    return questions


def measure_answers(
    questions: Sequence[AskedQuestion],
    ask: Callable[[str], Given],
    report: Callable[[str, int], object],
) -> AnswersReport:
    """Ask every question and judge what comes back."""
    judged = []
    for question in questions:
        judged.append(judge(question, ask(question.text)))
        report("ask", 1)
    return AnswersReport(len(judged), figures_of(judged) | separation(judged), tuple(judged))


def separation(judged: Sequence[Judged]) -> dict[str, float]:
    """How well confidence tells answerable from unanswerable questions, where both were asked."""
    confidences = [
        [item.confidence for item in judged if item.is_answerable == kind and item.confidence]
        for kind in (True, False)
    ]
    return {"abstention_auroc": auroc(*confidences)} if all(confidences) else {}
