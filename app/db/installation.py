"""The data folder: one process at a time, and only with the database that knows its files."""

from pathlib import Path

from sqlalchemy import select

from app.db.models import InstallationRow
from app.db.session import Database, lock_file
from app.errors import InvalidInput

LOCK_FILE = "folio.lock"
ID_FILE = "installation-id"


def own_folder(folder: Path) -> int:
    """Make this process the one that works on a data folder, whatever its database is.

    Returns the descriptor that holds it; its close, or our death, lets go. Conflict when another
    process holds it.
    """
    return lock_file(folder / LOCK_FILE)


def join(database: Database, folder: Path) -> None:
    """Note in the folder which database it belongs to; InvalidInput when that is another one."""
    with database.snapshot() as session:
        wanted = session.scalars(select(InstallationRow.id)).one()
    file = folder / ID_FILE
    if not file.exists():
        incoming = file.with_suffix(".new")
        incoming.write_text(wanted)
        incoming.replace(file)
    elif file.read_text().strip() != wanted:
        raise InvalidInput(
            f"the data folder {folder} belongs to another database than"
            f" {database.url.render_as_string()}: set FOLIO_DATABASE_URL or FOLIO_DATA_DIR to what"
            f" it was; to go on with this database, which knows none of these files, delete {file}"
        )
