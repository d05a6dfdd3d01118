"""The wire models of accounts: logging in, users, groups, keys, and who may use what."""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, StringConstraints, model_validator

from app.api.wire_model import Text, Trimmed, WireModel
from app.domain import Role
from app.passwords import MAX_LENGTH, MIN_LENGTH


def _printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError("names hold no line breaks or control characters")
    return name


PersonName = Annotated[
    Trimmed, StringConstraints(min_length=1, max_length=100), AfterValidator(_printable)
]
Password = Annotated[SecretStr, Field(min_length=MIN_LENGTH, max_length=MAX_LENGTH)]
# what somebody types to come in is not judged by today's rules
TypedPassword = Annotated[SecretStr, Field(max_length=4096)]
Ids = Annotated[list[Text], Field(max_length=10_000)]


class UserOut(WireModel):
    """A person with an account."""

    id: str
    name: str
    role: Role
    is_active: bool
    created_at: datetime
    last_seen_at: datetime | None
    group_ids: list[str]


class AuthOut(WireModel):
    """Whether one logs in here, whether somebody must make the first account, and who asks."""

    mode: Literal["off", "users"]
    needs_setup: bool
    user: UserOut | None


class SetupIn(WireModel):
    """The first administrator; the code stands where Folio runs."""

    code: Annotated[Trimmed, StringConstraints(min_length=1, max_length=100)]
    name: PersonName
    password: Password


class LoginIn(WireModel):
    """Who comes in."""

    name: Annotated[Trimmed, StringConstraints(max_length=200)]
    password: TypedPassword


class PasswordIn(WireModel):
    """Another password of one's own."""

    current_password: TypedPassword
    new_password: Password


class KeyIn(WireModel):
    """A new key for programs; without days it does not expire."""

    name: PersonName
    expires_in_days: Annotated[int, Field(ge=1, le=3650)] | None = None


class KeyOut(WireModel):
    """A key; `prefix` is its beginning."""

    id: str
    name: str
    prefix: str
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None


class NewKeyOut(KeyOut):
    """A key that was just made: `key` is never shown again."""

    key: str


class UserIn(WireModel):
    """A new user."""

    name: PersonName
    password: Password
    role: Role = "member"


class UserPatch(WireModel):
    """What is to change of a user."""

    role: Role | None = None
    is_active: bool | None = None
    password: Password | None = None


class GroupIn(WireModel):
    """A new group."""

    name: PersonName


class GroupOut(WireModel):
    """Users to whom knowledge bases are shared together."""

    id: str
    name: str
    user_ids: list[str]


class GroupPatch(WireModel):
    """What is to change of a group; members are replaced as a whole."""

    name: PersonName | None = None
    user_ids: Ids | None = None


class PrincipalOut(WireModel):
    """A user or a group, to share with."""

    id: str
    name: str


class PrincipalsOut(WireModel):
    """All to share with: active users, and groups."""

    users: list[PrincipalOut]
    groups: list[PrincipalOut]


class GrantOut(WireModel):
    """A right to use a knowledge base; `id` is null for everyone."""

    kind: Literal["user", "group", "everyone"]
    id: Text | None
    role: Literal["reader", "editor"]

    @model_validator(mode="after")
    def check_id(self) -> Self:
        """Everyone has no id, users and groups have one."""
        if (self.kind == "everyone") != (not self.id):
            raise ValueError("give the id of the user or group; everyone has none")
        return self


class AccessOut(WireModel):
    """Whose a knowledge base is, null for the administrators', and with whom it is shared."""

    owner_id: Text | None
    grants: Annotated[list[GrantOut], Field(max_length=1000)]
