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
