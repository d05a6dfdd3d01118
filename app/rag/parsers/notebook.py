"""Jupyter notebooks: Markdown cells as Markdown, code cells and their text outputs as code."""

import json
from pathlib import Path
from typing import Any

from app.domain import BlockKind, ParsedDocument
from app.errors import ParseFailed
from app.rag.parsers.builder import DocumentBuilder, file_title
from app.rag.parsers.encodings import decode
from app.rag.parsers.markdown import add_markdown

MAX_OUTPUT_CHARS = 4000


def parse(path: Path, name: str) -> ParsedDocument:
    """Read a notebook of format 3 or 4."""
    builder = DocumentBuilder()
    try:
        notebook = json.loads(decode(path.read_bytes()))
        cells = notebook.get("cells") or notebook["worksheets"][0]["cells"]
        for cell in cells:
            _add_cell(builder, cell)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ParseFailed(f"“{name}” is not a notebook that can be read: {error}") from error
    return builder.build(builder.first_heading() or file_title(name))


# Cells are JSON of anyone's making: Any, and whatever does not fit is caught above.
def _add_cell(builder: DocumentBuilder, cell: Any) -> None:
    source = _joined(cell.get("source", cell.get("input", "")))
    if cell["cell_type"] == "markdown":
        add_markdown(builder, source)
        return
    is_code = cell["cell_type"] == "code"
    builder.add(BlockKind.CODE if is_code else BlockKind.PARAGRAPH, source)
    for output in cell.get("outputs", []):
        text = output.get("text") or output.get("data", {}).get("text/plain", "")
        builder.add(BlockKind.CODE, _joined(text)[:MAX_OUTPUT_CHARS])


def _joined(lines: Any) -> str:
    return lines if isinstance(lines, str) else "".join(lines)
