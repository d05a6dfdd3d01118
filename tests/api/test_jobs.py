import pytest


@pytest.fixture
def documents(client):
    def add(*names):
        parts = [("files", (name, name.encode())) for name in names]
        return client.post("/api/documents", files=parts).json()["accepted"]

    return add


def test_a_document_is_cancelled_paused_and_taken_up_again(client, documents):
    (document,) = documents("a.md")
    path = f"/api/documents/{document['id']}"
    assert client.post(f"{path}/pause").json()["stage"] == "paused"
    assert client.post(f"{path}/reindex").json()["stage"] == "queued"
    cancelled = client.post(f"{path}/cancel").json()
    assert (cancelled["status"], cancelled["stage"]) == ("failed", "cancelled")
    assert "retry" in cancelled["error"]
    assert client.post("/api/documents/nope/cancel").status_code == 404
    assert client.post("/api/documents/nope/pause").status_code == 404


def test_the_queue_is_shown_with_its_reasons(client, services, documents):
    documents("a.md", "b.md")
    job = services.records.jobs.claim(60)
    services.records.jobs.fail(job, "page 3 is broken")
    page = client.get("/api/jobs").json()
    assert (page["total"], page["is_paused"]) == (2, False)
    (failed,) = client.get("/api/jobs", params={"stage": "failed"}).json()["items"]
    assert (failed["reason"], failed["attempts"], failed["owner"]) == (
        "page 3 is broken",
        1,
        "upload",
    )
    assert failed["document_name"] in ("a.md", "b.md")
    assert client.get("/api/jobs", params={"stage": "lost"}).status_code == 422


def test_the_queue_is_held_and_goes_on(client, documents):
    documents("a.md")
    assert client.post("/api/jobs/pause").json() == {"is_paused": True}
    assert client.get("/api/status").json()["is_queue_paused"] is True
    assert client.post("/api/jobs/resume").json() == {"is_paused": False}
    assert client.get("/api/jobs").json()["is_paused"] is False


def test_all_that_failed_is_retried_at_once(client, services, documents):
    documents("a.md", "b.md", "c.md")
    jobs = services.records.jobs
    jobs.fail(jobs.claim(60), "broken")
    jobs.quarantine(jobs.claim(60), "too much memory")
    assert client.post("/api/jobs/retry").json() == {"num_queued": 1}
    assert client.get("/api/jobs", params={"stage": "quarantined"}).json()["total"] == 1
