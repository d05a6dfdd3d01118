from pathlib import Path

import pytest
from pydantic import ValidationError

from app.config import Settings, example_env

ROOT = Path(__file__).parent.parent


def read(**env):
    return Settings(_env_file=None, **env)


def test_example_file_lists_every_setting_with_its_default():
    assert (ROOT / ".env.example").read_text() == example_env(), (
        "refresh it: python -m app settings > .env.example"
    )


def test_copied_example_with_every_line_enabled_gives_the_defaults(tmp_path):
    env = tmp_path / ".env"
    lines = [
        line.removeprefix("#") if line.startswith(("#FOLIO_", "#LLM_")) else line
        for line in example_env().splitlines()
    ]
    env.write_text("\n".join(lines))
    assert Settings(_env_file=env) == read()


def test_environment_goes_before_the_file(tmp_path, monkeypatch):
    env = tmp_path / ".env"
    env.write_text("FOLIO_PORT=9000\nFOLIO_LOG_LEVEL=debug\n")
    monkeypatch.setenv("FOLIO_PORT", "9001")
    settings = Settings(_env_file=env)
    assert (settings.port, settings.log_level) == (9001, "debug")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FOLIO_PORT", "0"),
        ("FOLIO_PORT", "http"),
        ("FOLIO_LOG_LEVEL", "loud"),
        ("FOLIO_CHUNK_OVERLAP_TOKENS", "150"),
        ("FOLIO_TEMPERATURE", "-1"),
        ("FOLIO_ROLE", "none"),
    ],
)
def test_wrong_values_are_refused(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError):
        Settings(_env_file=None)


def test_empty_variable_means_the_default(monkeypatch):
    monkeypatch.setenv("FOLIO_API_KEY", "")
    assert Settings(_env_file=None).api_key is None


def test_secrets_are_not_shown(monkeypatch):
    monkeypatch.setenv("FOLIO_API_KEY", "geheim")
    monkeypatch.setenv("LLM_API_KEY", "geheim")
    assert "geheim" not in repr(Settings(_env_file=None))


def test_document_passwords_come_with_commas_or_as_json():
    def passwords(text):
        return Settings(_env_file=None, document_passwords=text).passwords

    assert passwords("") == ()
    assert passwords(" a, b ,") == ("a", "b")
    assert passwords('["a,b", " c"]') == ("a,b", " c")
    with pytest.raises(ValidationError, match="no JSON list of texts"):
        passwords("[1")
    with pytest.raises(ValidationError, match="32 is the most"):
        passwords(",".join("x" * 33))
