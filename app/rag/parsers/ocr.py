"""Reads the text in pictures (Chinese and English) with models that lie in the package, offline.

The OCR libraries are optional and take a second to load: they are imported with the first picture.
"""

import functools
import importlib
import importlib.util
import os
from typing import Any

from PIL import Image

from app.rag.parsers.pdf_layout import Line, Rect, Segment, in_reading_order, make_line

MIN_CONFIDENCE = 0.5
NUM_THREADS = 2


def is_available() -> bool:
    """Whether the OCR libraries are installed."""
    return all(importlib.util.find_spec(name) for name in ("rapidocr", "onnxruntime"))


def read_lines(image: Image.Image, page: int, width: float, height: float) -> list[Line]:
    """The lines of text in a picture that covers a page of the given size, in reading order."""
    pixels = importlib.import_module("numpy").asarray(image.convert("RGB"))[:, :, ::-1]
    found = _engine()(pixels)
    if not found.txts:
        return []
    x_scale, y_scale = width / image.width, height / image.height
    fragments = [
        _fragment(page, text, corners, x_scale, y_scale)
        for text, corners, score in zip(found.txts, found.boxes, found.scores, strict=True)
        if score >= MIN_CONFIDENCE and text.strip()
    ]
    return in_reading_order(_joined(fragments))


@functools.cache
def _engine() -> Any:  # rapidocr is untyped
    rapidocr = importlib.import_module("rapidocr")
    threads = min(NUM_THREADS, os.cpu_count() or 1)
    return rapidocr.RapidOCR(
        params={
            "Global.log_level": "critical",
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )


def _fragment(page: int, text: str, corners: Any, x_scale: float, y_scale: float) -> Line:
    xs = [float(x) * x_scale for x, _ in corners]
    ys = [float(y) * y_scale for _, y in corners]
    rect = Rect(min(xs), min(ys), max(xs), max(ys))
    return make_line(page, [Segment(text.strip(), rect)], max(rect.height, 0.5))


def _joined(fragments: list[Line]) -> list[Line]:
    """Fragments side by side on one height are the cells of one line."""
    lines: list[list[Line]] = []
    for fragment in sorted(fragments, key=lambda line: line.rect.top):
        middle = (fragment.rect.top + fragment.rect.bottom) / 2
        row = next(
            (row for row in lines[-3:] if row[0].rect.top < middle < row[0].rect.bottom), None
        )
        if row is None:
            lines.append([fragment])
        else:
            row.append(fragment)
    return [
        make_line(
            row[0].page,
            [s for part in sorted(row, key=lambda one: one.rect.left) for s in part.segments],
            max(part.size for part in row),
        )
        for row in lines
    ]
