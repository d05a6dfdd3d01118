"""Which generator speaks: chosen at the start from what was set, what is on disk, and the hub."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.domain import Language
from app.errors import GeneratorUnavailable
from app.rag.llm.engine import EngineGenerator
from app.rag.llm.extractive import ExtractiveGenerator
from app.rag.llm.hub import ModelHub, OnProgress, missing_files
from app.rag.llm.reader import (
    READER,
    READER_FOLDER,
    READER_MODEL,
    ReaderGenerator,
    ReaderWeights,
)
from app.rag.llm.remote import OpenAIGenerator
from app.rag.llm.sentence_scores import Terms
from app.rag.protocols import Embedder, Generator

if TYPE_CHECKING:  # the engine's faces load torch
    from app.engine import AsyncLLM

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
HOW_TO_GET_ONE = (
    "To get written answers, set LLM_MODEL to the folder of a model on this machine, or "
    "LLM_BASE_URL to an OpenAI-compatible server (vLLM, Ollama, llama.cpp, …), or let this "
    f"machine reach the model hub at the start, which fetches {DEFAULT_MODEL} (1 GB)."
)
FORCED_NOTE = (
    "Answers are quotes from the documents, as LLM_MODEL=extractive asks for; unset it to get "
    "written answers."
)


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """What the user set: auto, reader, extractive, a folder or a hub name; or a server to ask.

    `timeout_s` is the longest silence of a model, `hub_timeout_s` how long the hub may take to
    answer; `hub_endpoint` and `cache_dir` None are the hub's own.
    """

    model: str = "auto"
    base_url: str = ""
    api_key: str | None = None
    timeout_s: float = 120.0
    hub_timeout_s: float = 5.0
    hub_endpoint: str | None = None
    cache_dir: Path | None = None


LoadEngine = Callable[[Path, str], "AsyncLLM"]  # a folder, and the model's name


def resolve_generator(
    choice: ModelChoice,
    *,
    terms: Terms,
    embedder: Embedder | None = None,
    refusals: Mapping[Language, str],
    load: LoadEngine,
    on_progress: OnProgress = logger.info,
) -> Generator:
    """Choose and load the generator; `on_progress` is told in words what takes long. Blocks.

    "auto" ends with quotes where no model can be had, and its note says why: chosen by the
    built-in reader where it has passed its bar. A model that was named and cannot be loaded raises
    GeneratorUnavailable.
    """
    if choice.base_url:
        return _remote(choice)
    if choice.model == "extractive":
        return ExtractiveGenerator(terms, embedder=embedder, note=FORCED_NOTE)
    ranker = ExtractiveGenerator(terms, embedder=embedder)
    if choice.model == READER:
        return _reader(choice, ranker, refusals, load)
    try:
        return _engine(choice, on_progress, load)
    except GeneratorUnavailable as error:
        if choice.model != "auto":
            raise
        logger.warning("no language model, answers are quotes reason=%s", error)
        note = f"Answers are quotes from the documents: {error}. {HOW_TO_GET_ONE}"
    if ReaderWeights.load(READER_FOLDER).is_default:
        return _reader(choice, ranker, refusals, load)
    return ExtractiveGenerator(terms, embedder=embedder, note=note)


def _reader(
    choice: ModelChoice,
    ranker: ExtractiveGenerator,
    refusals: Mapping[Language, str],
    load: LoadEngine,
) -> ReaderGenerator:
    llm = _load(load, READER_FOLDER, READER_MODEL)
    weights = ReaderWeights.load(READER_FOLDER)
    return ReaderGenerator(llm, ranker, refusals, weights, timeout_s=choice.timeout_s)


def _remote(choice: ModelChoice) -> OpenAIGenerator:
    """The server that was set; it may come up after us, so it is asked again when needed."""
    model = "auto" if choice.model == "extractive" else choice.model
    generator = OpenAIGenerator(choice.base_url, choice.api_key, model, choice.timeout_s)
    try:
        generator.discover()
    except GeneratorUnavailable as error:
        logger.warning("the language model cannot be used yet reason=%s", error)
    return generator


def _engine(choice: ModelChoice, on_progress: OnProgress, load: LoadEngine) -> EngineGenerator:
    name = DEFAULT_MODEL if choice.model == "auto" else choice.model
    folder = find_model(name, choice, on_progress)
    on_progress(f"loading {name}")
    return EngineGenerator(_load(load, folder, name), name, timeout_s=choice.timeout_s)


def _load(load: LoadEngine, folder: Path, name: str) -> "AsyncLLM":
    try:
        return load(folder, name)
    except Exception as error:  # a damaged file makes its reader raise anything
        raise GeneratorUnavailable(f"{name} cannot be loaded: {error}") from error


def find_model(name: str, choice: ModelChoice, on_progress: OnProgress) -> Path:
    """The model's folder: local, in the hub's cache, or downloaded now.

    Raises GeneratorUnavailable with what was tried and the way out.
    """
    folder = READER_FOLDER if name == READER else Path(name).expanduser()
    if folder.is_dir():
        if lack := missing_files(folder):
            raise GeneratorUnavailable(
                f"the folder {folder} holds no complete model, it lacks {lack}: name one with "
                "config.json, tokenizer.json and *.safetensors"
            )
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise GeneratorUnavailable(
            f"LLM_MODEL is {name}, which is neither a folder here nor a name like {DEFAULT_MODEL}"
        )
    hub = ModelHub(
        timeout_s=choice.hub_timeout_s,
        endpoint=choice.hub_endpoint,
        cache_dir=choice.cache_dir,
    )
    return hub.cached(name) or hub.download(name, on_progress)
