"""Which index serves at the start, and what another one is made of."""

import logging
from functools import partial

from app.config import Settings
from app.domain import IndexSpec, IndexState
from app.errors import Conflict, InvalidInput
from app.rag.chunker import StructureChunker, embedded_text
from app.rag.document_processor import Stages
from app.rag.embeddings import BUILT_IN_NAMES, find_model, load_embedder, read_config
from app.rag.index_builder import IndexParts
from app.rag.lexical import term_weights
from app.rag.protocols import Embedder, Parser, VectorStore
from app.rag.retriever import HybridRetriever
from app.rag.store import MilvusStore, collection_name
from app.services import Services

logger = logging.getLogger(__name__)
CHUNKER_VERSION = 1  # of the cutting and of the lexical terms: another one makes another index


def chunker_name(settings: Settings) -> str:
    """Names how chunks are cut: another name makes other chunks and another index."""
    sizes = f"{settings.chunk_size_tokens}-{settings.chunk_overlap_tokens}"
    return f"structure-{CHUNKER_VERSION}-{sizes}"


def make_spec(model: str, dimension: int, chunker: str) -> IndexSpec:
    """The index of a model and a way to cut chunks."""
    return IndexSpec(collection_name(model, dimension, chunker), model, dimension, chunker)


def load_serving(settings: Settings, services: Services) -> tuple[IndexSpec, Embedder]:
    """The index that serves, and its embedder.

    It is the one that SQL names, whatever the settings say by now, unless its model is gone.
    """
    indexes = services.records.indexes
    info = indexes.find(IndexState.SERVING)
    if info is not None:
        services.report("starting", f"loading the embedding model {info.spec.embedding_model}")
        try:
            return info.spec, load_fitting(settings, info.spec.embedding_model, info.spec.chunker)
        except InvalidInput as error:
            if info.spec.embedding_model == settings.embedding_model:
                raise
            logger.error("the serving index is lost with its embedding model reason=%s", error)
    model, chunker = settings.embedding_model, chunker_name(settings)
    services.report("starting", f"loading the embedding model {model}")
    embedder = load_fitting(settings, model, chunker)
    spec = make_spec(model, embedder.dimension, chunker)
    indexes.serve(spec)
    return spec, embedder


def load_fitting(settings: Settings, model: str, chunker: str) -> Embedder:
    """An embedder that reads whole chunks; raise InvalidInput where it is absent or does not."""
    embedder = load_embedder(model, settings.num_threads)
    chunk_size_tokens, _ = chunk_sizes(chunker)
    if chunk_size_tokens > embedder.max_tokens:
        raise InvalidInput(
            f"FOLIO_CHUNK_SIZE_TOKENS={chunk_size_tokens}: the embedding model "
            f"{embedder.name} reads {embedder.max_tokens} tokens"
        )
    return embedder


def chunk_sizes(chunker: str) -> tuple[int, int]:
    """Largest chunk and overlap, in tokens, from a chunker's name."""
    _, size, overlap = chunker.rsplit("-", 2)
    return int(size), int(overlap)


def make_stages(parser: Parser, embedder: Embedder, store: VectorStore, chunker: str) -> Stages:
    """The stages of ingestion into an index."""
    return Stages(
        parser=parser,
        chunker=StructureChunker(embedder.count_tokens, *chunk_sizes(chunker)),
        embedder=embedder,
        store=store,
        embedded_text=embedded_text,
        term_weights=term_weights,
    )


def serving_parts(services: Services, spec: IndexSpec) -> IndexParts:
    """The index that serves, as it was loaded."""
    assert services.embedder and services.processor and services.retriever
    assert isinstance(services.store, MilvusStore)
    return IndexParts(
        spec,
        services.embedder,
        services.store,
        services.processor.ingestion,
        services.retriever,
    )


def open_parts(
    settings: Settings, services: Services, first: IndexParts, parser: Parser, spec: IndexSpec
) -> IndexParts:
    """Another index beside the first: its embedder is loaded, too. Raises InvalidInput."""
    assert isinstance(first.store, MilvusStore)
    embedder = load_fitting(settings, spec.embedding_model, spec.chunker)
    store = first.store.beside(
        spec.embedding_model, embedder.dimension, chunker_version=spec.chunker
    )
    retriever = HybridRetriever(
        embedder,
        store,
        services.records.chunks.of(spec.name),
        settings.retrieval_candidates,
        services.reranker,
    )
    stages = make_stages(parser, embedder, store, spec.chunker)
    return IndexParts(spec, embedder, store, first.ingestion.beside(stages), retriever)


def begin_configured(settings: Settings, services: Services, models: "LocalModels") -> None:
    """Begin the index that the settings name, where they have changed since the last start."""
    indexes = services.records.indexes
    try:
        spec = models.spec(settings.embedding_model)
    except InvalidInput as error:
        logger.warning("no index is made for FOLIO_EMBEDDING_MODEL reason=%s", error)
        return
    if indexes.configured() == spec.name:
        return
    serving = indexes.find(IndexState.SERVING)
    if serving is None or serving.spec.name != spec.name:
        try:
            indexes.begin(spec, switches_itself=True)
        except Conflict as error:
            logger.warning("the index of the settings has to wait reason=%s", error)
            return
    indexes.set_configured(spec.name)


class LocalModels:
    """Implements IndexModels: the embedding models that are at hand without a network."""

    def __init__(self, settings: Settings, services: Services) -> None:
        self._settings = settings
        self._known = partial(known_models, settings, services)

    def names(self) -> list[str]:
        """Those of the settings, the built-in one and those of present indexes, where at hand."""
        return [name for name in self._known() if is_at_hand(name)]

    def multilingual(self) -> str | None:
        """The one of the settings; None where it is not at hand."""
        name = self._settings.multilingual_embedding_model
        return name if is_at_hand(name) else None

    def spec(self, model: str) -> IndexSpec:
        """Raise InvalidInput for a model that is not among `names`."""
        names = self.names()
        if model not in names:
            raise InvalidInput(
                f"the embedding model {model!r} is not at hand; these are: {', '.join(names)}; "
                f"fetch it by `hf download {model}`, or set FOLIO_EMBEDDING_MODEL to its folder"
            )
        dimension = read_config(find_model(model), model).hidden_size
        return make_spec(model, dimension, chunker_name(self._settings))


def known_models(settings: Settings, services: Services) -> list[str]:
    """Names that may be asked for."""
    used = [info.spec.embedding_model for info in services.records.indexes.all()]
    names = [settings.embedding_model, settings.multilingual_embedding_model, BUILT_IN_NAMES[0]]
    return list(dict.fromkeys([*names, *used]))


def is_at_hand(name: str) -> bool:
    """Whether a model can be read from this disk."""
    try:
        read_config(find_model(name), name)
    except InvalidInput:
        return False
    return True
