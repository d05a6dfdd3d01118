"""The Dockerfiles: linted, and true to what the docs say of them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

HADOLINT = Path(sys.executable).with_name("hadolint")


@pytest.fixture(scope="module")
def dockerfile(root):
    return (root / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def runtime(dockerfile):
    return dockerfile[dockerfile.rindex("\nFROM ") :]


@pytest.mark.parametrize("name", ["Dockerfile", "frontend/Dockerfile"])
def test_hadolint_finds_nothing(root, name):
    done = subprocess.run([HADOLINT, root / name], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_appliance_runs_as_nobody_special(runtime):
    assert re.search(r"^USER 10001:10001$", runtime, re.MULTILINE)
    assert runtime.index("USER ") > runtime.rindex("RUN ")


def test_the_health_check_needs_no_extra_program(runtime):
    check = runtime[runtime.index("HEALTHCHECK") :]
    assert '["python", "-c"' in check
    assert "/health" in check
    assert "curl" not in runtime
    assert "wget" not in runtime


def test_the_health_check_is_python_that_compiles(runtime):
    code = re.search(r'CMD \["python", "-c", "(.+)"\]', runtime)
    assert code
    compile(code[1], "HEALTHCHECK", "exec")


def test_no_tool_of_the_build_is_in_the_image(runtime):
    for tool in ("apt-get", "npm", "pip install", "nodejs"):
        assert tool not in runtime


def test_what_the_build_copies_exists_and_is_not_ignored(root, dockerfile):
    allowed = {
        line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    copied = {
        source.rstrip("/")
        for line in re.findall(r"^COPY (?!--from)(.+)$", dockerfile, re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert copied
    for source in copied:
        assert (root / source).exists(), source
        assert any(source == name or source.startswith(name + "/") for name in allowed), source


def test_settings_that_the_image_fixes_exist(runtime):
    from app.config import Settings

    names = re.findall(r"\bFOLIO_([A-Z_]+)=", runtime)
    assert names
    for name in names:
        assert name.lower() in Settings.model_fields
