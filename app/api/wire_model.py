"""What all wire models share: nothing unknown is taken, and each text can be stored and sent."""

import re
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

# JSON may escape half a surrogate pair ("\ud83d"), which has no UTF-8.
SURROGATE = re.compile("[\ud800-\udfff]")


def _storable(value: object) -> object:
    return SURROGATE.sub("\ufffd", value.replace("\0", "")) if isinstance(value, str) else value


def _stripped(value: object) -> object:
    return value.strip() if isinstance(value, str) else value


# PostgreSQL stores no NUL, and nobody means one
Text = Annotated[str, BeforeValidator(_storable)]
# A strip that is a constraint comes after the least length was checked: " " would pass as "".
Trimmed = Annotated[Text, BeforeValidator(_stripped)]


class WireModel(BaseModel):
    """Unknown fields are refused, so that a misspelt option is an error and not ignored."""

    model_config = ConfigDict(extra="forbid")
