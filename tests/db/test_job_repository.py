import threading
from datetime import UTC, datetime, timedelta

import pytest

from app.db.documents import DocumentRepository
from app.db.jobs import JobRepository
from app.domain import DocumentStatus, IncomingFile, JobStage
from app.errors import LeaseLost


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.now = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def jobs(database, clock):
    return JobRepository(database, clock)


@pytest.fixture
def documents(database):
    return DocumentRepository(database)


def add(documents, path="a.txt", content_hash="h"):
    file = IncomingFile("default", "folder", path, path, "text/plain", content_hash, 1)
    return documents.add(file).document


def test_jobs_are_claimed_in_order_and_once(jobs, documents):
    added = [add(documents, f"{n}.txt").id for n in range(3)]
    claimed = [jobs.claim(60) for _ in range(3)]
    assert [job.document_id for job in claimed] == added
    assert jobs.claim(60) is None


def test_claimed_job_is_being_parsed(jobs, documents, clock):
    document = add(documents)
    job = jobs.claim(60)
    assert (job.attempt, job.lease_until) == (1, clock.now + timedelta(seconds=60))
    document = documents.get(document.id)
    assert (document.status, document.stage) == (DocumentStatus.PROCESSING, JobStage.PARSING)


def test_many_threads_never_claim_the_same_job(jobs, documents):
    added = {add(documents, f"{n}.txt").id for n in range(24)}
    claimed = []

    def work():
        while job := jobs.claim(60):
            claimed.append(job.document_id)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(claimed) == len(added)
    assert set(claimed) == added


def test_lease_that_runs_out_is_taken_over_and_shuts_the_first_worker_out(jobs, documents, clock):
    add(documents)
    first = jobs.claim(60)
    clock.advance(59)
    assert jobs.claim(60) is None
    clock.advance(2)
    second = jobs.claim(60)
    assert (second.id, second.attempt) == (first.id, 2)
    for write in (
        lambda: jobs.heartbeat(first, 60),
        lambda: jobs.advance(first, JobStage.EMBEDDING, 0.5, 60),
        lambda: jobs.release(first),
        lambda: jobs.postpone(first, "reason", 1),
        lambda: jobs.fail(first, "reason"),
    ):
        with pytest.raises(LeaseLost):
            write()
    jobs.heartbeat(second, 60)


def test_heartbeat_keeps_the_lease(jobs, documents, clock):
    add(documents)
    job = jobs.claim(60)
    clock.advance(50)
    jobs.heartbeat(job, 60)
    clock.advance(50)
    assert jobs.claim(60) is None


def test_progress_is_the_documents(jobs, documents, clock):
    document = add(documents)
    job = jobs.claim(60)
    clock.advance(50)
    jobs.advance(job, JobStage.EMBEDDING, 0.5, 60)
    clock.advance(50)
    assert jobs.claim(60) is None
    document = documents.get(document.id)
    assert (document.stage, document.progress) == (JobStage.EMBEDDING, 0.5)


def test_released_job_is_as_if_it_had_not_been_claimed(jobs, documents):
    document = add(documents)
    jobs.release(jobs.claim(60))
    assert documents.get(document.id).status == DocumentStatus.QUEUED
    assert jobs.claim(60).attempt == 1


def test_postponed_job_waits_and_shows_why(jobs, documents, clock):
    document = add(documents)
    jobs.postpone(jobs.claim(60), "the store is away", 30)
    assert documents.get(document.id).error == "the store is away"
    assert jobs.claim(60) is None
    clock.advance(31)
    assert jobs.claim(60).attempt == 2
    assert documents.get(document.id).error is None


def test_failed_job_shows_why_and_is_not_claimed(jobs, documents, clock):
    document = add(documents)
    jobs.fail(jobs.claim(60), "damaged")
    document = documents.get(document.id)
    assert (document.status, document.error) == (DocumentStatus.FAILED, "damaged")
    assert document.updated_at == clock.now
    assert jobs.claim(60) is None
    assert jobs.num_pending() == 0


def test_document_that_was_tried_before_waits_for_the_others(jobs, documents):
    poison = add(documents, "poison.txt").id
    jobs.claim(60)
    jobs.recover()
    if not jobs._database.is_sqlite:
        jobs._clock.advance(61)
    other = add(documents, "other.txt").id
    assert [jobs.claim(60).document_id for _ in range(2)] == [other, poison]


def test_job_that_went_silent_too_often_fails(jobs, documents, clock):
    document = add(documents)
    for _ in range(3):
        assert jobs.fail_exhausted(3) == []
        jobs.claim(60)
        clock.advance(61)
    assert jobs.fail_exhausted(3) == [document.id]
    assert "gave up after 3 attempts" in documents.get(document.id).error
    assert jobs.claim(60) is None


def test_new_round_shuts_the_old_worker_out(jobs, documents):
    document = add(documents)
    old = jobs.claim(60)
    add(documents, content_hash="changed")
    with pytest.raises(LeaseLost):
        jobs.heartbeat(old, 60)
    new = jobs.claim(60)
    assert new.document_id == document.id
    assert new.id != old.id


def test_requeue_leaves_a_pending_job_alone(jobs, documents):
    document = add(documents)
    job = jobs.claim(60)
    documents.requeue(document.id)
    jobs.heartbeat(job, 60)


def test_recover_on_sqlite_takes_every_lease(jobs, documents):
    if not jobs._database.is_sqlite:
        pytest.skip("on Postgres other processes may be at work")
    add(documents)
    job = jobs.claim(3600)
    assert jobs.recover() == 1
    assert jobs.claim(60).attempt == 2
    with pytest.raises(LeaseLost):
        jobs.heartbeat(job, 60)


def test_recover_on_postgres_leaves_the_leases_of_others(jobs, documents):
    if jobs._database.is_sqlite:
        pytest.skip("on SQLite one process owns the queue")
    add(documents)
    job = jobs.claim(60)
    assert jobs.recover() == 0
    jobs.heartbeat(job, 60)


def owned(documents, path, owner):
    file = IncomingFile("default", "folder", path, path, "text/plain", path, 1, owner=owner)
    return documents.add(file).document


def test_owners_take_turns_however_much_one_brings(jobs, documents, clock):
    for n in range(6):
        owned(documents, f"many-{n}", "anna")
    owned(documents, "one", "bert")
    owned(documents, "two", "bert")
    owned(documents, "late", "carl")
    order = []
    for _ in range(9):
        clock.advance(1)
        order.append(documents.get(jobs.claim(600).document_id).path)
    assert order == [
        *("many-0", "one", "late", "many-1", "two"),
        *("many-2", "many-3", "many-4", "many-5"),
    ]


def test_a_job_that_is_queued_again_stays_its_owners(jobs, documents, clock):
    document = owned(documents, "a", "anna")
    jobs.fail(jobs.claim(60), "broken")
    documents.requeue(document.id)
    assert [entry.owner for entry in jobs.list(None, 1, 10)[0]] == ["anna"]
    assert add(documents, "b").source == "folder"
    assert {entry.owner for entry in jobs.list(None, 1, 10)[0]} == {"anna", "folder"}


def test_a_held_queue_gives_no_jobs_and_loses_none(database, jobs, documents):
    document = add(documents)
    jobs.set_paused(True)
    assert jobs.claim(60) is None
    assert JobRepository(database).is_paused
    jobs.set_paused(False)
    assert jobs.claim(60).document_id == document.id


def test_cancelling_ends_a_job_and_shuts_its_worker_out(jobs, documents):
    document = add(documents)
    job = jobs.claim(60)
    assert jobs.cancel(document.id)
    with pytest.raises(LeaseLost):
        jobs.advance(job, JobStage.EMBEDDING, 0.5, 60)
    document = documents.get(document.id)
    assert (document.status, document.stage) == (DocumentStatus.FAILED, JobStage.CANCELLED)
    assert not jobs.cancel(document.id)
    assert jobs.retry_failed() == []
    assert documents.requeue(document.id).stage == JobStage.QUEUED


def test_a_paused_job_waits_until_it_is_queued_again(jobs, documents, clock):
    document = add(documents)
    first = jobs.claim(60)
    assert jobs.pause(document.id)
    assert documents.get(document.id).stage == JobStage.PAUSED
    clock.advance(3600)
    assert jobs.claim(60) is None
    assert not jobs.pause(document.id)
    documents.requeue(document.id)
    second = jobs.claim(60)
    assert second.id != first.id
    with pytest.raises(LeaseLost):
        jobs.heartbeat(first, 60)


def test_all_that_failed_is_retried_but_for_what_does_harm(jobs, documents):
    failed, harmful, cancelled, _ = (add(documents, name, name) for name in "abcd")
    jobs.fail(jobs.claim(60), "broken")
    jobs.quarantine(jobs.claim(60), "killed its process")
    jobs.cancel(cancelled.id)
    assert jobs.retry_failed() == [failed.id]
    stages = {document.path: document.stage for document in documents.list()[0]}
    assert stages == {
        "a": JobStage.QUEUED,
        "b": JobStage.QUARANTINED,
        "c": JobStage.CANCELLED,
        "d": JobStage.QUEUED,
    }
    assert documents.requeue(harmful.id).stage == JobStage.QUEUED


def test_bytes_in_quarantine_are_not_tried_again_under_any_name(jobs, documents):
    harmful = add(documents, "a", "same")
    jobs.quarantine(jobs.claim(60), "killed its process")
    assert (
        documents.add(IncomingFile("default", "folder", "a", "a", "text/plain", "same", 1)).outcome
        == "unchanged"
    )
    twin = add(documents, "b", "same")
    assert twin.stage == JobStage.QUARANTINED
    assert twin.error == (
        "the same bytes are in quarantine as “a”: killed its process;"
        " retry this document to have them tried again"
    )
    assert jobs.claim(60) is None
    assert add(documents, "a", "other").stage == JobStage.QUEUED
    assert documents.requeue(twin.id).stage == JobStage.QUEUED
    assert harmful.id != twin.id


def test_the_queue_is_listed_by_stage_the_latest_first(jobs, documents, clock):
    add(documents, "a")
    job = jobs.claim(60)
    jobs.fail(job, "broken")
    add(documents, "b")
    entries, total = jobs.list(JobStage.FAILED, 1, 10)
    assert total == 1
    (entry,) = entries
    assert (entry.id, entry.document_name, entry.attempts) == (job.id, "a", 1)
    assert (entry.reason, entry.heartbeat_at) == ("broken", clock.now)
    assert [entry.document_name for entry in jobs.list(None, 1, 1)[0]] == ["b"]
    assert jobs.list(None, 3, 1) == ([], 2)


def test_queued_job_is_done_though_the_clock_was_set_back(jobs, documents, clock):
    document = add(documents)
    clock.now = datetime(2020, 1, 1, tzinfo=UTC)
    job = jobs.claim(60)
    assert job is not None and job.document_id == document.id


def test_job_of_a_silent_worker_is_claimed_though_the_clock_was_set_back(jobs, documents, clock):
    add(documents)
    jobs.claim(60)
    clock.advance(-7 * 86_400)
    job = jobs.claim(60)
    assert job is not None and job.attempt == 2
