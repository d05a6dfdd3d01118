"""Backups: the rows of every table and the documents' files in one tar file.

It is the same for SQLite and Postgres, so it also moves a library from one to the other. The vector
index is not in it: it is derived, and made again at the first start after a restore.
"""

import base64
import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, LargeBinary, Table, func, insert, select, text, update

from app.db.installation import ID_FILE, join
from app.db.models import Base, IndexedDocumentRow, UtcDateTime
from app.db.session import Database
from app.errors import Conflict, InvalidInput

FORMAT = 1
DESCRIPTION = "backup.json"
BATCH = 500
Say = Callable[[str], None]


def save_backup(database: Database, data_dir: Path, file: Path, say: Say) -> None:
    """Write a backup into place at once; others may use the database meanwhile."""
    partial = file.with_name(f"{file.name}.partial")
    with tarfile.open(partial, "w") as archive:
        save_tables(database, archive, say)
        save_files(data_dir / "files", archive, say)
    partial.replace(file)


def restore_backup(
    file: Path, database: Database, data_dir: Path, say: Say, *, overwrite: bool
) -> None:
    """Put a backup back in one transaction; files first: rows name none that is not there.

    Raises Conflict where the database holds something, unless it may be overwritten.
    """
    with open_backup(file) as archive, database.session() as session:
        connection = session.connection()
        require_fitting(connection, archive)
        if not overwrite and (found := what_is_there(connection)):
            raise Conflict(
                f"{database.url.render_as_string()} holds {found} already: restore into an empty"
                " one, or add --overwrite to delete what it holds"
            )
        restore_files(data_dir / "files", archive)
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(table.delete())
        for table in Base.metadata.sorted_tables:
            restore_table(connection, archive, table, say)
        # the vectors are not in a backup: every index has to be made again
        connection.execute(update(IndexedDocumentRow).values(content_hash=""))
    (data_dir / ID_FILE).unlink(missing_ok=True)
    join(database, data_dir)


def save_tables(database: Database, archive: tarfile.TarFile, say: Say) -> None:
    """All tables as they are at one moment."""
    with database.snapshot() as session:
        connection = session.connection()
        if not database.is_sqlite:
            connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        description = {"format": FORMAT, "schema": schema_of(connection)}
        add_bytes(archive, DESCRIPTION, json.dumps(description).encode())
        for table in Base.metadata.sorted_tables:
            with tempfile.TemporaryFile() as spool:
                num_rows = 0
                for row in connection.execute(select(table)).mappings().yield_per(BATCH):
                    line = {key: encode(value) for key, value in row.items()}
                    spool.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                    num_rows += 1
                add_stream(archive, member_of(table), spool)
            say(f"{table.name}: {num_rows} rows")


def save_files(folder: Path, archive: tarfile.TarFile, say: Say) -> None:
    """The documents' files; they are named by their content and never change."""
    paths = sorted(path for path in folder.glob("??/*") if path.is_file())
    for number, path in enumerate(paths, 1):
        archive.add(path, f"files/{path.parent.name}/{path.name}")
        if number % BATCH == 0 or number == len(paths):
            say(f"files: {number} of {len(paths)}")


def restore_table(connection: Connection, archive: tarfile.TarFile, table: Table, say: Say) -> None:
    """Insert the rows in batches."""
    stream = archive.extractfile(member_of(table))
    assert stream is not None, "it was asked for in `require_fitting`"
    batch: list[dict[str, Any]] = []
    num_rows = 0
    for line in stream:
        row = json.loads(line)
        batch.append({column.name: decode(column.type, row[column.name]) for column in table.c})
        num_rows += 1
        if len(batch) == BATCH:
            connection.execute(insert(table), batch)
            batch = []
    if batch:
        connection.execute(insert(table), batch)
    say(f"{table.name}: {num_rows} rows")


def restore_files(folder: Path, archive: tarfile.TarFile) -> None:
    """Those that are there already are the same: their names are their content."""
    for member in archive:
        parts = Path(member.name).parts
        if len(parts) != 3 or parts[0] != "files" or not member.isfile() or ".." in parts:
            continue
        target = folder / parts[1] / parts[2]
        target.parent.mkdir(parents=True, exist_ok=True)
        source = archive.extractfile(member)
        assert source is not None, "a file"
        incoming = target.with_suffix(".incoming")
        with incoming.open("wb") as copy:
            shutil.copyfileobj(source, copy)
        incoming.replace(target)


def require_fitting(connection: Connection, archive: tarfile.TarFile) -> None:
    """Raise InvalidInput for what is no backup, or one of another schema."""
    names = set(archive.getnames())
    wanted = {DESCRIPTION, *map(member_of, Base.metadata.sorted_tables)}
    stream = archive.extractfile(DESCRIPTION) if DESCRIPTION in names else None
    if stream is None:
        raise InvalidInput(f"this is no backup of Folio: it has no {DESCRIPTION}")
    schema, ours = json.load(stream)["schema"], schema_of(connection)
    if schema != ours or not wanted <= names:
        raise InvalidInput(
            f"the backup has the schema {schema}, this version {ours}: restore it with the version"
            " that made it, then update"
        )


def what_is_there(connection: Connection) -> str:
    """In words what a restore would delete; empty where nothing."""
    tables = Base.metadata.tables
    counted = {
        name: connection.scalar(select(func.count()).select_from(tables[name])) or 0
        for name in ("documents", "stored_files", "chats", "users")
    }
    return ", ".join(f"{number} {name}" for name, number in counted.items() if number)


def schema_of(connection: Connection) -> str:
    """The newest migration that was run."""
    return str(connection.scalar(text("SELECT version_num FROM alembic_version")))


@contextmanager
def open_backup(file: Path) -> Iterator[tarfile.TarFile]:
    """Raise InvalidInput where it is none."""
    try:
        with tarfile.open(file) as archive:
            yield archive
    except tarfile.TarError as error:
        raise InvalidInput(f"{file} is no backup, or damaged: {error}") from error


def member_of(table: Table) -> str:
    """A table's place in the backup."""
    return f"tables/{table.name}.jsonl"


def encode(value: Any) -> Any:  # Any: whatever a column holds
    """A value of a column for JSON."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value


def decode(kind: Any, value: Any) -> Any:  # Any: whatever a column holds
    """The value that `encode` was given, by the type of its column."""
    if value is None:
        return None
    if isinstance(kind, UtcDateTime):
        return datetime.fromisoformat(value)
    return base64.b64decode(value) if isinstance(kind, LargeBinary) else value


def add_bytes(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    """A member from memory."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def add_stream(archive: tarfile.TarFile, name: str, stream: Any) -> None:  # Any: a temporary file
    """A member from a file that was written just now."""
    member = tarfile.TarInfo(name)
    member.size = stream.tell()
    stream.seek(0)
    archive.addfile(member, stream)
