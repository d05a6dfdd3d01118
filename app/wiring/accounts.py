"""Builds the accounts; for the command line without the rest of the appliance."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from app.accounts import AccountRecords, Accounts
from app.config import Settings
from app.db.credentials import CredentialRepository
from app.db.grants import GrantRepository
from app.db.session import Database
from app.db.users import GroupRepository, UserRepository


def make_accounts(settings: Settings, database: Database) -> Accounts:
    """The accounts in this database."""
    records = AccountRecords(
        users=UserRepository(database),
        groups=GroupRepository(database),
        credentials=CredentialRepository(database),
        grants=GrantRepository(database),
    )
    return Accounts(records, timedelta(days=settings.session_days))


def database_url(settings: Settings) -> str:
    """Where SQL lies: as set, else in the data folder."""
    return settings.database_url or f"sqlite:///{settings.data_dir.absolute() / 'folio.db'}"


@contextmanager
def open_accounts(settings: Settings) -> Iterator[Accounts]:
    """The accounts by themselves, also while an appliance works on the same data."""
    database = Database(database_url(settings))
    try:
        database.migrate()
        yield make_accounts(settings, database)
    finally:
        database.close()
