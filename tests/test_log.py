import json
import logging
import re

import pytest

from app import log


@pytest.fixture
def output(capsys):
    """Reads what was written to standard error; the root logger is put back at the end."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield lambda: capsys.readouterr().err
    root.handlers[:] = handlers
    root.setLevel(level)


def test_text_event_is_one_line_whatever_its_values_hold(output):
    log.configure("info", "text")
    logging.getLogger("app.x").info("file added name=%s", "a\nINFO forged")
    (line,) = output().splitlines()
    assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z INFO app\.x file added name=a\\nINFO forged$", line)


def test_json_event_is_one_object_with_the_traceback_inside(output):
    log.configure("info", "json")
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("app.x").exception("it failed id=%d", 7)
    (line,) = output().splitlines()
    event = json.loads(line)
    assert (event["level"], event["logger"], event["message"]) == (
        "error",
        "app.x",
        "it failed id=7",
    )
    assert "ValueError: broken" in event["traceback"]


def test_third_parties_are_quiet_and_the_level_counts(output):
    log.configure("info", "text")
    logging.getLogger("httpx").info("GET …")
    logging.getLogger("app.x").debug("detail")
    assert output() == ""
