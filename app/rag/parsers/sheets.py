"""Spreadsheets (XLSX, XLS): a heading for each sheet, then its rows as tables of stored values."""

import zipfile
from collections.abc import Iterable, Iterator
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, BinaryIO

import openpyxl
import xlrd
from lxml import etree
from openpyxl.utils.exceptions import InvalidFileException

from app.domain import ParsedDocument
from app.errors import ParseFailed
from app.rag.parsers.access import protected
from app.rag.parsers.archives import check_zip
from app.rag.parsers.builder import DocumentBuilder, file_title

OLE_MAGIC = b"\xd0\xcf\x11\xe0"
_UNREADABLE = (
    InvalidFileException,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    zipfile.BadZipFile,
    etree.LxmlError,
)


def parse(path: Path, name: str) -> ParsedDocument:
    """Read a workbook of either format, told apart by its first bytes."""
    with path.open("rb") as file:
        is_old = file.read(len(OLE_MAGIC)) == OLE_MAGIC
    return _parse_xls(path, name) if is_old else _parse_xlsx(path, name)


def _parse_xlsx(path: Path, name: str) -> ParsedDocument:
    check_zip(path, name)
    builder = DocumentBuilder()
    try:
        with path.open("rb") as file:  # a path's suffix would have to be right
            title = _add_workbook(builder, file)
    except _UNREADABLE as error:
        raise ParseFailed(f"“{name}” is not a workbook that can be read: {error}") from error
    return builder.build(title or file_title(name))


def _add_workbook(builder: DocumentBuilder, file: BinaryIO) -> str | None:
    """Append every sheet; returns the title in the properties."""
    workbook = openpyxl.load_workbook(file, read_only=True, data_only=True, keep_links=False)
    for sheet in workbook.worksheets:
        sheet.reset_dimensions()  # what files declare is often wrong, and rows would be lost
        rows = sheet.iter_rows(values_only=True)
        add_sheet(builder, sheet.title, ([cell_text(value) for value in row] for row in rows))
    title: str | None = workbook.properties.title
    workbook.close()
    return title


def _parse_xls(path: Path, name: str) -> ParsedDocument:
    builder = DocumentBuilder()
    try:
        workbook = xlrd.open_workbook(str(path), on_demand=True)
        for sheet in workbook.sheets():
            rows = (
                [_xls_text(cell, workbook.datemode) for cell in row] for row in sheet.get_rows()
            )
            add_sheet(builder, sheet.name, rows)
    except (xlrd.XLRDError, AssertionError, *_UNREADABLE) as error:
        if "encrypt" in str(error).lower():
            raise protected(name) from error
        raise ParseFailed(f"“{name}” is not a workbook that can be read: {error}") from error
    return builder.build(file_title(name))


def add_sheet(builder: DocumentBuilder, title: str, rows: Iterable[list[str]]) -> None:
    """Append a sheet under its name; an empty row ends a table. An empty sheet is left out."""
    is_named = False
    for table in _tables(rows):
        if not is_named:
            builder.heading(title, 2)
            is_named = True
        builder.table(table)


def _tables(rows: Iterable[list[str]]) -> Iterator[list[list[str]]]:
    table: list[list[str]] = []
    for row in rows:
        if any(row):
            table.append(row)
        elif table:
            yield table
            table = []
    if table:
        yield table


def cell_text(value: object) -> str:
    """A cell's value as a person reads it: no needless decimals, no time of day at midnight."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, datetime) and value.time() == time():
        return value.date().isoformat()
    if isinstance(value, datetime):
        return value.isoformat(" ", "seconds")
    if isinstance(value, date | time):
        return value.isoformat()
    return str(value).strip()


def _xls_text(cell: Any, datemode: int) -> str:  # xlrd is untyped
    if cell.ctype == xlrd.XL_CELL_DATE:
        try:
            return cell_text(xlrd.xldate_as_datetime(cell.value, datemode))
        except (ValueError, OverflowError):
            return cell_text(cell.value)
    if cell.ctype == xlrd.XL_CELL_BOOLEAN:
        return str(bool(cell.value)).upper()
    return "" if cell.ctype == xlrd.XL_CELL_ERROR else cell_text(cell.value)
