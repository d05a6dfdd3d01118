"""The whole way once, on real parts: a served process, SQLite, Milvus Lite, MiniLM, extractive."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import openai
import pytest

from tests.api.test_chats import ask, follow, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
ROOT = Path(__file__).parent.parent.parent
HANDBOOK = """# Employee handbook

## Holidays

Every employee has twenty-six days of paid leave a year. Unused days may be carried over until
the end of March of the following year.

## Travel

Train journeys are booked in second class. Flights need the written consent of the team lead.
"""
RULES = "# 报销制度\n\n出差住宿费每晚最高报销四百五十元，超出部分由员工自行承担。\n"


class Appliance:
    """`python -m app serve` in a process of its own."""

    def __init__(self, data_dir: Path, **env: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = serve("--port", str(self.port), "--data-dir", str(data_dir), **env)

    def wait_until_ready(self, http: httpx.Client) -> None:
        """Return when a question can be asked."""

        def is_ready() -> bool:
            assert self.process.poll() is None, self.process.communicate()[0]
            try:
                return http.get("/ready").status_code == 200
            except httpx.ConnectError:
                return False

        wait_for(is_ready, 90)

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """The exit status and what was printed."""
        self.process.send_signal(number)
        printed, _ = self.process.communicate(timeout=30)
        return self.process.returncode, printed


def serve(*options: str, **env: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "app", "serve", "--no-manual", *options],
        cwd=ROOT,
        env=os.environ | {"LLM_MODEL": "extractive", "FOLIO_NUM_THREADS": "1"} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def processor_seconds(pid: int) -> float:
    """What the process has used so far, in user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def appliance(data_dir):
    appliance = Appliance(data_dir)
    yield appliance
    appliance.process.kill()
    appliance.process.communicate()


@pytest.fixture(scope="module")
def http(appliance):
    with httpx.Client(base_url=appliance.url, timeout=30) as http:
        appliance.wait_until_ready(http)
        yield http


def upload(http, **files):
    parts = [("files", (f"{name}.md", text.encode())) for name, text in files.items()]
    reply = http.post("/api/documents", files=parts).json()
    assert not reply["rejected"], reply
    return {document["name"]: document for document in reply["accepted"]}


def wait_until_searchable(http, document):
    def status():
        current = http.get(f"/api/documents/{document['id']}").json()
        assert current["status"] != "failed", current["error"]
        return current if current["status"] == "ready" else None

    return wait_for(status, 60)


@pytest.fixture(scope="module")
def library(http):
    documents = upload(http, handbook=HANDBOOK, rules=RULES)
    return {name: wait_until_searchable(http, document) for name, document in documents.items()}


def answer_to(http, question, **fields):
    chat = http.post("/api/chats", json={}).json()
    run = ask(http, chat, question, **fields)
    *_, (_, name, message) = follow(http, run["run_id"])
    assert name == "done"
    return message


@pytest.mark.parametrize(
    ("question", "document", "fact"),
    [
        ("How many days of paid leave does an employee have?", "handbook.md", "twenty-six"),
        ("出差住宿费每晚最高报销多少？", "rules.md", "四百五十元"),
    ],
)
def test_question_is_answered_with_a_citation_that_opens_the_passage(
    http, library, question, document, fact
):
    message = answer_to(http, question)
    assert fact in message["content"]
    assert not message["is_refusal"]
    citation = message["citations"][0]
    (source,) = [s for s in message["sources"] if s["chunk_id"] == citation["chunk_id"]]
    assert source["document_name"] == document
    text = http.get(f"/api/documents/{source['document_id']}/text").json()["text"]
    assert text[source["start"] : source["end"]] == source["text"]
    assert fact in source["text"]
    chunk = http.get(f"/api/documents/{source['document_id']}/chunks/{source['chunk_id']}").json()
    assert (chunk["text"], chunk["start"]) == (source["text"], source["start"])
    file = http.get(f"/api/documents/{source['document_id']}/file")
    assert file.content.decode() in (HANDBOOK, RULES)


def test_what_is_not_in_the_documents_is_refused_with_the_nearest_passages(http, library):
    message = answer_to(http, "What is the boiling point of tungsten?")
    assert message["is_refusal"]
    assert message["citations"] == []


def test_openai_client_gets_the_same_answer_streamed(appliance, http, library):
    client = openai.OpenAI(base_url=f"{appliance.url}/v1", api_key="any")
    question = "Whose written consent do flights need?"
    stream = client.chat.completions.create(
        model="folio", messages=[{"role": "user", "content": question}], stream=True
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == answer_to(http, question)["content"]
    assert "team lead" in text
    assert chunks[-1].sources[0]["document_name"] == "handbook.md"
    client.close()


def test_deleted_document_is_not_found_any_more(http, library):
    secret = "# Safe\n\nThe combination of the safe in the cellar is 4711.\n"
    document = upload(http, safe=secret)["safe.md"]
    wait_until_searchable(http, document)
    search = {"query": "combination of the safe"}
    hits = http.post("/api/search", json=search).json()["hits"]
    assert hits[0]["document_name"] == "safe.md"
    assert http.delete(f"/api/documents/{document['id']}").status_code == 204
    hits = http.post("/api/search", json=search).json()["hits"]
    assert "safe.md" not in {hit["document_name"] for hit in hits}


def test_second_process_on_the_same_data_folder_is_told_so_in_one_line(appliance, http, data_dir):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    second = serve("--port", str(port), "--data-dir", str(data_dir))
    printed, _ = second.communicate(timeout=30)
    assert second.returncode == 2
    assert printed.startswith("Folio cannot start: process")
    assert len(printed.splitlines()) == 1


def test_taken_port_is_told_in_one_line(appliance, http, tmp_path):
    second = serve("--port", str(appliance.port), "--data-dir", str(tmp_path))
    printed, _ = second.communicate(timeout=30)
    assert second.returncode == 2
    assert printed.startswith(f"Folio cannot start: cannot listen on 127.0.0.1:{appliance.port}")
    assert len(printed.splitlines()) == 1


def test_wrong_setting_is_told_in_one_line(tmp_path):
    process = serve("--port", "99999", "--data-dir", str(tmp_path))
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == 2
    assert printed.startswith("Folio cannot start: wrong settings: FOLIO_PORT=99999: ")
    assert len(printed.splitlines()) == 1


def test_named_model_that_is_not_there_ends_the_start_with_the_reason(tmp_path):
    process = Appliance(tmp_path, LLM_MODEL="/nowhere/model").process
    printed, _ = process.communicate(timeout=90)
    assert process.returncode == 2
    assert "Folio cannot start: LLM_MODEL is /nowhere/model" in printed


def test_everything_is_there_after_a_restart_which_is_quick(appliance, http, library, data_dir):
    before = answer_to(http, "How many days of paid leave does an employee have?")
    status, printed = appliance.stop()
    assert status == 0, printed
    assert f"Folio is ready: http://localhost:{appliance.port}" in printed
    again = Appliance(data_dir)
    try:
        with httpx.Client(base_url=again.url, timeout=30) as http:
            again.wait_until_ready(http)
            assert processor_seconds(again.process.pid) < 15  # the clock depends on the neighbours
            assert http.get("/api/documents").json()["num_ready"] == len(library)
            chat = http.get(f"/api/chats/{before['chat_id']}").json()
            assert chat["messages"][-1] == before
            after = answer_to(http, "How many days of paid leave does an employee have?")
            assert after["content"] == before["content"]
            assert again.stop(signal.SIGINT)[0] == 0
    finally:
        again.process.kill()
        again.process.communicate()


def test_first_account_is_made_with_the_code_that_the_start_prints(tmp_path):
    appliance = Appliance(tmp_path, FOLIO_AUTH="users")
    with httpx.Client(base_url=appliance.url, timeout=30) as http:
        appliance.wait_until_ready(http)
        assert http.get("/api/status").status_code == 401
        while "Make the first one there: " not in (line := appliance.process.stdout.readline()):
            assert line, "the code was not printed"
        wanted = {
            "code": line.rpartition(" ")[2].strip(),
            "name": "Ada",
            "password": "correct horse",
        }
        assert http.post("/api/setup", json=wanted).status_code == 201
        assert http.get("/api/status").json()["phase"] == "ready"
    appliance.stop()
    assert wanted["code"] not in "".join(
        file.read_bytes().decode("latin-1") for file in tmp_path.glob("folio.db*")
    )
