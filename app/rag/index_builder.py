"""Makes another index beside the one that serves, and switches to it: no question waits for that.

What is left to do is read from SQL each time, so a kill at any moment costs one document at most.
It knows nothing of models and settings: `open_parts` turns an index's row into working parts.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from app.domain import (
    Document,
    IndexInfo,
    IndexSpec,
    IndexState,
    JobStage,
    Question,
    Recall,
)
from app.errors import Conflict, FolioError, NotFound, ParseFailed
from app.rag.document_processor.ingestion import Ingestion
from app.rag.protocols import Embedder, IndexedChunk, IndexRecords, IndexStore, Retriever
from app.rag.text import language_of

logger = logging.getLogger(__name__)
# Half of the time of this thread is left to answers.
WORK_SHARE = 0.5
POLL_S = 1.0
RETRY_S = 15.0
NUM_RECALL_QUERIES = 50
RECALL_K = 5
RECALL_TOLERANCE = 0.05
MAX_QUERY_LENGTH = 200
NUM_CJK_SAMPLES = 200


class Cancelled(Exception):
    """The builder is stopping, or the index was given up."""


@dataclass(frozen=True, slots=True)
class IndexParts:
    """An index that can be written to and searched."""

    spec: IndexSpec
    embedder: Embedder
    store: IndexStore
    ingestion: Ingestion
    retriever: Retriever


class IndexBuilder:
    """One thread; `rebuild`, `switch`, `roll_back` and `discard` may be called from others."""

    def __init__(
        self,
        records: IndexRecords,
        serving: IndexParts,
        open_parts: Callable[[IndexSpec], IndexParts],
        use: Callable[[IndexParts], None],
        poll_s: float = POLL_S,
    ) -> None:
        self._records = records
        self._parts = {serving.spec.name: serving}
        self._serving = serving
        self._open_parts = open_parts
        self._use = use
        self._poll_s = poll_s
        self._lock = threading.RLock()  # one switch or discard at a time
        self._wake = threading.Event()
        self._is_stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Go on where the last process stopped."""
        self._thread = threading.Thread(target=self._run, name="index-builder", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the thread after the step that it is in."""
        self._is_stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def rebuild(self, spec: IndexSpec, *, switches_itself: bool) -> None:
        """Begin an index; Conflict while another is in progress."""
        self._records.begin(spec, switches_itself=switches_itself)
        self._wake.set()

    def switch(self, *, is_forced: bool) -> None:
        """Have the index in progress serve; Conflict where it is not ready."""
        info = self._records.find(IndexState.BUILDING, IndexState.READY, IndexState.WARNING)
        if info is None:
            raise NotFound("no index is being made: begin one first")
        self._switch(info.spec, is_forced=is_forced)

    def roll_back(self) -> None:
        """Have the previous index serve again; what changed since is indexed again for it."""
        info = self._records.find(IndexState.PREVIOUS)
        if info is None:
            raise NotFound("there is no previous index: it was discarded, or there never was one")
        self._switch(info.spec, is_forced=True)

    def discard(self, *states: IndexState) -> None:
        """Give the index in one of these states up and free its room."""
        info = self._records.find(*states)
        if info is None:
            raise NotFound("there is no such index")
        self._records.discard(info.spec.name)
        self._wake.set()

    def cjk_share(self) -> float:
        """The share (0 to 1) of the served chunks that are Chinese, judged by a sample."""
        texts = self._records.sample_texts(self._serving.spec.name, NUM_CJK_SAMPLES)
        num_chinese = sum(language_of(text) == "zh" for _, text in texts)
        return num_chinese / len(texts) if texts else 0.0

    def _switch(self, spec: IndexSpec, *, is_forced: bool) -> None:
        """SQL first, as the truth; the alias and this process follow, or the next start does."""
        with self._lock:
            parts = self._open(spec)
            self._records.switch(spec.name, is_forced=is_forced)
            self._serving = parts
            self._use(parts)
            parts.store.point_alias()
        logger.info("index switched name=%s model=%s", spec.name, spec.embedding_model)
        self._wake.set()

    def _open(self, spec: IndexSpec) -> IndexParts:
        with self._lock:
            if spec.name not in self._parts:
                self._parts[spec.name] = self._open_parts(spec)
            return self._parts[spec.name]

    def _run(self) -> None:
        """The thread; it outlives every failure."""
        while not self._is_stopping.is_set():
            self._wake.clear()
            pause_s = self._poll_s
            try:
                while self._step():
                    pass
            except Cancelled:
                pass
            except FolioError as error:
                logger.warning("index building waits reason=%s", error)
                pause_s = RETRY_S
            except Exception:  # the border of a thread
                logger.exception("index building failed")
                pause_s = RETRY_S
            self._wake.wait(pause_s)

    def _step(self) -> bool:
        """Do the next thing that SQL says is to be done; False when there is nothing."""
        if self._is_stopping.is_set():
            return False
        discarded = self._records.find(IndexState.DISCARDED)
        if discarded is not None:
            self._drop(discarded.spec)
            return True
        info = self._records.find(IndexState.BUILDING, IndexState.READY, IndexState.WARNING)
        if info is None:
            return False
        parts = self._ready_parts(info)
        document = self._records.missing(info.spec.name)
        if document is not None:
            self._add(parts, document)
            return True
        if info.state == IndexState.BUILDING:
            self._judge(parts)
            return True
        if info.state == IndexState.READY and info.switches_itself:
            with suppress(Conflict):  # a document changed just now: the next round adds it
                self._switch(info.spec, is_forced=False)
        return False

    def _ready_parts(self, info: IndexInfo) -> IndexParts:
        """The open index; one that has lost vectors is made from the beginning."""
        if info.spec.name in self._parts:
            return self._parts[info.spec.name]
        try:
            parts = self._open(info.spec)
        except FolioError as error:
            self._records.judge(info.spec.name, info.state, info.recall, str(error))
            raise
        if parts.store.count() < info.num_chunks:
            logger.warning(
                "index in progress lost vectors and begins again name=%s", info.spec.name
            )
            self._records.empty(info.spec.name)
        return parts

    def _add(self, parts: IndexParts, document: Document) -> None:
        """Have the index hold a document, or the reason why it cannot."""
        name, ingestion = parts.spec.name, parts.ingestion
        ingestion.sweep()
        advance = self._throttled(name)
        try:
            parsed, chunks, vectors = ingestion.read(document, advance)
            ingestion.write(document.id, vectors, advance)
        except ParseFailed as error:
            self._records.put_failure(name, document, str(error))
            return
        indexed = [
            IndexedChunk(chunk, tuple(vector.sparse))
            for chunk, vector in zip(chunks, vectors, strict=True)
        ]
        if not self._records.put(name, document, parsed.text, indexed):
            ingestion.announce(document.id, vectors)  # somebody may have swept before we wrote

    def _throttled(self, name: str) -> Callable[[JobStage, float], None]:
        """A pause after each step as long as the step, and an end where the index is given up."""
        began = time.monotonic()

        def advance(_stage: JobStage, _progress: float) -> None:
            nonlocal began
            spent_s = time.monotonic() - began
            if self._is_stopping.wait(spent_s * (1 - WORK_SHARE) / WORK_SHARE):
                raise Cancelled
            info = self._records.find(IndexState.BUILDING, IndexState.READY, IndexState.WARNING)
            if info is None or info.spec.name != name:
                raise Cancelled
            began = time.monotonic()

        return advance

    def _judge(self, parts: IndexParts) -> None:
        """Compare with the serving index, and say whether a switch is safe."""
        info = self._records.find(IndexState.BUILDING)
        if info is None:
            return
        queries = queries_of(self._records.sample_texts(self._serving.spec.name, 200))
        recall = Recall(
            num_queries=len(queries),
            k=RECALL_K,
            tolerance=RECALL_TOLERANCE,
            serving=recall_of(self._serving.retriever, queries),
            built=recall_of(parts.retriever, queries),
        )
        reason = warning_of(recall, info.num_failed)
        state = IndexState.WARNING if reason else IndexState.READY
        self._records.judge(parts.spec.name, state, recall, reason)
        logger.info(
            "index built name=%s state=%s recall=%.3f serving_recall=%.3f num_queries=%d",
            *(parts.spec.name, state, recall.built, recall.serving, len(queries)),
        )

    def _drop(self, spec: IndexSpec) -> None:
        with self._lock:
            self._serving.store.drop(spec.name)
            self._records.forget(spec.name)
            self._parts.pop(spec.name, None)
        logger.info("index discarded name=%s", spec.name)


def warning_of(recall: Recall, num_failed: int) -> str:
    """What speaks against a switch; empty where nothing does."""
    if num_failed:
        return f"{num_failed} documents could not be read again and would not be found"
    if recall.built < recall.serving - recall.tolerance:
        return (
            f"it finds the document of {recall.built:.0%} of {recall.num_queries} test questions,"
            f" the serving index that of {recall.serving:.0%}"
        )
    return ""


def queries_of(texts: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Document ids and a line of each chunk: what somebody who knows the text would ask."""
    queries = [
        (document_id, max(text.splitlines(), key=len)[:MAX_QUERY_LENGTH].strip())
        for document_id, text in texts
        if text.strip()
    ]
    return queries[:NUM_RECALL_QUERIES]


def recall_of(retriever: Retriever, queries: Sequence[tuple[str, str]]) -> float:
    """The share of queries whose document is among the best `RECALL_K`; 1 where there are none."""
    found = 0
    for document_id, text in queries:
        hits = retriever.retrieve(Question(text), RECALL_K).hits
        found += any(hit.chunk.document_id == document_id for hit in hits)
    return found / len(queries) if queries else 1.0
