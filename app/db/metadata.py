"""Metadata of documents: rows of typed values, and the conditions that filters put on them.

Keys with `FACT_PREFIX` name columns of the document itself.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from operator import eq, ge, gt, le, lt
from typing import Any

from sqlalchemy import ColumnElement, and_, false, or_, select

from app.db.models import DocumentRow, MetadataRow
from app.domain import FACT_PREFIX, Comparison, MetadataFilter, MetadataValue
from app.errors import InvalidInput

OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {  # Any: columns of three types share none
    "eq": eq,
    "in": eq,
    "gt": gt,
    "gte": ge,
    "lt": lt,
    "lte": le,
}
TEXT_FACTS = {
    f"{FACT_PREFIX}{column.key}": column
    for column in (
        *(DocumentRow.name, DocumentRow.path, DocumentRow.title),
        *(DocumentRow.source, DocumentRow.media_type),
    )
}
NUMBER_FACTS = {
    f"{FACT_PREFIX}{column.key}": column
    for column in (DocumentRow.num_pages, DocumentRow.num_bytes)
}
TIME_FACTS = {f"{FACT_PREFIX}created_at": DocumentRow.created_at}
MAX_TIME_S = 253_402_300_799.0  # the end of the year 9999


def rows_of(metadata: Mapping[str, MetadataValue]) -> list[MetadataRow]:
    """The rows of a document's metadata."""
    return [row_of(key, value) for key, value in sorted(metadata.items())]


def row_of(key: str, value: MetadataValue) -> MetadataRow:
    """One row; the column tells the type."""
    # bool first: Python takes True for a number.
    if isinstance(value, bool):
        return MetadataRow(key=key, flag=value)
    if isinstance(value, str):
        return MetadataRow(key=key, text=value)
    return MetadataRow(key=key, number=float(value))


def metadata_of(rows: Iterable[MetadataRow]) -> dict[str, MetadataValue]:
    """The inverse of `rows_of`."""
    return {row.key: value_of(row) for row in rows}


def value_of(row: MetadataRow) -> MetadataValue:
    """The one value of a row."""
    for value in (row.text, row.number, row.flag):
        if value is not None:
            return value
    raise AssertionError(f"metadata {row.key} of document {row.document_id} has no value")


def matches(wanted: MetadataFilter) -> ColumnElement[bool]:
    """The condition of a filter on documents; every key and value is a parameter of the query."""
    if isinstance(wanted, Comparison):
        return compares(wanted)
    parts = [matches(part) for part in wanted.filters]
    return and_(*parts) if wanted.operator == "and" else or_(*parts)


def compares(wanted: Comparison) -> ColumnElement[bool]:
    """The condition of one comparison; ne and nin are the opposites of eq and in."""
    opposite = {"ne": "eq", "nin": "in"}.get(wanted.operator)
    operator = opposite or wanted.operator
    values = wanted.value if isinstance(wanted.value, tuple) else (wanted.value,)
    if wanted.key.startswith(FACT_PREFIX):
        has = or_(false(), *(fact_holds(wanted.key, operator, value) for value in values))
        return ~has if opposite else has
    holds = or_(false(), *(holds_for(operator, value) for value in values))
    has = DocumentRow.id.in_(
        select(MetadataRow.document_id).where(MetadataRow.key == wanted.key, holds)
    )
    return ~has if opposite else has


def fact_holds(key: str, operator: str, value: MetadataValue) -> ColumnElement[bool]:
    """The comparison of a document's own column; times are seconds since 1970.

    Raises InvalidInput for an unknown fact, and for the order of texts, which depends on the
    database.
    """
    known = TEXT_FACTS | NUMBER_FACTS | TIME_FACTS
    if key not in known:
        raise InvalidInput(f"the filter asks for {key}, documents have {', '.join(sorted(known))}")
    if key in TEXT_FACTS and OPERATORS[operator] is not eq:
        raise InvalidInput(f"{key} can be compared by eq, ne, in and nin only, not by {operator}")
    if isinstance(value, bool) or isinstance(value, str) != (key in TEXT_FACTS):
        return false()
    column = known[key]
    limit = time_of(float(value)) if key in TIME_FACTS else value
    return and_(column.is_not(None), OPERATORS[operator](column, limit))


def time_of(seconds: float) -> datetime:
    """A time since 1970, or the nearest that a database knows."""
    return datetime.fromtimestamp(min(max(seconds, 0.0), MAX_TIME_S), UTC)


def holds_for(operator: str, value: MetadataValue) -> ColumnElement[bool]:
    """The comparison with one value, in the column of the value's type."""
    condition: ColumnElement[bool] = OPERATORS[operator](column_of(value), value)
    return condition


def column_of(value: MetadataValue) -> Any:  # Any: columns of three types share none
    """Where values of this type lie."""
    if isinstance(value, bool):
        return MetadataRow.flag
    return MetadataRow.text if isinstance(value, str) else MetadataRow.number
