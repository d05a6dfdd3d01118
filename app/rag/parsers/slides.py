"""Presentations (PPTX): a page for each slide, its title as heading, then shapes, tables, notes."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pptx
from lxml import etree
from pptx.enum.shapes import PP_PLACEHOLDER
from pptx.exc import PackageNotFoundError

from app.domain import BlockKind, ParsedDocument
from app.errors import ParseFailed
from app.rag.parsers.archives import check_zip, parse_xml
from app.rag.parsers.builder import DocumentBuilder, file_title

_A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_DIAGRAM_DATA = "application/vnd.openxmlformats-officedocument.drawingml.diagramData+xml"
_TITLES = (PP_PLACEHOLDER.TITLE, PP_PLACEHOLDER.CENTER_TITLE)
# Placeholders that repeat on every slide and say nothing of it.
_DECORATION = (PP_PLACEHOLDER.SLIDE_NUMBER, PP_PLACEHOLDER.DATE, PP_PLACEHOLDER.FOOTER)
_UNREADABLE = (
    KeyError,
    ValueError,
    AttributeError,
    TypeError,
    NotImplementedError,
    etree.LxmlError,
)
MAX_GROUP_DEPTH = 20


def parse(path: Path, name: str) -> ParsedDocument:
    """Read a PPTX file."""
    check_zip(path, name)
    builder = DocumentBuilder()
    try:
        presentation = pptx.Presentation(str(path))
        for page, slide in enumerate(presentation.slides, start=1):
            _add_slide(builder, slide, page)
        title = presentation.core_properties.title
        num_pages = len(presentation.slides)
    except (PackageNotFoundError, *_UNREADABLE) as error:
        raise ParseFailed(f"“{name}” is not a presentation that can be read: {error}") from error
    if title == "PowerPoint Presentation":  # what the program writes by itself
        title = ""
    title = title or builder.first_heading() or file_title(name)
    return builder.build(title, num_pages=num_pages)


# python-pptx is untyped: slides and shapes are Any.
def _add_slide(builder: DocumentBuilder, slide: Any, page: int) -> None:
    shapes = list(_flatten(slide.shapes, 0))
    title = next((shape for shape in shapes if _placeholder(shape) in _TITLES), None)
    if title is not None and title.has_text_frame:
        builder.heading(_frame_text(title.text_frame), 1, page=page)
    for shape in shapes:
        if shape is not title and _placeholder(shape) not in _DECORATION:
            _add_shape(builder, shape, page)
    for part in {
        relation.target_part for relation in slide.part.rels.values() if not relation.is_external
    }:
        if part.content_type == _DIAGRAM_DATA:
            for text in parse_xml(part.blob, str(part.partname)).iter(_A + "p"):
                builder.paragraph(_paragraph_text(text), page=page)
    if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
        builder.paragraph(slide.notes_slide.notes_text_frame.text, page=page)


def _flatten(shapes: Iterable[Any], depth: int) -> Iterator[Any]:
    """Shapes in reading order, groups opened where they stand."""
    for shape in sorted(shapes, key=lambda shape: (shape.top or 0, shape.left or 0)):
        if hasattr(shape, "shapes") and depth < MAX_GROUP_DEPTH:
            yield from _flatten(shape.shapes, depth + 1)
        else:
            yield shape


def _placeholder(shape: Any) -> Any:
    return shape.placeholder_format.type if shape.is_placeholder else None


def _add_shape(builder: DocumentBuilder, shape: Any, page: int) -> None:
    if getattr(shape, "has_table", False):
        rows = ([cell.text for cell in row.cells] for row in shape.table.rows)
        builder.table(rows, page=page)
    elif getattr(shape, "has_chart", False):
        builder.table(_chart_rows(shape.chart), page=page)
    elif shape.has_text_frame:
        is_body = _placeholder(shape) in (PP_PLACEHOLDER.BODY, PP_PLACEHOLDER.OBJECT)
        texts = [_paragraph_text(paragraph._p) for paragraph in shape.text_frame.paragraphs]
        texts = [text for text in texts if text.strip()]
        for text in texts:
            if is_body and len(texts) > 1:
                builder.add(BlockKind.LIST_ITEM, "- " + text.strip(), page=page)
            else:
                builder.paragraph(text, page=page)


def _frame_text(frame: Any) -> str:
    return "\n".join(_paragraph_text(paragraph._p) for paragraph in frame.paragraphs)


def _paragraph_text(paragraph: etree._Element) -> str:
    """Runs, fields and line breaks of a paragraph in order."""
    found = paragraph.iter(_A + "t", _A + "br")
    return "".join("\n" if element.tag == _A + "br" else element.text or "" for element in found)


def _chart_rows(chart: Any) -> Iterator[list[str]]:
    if chart.has_title:
        yield [chart.chart_title.text_frame.text]
    for plot in chart.plots:
        series = list(plot.series)
        yield ["", *(str(one.name) for one in series)]
        for index, category in enumerate(plot.categories):
            values = [list(one.values) for one in series]
            yield [str(category), *(str(v[index]) if index < len(v) else "" for v in values)]
