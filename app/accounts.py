"""Accounts: who comes in, by password, session or key, and what they may then use."""

import base64
import logging
import secrets
from dataclasses import dataclass
from datetime import timedelta

from app.db.credentials import CredentialRepository
from app.db.grants import GrantRepository
from app.db.users import GroupRepository, UserRepository, key_of
from app.domain import Access, ApiKey, Role, User
from app.errors import InvalidInput, NotFound, Unauthorized
from app.manual import COLLECTION as MANUAL
from app.manual import SOURCE as MANUAL_SOURCE
from app.passwords import Guesses, Passwords, hash_of, new_token

logger = logging.getLogger(__name__)
KEY_PREFIX = "folio-"
NUM_SHOWN = 12  # characters of a key by which its owner tells it from others
SETUP_CODE_BYTES = 10
WRONG = "the name or the password is wrong"


@dataclass(frozen=True, slots=True)
class AccountRecords:
    """The repositories of accounts."""

    users: UserRepository
    groups: GroupRepository
    credentials: CredentialRepository
    grants: GrantRepository


class Accounts:
    """Its calls block. A session lasts `session_lifetime` from when it was last used."""

    def __init__(self, records: AccountRecords, session_lifetime: timedelta) -> None:
        self.users = records.users
        self.groups = records.groups
        self.grants = records.grants
        self._credentials = records.credentials
        self._lifetime = session_lifetime
        self._passwords = Passwords()
        self._guesses = Guesses()

    @property
    def session_lifetime(self) -> timedelta:
        """How long a browser stays logged in that is not used."""
        return self._lifetime

    def begin_setup(self) -> str | None:
        """A new code that makes the first account; None where there is one. Older codes end."""
        if self.users.count():
            return None
        code = base64.b32encode(secrets.token_bytes(SETUP_CODE_BYTES)).decode()
        self.users.expect_setup(hash_of(code))
        return "-".join(code[at : at + 4] for at in range(0, len(code), 4))

    def set_up(self, code: str, name: str, password: str, address: str) -> tuple[User, str]:
        """Make the first administrator, who is then logged in: the user and the session's token."""
        self._guesses.begin(f"setup from {address}", address)
        password_hash = self._passwords.hash(password)
        plain = code.replace("-", "").replace(" ", "").upper()
        user = self.users.create_first(name, password_hash, hash_of(plain))
        if user is None:
            self._guesses.failed(address)
            raise Unauthorized(
                "the setup code is wrong or was used: the newest one stands where Folio runs, in "
                "the terminal or the log"
            )
        self._guesses.succeeded(f"setup from {address}")
        self.publish_manual()
        logger.info("first account made user_id=%s", user.id)
        return user, self._open_session(user)

    def log_in(self, name: str, password: str, address: str) -> tuple[User, str]:
        """The user and the token of a new session; Unauthorized whatever was wrong."""
        return (user := self._recognise(name, password, address)), self._open_session(user)

    def log_out(self, token: str) -> None:
        """End a session; an unknown one is no error."""
        self._credentials.close_session(hash_of(token))

    def add(self, name: str, password: str, role: Role) -> User:
        """A new user; the first one gets the chats and files of before."""
        is_first = self.users.count() == 0
        user = self.users.create(name, self._passwords.hash(password), role)
        if is_first:
            self.users.adopt(user.id)
            self.publish_manual()
        return user

    def change(
        self, user_id: str, role: Role | None, is_active: bool | None, password: str | None
    ) -> User:
        """Change a user; another password, or none to come in by, ends the sessions."""
        password_hash = None if password is None else self._passwords.hash(password)
        user = self.users.change(user_id, role, is_active, password_hash)
        if password is not None or is_active is False:
            self._credentials.close_sessions(user_id)
        return user

    def change_password(
        self, user: User, current: str, new: str, token: str | None, address: str
    ) -> User:
        """Change one's own password; all sessions but this one end."""
        self._recognise(user.name, current, address)
        changed = self.users.change(user.id, password_hash=self._passwords.hash(new))
        self._credentials.close_sessions(user.id, but=hash_of(token) if token else None)
        return changed

    def keys(self, user_id: str) -> list[ApiKey]:
        """A user's keys."""
        return self._credentials.keys(user_id)

    def make_key(self, user_id: str, name: str, lifetime: timedelta | None) -> tuple[ApiKey, str]:
        """A new key, which is never shown again."""
        key = KEY_PREFIX + new_token()
        prefix = key[:NUM_SHOWN]
        return self._credentials.add_key(user_id, name, prefix, hash_of(key), lifetime), key

    def delete_key(self, user_id: str, key_id: str) -> None:
        """Take a key back; NotFound where it is not this user's."""
        self._credentials.delete_key(user_id, key_id)

    def by_session(self, token: str) -> User | None:
        """Whose session it is; None where it ended."""
        return self._credentials.user_of_session(hash_of(token), self._lifetime)

    def by_key(self, key: str) -> User | None:
        """Whose key it is; None where it is unknown, expired or taken back."""
        return self._credentials.user_of_key(hash_of(key))

    def access_of(self, user: User) -> Access:
        """What a user may use at this moment."""
        if user.role == "admin":
            return Access(user.id, is_admin=True)
        return Access(user.id, is_admin=False, roles=self.grants.roles(user))

    def publish_manual(self) -> None:
        """Let everyone read Folio's manual, unless other documents are in its knowledge base."""
        self.grants.publish(MANUAL, MANUAL_SOURCE)

    def named(self, name: str) -> User:
        """The user of this name, without case; NotFound where there is none."""
        known = self.users.by_name(name)
        if known is None:
            raise NotFound(f"there is no user named {name!r}")
        return known[0]

    def _recognise(self, name: str, password: str, address: str) -> User:
        name_key = key_of(name)
        self._guesses.begin(name_key, address)
        known = self.users.by_name(name)
        user, password_hash = known or (None, None)
        is_right = self._passwords.verify(password, password_hash)
        if user is None or not is_right or not user.is_active:
            self._guesses.failed(address)
            raise Unauthorized(WRONG)
        self._guesses.succeeded(name_key)
        return user

    def _open_session(self, user: User) -> str:
        token = new_token()
        self._credentials.open_session(user.id, hash_of(token), self._lifetime)
        return token


def require_name(name: str) -> str:
    """The name without space around it; InvalidInput for none, or one too long or unprintable."""
    name = name.strip()
    if not 0 < len(name) <= 100 or not name.isprintable():
        raise InvalidInput(f"the name {name[:120]!r} must be 1 to 100 printable characters")
    return name
