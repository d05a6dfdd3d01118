"""The frontend's own suites, run from here so that one command runs every test."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e.appliance import free_port

FRONTEND = Path(__file__).parents[2] / "frontend"

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def run_npm(*arguments):
    done = subprocess.run(
        ["npm", "--prefix", FRONTEND, "run", "--silent", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=880,
        env=os.environ | {"FAKE_PORT": str(free_port())},
    )
    assert done.returncode == 0, "\n".join(done.stdout.splitlines()[-200:])
    return done.stdout


def test_unit_tests_of_the_frontend_pass():
    assert "Tests" in run_npm("test")


def test_the_frontend_works_in_a_browser():
    assert " passed" in run_npm("e2e", "--", "--project=fake")
