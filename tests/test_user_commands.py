"""`python -m app users`, as one types it."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.__main__ import cli
from app.config import Settings
from app.wiring.accounts import open_accounts

PASSWORD = "correct horse"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def invoke(*words, text=""):
        return CliRunner().invoke(cli, ["users", *words, "--data-dir", str(tmp_path)], input=text)

    return invoke


@pytest.fixture
def accounts(tmp_path, run):
    assert run("add", "Ada", "--admin", "--password-stdin", text=f"{PASSWORD}\n").exit_code == 0
    settings = Settings(_env_file=None, data_dir=tmp_path)
    with open_accounts(settings) as accounts:
        yield accounts


def test_account_is_made_with_a_password_from_standard_input(accounts):
    user, _ = accounts.log_in("ada", PASSWORD, "")
    assert user.role == "admin"


def test_password_is_asked_for_twice_and_not_shown(run, accounts):
    typed = f"{PASSWORD} 2\n{PASSWORD} 2\n"
    added = run("add", "Eve", text=typed)
    assert added.exit_code == 0, added.output
    assert PASSWORD not in added.output
    assert accounts.log_in("eve", f"{PASSWORD} 2", "")[0].role == "member"


def test_accounts_are_listed(run, accounts):
    run("add", "Eve", "--password-stdin", text=PASSWORD)
    run("disable", "eve")
    listed = [line.split() for line in run("list").output.splitlines()]
    assert ["│", "Ada", "│", "admin", "│", "yes", "│", "never", "│"] in listed
    assert ["│", "Eve", "│", "member", "│", "no", "│", "never", "│"] in listed


def test_another_password_ends_the_sessions(run, accounts):
    _, token = accounts.log_in("ada", PASSWORD, "")
    assert run("password", "ADA", "--password-stdin", text="another horse").exit_code == 0
    assert accounts.by_session(token) is None
    assert accounts.log_in("ada", "another horse", "")


def test_somebody_is_shut_out_and_let_in_again(run, accounts):
    eve = accounts.add("Eve", PASSWORD, "member")
    assert run("disable", "Eve").exit_code == 0
    assert not accounts.users.get(eve.id).is_active
    assert run("disable", "Eve", "--undo").exit_code == 0
    assert accounts.users.get(eve.id).is_active


def test_deleting_asks_first(run, accounts):
    accounts.add("Eve", PASSWORD, "member")
    assert run("delete", "Eve", text="n\n").exit_code != 0
    assert accounts.users.count() == 2
    assert run("delete", "Eve", "--yes").exit_code == 0
    assert accounts.users.count() == 1


@pytest.mark.parametrize(
    ("words", "text", "reason"),
    [
        (("add", "ADA", "--password-stdin"), PASSWORD, "exists already"),
        (("add", "Eve", "--password-stdin"), "short", "must have 8 to 256"),
        (("add", "Eve", "--password-stdin"), "", "holds no password"),
        (("add", " ", "--password-stdin"), PASSWORD, "1 to 100 printable characters"),
        (("password", "nobody", "--password-stdin"), PASSWORD, "no user named 'nobody'"),
        (("disable", "Ada"), "", "last active administrator"),
        (("delete", "Ada", "--yes"), "", "last active administrator"),
    ],
)
def test_mistakes_are_told_in_words(run, accounts, words, text, reason):
    ended = run(*words, text=text)
    assert ended.exit_code == 1
    assert reason in " ".join(ended.output.split())
    assert accounts.users.count() == 1


def test_it_works_beside_an_appliance_on_the_same_data(run, accounts, tmp_path):
    hold = (
        "import sys, time; from app.db.session import Database;"
        f" d = Database('sqlite:///{tmp_path}/folio.db'); d.own(); print('own', flush=True);"
        " time.sleep(30)"
    )
    root = Path(__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True, cwd=root
    ) as owner:
        assert owner.stdout.readline() == "own\n"
        try:
            assert run("add", "Eve", "--password-stdin", text=PASSWORD).exit_code == 0
        finally:
            owner.kill()
    assert accounts.users.count() == 2
