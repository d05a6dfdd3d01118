"""The threads that work through the job queue: leases, heartbeats, retries and the stop.

They know jobs, not documents: what a job means is the `ingest` function that they are given.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from app import tracing
from app.domain import Job, JobStage
from app.errors import FolioError, LeaseLost, ParseLimitExceeded, Unavailable
from app.metrics import jobs as job_outcomes
from app.rag.document_processor.ingestion import Advance
from app.rag.protocols import JobRecords

logger = logging.getLogger(__name__)
IDLE_CHECK_S = 0.1


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """How many threads, and how patient they are.

    A thread that makes no step within `step_timeout_s` is given up and its job fails, so that must
    be longer than the parser's own limit on a step. `poll_s` is how soon the jobs of other
    processes and due retries are seen. A job's steps are written at most each `report_s`: a small
    document is done before the first, and each is a transaction.
    """

    num_workers: int = 1
    lease_s: float = 60.0
    step_timeout_s: float = 900.0
    poll_s: float = 1.0
    report_s: float = 0.25
    max_attempts: int = 8
    max_parse_attempts: int = 2
    first_backoff_s: float = 2.0
    max_backoff_s: float = 300.0


class Stopping(Exception):
    """The workers are being stopped; the job goes back into the queue."""


@dataclass(slots=True)
class Work:
    """A job in the hands of a thread, which is stuck after `deadline` (monotonic)."""

    job: Job
    deadline: float
    stage: JobStage = JobStage.PARSING
    told_at: float = 0.0


class Workers:
    """`ingest` does a job, `announce` tells of a document's change, `tidy` runs between jobs.

    `interrupt` ends what a stuck thread, given by its id, waits for, where that can be ended.
    """

    def __init__(
        self,
        jobs: JobRecords,
        config: WorkerConfig,
        ingest: Callable[[Job, Advance], None],
        announce: Callable[[str], None],
        tidy: Callable[[], None],
        interrupt: Callable[[int], None],
    ) -> None:
        self._jobs = jobs
        self._config = config
        self._ingest = ingest
        self._announce = announce
        self._tidy = tidy
        self._interrupt = interrupt
        self._lock = threading.Lock()  # guards the next two
        self._threads: list[threading.Thread] = []
        self._working: dict[threading.Thread, Work] = {}
        self._wake = threading.Event()
        self._is_stopping = threading.Event()

    def start(self) -> None:
        """Start the threads; they are daemons, so that a stuck one cannot hold up the exit."""
        self._is_stopping.clear()
        self._start_thread(self._beat, "ingest-heart")
        for _ in range(self._config.num_workers):
            self._start_thread(self._work, "ingest-worker")

    def stop(self, timeout_s: float, interrupt: Callable[[], None]) -> None:
        """End the threads, `interrupt` a long step; a job in hand goes back into the queue."""
        deadline = time.monotonic() + timeout_s
        self._is_stopping.set()
        self._wake.set()
        interrupt()
        for thread in list(self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            unfinished = list(self._working.values())
            self._threads.clear()
            self._working.clear()
        for work in unfinished:  # in a long step; what it still does is void
            self._let_go(work.job, self._jobs.release)

    def wake(self) -> None:
        """There is a new job."""
        self._wake.set()

    def interrupt(self, document_id: str) -> None:
        """End the long step of a document's job, where that has lost its lease."""
        with self._lock:
            working = list(self._working.items())
        for thread, work in working:
            if work.job.document_id == document_id and self._has_lost(work.job):
                with self._lock:  # a thread takes its next job under it, which must not be hit
                    if self._working.get(thread) is work and thread.ident is not None:
                        self._interrupt(thread.ident)

    def _has_lost(self, job: Job) -> bool:
        """Whether a job was taken from us; a new one of the same document may be at work."""
        try:
            self._renew(job)
        except LeaseLost:
            return True
        except Unavailable:
            logger.warning("job not looked after, it ends by itself job_id=%s", job.id)
        return False

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Whether no job was left in time; one that waits for its retry is one."""
        deadline = time.monotonic() + timeout_s
        while self._jobs.num_pending():
            if time.monotonic() > deadline:
                return False
            time.sleep(IDLE_CHECK_S)
        return True

    def _start_thread(self, target: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        with self._lock:
            self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        """A worker thread; it outlives every failure."""
        while not self._is_stopping.is_set():
            self._wake.clear()
            try:
                has_worked = self._work_once()
            except Exception:  # the border of a thread: the queue itself failed
                logger.exception("ingestion worker failed")
                has_worked = False
            if threading.current_thread() not in self._threads:
                return  # given up as stuck, and replaced
            if not has_worked:
                self._wake.wait(self._config.poll_s)

    def _work_once(self) -> bool:
        """Do one job if there is one."""
        self._tidy()
        for document_id in self._jobs.fail_exhausted(self._config.max_attempts):
            job_outcomes.labels("quarantined").inc()
            self._announce(document_id)
        job = self._jobs.claim(self._config.lease_s)
        if job is None:
            return False
        me = threading.current_thread()
        with self._lock:
            self._working[me] = Work(job, self._next_deadline(), told_at=time.monotonic())
        try:
            self._do(job)
        finally:
            with self._lock:
                self._working.pop(me, None)
        self._announce(job.document_id)
        return True

    def _do(self, job: Job) -> None:
        """Do a job, and decide what becomes of it when that fails."""
        started = time.monotonic()
        self._announce(job.document_id)
        try:
            with tracing.span("ingest", {"folio.job_id": job.id, "folio.attempt": job.attempt}):
                tracing.note({"folio.document_id": job.document_id})
                self._ingest(job, partial(self._advance, job))
        except Stopping:
            self._let_go(job, self._jobs.release)
        except LeaseLost as error:
            job_outcomes.labels("lost").inc()
            logger.info("ingestion job lost job_id=%s reason=%s", job.id, error)
        except FolioError as error:
            self._let_go(job, partial(self._after_failure, error))
        except Exception as error:  # a border: one document must not end the others
            logger.exception("ingestion job failed job_id=%s", job.id)
            reason = f"unexpected {type(error).__name__}: {error}; retry, or report this"
            self._let_go(job, partial(self._fail, reason))
        else:
            job_outcomes.labels("done").inc()
            seconds = time.monotonic() - started
            logger.info("document ready document_id=%s seconds=%.2f", job.document_id, seconds)

    def _after_failure(self, error: FolioError, job: Job) -> None:
        """Try again later what may pass, up to a limit; end the job otherwise."""
        if self._is_stopping.is_set():  # what we depend on may be closing already
            self._jobs.release(job)
            return
        limit = 1
        if isinstance(error, Unavailable):
            limit = self._config.max_attempts
        elif isinstance(error, ParseLimitExceeded):
            limit = self._config.max_parse_attempts
        if job.attempt >= limit:
            tried = f" (tried {job.attempt} times)" if job.attempt > 1 else ""
            end = self._quarantine if isinstance(error, ParseLimitExceeded) else self._fail
            end(f"{error}{tried}", job)
            return
        delay_s = self._config.first_backoff_s * 2 ** (job.attempt - 1)
        delay_s = min(delay_s, self._config.max_backoff_s)
        self._jobs.postpone(job, str(error), delay_s)
        job_outcomes.labels("postponed").inc()
        logger.warning(
            "ingestion job postponed job_id=%s attempt=%d delay_s=%.0f reason=%s",
            *(job.id, job.attempt, delay_s, error),
        )

    def _fail(self, reason: str, job: Job) -> None:
        self._jobs.fail(job, reason)
        job_outcomes.labels("failed").inc()
        logger.warning("ingestion job failed job_id=%s reason=%s", job.id, reason)

    def _quarantine(self, reason: str, job: Job) -> None:
        self._jobs.quarantine(job, reason)
        job_outcomes.labels("quarantined").inc()
        logger.warning("ingestion job quarantined job_id=%s reason=%s", job.id, reason)

    def _let_go(self, job: Job, write: Callable[[Job], None]) -> None:
        """Write how a job ended, if that is still ours to write."""
        try:
            write(job)
        except LeaseLost:
            logger.info("ingestion job was lost before its end job_id=%s", job.id)
        except Unavailable as error:
            logger.warning("ingestion job waits for its lease job_id=%s reason=%s", job.id, error)

    def _advance(self, job: Job, stage: JobStage, progress: float) -> None:
        """Note a step of a job; raise Stopping or LeaseLost when it must not go on."""
        if self._is_stopping.is_set():
            raise Stopping
        with self._lock:
            work = self._working.get(threading.current_thread())
            now = time.monotonic()
            if work is not None:
                work.deadline, work.stage = self._next_deadline(), stage
                if now - work.told_at < self._config.report_s:
                    return
                work.told_at = now
        self._jobs.advance(job, stage, progress, self._config.lease_s)
        self._announce(job.document_id)

    def _next_deadline(self) -> float:
        return time.monotonic() + self._config.step_timeout_s

    def _beat(self) -> None:
        """The heart: renew the leases of threads that are not stuck, and replace those that are."""
        while not self._is_stopping.wait(self._config.lease_s / 4):
            with self._lock:
                working = list(self._working.items())
            for thread, work in working:
                if time.monotonic() > work.deadline:
                    self._give_up(thread, work)
                else:
                    self._let_go(work.job, self._renew)

    def _renew(self, job: Job) -> None:
        self._jobs.heartbeat(job, self._config.lease_s)

    def _give_up(self, thread: threading.Thread, work: Work) -> None:
        """Fail the job of a stuck thread, and let a new thread take its place.

        What the old one still does is void: it holds no lease any more.
        """
        logger.error("ingestion thread is stuck and replaced job_id=%s", work.job.id)
        reason = (
            f"{work.stage} got no further within {self._config.step_timeout_s:.0f} s and was given"
            " up: retry, or split the file"
        )
        self._let_go(work.job, partial(self._quarantine, reason))
        with self._lock:
            self._working.pop(thread, None)
            if thread in self._threads:
                self._threads.remove(thread)
        if thread.ident is not None:
            self._interrupt(thread.ident)
        self._announce(work.job.document_id)
        self._start_thread(self._work, "ingest-worker")
