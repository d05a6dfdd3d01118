"""What a run did, or would do: counted, shown and written as JSON."""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from app.errors import InvalidInput
from app.scripts.initialize_data.libraries import Outcome

KINDS = ("added", "changed", "moved", "unchanged", "deleted")
CHANGES = ("added", "changed", "moved", "deleted")


@dataclass(slots=True)
class Report:
    """What happened, by kind, and why; places are paths and addresses."""

    places: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    failed: dict[str, str] = field(default_factory=dict)  # reasons by place
    unreachable: set[str] = field(default_factory=set)  # those failed for want of an answer
    skipped: Counter[str] = field(default_factory=Counter)  # by suffix
    warnings: list[str] = field(default_factory=list)

    def note(self, place: str, outcome: Outcome) -> None:
        """Count a file that is searchable now; a moved one only as that."""
        if outcome != "unchanged" or place not in self.places["moved"]:
            self.places[outcome].append(place)

    def fail(self, place: str, reason: str) -> None:
        """Note a file that is not searchable, and why."""
        self.failed[printable(place)] = reason

    @property
    def is_cut_off(self) -> bool:
        """Whether nothing was done and nothing failed but for want of an answer."""
        is_idle = not any(self.places.values()) and not self.skipped
        return is_idle and bool(self.failed) and set(self.failed) == self.unreachable


def show(report: Report, console: Console, seconds: float) -> None:
    """Print the summary: what happened, and why."""
    table = Table("documents", f"in {seconds:.1f} s")
    for kind in KINDS:
        if report.places[kind]:
            table.add_row(kind, str(len(report.places[kind])))
    if report.skipped:
        suffixes = ", ".join(f"{suffix} {n}" for suffix, n in report.skipped.most_common(12))
        table.add_row(
            "skipped", f"{report.skipped.total()} of formats that are not read: {suffixes}"
        )
    if report.failed:
        table.add_row("failed", str(len(report.failed)), style="red")
    console.print(table)
    show_problems(report, console)


def show_plan(report: Report, console: Console) -> None:
    """Print what a run would do to each document."""
    for kind in CHANGES:
        for place in report.places[kind]:
            console.print(f"{kind:<8} {printable(place)}", markup=False)
    console.print("Nothing was changed. A run would do this, where no file fails:")


def show_problems(report: Report, console: Console) -> None:
    """Print what failed with its reason, and the warnings."""
    for place, reason in report.failed.items():
        console.print(f"failed: {place}\n        {reason}", style="red", markup=False)
    for warning in report.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)


def write_json(report: Report, path: Path) -> None:
    """Write a summary for programs; InvalidInput where the file cannot be written."""
    summary = {
        "counts": {kind: len(report.places[kind]) for kind in KINDS}
        | {"skipped": report.skipped.total(), "failed": len(report.failed)},
        **{kind: [printable(place) for place in report.places[kind]] for kind in CHANGES},
        "skipped": dict(report.skipped),
        "failed": report.failed,
        "warnings": report.warnings,
    }
    try:
        path.write_text(json.dumps(summary, ensure_ascii=False, indent=2) + "\n", "utf-8")
    except OSError as error:
        raise InvalidInput(f"--json {path}: {error.strerror}") from error


def printable(text: str) -> str:
    """A name may hold bytes that are no text, which no terminal takes."""
    return text.encode(errors="replace").decode()
