import threading

import pytest

from app.domain import Failed
from tests.api.test_chats import wait_for

QUESTIONS = [
    {"question": "How much leave?", "answers": ["fifteen days"], "documents": ["doc.txt"]},
    {"question": "Who won?", "answerable": False},
]


@pytest.fixture
def start(client):
    def start(name="first", questions=QUESTIONS):
        reply = client.post("/api/evals", json={"name": name, "questions": questions})
        assert reply.status_code == 202
        return reply.json()["id"]

    return start


@pytest.fixture
def ended(client):
    def ended(id):
        wait_for(lambda: client.get(f"/api/evals/{id}").json()["state"] != "running", 10)
        return client.get(f"/api/evals/{id}").json()

    return ended


def test_questions_are_asked_and_judged(start, ended, client):
    report = ended(start())
    assert (report["state"], report["num_done"], report["generator"]) == ("done", 2, "fake")
    assert report["figures"]["holds_answer"] == 1.0
    assert report["figures"]["answered"] == 1.0
    assert report["figures"]["refused_unanswerable"] == 0.0
    first, second = report["questions"]
    assert (first["question"], first["holds_answer"]) == ("How much leave?", 1.0)
    assert (second["is_answerable"], second["holds_answer"]) == (False, None)
    assert [item["id"] for item in client.get("/api/evals").json()] == [report["id"]]
    assert client.delete(f"/api/evals/{report['id']}").status_code == 204
    assert client.get(f"/api/evals/{report['id']}").status_code == 404


def test_an_answer_that_fails_ends_the_evaluation_with_the_reason(start, ended, pipeline):
    pipeline.ending = Failed("generator_unavailable", "no model")
    report = ended(start())
    assert report["state"] == "failed"
    assert report["error"] == "“How much leave?” was not answered: no model"


def test_an_evaluation_is_cancelled_and_keeps_what_was_judged(start, client, pipeline):
    pipeline.gate = threading.Event()
    id = start()
    cancelled = client.post(f"/api/evals/{id}/cancel").json()
    assert (cancelled["state"], cancelled["num_done"]) == ("cancelled", 0)
    assert client.post("/api/evals/nope/cancel").status_code == 404
    pipeline.gate.set()


def test_one_that_a_dead_process_was_running_says_so(services, client):
    evaluations = services.records.evaluations
    id = evaluations.create("x", "fake", 3).id
    assert evaluations.fail_interrupted() == 1
    report = client.get(f"/api/evals/{id}").json()
    assert (report["state"], report["error"]) == (
        "failed",
        "interrupted by a restart: start it again",
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"name": "x", "questions": []}, "at least 1 item"),
        ({"name": " ", "questions": QUESTIONS}, "at least 1 "),
        ({"name": "x", "questions": [{"question": " "}]}, "at least 1 "),
        ({"name": "x", "questions": [{"question": "x", "awnsers": []}]}, "Extra inputs"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused(client, body, reason):
    reply = client.post("/api/evals", json=body)
    assert reply.status_code == 422
    assert reason in reply.json()["error"]["message"]
