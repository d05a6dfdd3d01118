"""What the appliance offers its faces: records at once, the heavy parts when they have loaded.

It builds nothing and reads no settings: `wiring.py` hands it everything, and loads the heavy
parts on a thread of its own, so that the server answers while models are being loaded.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from app.accounts import Accounts
from app.db.chats import ChatRepository
from app.db.chunks import ChunkRepository
from app.db.collections import CollectionRepository
from app.db.documents import DocumentRepository
from app.db.evaluations import EvaluationRepository
from app.db.indexes import IndexRepository
from app.db.jobs import JobRepository
from app.db.session import Database
from app.db.stored_files import StoredFileRepository
from app.domain import IndexSpec, Language
from app.errors import FolioError, Starting
from app.rag.document_processor import DocumentProcessor
from app.rag.index_builder import IndexBuilder
from app.rag.pipeline import AnswerPipeline
from app.rag.protocols import Embedder, Generator, Reranker, Retriever, VectorStore
from app.startup import Phase, Progress

logger = logging.getLogger(__name__)
Part = TypeVar("Part")
ASK_GENERATOR_EACH_S = 15.0
CHECKS_HOLD_S = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What the faces may let in."""

    max_upload_bytes: int
    upload_suffixes: tuple[str, ...]
    max_concurrent_answers: int
    max_queued_answers: int
    max_answer_tokens: int
    temperature: float


@dataclass(frozen=True, slots=True)
class Records:
    """The repositories: SQL, the truth; there from the first moment. Their calls block."""

    database: Database
    documents: DocumentRepository
    chunks: ChunkRepository
    chats: ChatRepository
    collections: CollectionRepository
    jobs: JobRepository
    files: StoredFileRepository
    indexes: IndexRepository
    evaluations: EvaluationRepository


class IndexModels(Protocol):
    """The embedding models of this machine, of which an index may be made."""

    def names(self) -> Sequence[str]: ...
    def multilingual(self) -> str | None:
        """One that understands Chinese; None where none is at hand."""
        ...

    def spec(self, model: str) -> IndexSpec:
        """Raise InvalidInput for a model that is not among `names`."""
        ...


@dataclass(frozen=True, slots=True)
class Check:
    """One dependency: whether it works and what it says."""

    name: str
    is_ok: bool
    detail: str


@runtime_checkable
class Remote(Protocol):
    """A generator on another machine."""

    def discover(self) -> None:
        """Ask it for its models. Raises GeneratorUnavailable."""
        ...


@dataclass
class Services:
    """The one object that the faces see; each heavy part is None until it has loaded.

    `load` fills the parts in, reports progress, and pushes onto `closing` how to let go of each.
    A replaced `pipeline` serves new questions; running answers keep the one they have.
    `accounts` is None where nobody logs in; `setup_code` makes the first one. `sample_questions`
    are about the collections that it is given, None for all.
    """

    records: Records
    limits: Limits
    load: Callable[["Services"], None]
    sample_questions: Callable[[Sequence[str] | None], Mapping[Language, Sequence[str]]]
    upload_dir: Path
    accounts: Accounts | None = None
    setup_code: str | None = None
    embedder: Embedder | None = None
    store: VectorStore | None = None
    processor: DocumentProcessor | None = None
    index_builder: IndexBuilder | None = None
    index_models: "IndexModels | None" = None
    reranker: Reranker | None = None
    retriever: Retriever | None = None
    generator: Generator | None = None
    pipeline: AnswerPipeline | None = None
    closing: ExitStack = field(default_factory=ExitStack)
    progress: Progress = field(default_factory=lambda: Progress("starting", "starting"))
    is_stopping: threading.Event = field(default_factory=threading.Event)
    is_settled: threading.Event = field(default_factory=threading.Event)
    _loader: threading.Thread | None = None
    _ask_generator_at: float = 0.0
    _generator_error: FolioError | None = None
    _checking: threading.Lock = field(default_factory=threading.Lock)
    _checked: tuple[Progress | None, float, list[Check]] = (None, 0.0, [])

    def start(self) -> None:
        """Begin to load the heavy parts in the background; `is_settled` is set at the end."""
        self._loader = threading.Thread(target=self._load, name="start-up", daemon=True)
        self._loader.start()

    def close(self, timeout_s: float) -> None:
        """Stop the work and let go of everything; wait `timeout_s` for a start in progress."""
        self.is_stopping.set()
        if self._loader:
            self._loader.join(timeout_s)
        self.closing.close()

    def report(self, phase: Phase, detail: str) -> None:
        """Say where the start stands."""
        self.progress = Progress(phase, detail)
        logger.info("start phase=%s detail=%r", phase, detail)

    def require(self, part: Part | None) -> Part:
        """The part, or Starting with what is being waited for."""
        if part is None:
            raise Starting(f"still starting: {self.progress.detail}")
        return part

    def require_processor(self) -> DocumentProcessor:
        """The part that takes documents, or Starting."""
        return self.require(self.processor)

    def checks(self) -> list[Check]:
        """Ask each dependency whether it works; the answers hold `CHECKS_HOLD_S`. Blocks.

        Requests at the same time share one asking; a step of the start ends what holds.
        """
        with self._checking:
            progress, until, checks = self._checked
            if progress is not self.progress or time.monotonic() > until:
                progress, checks = self.progress, self._ask_all()
                self._checked = progress, time.monotonic() + CHECKS_HOLD_S, checks
            return checks

    def _ask_all(self) -> list[Check]:
        reranker = self.reranker
        return [
            _check("database", self.records.database.check),
            _check("embedder", lambda: self.require(self.embedder).name),
            *([_check("reranker", lambda: reranker.name)] if reranker else []),
            _check("vector store", lambda: self.require(self.store).check()),
            _check("generator", self._ask_generator),
        ]

    def _ask_generator(self) -> str:
        """The model's name; a remote one is asked now and then whether it answers."""
        generator = self.require(self.generator)
        if isinstance(generator, Remote) and time.monotonic() > self._ask_generator_at:
            self._ask_generator_at = time.monotonic() + ASK_GENERATOR_EACH_S
            self._generator_error = None
            try:
                generator.discover()
            except FolioError as error:
                self._generator_error = error
        if self._generator_error:
            raise self._generator_error
        return generator.info.model

    def _load(self) -> None:
        try:
            self.load(self)
        except FolioError as error:
            logger.error("start failed code=%s reason=%s", error.code, error)
            self.report("failed", str(error))
        except Exception as error:
            logger.exception("start failed")
            self.report("failed", f"{type(error).__name__}: {error}")
        finally:
            self.is_settled.set()


def _check(name: str, ask: Callable[[], str]) -> Check:
    try:
        return Check(name, True, ask())
    except FolioError as error:
        return Check(name, False, str(error))
    except Exception as error:
        logger.exception("check failed name=%s", name)
        return Check(name, False, f"{type(error).__name__}: {error}")
