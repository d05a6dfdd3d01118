import threading

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from app.db.models import Base
from app.db.session import Database
from app.errors import Conflict, Unavailable


def test_models_and_migrations_agree(database):
    with database._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_migrating_again_changes_nothing(database):
    database.migrate()
    with database.snapshot() as session:
        assert session.scalars(text("SELECT name FROM collections")).all() == ["default"]


def test_processes_that_start_at_once_migrate_once(tmp_path):
    url = f"sqlite:///{tmp_path}/new/folio.db"
    databases = [Database(url) for _ in range(4)]
    threads = [threading.Thread(target=database.migrate) for database in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    with databases[0].snapshot() as session:
        assert session.scalar(text("SELECT count(*) FROM alembic_version")) == 1
        assert session.scalar(text("SELECT count(*) FROM collections")) == 1
    for database in databases:
        database.close()


def test_sqlite_is_set_up_for_readers_beside_a_writer(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/folio.db")
    database.migrate()
    with database.session() as writer, database.snapshot() as reader:
        writer.execute(text("UPDATE collections SET name = 'renamed'"))
        assert reader.scalar(text("SELECT name FROM collections")) == "default"
        assert reader.scalar(text("PRAGMA journal_mode")) == "wal"
        assert reader.scalar(text("PRAGMA foreign_keys")) == 1
    database.close()


def test_failed_transaction_leaves_nothing(database):
    with pytest.raises(ZeroDivisionError), database.session() as session:
        session.execute(text("DELETE FROM collections"))
        raise ZeroDivisionError
    with database.snapshot() as session:
        assert session.scalar(text("SELECT count(*) FROM collections")) == 1


def test_database_that_does_not_answer_is_unavailable(tmp_path):
    database = Database("postgresql://nobody@/nothing?host=/nowhere")
    with pytest.raises(Unavailable, match="the database does not answer"):
        database.migrate()
    database.close()


def test_one_process_owns_a_sqlite_file(tmp_path):
    url = f"sqlite:///{tmp_path}/folio.db"
    first, second = Database(url), Database(url)
    first.own()
    with pytest.raises(Conflict, match=r"process \d+ works on"):
        second.own()
    first.close()
    second.own()
    second.close()
