"""The curves of a run as an SVG."""

import json
from collections.abc import Sequence
from pathlib import Path

WIDTH, HEIGHT, MARGIN = 640, 320, 48
SERIES = (("loss", "#b4541f"), ("choice_accuracy", "#1f6fb4"), ("token_accuracy", "#3c8a4e"))


def plot(log: Path, target: Path) -> None:
    """Draw loss and accuracies by step; a step that was run twice counts once.

    Raises ValueError where the log holds fewer than two entries.
    """
    with log.open(encoding="utf-8") as lines:
        entries = {entry["step"]: entry for entry in map(json.loads, lines)}
    if len(entries) < 2:
        raise ValueError(f"{log} holds {len(entries)} entries, a curve takes two: train longer")
    steps = sorted(entries)
    top = max(entry["loss"] for entry in entries.values())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<path d="M{MARGIN} {MARGIN}V{HEIGHT - MARGIN}H{WIDTH - MARGIN}" fill="none" '
        'stroke="#888"/>',
        f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 16}" text-anchor="end">step {steps[-1]}</text>',
        f'<text x="4" y="{MARGIN}">{top:.1f} / 1</text>',
        f'<text x="28" y="{HEIGHT - MARGIN}">0</text>',
    ]
    for place, (name, colour) in enumerate(SERIES):
        scale = top if name == "loss" else 1.0
        values = [entries[step][name] / scale for step in steps]
        points = _points(steps, values)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
        label = name.replace("_", " ")
        parts.append(f'<text x="{MARGIN + 150 * place}" y="20" fill="{colour}">{label}</text>')
    target.write_text("\n".join([*parts, "</svg>", ""]), encoding="utf-8")


def _points(steps: Sequence[int], values: Sequence[float]) -> str:
    span = steps[-1] - steps[0]
    across, down = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN
    return " ".join(
        f"{MARGIN + across * (step - steps[0]) / span:.1f},{HEIGHT - MARGIN - down * value:.1f}"
        for step, value in zip(steps, values, strict=True)
    )
