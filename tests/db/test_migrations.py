import threading

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from app.db.chunks import ChunkRepository
from app.db.documents import DocumentRepository
from app.db.models import Base
from app.db.session import Database, migration_config
from app.db.users import UserRepository
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


@pytest.fixture
def database_of_schema_6(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/old.db")
    with database._engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
        command.upgrade(migration_config(connection), "0006")
        connection.commit()
    yield database
    database.close()


def test_chunks_texts_and_terms_of_before_belong_to_the_index_of_most_documents(
    database_of_schema_6,
):
    database = database_of_schema_6
    with database.session() as session:
        for id, index in (("a", "'main'"), ("b", "'main'"), ("c", "'other'"), ("d", "NULL")):
            session.execute(
                text(
                    "INSERT INTO documents (id, collection_id, source, path, name, media_type,"
                    " content_hash, indexed_hash, indexed_by, num_bytes, title, num_chunks,"
                    f" created_at, updated_at) VALUES ('{id}', 'default', 'folder', '{id}', '{id}',"
                    f" 'text/plain', 'h{id}', 'h{id}', {index}, 1, '', 1, '2026-01-01',"
                    " '2026-01-01')"
                )
            )
            session.execute(text(f"INSERT INTO document_texts VALUES ('{id}', 'text of {id}')"))
            session.execute(
                text(
                    'INSERT INTO chunks (id, document_id, position, start, "end", text,'
                    " heading_path, num_tokens, boxes, term_ids) VALUES"
                    f" ('chunk-{id}', '{id}', 0, 0, 1, 't', '[]', 1, '[]', x'')"
                )
            )
        session.execute(text("INSERT INTO terms VALUES (7, 4)"))
        session.execute(text("INSERT INTO stale_vectors VALUES ('x', 'a')"))
    database.migrate()
    with database.snapshot() as session:
        held = session.execute(
            text("SELECT document_id, index_name, content_hash, text FROM indexed_documents")
        ).all()
        assert sorted(held) == [
            ("a", "main", "ha", "text of a"),
            ("b", "main", "hb", "text of b"),
            ("c", "main", "", "text of c"),
            ("d", "main", "", "text of d"),
        ]
        assert session.execute(text("SELECT DISTINCT index_name FROM chunks")).all() == [("main",)]
        assert session.execute(text("SELECT * FROM index_terms")).all() == [("main", 7, 4)]
        assert session.execute(text("SELECT chunk_id, index_name FROM stale_vectors")).all() == [
            ("x", "main")
        ]
    documents = DocumentRepository(database)
    assert documents.num_chunks_in("main") == 2
    assert documents.text("a") == "text of a"
    assert documents.text("d") == "text of d"
    assert {hit.chunk.document_id for hit in hits_of(database, "abcd")} == set("abcd")


def hits_of(database, document_ids):
    return ChunkRepository(database).hits([f"chunk-{id}" for id in document_ids]).values()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_of_schema_9(request, tmp_path):
    url = f"sqlite:///{tmp_path}/old.db"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_database")
    database = Database(url)
    with database._engine.connect() as connection:
        command.upgrade(migration_config(connection), "0009")
        connection.commit()
    yield database
    database.close()


def test_what_was_there_before_accounts_belongs_to_nobody(database_of_schema_9):
    database = database_of_schema_9
    with database.session() as session:
        for statement in (
            "INSERT INTO collections (id, name, created_at) VALUES ('c', 'C', '2026-01-01')",
            "INSERT INTO chats (id, title, collection_ids, created_at, updated_at)"
            " VALUES ('chat', 'T', '[]', '2026-01-01', '2026-01-01')",
            "INSERT INTO stored_files (id, name, media_type, content_hash, num_bytes, created_at)"
            " VALUES ('file-1', 'a', 'text/plain', 'h', 1, '2026-01-01')",
        ):
            session.execute(text(statement))
    database.migrate()
    with database.snapshot() as session:
        assert session.scalars(text("SELECT owner_id FROM collections")).all() == [None, None]
        assert session.scalars(text("SELECT owner_id FROM chats")).all() == [""]
        assert session.scalars(text("SELECT owner_id FROM stored_files")).all() == [""]
    users = UserRepository(database)
    users.expect_setup("code")
    first = users.create_first("Ada", "hash", "code")
    with database.snapshot() as session:
        assert session.scalars(text("SELECT owner_id FROM chats")).all() == [first.id]
        assert session.scalars(text("SELECT owner_id FROM stored_files")).all() == [first.id]


def test_accounts_can_be_migrated_back(database_of_schema_9):
    database = database_of_schema_9
    database.migrate()
    with database._engine.connect() as connection:
        command.downgrade(migration_config(connection), "0009")
        connection.commit()
    with database.snapshot() as session:
        assert session.scalar(text("SELECT count(*) FROM chats")) == 0
    database.migrate()
