"""What all wire models share: nothing unknown is taken, and no text holds a NUL."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict


def _without_nul(value: object) -> object:
    return value.replace("\0", "") if isinstance(value, str) else value


def _stripped(value: object) -> object:
    return value.strip() if isinstance(value, str) else value


# PostgreSQL stores no NUL, and nobody means one
Text = Annotated[str, BeforeValidator(_without_nul)]
# A strip that is a constraint comes after the least length was checked: " " would pass as "".
Trimmed = Annotated[Text, BeforeValidator(_stripped)]


class WireModel(BaseModel):
    """Unknown fields are refused, so that a misspelt option is an error and not ignored."""

    model_config = ConfigDict(extra="forbid")
