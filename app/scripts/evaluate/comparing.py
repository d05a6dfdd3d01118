"""Two reports compared question by question: differences with their confidence intervals."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.errors import InvalidInput

MEASURES = ("exact_match", "f1", "holds_answer", "citation_precision", "citation_recall")
NUM_RESAMPLES = 2000
INTERVAL = (2.5, 97.5)  # percent


@dataclass(frozen=True, slots=True)
class Difference:
    """A measure of both reports on the questions that both have; `low` to `high` is 95 %."""

    measure: str
    num_questions: int
    before: float
    after: float
    low: float
    high: float

    @property
    def is_certain(self) -> bool:
        """Whether chance alone rarely makes such a difference."""
        return self.low > 0 or self.high < 0


def compare(before: Path, after: Path) -> list[Difference]:
    """Read two reports of `evaluate answers --json`; InvalidInput where they share no question."""
    reports = [by_question(path) for path in (before, after)]
    shared = sorted(reports[0].keys() & reports[1].keys())
    if not shared:
        raise InvalidInput(f"{before} and {after} have no question in common")
    differences = []
    for measure in (*MEASURES, "is_right_to_speak"):
        pairs = [
            (values[0], values[1])
            for question in shared
            if None not in (values := [value_of(report[question], measure) for report in reports])
        ]
        if pairs:
            differences.append(difference(measure, np.array(pairs, dtype=np.float64)))
    return differences


def difference(measure: str, pairs: "np.ndarray[Any, Any]") -> Difference:
    """Paired bootstrap. `pairs` is [num_questions, 2]. Source: Efron and Tibshirani, 1993."""
    changes = pairs[:, 1] - pairs[:, 0]
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(changes), (NUM_RESAMPLES, len(changes)))
    low, high = np.percentile(changes[rows].mean(axis=1), INTERVAL)
    before, after = pairs.mean(axis=0)
    return Difference(measure, len(pairs), float(before), float(after), float(low), float(high))


def value_of(judged: Mapping[str, Any], measure: str) -> float | None:
    """One measure of one question; right to speak is who answers what can be answered."""
    if measure == "is_right_to_speak":
        return float(judged["is_answerable"] != judged["is_refusal"])
    value = judged[measure]
    return None if value is None else float(value)


def by_question(path: Path) -> dict[str, Mapping[str, Any]]:
    """The judged questions of a report by their text."""
    try:
        questions: Sequence[Mapping[str, Any]] = json.loads(path.read_text("utf-8"))["questions"]
        return {judged["question"]: judged for judged in questions}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{path} is no report of `evaluate answers --json`: {error}") from error
