"""Saves and restores what cannot be made again: `python -m app.scripts.backup create FILE`.

A backup may be made while the appliance runs; a restore wants it stopped. What is in one:
app/db/backup.py.
"""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from app.config import Settings
from app.db.backup import restore_backup, save_backup
from app.db.installation import own_folder
from app.db.session import Database
from app.errors import Conflict, FolioError, InvalidInput
from app.wiring.accounts import database_url

CANNOT = 2
cli = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__.partition("\n\n")[0])
console = Console(stderr=True, soft_wrap=True, highlight=False)
DataDir = Annotated[Path | None, typer.Option(help="Data folder, where not that of the settings.")]


@cli.command()
def create(
    file: Annotated[Path, typer.Argument(help="The backup to write.")],
    data_dir: DataDir = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file where it exists.")
    ] = False,
) -> None:
    """Write a backup; the appliance may go on meanwhile."""
    with exit_codes():
        if file.exists() and not overwrite:
            raise Conflict(f"{file} exists: name another file, or add --overwrite")
        settings = read_settings(data_dir)
        with closing(open_database(settings)) as database:
            save_backup(database, settings.data_dir, file, say)
        say(f"{file}: {file.stat().st_size / 1e6:.1f} MB")


@cli.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A backup that `create` wrote.", exists=True)],
    data_dir: DataDir = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete what the database holds now.")
    ] = False,
) -> None:
    """Put a backup into the database and the data folder; the appliance has to be stopped."""
    with exit_codes():
        settings = read_settings(data_dir)
        owner = own_folder(settings.data_dir.absolute())
        try:
            with closing(open_database(settings)) as database:
                folder = settings.data_dir.absolute()
                restore_backup(file, database, folder, say, overwrite=overwrite)
        finally:
            os.close(owner)
        say("restored; the index is made again at the next start")


def open_database(settings: Settings) -> Database:
    """At the newest schema."""
    database = Database(database_url(settings))
    database.migrate()
    return database


def read_settings(data_dir: Path | None) -> Settings:
    """Raise InvalidInput where they are wrong."""
    try:
        return Settings(**({"data_dir": data_dir} if data_dir else {}))  # type: ignore[arg-type] # by name
    except ValidationError as error:
        raise InvalidInput(f"wrong settings: {error}") from error


@contextmanager
def exit_codes() -> Iterator[None]:
    """Say what went wrong, and end with status 2."""
    try:
        yield
    except (FolioError, OSError) as error:
        say(f"backup: {error}")
        raise typer.Exit(CANNOT) from error


def say(line: str) -> None:
    """Progress, for the operator."""
    console.print(line, markup=False)


if __name__ == "__main__":
    cli()
