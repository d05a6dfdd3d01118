"""What a user comes in with: sessions of browsers and keys of programs, both by their hash."""

from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy import Update, delete, func, or_, select, update

from app.db.models import ApiKeyRow, SessionRow, UserRow
from app.db.session import Database, new_id, utc_now
from app.db.users import user_of
from app.domain import ApiKey, User
from app.errors import Conflict, NotFound

MAX_SESSIONS = 50  # of one user: the oldest make room
MAX_KEYS = 100
# Being seen is a write, which on SQLite all writers wait for.
SEEN_EACH = timedelta(minutes=5)


class CredentialRepository:
    """Each call is one transaction."""

    def __init__(self, database: Database, clock: Callable[[], datetime] = utc_now) -> None:
        self._database = database
        self._clock = clock

    def open_session(self, user_id: str, token_hash: str, lifetime: timedelta) -> None:
        """Note a browser that logged in; ended sessions are forgotten."""
        now = self._clock()
        newest = (
            select(SessionRow.token_hash)
            .where(SessionRow.user_id == user_id)
            .order_by(SessionRow.seen_at.desc())
            .limit(MAX_SESSIONS - 1)
        )
        with self._database.session() as session:
            session.execute(delete(SessionRow).where(SessionRow.expires_at <= now))
            kept = session.scalars(newest).all()
            session.execute(
                delete(SessionRow).where(
                    SessionRow.user_id == user_id, SessionRow.token_hash.not_in(kept)
                )
            )
            session.add(
                SessionRow(
                    token_hash=token_hash,
                    user_id=user_id,
                    created_at=now,
                    seen_at=now,
                    expires_at=now + lifetime,
                )
            )
            session.execute(update(UserRow).where(UserRow.id == user_id).values(last_seen_at=now))

    def user_of_session(self, token_hash: str, lifetime: timedelta) -> User | None:
        """Whose session it is; it lasts `lifetime` from now on. None where it ended."""
        now = self._clock()
        statement = (
            select(UserRow, SessionRow.seen_at)
            .join(SessionRow, SessionRow.user_id == UserRow.id)
            .where(
                SessionRow.token_hash == token_hash,
                SessionRow.expires_at > now,
                UserRow.is_active,
            )
        )
        with self._database.snapshot() as session:
            row = session.execute(statement).one_or_none()
            if row is None:
                return None
            user, seen_at = user_of(session, row[0]), row[1]
        if now - seen_at >= SEEN_EACH:
            used = update(SessionRow).where(SessionRow.token_hash == token_hash)
            self._note_seen(user, now, used.values(seen_at=now, expires_at=now + lifetime))
        return user

    def close_session(self, token_hash: str) -> None:
        """Log a browser out; an unknown one is no error."""
        with self._database.session() as session:
            session.execute(delete(SessionRow).where(SessionRow.token_hash == token_hash))

    def close_sessions(self, user_id: str, but: str | None = None) -> None:
        """Log a user out everywhere, but for one session."""
        condition = [SessionRow.user_id == user_id]
        if but is not None:
            condition.append(SessionRow.token_hash != but)
        with self._database.session() as session:
            session.execute(delete(SessionRow).where(*condition))

    def add_key(
        self, user_id: str, name: str, prefix: str, key_hash: str, lifetime: timedelta | None
    ) -> ApiKey:
        """Note a key; Conflict where the user has too many."""
        now = self._clock()
        row = ApiKeyRow(
            id=new_id(),
            user_id=user_id,
            name=name,
            prefix=prefix,
            key_hash=key_hash,
            created_at=now,
            last_used_at=None,
            expires_at=now + lifetime if lifetime else None,
        )
        own = select(func.count(ApiKeyRow.id)).where(ApiKeyRow.user_id == user_id)
        with self._database.session() as session:
            if (session.scalar(own) or 0) >= MAX_KEYS:
                raise Conflict(f"you have {MAX_KEYS} keys, the most there can be: delete some")
            session.add(row)
        return key_of(row)

    def keys(self, user_id: str) -> list[ApiKey]:
        """A user's keys, the oldest first."""
        statement = (
            select(ApiKeyRow).where(ApiKeyRow.user_id == user_id).order_by(ApiKeyRow.created_at)
        )
        with self._database.snapshot() as session:
            return [key_of(row) for row in session.scalars(statement)]

    def delete_key(self, user_id: str, key_id: str) -> None:
        """Take a key of a user back; NotFound for any other."""
        statement = (
            delete(ApiKeyRow)
            .where(ApiKeyRow.id == key_id, ApiKeyRow.user_id == user_id)
            .returning(ApiKeyRow.id)
        )
        with self._database.session() as session:
            if session.scalar(statement) is None:
                raise NotFound(f"there is no key {key_id}")

    def user_of_key(self, key_hash: str) -> User | None:
        """Whose key it is; None where it is unknown or has expired."""
        now = self._clock()
        statement = (
            select(UserRow, ApiKeyRow.id, ApiKeyRow.last_used_at)
            .join(ApiKeyRow, ApiKeyRow.user_id == UserRow.id)
            .where(
                ApiKeyRow.key_hash == key_hash,
                or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > now),
                UserRow.is_active,
            )
        )
        with self._database.snapshot() as session:
            row = session.execute(statement).one_or_none()
            if row is None:
                return None
            user, key_id, used_at = user_of(session, row[0]), row[1], row[2]
        if used_at is None or now - used_at >= SEEN_EACH:
            used = update(ApiKeyRow).where(ApiKeyRow.id == key_id)
            self._note_seen(user, now, used.values(last_used_at=now))
        return user

    def _note_seen(self, user: User, now: datetime, used: Update) -> None:
        """Write that a user came in, and by what."""
        with self._database.session() as session:
            session.execute(used)
            session.execute(update(UserRow).where(UserRow.id == user.id).values(last_seen_at=now))


def key_of(row: ApiKeyRow) -> ApiKey:
    """The domain's view of a row."""
    return ApiKey(row.id, row.name, row.prefix, row.created_at, row.last_used_at, row.expires_at)
