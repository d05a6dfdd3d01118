"""Ruled tables of a PDF page: pdfium gives the rulings, pdfplumber's table finder the cells.

pdfplumber itself would read the page a second time with pdfminer, fifty times slower.
"""

import ctypes
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pypdfium2 as pdfium
import pypdfium2.raw as raw
from pdfplumber.table import (
    cells_to_tables,
    edges_to_intersections,
    intersections_to_cells,
    merge_edges,
)

from app.rag.parsers.pdf_layout import Rect

MAX_PATHS = 4000
MAX_EDGES = 1500
MAX_SEGMENTS = 2000
MIN_EDGE = 5.0
THICKNESS = 2.5
TOLERANCE = 3.0
Matrix = tuple[float, float, float, float, float, float]
Point = tuple[float, float]
IDENTITY: Matrix = (1, 0, 0, 1, 0, 0)


@dataclass(frozen=True, slots=True)
class Grid:
    """A ruled table: its frame and its cells, row by row; None where cells are merged."""

    rect: Rect
    rows: tuple[tuple[Rect | None, ...], ...]


def find_grids(page: pdfium.PdfPage, to_display: Matrix) -> list[Grid]:
    """The ruled tables of a page with two rows and two columns or more."""
    edges: list[dict[str, Any]] = []
    for number, path in enumerate(page.get_objects([raw.FPDF_PAGEOBJ_PATH], max_depth=5)):
        if number >= MAX_PATHS or len(edges) >= MAX_EDGES:
            return []  # a drawing, not a table
        edges += _edges_of(path, to_display)
    if len(edges) < 4:
        return []
    merged = merge_edges(edges, TOLERANCE, TOLERANCE, TOLERANCE, TOLERANCE)
    cells = intersections_to_cells(edges_to_intersections(merged, TOLERANCE, TOLERANCE))
    return [grid for table in cells_to_tables(cells) if (grid := _grid(table)) is not None]


def _grid(cells: list[tuple[float, float, float, float]]) -> Grid | None:
    tops = sorted({cell[1] for cell in cells})
    lefts = sorted({cell[0] for cell in cells})
    if len(tops) < 2 or len(lefts) < 2:
        return None
    by_corner = {(cell[1], cell[0]): Rect(*cell) for cell in cells}
    rows = tuple(tuple(by_corner.get((top, left)) for left in lefts) for top in tops)
    left, top = lefts[0], tops[0]
    return Grid(Rect(left, top, max(c[2] for c in cells), max(c[3] for c in cells)), rows)


def _edges_of(path: Any, to_display: Matrix) -> Iterator[dict[str, Any]]:
    """The horizontal and vertical lines of a path; thin filled rectangles count as lines."""
    matrix = _multiply(_object_matrix(path), to_display)
    for outline in _outlines(path):
        points = [_apply(matrix, point) for point in outline]
        for (x0, y0), (x1, y1) in pairwise(points):
            left, right, top, bottom = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
            width, height = right - left, bottom - top
            if height <= THICKNESS and width >= MIN_EDGE:
                yield _edge("h", left, right, (top + bottom) / 2, (top + bottom) / 2)
            elif width <= THICKNESS and height >= MIN_EDGE:
                yield _edge("v", (left + right) / 2, (left + right) / 2, top, bottom)


def _edge(orientation: str, x0: float, x1: float, top: float, bottom: float) -> dict[str, Any]:
    """An edge in the form that pdfplumber's functions take."""
    return {
        "orientation": orientation,
        "object_type": "line",
        "x0": x0,
        "x1": x1,
        "top": top,
        "bottom": bottom,
        "width": x1 - x0,
        "height": bottom - top,
    }


def _outlines(path: Any) -> list[list[Point]]:
    """The corners of each outline of a path of straight lines; none where it has curves."""
    x, y = ctypes.c_float(), ctypes.c_float()
    outlines: list[list[Point]] = []
    num_segments = raw.FPDFPath_CountSegments(path.raw)
    if num_segments > MAX_SEGMENTS:
        return []
    for index in range(num_segments):
        segment = raw.FPDFPath_GetPathSegment(path.raw, index)
        kind = raw.FPDFPathSegment_GetType(segment)
        if kind == raw.FPDF_SEGMENT_BEZIERTO:
            return []
        raw.FPDFPathSegment_GetPoint(segment, x, y)
        if kind == raw.FPDF_SEGMENT_MOVETO or not outlines:
            outlines.append([])
        outlines[-1].append((x.value, y.value))
        if raw.FPDFPathSegment_GetClose(segment):
            outlines[-1].append(outlines[-1][0])
    return outlines


def _object_matrix(page_object: Any) -> Matrix:
    """From an object's own coordinates to those of the page, through the forms around it."""
    matrix = IDENTITY
    current: Any = page_object
    while current is not None:
        own = current.get_matrix()
        matrix = _multiply(matrix, (own.a, own.b, own.c, own.d, own.e, own.f))
        current = current.container
    return matrix


def _multiply(first: Matrix, second: Matrix) -> Matrix:
    """The matrix that applies `first`, then `second`."""
    a, b, c, d, e, f = first
    g, h, i, j, k, m = second
    return (
        a * g + b * i,
        a * h + b * j,
        c * g + d * i,
        c * h + d * j,
        e * g + f * i + k,
        e * h + f * j + m,
    )


def _apply(matrix: Matrix, point: Point) -> Point:
    a, b, c, d, e, f = matrix
    x, y = point
    result = a * x + c * y + e, b * x + d * y + f
    return result if all(map(math.isfinite, result)) else (0.0, 0.0)
