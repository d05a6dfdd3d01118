"""`python -m app users`: accounts from the command line, for machines without a browser.

It works on the data of the settings, whether Folio runs or not; a change counts at once.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from app.config import Settings
from app.domain import Role
from app.errors import FolioError, InvalidInput

if TYPE_CHECKING:  # SQLAlchemy takes a moment, which other commands need not wait
    from app.accounts import Accounts

users_cli = typer.Typer(
    no_args_is_help=True, help="Accounts, where FOLIO_AUTH=users: add, list, change, delete."
)
console = Console(soft_wrap=True, highlight=False)
FAILED = 1
Name = Annotated[str, typer.Argument(help="Name of the user; case does not matter.")]
DataDir = Annotated[Path | None, typer.Option(help="Data folder, where not that of the settings.")]
FromStdin = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from standard input.")
]


@users_cli.command()
def add(
    name: Name,
    admin: Annotated[bool, typer.Option("--admin", help="Make an administrator.")] = False,
    password_stdin: FromStdin = False,
    data_dir: DataDir = None,
) -> None:
    """Make an account; the password is asked for."""
    role: Role = "admin" if admin else "member"
    with accounts_of(data_dir) as accounts:
        from app.accounts import require_name  # noqa: PLC0415

        user = accounts.add(require_name(name), read_password(password_stdin), role)
        say(f"{user.name} can log in as {user.role}.")


@users_cli.command("list")
def list_users(data_dir: DataDir = None) -> None:
    """Show all accounts."""
    table = Table("name", "role", "active", "last seen")
    with accounts_of(data_dir) as accounts:
        for user in accounts.users.list():
            seen = f"{user.last_seen_at:%Y-%m-%d %H:%M}" if user.last_seen_at else "never"
            table.add_row(user.name, user.role, "yes" if user.is_active else "no", seen)
    console.print(table, markup=False)


@users_cli.command()
def password(name: Name, password_stdin: FromStdin = False, data_dir: DataDir = None) -> None:
    """Give a user another password; all sessions of the user end."""
    with accounts_of(data_dir) as accounts:
        user = accounts.named(name)
        accounts.change(user.id, None, None, read_password(password_stdin))
        say(f"{user.name} has another password and is logged out everywhere.")


@users_cli.command()
def disable(
    name: Name,
    undo: Annotated[bool, typer.Option("--undo", help="Let the user in again.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Shut a user out: sessions end and keys are refused."""
    with accounts_of(data_dir) as accounts:
        user = accounts.named(name)
        accounts.change(user.id, None, undo, None)
        say(f"{user.name} can log in again." if undo else f"{user.name} is shut out.")


@users_cli.command()
def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Delete a user with chats and keys; knowledge bases stay, the administrators'."""
    with accounts_of(data_dir) as accounts:
        user = accounts.named(name)
        if not yes:
            typer.confirm(f"Delete {user.name} with all chats?", abort=True)
        accounts.users.delete(user.id)
        say(f"{user.name} is deleted.")


@contextmanager
def accounts_of(data_dir: Path | None) -> Iterator["Accounts"]:
    """The accounts of the data; what goes wrong is said, and ends the command."""
    from app.wiring.accounts import open_accounts  # noqa: PLC0415

    given: dict[str, Any] = {"data_dir": data_dir} if data_dir else {}
    try:
        with open_accounts(Settings(**given)) as accounts:
            yield accounts
    except (FolioError, ValidationError) as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            f"users: {error}", style="red", markup=False
        )
        raise typer.Exit(FAILED) from error


def read_password(from_stdin: bool) -> str:
    """The first line of standard input, or what is typed twice without being shown."""
    if from_stdin:
        if line := sys.stdin.readline().rstrip("\r\n"):
            return line
        raise InvalidInput("standard input holds no password")
    typed: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    return typed


def say(message: str) -> None:
    """Tell the user in plain words."""
    console.print(message, markup=False)
