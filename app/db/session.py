"""Database: the engine, its transactions and its migrations. SQLite by default, Postgres by URL."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnection
from sqlalchemy.orm import Session

from app.errors import Conflict, InvalidInput, Unavailable

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_S = 30
MIGRATION_LOCK = 0x464F4C49  # any number, the same in every process


class Database:
    """Hands out sessions, each of which is one transaction. Safe from several threads."""

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        if self.url.drivername in ("postgresql", "postgres"):
            self.url = self.url.set(drivername="postgresql+psycopg")
        self._engine = make_engine(self.url.render_as_string(hide_password=False))
        self._reader = self._engine.execution_options(folio_read_only=True)
        self._lock: int | None = None  # a file descriptor

    @property
    def is_sqlite(self) -> bool:
        """True where one process at a time owns the data."""
        return self.url.get_backend_name() == "sqlite"

    def migrate(self) -> None:
        """Bring the schema to the newest version; safe when several processes start at once."""
        if self.is_sqlite and self.url.database:
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
        with foreign_errors(), self._engine.begin() as connection:
            if not self.is_sqlite:
                connection.execute(
                    text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK}
                )
            command.upgrade(migration_config(connection), "head")

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A transaction that writes: committed at the end, rolled back on an exception."""
        with (
            foreign_errors(),
            Session(self._engine, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """A transaction that only reads; on SQLite it neither waits for writers nor stops them."""
        with (
            foreign_errors(),
            Session(self._reader, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    def own(self) -> None:
        """Make this process the one that works on the SQLite file, until `close` or its death.

        Conflict when another one does. On Postgres several may, so nothing is locked there.
        """
        if self.is_sqlite and self.url.database and self._lock is None:
            self._lock = lock_file(Path(f"{self.url.database}.lock"))

    def check(self) -> str:
        """A real query; returns what answered."""
        with self.snapshot() as session:
            session.execute(text("SELECT count(*) FROM collections"))
        return str(self.url.get_backend_name())

    def num_bytes(self) -> int:
        """What the database takes on the disk, indexes included."""
        size = "pg_database_size(current_database())"
        if self.is_sqlite:
            size = "page_count * page_size FROM pragma_page_count(), pragma_page_size()"
        with self.snapshot() as session:
            return int(session.scalar(text(f"SELECT {size}")) or 0)

    def close(self) -> None:
        """Close every connection and let go of the file."""
        self._engine.dispose()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def migration_config(connection: Connection) -> Config:
    """Alembic's configuration in memory: the migrations travel inside the package."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def lock_file(path: Path) -> int:
    """Lock a file for this process and return its descriptor; the kernel unlocks it at our death.

    Conflict, with the owner's process id, when another holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.read(descriptor, 32).decode(errors="replace").strip()
        os.close(descriptor)
        raise Conflict(
            f"process {owner or '?'} works on {path.parent} already: stop it, or send the files"
            " to its address"
        ) from error
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    return descriptor


def utc_now() -> datetime:
    """The clock of the tables."""
    return datetime.now(UTC)


def new_id() -> str:
    """A random id: uuid4 in hex."""
    return uuid4().hex


def insert_of(session: Session) -> Any:  # Any: the two dialects' inserts share no type
    """The INSERT of this database that knows ON CONFLICT."""
    is_sqlite = session.get_bind().dialect.name == "sqlite"
    return sqlite.insert if is_sqlite else postgresql.insert


def like(query: str) -> str:
    """A LIKE pattern, escaped by a backslash, for text that contains `query`."""
    escaped = query.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


@contextmanager
def foreign_errors() -> Iterator[None]:
    """Turn a database that does not answer, or does not take a value, into our error."""
    try:
        yield
    except OperationalError as error:
        raise Unavailable(f"the database does not answer: {error.orig}") from error
    except NoConnection as error:
        raise Unavailable("all connections to the database are in use: try again") from error
    except DataError as error:  # as a NUL in an id, on Postgres
        raise InvalidInput(f"the database does not take this value: {error.orig}") from error


def make_engine(url: str) -> Engine:
    """An engine with SQLite's transactions put right: see `begin`."""
    if not url.startswith("sqlite"):
        return create_engine(url, pool_size=10, max_overflow=20, pool_pre_ping=True)
    engine = create_engine(
        url, pool_size=10, max_overflow=50, connect_args={"timeout": BUSY_TIMEOUT_S}
    )
    event.listen(engine, "connect", configure_sqlite)
    event.listen(engine, "begin", begin)
    return engine


def configure_sqlite(connection: Any, _record: object) -> None:  # Any: the DBAPI is untyped
    """Set what each new connection needs.

    WAL: readers and the writer do not stop each other. FULL: a commit survives a power cut.
    isolation_level None: the driver starts no transaction by itself, see `begin`.
    """
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def begin(connection: Connection) -> None:
    """Take the write lock at the start of a writing transaction.

    A deferred transaction that reads and then writes fails at once, without the busy timeout,
    when another wrote in between.
    """
    read_only = connection.get_execution_options().get("folio_read_only")
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
