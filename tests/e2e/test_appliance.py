"""The whole way of a new user, against the really started appliance; the manual is its library."""

import json
import os
import re
import subprocess
import time
from pathlib import Path

import httpx
import openai
import pytest

from app.manual import LEFT_OUT
from tests.e2e.appliance import free_port, start_appliance

STOP_S = 15  # what the server promises; how fast it starts is measured, not tested
MANUAL_TIMEOUT_S = 240
ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FRONTEND = ROOT / "frontend"
FACT = (
    "# Tide tables of Merrowby\n\n"
    "The harbour of Merrowby closes its sluice gate at 4.7 metres of tide.\n\n"
    "The gate keeper is told by radio on channel 14.\n"
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def client(appliance):
    with httpx.Client(base_url=appliance.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def with_manual(client):
    """Wait until every file of the manual is searchable."""
    wait_until(lambda: client.get("/api/status").json()["num_pending"] == 0)
    return client


def wait_until(is_so, timeout_s=MANUAL_TIMEOUT_S):
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.25)


def read_events(client, run_id, after=0):
    """The events of a run as (id, name, data)."""
    events, current = [], {}
    with client.stream("GET", f"/api/runs/{run_id}/events", params={"after": after}) as stream:
        for line in stream.iter_lines():
            key, _, value = line.partition(":")
            if key:
                current[key] = value.strip()
            elif not line and "data" in current:
                events.append((int(current["id"]), current["event"], json.loads(current["data"])))
                current = {}
    return events


def ask(client, text, chat_id=None):
    """Ask in a chat; returns the finished message and the events it came in."""
    chat_id = chat_id or client.post("/api/chats", json={}).json()["id"]
    run = client.post(f"/api/chats/{chat_id}/messages", json={"text": text}).json()
    events = read_events(client, run["run_id"])
    _, name, message = events[-1]
    assert name == "done", events[-1]
    return message, events


def upload(client, name, text):
    out = client.post("/api/documents", files={"files": (name, text.encode())}).json()
    (document,) = out["accepted"]
    path = f"/api/documents/{document['id']}"
    wait_until(lambda: client.get(path).json()["status"] in ("ready", "failed"))
    return client.get(path).json()


def test_a_question_can_be_asked_as_soon_as_the_address_is_printed(appliance, client):
    assert any(str(appliance.port) in line for line in appliance.lines)
    message, _ = ask(client, "What is Folio?")
    assert message["content"].strip()


def test_the_page_is_served(client):
    page = client.get("/")
    assert page.status_code == 200
    assert "text/html" in page.headers["content-type"]
    scripts = re.findall(r'src="([^"]+\.js)"', page.text)
    assert scripts
    assert all(client.get(f"/{path.removeprefix('./')}").status_code == 200 for path in scripts)


def test_it_is_ready_and_says_why(client):
    ready = client.get("/ready")
    assert ready.status_code == 200
    assert all(check["is_ok"] for check in ready.json()["checks"])


def test_the_whole_manual_becomes_searchable(with_manual):
    status = with_manual.get("/api/status").json()
    assert status["num_failed"] == 0
    pages = [path for path in DOCS.rglob("*.md") if path.name not in LEFT_OUT]
    assert status["num_ready"] == len(pages)
    assert status["num_chunks"] > status["num_ready"]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_sample_questions_are_answered_from_the_manual_of_their_language(with_manual, language):
    questions = with_manual.get("/api/status").json()["sample_questions"][language]
    assert questions == json.loads((DOCS / "sample_questions.json").read_text())[language]
    for question in questions:
        message, _ = ask(with_manual, question)
        assert not message["is_refusal"], question
        assert message["citations"], question
        is_chinese = bool(re.search("[\u4e00-\u9fff]", message["content"]))
        assert is_chinese == (language == "zh"), (question, message["content"])


def test_an_answer_streams_its_stages_sources_and_words(with_manual):
    message, events = ask(with_manual, "Which file formats can I add?")
    ids = [id for id, _, _ in events]
    names = [name for _, name, _ in events]
    assert ids == list(range(1, len(ids) + 1))
    assert names.index("sources") < names.index("token") < names.index("done")
    stages = [data["name"] for _, name, data in events if name == "stage"]
    assert stages == ["retrieving", "reading", "writing"]
    assert "PDF" in message["content"]


def test_a_lost_stream_goes_on_where_it_was(with_manual):
    message, events = ask(with_manual, "How do I stop Folio?")
    last_seen = next(id for id, name, _ in events if name == "sources")
    again = read_events(with_manual, message["run_id"], after=last_seen)
    assert min(id for id, _, _ in again) > last_seen
    words = [
        [data["text"] for _, name, data in part if name == "token"] for part in (events, again)
    ]
    assert "".join(words[0]) == "".join(words[1])
    assert again[-1] == events[-1]


def test_a_dropped_file_is_cited_with_its_very_words(with_manual):
    document = upload(with_manual, "tides.md", FACT)
    assert document["status"] == "ready", document["error"]
    message, _ = ask(with_manual, "At which tide does Merrowby close its sluice gate?")
    assert "4.7 metres" in message["content"]
    cited = {citation["chunk_id"] for citation in message["citations"]}
    sources = [source for source in message["sources"] if source["chunk_id"] in cited]
    assert {source["document_id"] for source in sources} == {document["id"]}
    text = with_manual.get(f"/api/documents/{document['id']}/text").json()["text"]
    assert all(text[s["start"] : s["end"]] == s["text"] for s in sources)


def test_what_is_in_no_document_is_refused_with_the_nearest_passages(with_manual):
    message, _ = ask(with_manual, "Who won the chess olympiad in Budapest?")
    assert message["is_refusal"]
    assert not message["citations"]


def test_the_openai_client_gets_the_same_answers(appliance, with_manual):
    client = openai.OpenAI(base_url=f"{appliance.url}/v1", api_key="unused")
    names = [model.id for model in client.models.list()]
    assert "folio" in names
    asked = [{"role": "user", "content": "Which file formats can I add?"}]
    whole = client.chat.completions.create(model="folio", messages=asked)
    pieces = client.chat.completions.create(model="folio", messages=asked, stream=True)
    streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert "PDF" in whole.choices[0].message.content
    assert streamed == whole.choices[0].message.content


def test_the_interface_works_in_a_browser(appliance, with_manual):
    done = subprocess.run(
        ["npm", "--prefix", FRONTEND, "run", "--silent", "e2e", "--", "--project=appliance"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
        env=os.environ | {"FOLIO_URL": appliance.url, "FAKE_PORT": str(free_port())},
    )
    assert done.returncode == 0, "\n".join(done.stdout.splitlines()[-100:])
    assert " passed" in done.stdout


def test_metrics_count_what_happened(with_manual):
    text = with_manual.get("/metrics").text
    assert re.search(r"^folio_answers_total\{.*\} [1-9]", text, re.MULTILINE)
    assert re.search(r'^folio_jobs_total\{outcome="done"\} [1-9]', text, re.MULTILINE)


def test_ctrl_c_stops_it_and_the_next_start_installs_nothing_and_keeps_everything(
    appliance, with_manual, data_dir
):
    upload(with_manual, "kept.md", "# Kept\n\nThe lighthouse of Quorn has 312 steps.\n")
    before = with_manual.get("/api/status").json()["num_ready"]
    status, seconds = appliance.stop()
    assert status == 0, appliance.lines[-20:]
    assert seconds < STOP_S
    assert "Traceback" not in "\n".join(appliance.lines)

    again = start_appliance(data_dir)
    try:
        assert not any(line.startswith("==> Installing") for line in again.lines)
        with httpx.Client(base_url=again.url, timeout=60) as client:
            assert client.get("/api/status").json()["num_ready"] == before
            message, _ = ask(client, "How many steps has the lighthouse of Quorn?")
            assert "312" in message["content"]
    finally:
        assert again.stop()[0] == 0
