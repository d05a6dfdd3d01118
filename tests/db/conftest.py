"""Each repository test runs on SQLite; with `-m postgres` also on a throw-away Postgres."""

import os
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from app.db.session import Database

PORT = 8654  # names the socket only: nothing listens on the network


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request, tmp_path):
    if request.param == "sqlite":
        database = Database(f"sqlite:///{tmp_path}/folio.db")
    else:
        database = Database(request.getfixturevalue("postgres_database"))
    database.migrate()
    yield database
    database.close()


@pytest.fixture
def postgres_database(postgres_server):
    """The URL of a new, empty database."""
    name = f"test_{uuid.uuid4().hex}"
    engine = create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return postgres_server.replace("/postgres?", f"/{name}?")


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory):
    """A Postgres that this run starts and ends, as another user where we are root."""
    programs = find_programs()
    if programs is None:
        pytest.fail("Postgres is not installed (apt install postgresql)")
    folder = Path("/tmp") / f"folio-postgres-{uuid.uuid4().hex[:8]}"  # a socket's path is short
    user = "postgres" if os.geteuid() == 0 else None
    folder.mkdir(mode=0o700)
    if user:
        shutil.chown(folder, user)

    def run(program, *arguments):
        subprocess.run(
            [programs / program, "-D", folder / "data", *arguments],
            user=user,
            cwd=folder,
            check=True,
            timeout=60,
            stdout=subprocess.DEVNULL,
        )

    run("initdb", "-A", "trust", "-U", "folio", "--no-sync")
    options = f"-c listen_addresses='' -c port={PORT} -c fsync=off -k {folder}"
    run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
    yield f"postgresql://folio@/postgres?host={folder}&port={PORT}"
    run("pg_ctl", "-w", "-m", "immediate", "stop")
    shutil.rmtree(folder)


def find_programs():
    """The folder of initdb and pg_ctl, which Debian keeps off the PATH."""
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return installed[-1].parent if installed else None
