"""Metadata and filters on the wire, in the form of OpenAI's vector stores."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    FiniteFloat,
    StringConstraints,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from app.api.wire_model import Text, WireModel
from app.domain import FACT_PREFIX, Combination, Comparison, MetadataFilter, MetadataValue
from app.errors import InvalidInput

MAX_ENTRIES = 16
MAX_LISTED = 100
MAX_DEPTH = 5
MAX_COMPARISONS = 50

Key = Annotated[Text, StringConstraints(min_length=1, max_length=64)]
Value = Annotated[Text, StringConstraints(max_length=512)] | bool | FiniteFloat


def _check_free(key: str) -> str:
    if key.startswith(FACT_PREFIX):
        raise ValueError(f"{key}: keys that begin with {FACT_PREFIX} are Folio's own")
    return key


Metadata = Annotated[
    dict[Annotated[Key, AfterValidator(_check_free)], Value], Field(max_length=MAX_ENTRIES)
]
METADATA: TypeAdapter[dict[str, MetadataValue]] = TypeAdapter(Metadata)
Listed = Annotated[list[Value], Field(min_length=1, max_length=MAX_LISTED)]


class ComparisonIn(WireModel):
    """A metadata value compared with another; documents without the key match ne and nin alone."""

    type: Literal["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin"]
    key: Key
    value: Value | Listed

    @model_validator(mode="after")
    def check_value(self) -> Self:
        """A list for in and nin, one value for the others; true and false have no order."""
        takes_list = self.type in ("in", "nin")
        if takes_list != isinstance(self.value, list):
            wanted = "a list of values" if takes_list else "one value"
            raise ValueError(f"{self.type} takes {wanted}")
        if isinstance(self.value, bool) and self.type not in ("eq", "ne"):
            raise ValueError(f"{self.type} takes a text or a number: true and false have no order")
        return self


class CombinationIn(WireModel):
    """Filters that must all match (and), or of which one must (or)."""

    type: Literal["and", "or"]
    filters: Annotated[list["FilterIn"], Field(min_length=1, max_length=MAX_COMPARISONS)]


def _form(value: Any) -> str:  # Any: JSON, or a model
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "combination" if kind in ("and", "or") else "comparison"


FilterIn = Annotated[
    Annotated[ComparisonIn, Tag("comparison")] | Annotated[CombinationIn, Tag("combination")],
    Discriminator(_form),
]


def read_metadata(text: str) -> Mapping[str, MetadataValue] | None:
    """Metadata of a form field, a JSON object; None where the field is empty."""
    if not text.strip():
        return None
    try:
        return METADATA.validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        place = "".join(f"[{part!r}]" for part in problem["loc"])
        raise InvalidInput(f"metadata{place}: {problem['msg']}") from error


def read_filter(wanted: ComparisonIn | CombinationIn | None) -> MetadataFilter | None:
    """The filter that a request asks for; InvalidInput over the limits."""
    if wanted is None:
        return None
    num_comparisons = _count(wanted, depth=1)
    if num_comparisons > MAX_COMPARISONS:
        raise InvalidInput(
            f"the filter has {num_comparisons} comparisons, the limit is {MAX_COMPARISONS}"
        )
    return _read(wanted)


def _count(wanted: ComparisonIn | CombinationIn, depth: int) -> int:
    if depth > MAX_DEPTH:
        raise InvalidInput(f"the filter is nested deeper than {MAX_DEPTH} levels: flatten it")
    if isinstance(wanted, ComparisonIn):
        return 1
    return sum(_count(part, depth + 1) for part in wanted.filters)


def _read(wanted: ComparisonIn | CombinationIn) -> MetadataFilter:
    if isinstance(wanted, CombinationIn):
        return Combination(wanted.type, tuple(_read(part) for part in wanted.filters))
    value = tuple(wanted.value) if isinstance(wanted.value, list) else wanted.value
    return Comparison(wanted.key, wanted.type, value)
