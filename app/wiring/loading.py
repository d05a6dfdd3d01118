"""Loads the heavy parts in order, saying which.

Embedder, index, workers, reranker, generator, manual.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from app.config import Settings
from app.domain import IndexSpec
from app.errors import GeneratorUnavailable, StoreUnavailable
from app.manual import add_manual
from app.rag.chunker import embedded_text
from app.rag.document_processor import (
    DocumentProcessor,
    FileStore,
    IngestRecords,
    ProcessorConfig,
    ReadElsewhere,
    WorkerConfig,
)
from app.rag.entailment import Meanings
from app.rag.index_builder import IndexBuilder, IndexParts
from app.rag.lexical import terms
from app.rag.llm.discovery import DEFAULT_MODEL, ModelChoice, resolve_generator
from app.rag.llm.extractive import ExtractiveGenerator
from app.rag.llm.hub import ModelHub
from app.rag.llm.reader import READER
from app.rag.parsers import SUPPORTED_SUFFIXES, SubprocessParser, media_type_of
from app.rag.pipeline import AnswerOptions, AnswerPipeline
from app.rag.protocols import Generator, Parser
from app.rag.replies import REFUSAL
from app.rag.reranker import BudgetedReranker, load_cross_encoder
from app.rag.retriever import HybridRetriever, is_follow_up
from app.rag.rewriter import QuestionRewriter
from app.rag.store import MilvusStore
from app.services import Services
from app.wiring.engine import load_engine, model_choice
from app.wiring.indexes import (
    LocalModels,
    begin_configured,
    load_serving,
    make_stages,
    open_parts,
    serving_parts,
)

logger = logging.getLogger(__name__)
STORE_RETRY_S = 2.0
STOP_WORKERS_S = 5.0
STEP_TIMEOUT_S = 900.0  # the parser has a limit of its own, which must strike first
MANUAL_TIMEOUT_S = 120.0
MANUAL_REPORT_S = 5.0
BYTES_PER_MB = 1_000_000


def load(settings: Settings, services: Services) -> None:
    """Load everything into `services`; it is ready as soon as a question can be asked."""
    parser, spec = load_ingestion(settings, services)
    num_pages = queue_manual(settings, services)
    assert services.embedder and services.store
    load_reranker(settings, services)
    services.retriever = HybridRetriever(
        services.embedder,
        services.store,
        services.records.chunks.of(services.store.index_name),
        settings.retrieval_candidates,
        services.reranker,
    )
    load_generator(settings, services)
    start_builder(settings, services, parser, spec)
    services.report("ready", "")
    if num_pages:
        wait_for_manual(services)


def load_ingestion(
    settings: Settings,
    services: Services,
    elsewhere: Callable[[IndexSpec], ReadElsewhere] | None = None,
) -> tuple[Parser, IndexSpec]:
    """The part that adding documents needs: embedder, index and workers.

    `elsewhere` gives what reads documents in place of this process, for an index. Returns the
    parser and the index that serves.
    """
    spec, embedder = load_serving(settings, services)
    services.embedder = embedder
    services.report("starting", "opening the vector store")
    services.store = open_store(settings, services, spec)
    services.closing.callback(services.store.close)
    parser = SubprocessParser(
        settings.parse_timeout_s, settings.parse_memory_mb, settings.passwords
    )
    services.closing.callback(parser.close)
    read_elsewhere = elsewhere(spec) if elsewhere else None
    processor = make_processor(settings, services, parser, spec, read_elsewhere)
    services.closing.callback(processor.stop, STOP_WORKERS_S)
    processor.start()
    services.processor = processor
    return parser, spec


def start_builder(settings: Settings, services: Services, parser: Parser, spec: IndexSpec) -> None:
    """Go on with the index that is being made, or begin the one that the settings name."""
    first = serving_parts(services, spec)
    models = LocalModels(settings, services)
    services.index_models = models
    begin_configured(settings, services, models)
    builder = IndexBuilder(
        services.records.indexes,
        first,
        partial(open_parts, settings, services, first, parser),
        partial(use, settings, services),
    )
    services.closing.callback(builder.stop, STOP_WORKERS_S)
    builder.start()
    services.index_builder = builder


def use(settings: Settings, services: Services, parts: IndexParts) -> None:
    """Search this index and ingest into it from now on; running answers keep what they have."""
    assert services.processor and services.generator
    services.embedder, services.store = parts.embedder, parts.store
    services.retriever = parts.retriever
    services.processor.use(parts.ingestion, parts.store)
    speak(settings, services, services.generator)


def load_reranker(settings: Settings, services: Services) -> None:
    """The model that orders the best chunks again, where one was set."""
    if not settings.reranker_model:
        return
    services.report("starting", f"loading the reranker {settings.reranker_model}")
    scorer = load_cross_encoder(settings.reranker_model)
    services.reranker = BudgetedReranker(scorer, embedded_text, settings.rerank_budget_ms / 1000)


def open_store(settings: Settings, services: Services, spec: IndexSpec) -> MilvusStore:
    """The open index; a server that is not up yet is waited for."""
    token = settings.milvus_token
    store = MilvusStore(
        settings.milvus_uri or str(settings.data_dir.absolute() / "milvus.db"),
        token.get_secret_value() if token else None,
        spec.embedding_model,
        spec.dimension,
        chunker_version=spec.chunker,
    )
    while True:
        try:
            store.open()
            return store
        except StoreUnavailable as error:
            if store.is_embedded or services.is_stopping.is_set():
                raise
            services.report("starting", f"waiting for the vector store: {error}")
            services.is_stopping.wait(STORE_RETRY_S)


def make_processor(
    settings: Settings,
    services: Services,
    parser: Parser,
    spec: IndexSpec,
    read_elsewhere: ReadElsewhere | None = None,
) -> DocumentProcessor:
    """The processor, not started."""
    embedder, store, records = services.embedder, services.store, services.records
    assert embedder and store
    stages = make_stages(parser, embedder, store, spec.chunker)
    stages = replace(stages, read_elsewhere=read_elsewhere)
    config = ProcessorConfig(
        media_type_of=media_type_of,
        readable_suffixes=sorted(SUPPORTED_SUFFIXES),
        max_file_bytes=settings.max_upload_mb * BYTES_PER_MB,
        workers=WorkerConfig(
            num_workers=settings.ingest_workers,
            step_timeout_s=max(STEP_TIMEOUT_S, 2 * settings.parse_timeout_s),
        ),
    )
    return DocumentProcessor(
        stages,
        IngestRecords(records.documents, records.chunks, records.jobs, records.files),
        FileStore(settings.data_dir / "files"),
        config,
    )


def load_generator(settings: Settings, services: Services) -> None:
    """Have the set generator speak; where its model is yet to be fetched, quote until it is here.

    Fetching goes on in the background. Raises GeneratorUnavailable where a named model that is at
    hand cannot be loaded.
    """
    choice = model_choice(settings)
    if not needs_hub(choice):
        services.report("starting", "loading the language model")
        tell = partial(services.report, "starting")
        generator = resolve_generator(
            choice,
            terms=terms,
            embedder=services.embedder,
            refusals=REFUSAL,
            on_progress=tell,
            load=partial(load_engine, settings, services.closing),
        )
        speak(settings, services, generator)
        return
    speak(settings, services, quoting(services, "looking for the language model"))
    threading.Thread(
        target=fetch_generator, args=(settings, services, choice), name="model", daemon=True
    ).start()


def fetch_generator(settings: Settings, services: Services, choice: ModelChoice) -> None:
    """Fetch the language model, saying how far it is, and let it speak."""

    def tell(progress: str) -> None:
        services.generator = quoting(services, progress)

    generator: Generator
    try:
        generator = resolve_generator(
            choice,
            terms=terms,
            embedder=services.embedder,
            refusals=REFUSAL,
            on_progress=tell,
            load=partial(load_engine, settings, services.closing),
        )
    except GeneratorUnavailable as error:
        logger.error("language model not loaded model=%s reason=%s", choice.model, error)
        generator = quoting(services, str(error))
    except Exception as error:  # a border: the thread ends, the quotes go on
        logger.exception("language model not loaded model=%s", choice.model)
        generator = quoting(services, f"{type(error).__name__}: {error}")
    speak(settings, services, generator)
    logger.info("generator chosen kind=%s model=%s", generator.info.kind, generator.info.model)


def quoting(services: Services, state: str) -> ExtractiveGenerator:
    """The answerer that stands in for a language model; `state` says what that is waiting for."""
    note = f"Answers are quotes from the documents until a language model is there: {state}."
    return ExtractiveGenerator(terms, embedder=services.embedder, note=note)


def needs_hub(choice: ModelChoice) -> bool:
    """Whether the model would have to be fetched, which may take minutes."""
    if choice.base_url or choice.model in ("extractive", READER):
        return False
    name = DEFAULT_MODEL if choice.model == "auto" else choice.model
    if Path(name).expanduser().is_dir() or name.startswith((".", "/", "~")):
        return False
    return ModelHub(timeout_s=choice.hub_timeout_s).cached(name) is None


def speak(settings: Settings, services: Services, generator: Generator) -> None:
    """Let this generator write the answers from now on; running ones keep theirs."""
    assert services.retriever and services.embedder
    writes = generator.info.kind in ("engine", "openai")
    services.pipeline = AnswerPipeline(
        services.retriever,
        generator,
        terms=terms,
        num_chunks=services.records.chunks.num_chunks,
        meanings=Meanings(services.embedder),
        rewriter=QuestionRewriter(generator, is_follow_up, terms) if writes else None,
        options=AnswerOptions(
            top_k=settings.retrieval_top_k,
            max_tokens=settings.max_answer_tokens,
            temperature=settings.temperature,
            max_concurrent=settings.max_concurrent_answers,
            max_queued=settings.max_queued_answers,
        ),
    )
    services.generator = generator


def queue_manual(settings: Settings, services: Services) -> int:
    """Queue the pages of Folio's manual that are new or changed; returns how many."""
    if settings.manual_dir is None or services.processor is None:
        return 0
    return add_manual(
        services.processor,
        services.records.collections,
        settings.manual_dir,
        SUPPORTED_SUFFIXES,
        settings.data_dir,
        services.accounts.publish_manual if services.accounts else None,
    )


def wait_for_manual(services: Services) -> None:
    """Until the manual is searchable: then the first question can be asked."""
    deadline = time.monotonic() + MANUAL_TIMEOUT_S
    while time.monotonic() < deadline and not services.is_stopping.is_set():
        num_pending = services.records.documents.counts().num_pending
        if num_pending == 0:
            break
        services.report("ready", f"adding Folio's manual: {num_pending} pages to go")
        services.is_stopping.wait(MANUAL_REPORT_S)
    services.report("ready", "")
