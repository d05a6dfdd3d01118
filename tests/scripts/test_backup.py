"""Backup and restore over the command line, on SQLite; on Postgres with `-m postgres`."""

import pytest
from sqlalchemy import delete, func, select
from typer.testing import CliRunner

from app.db.chats import ChatRepository
from app.db.models import Base, ChatRow
from app.db.session import Database
from app.scripts.backup import cli
from tests.db.conftest import postgres_database, postgres_server  # noqa: F401 (fixtures)

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
CONTENT = b"a file"


def run(*arguments):
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    return done.exit_code, done.output + done.stderr


def add_chat(database, title):
    ChatRepository(database).create(title, ["default"])


def titles(database):
    with database.snapshot() as session:
        return sorted(session.scalars(select(ChatRow.title)))


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def library(request, tmp_path, monkeypatch):
    """A data folder with a chat and a file; its database is closed at the end."""
    folder = tmp_path / "data"
    url = f"sqlite:///{folder / 'folio.db'}"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_database")
    monkeypatch.setenv("FOLIO_DATABASE_URL", url)
    monkeypatch.setenv("FOLIO_DATA_DIR", str(folder))
    database = Database(url)
    database.migrate()
    add_chat(database, "kept")
    kept = folder / "files" / "ab" / "abcd"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(CONTENT)
    yield database, folder
    database.close()


def test_a_restore_brings_rows_and_files_back(library, tmp_path):
    database, folder = library
    file = tmp_path / "backup.tar"
    assert run("create", file)[0] == 0
    with database.session() as session:
        session.execute(delete(ChatRow))
    (folder / "files" / "ab" / "abcd").unlink()
    code, output = run("restore", file)
    assert code == 0, output
    assert titles(database) == ["kept"]
    assert (folder / "files" / "ab" / "abcd").read_bytes() == CONTENT


def test_a_restore_deletes_nothing_without_the_flag(library, tmp_path):
    database, _ = library
    file = tmp_path / "backup.tar"
    run("create", file)
    add_chat(database, "newer")
    code, output = run("restore", file)
    assert code == 2
    assert "2 chats" in output
    assert titles(database) == ["kept", "newer"]
    assert run("restore", file, "--overwrite")[0] == 0
    assert titles(database) == ["kept"]


def test_a_backup_is_not_written_over_another_without_the_flag(library, tmp_path):
    file = tmp_path / "backup.tar"
    file.write_text("precious")
    code, output = run("create", file)
    assert code == 2
    assert "--overwrite" in output
    assert file.read_text() == "precious"


def test_what_is_no_backup_is_refused_before_anything_changes(library, tmp_path):
    database, _ = library
    file = tmp_path / "backup.tar"
    file.write_text("no tar")
    code, output = run("restore", file, "--overwrite")
    assert code == 2
    assert "no backup" in output
    assert titles(database) == ["kept"]


def test_a_backup_has_every_table(library, tmp_path):
    code, output = run("create", tmp_path / "backup.tar")
    assert code == 0, output
    for name in Base.metadata.tables:
        assert f"{name}: " in output


def test_a_backup_moves_a_library_to_another_database(library, tmp_path, monkeypatch):
    file = tmp_path / "backup.tar"
    run("create", file)
    url = f"sqlite:///{tmp_path / 'other' / 'folio.db'}"
    monkeypatch.setenv("FOLIO_DATABASE_URL", url)
    monkeypatch.setenv("FOLIO_DATA_DIR", str(tmp_path / "other"))
    code, output = run("restore", file)
    assert code == 0, output
    moved = Database(url)
    assert titles(moved) == ["kept"]
    with moved.snapshot() as session:
        assert session.scalar(select(func.count()).select_from(ChatRow)) == 1
    moved.close()
