"""Builds the language model that runs in this process: for the generate role, and for all."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from app.config import Settings
from app.engine import ChatFormat, LoRARequest, SpeculativeConfig, named_chat_format
from app.engine_service import EngineService, ServedModel
from app.errors import GeneratorUnavailable, InvalidInput
from app.metrics import EngineMetrics
from app.rag.llm.discovery import DEFAULT_MODEL, ModelChoice, find_model

if TYPE_CHECKING:  # the engine's faces load torch
    from app.engine import AsyncLLM

BYTES_PER_MB = 1_000_000


def build_engine_service(settings: Settings) -> EngineService:
    """The generate role's service; `EngineService.start` loads the model.

    Raises InvalidInput for settings that name no model of our own, or its adapters wrongly.
    """
    if settings.llm_base_url or settings.llm_model == "extractive":
        raise InvalidInput(
            "the role generate runs a model itself: unset LLM_BASE_URL, and set LLM_MODEL to a "
            "folder or a hub name"
        )
    adapters_of(settings)
    return EngineService(
        load=lambda service: load_served_model(settings, service), drain_s=settings.drain_timeout_s
    )


def load_served_model(settings: Settings, service: EngineService) -> ServedModel:
    """Fetch the model where it is not here, and load it; blocks for seconds to minutes."""
    model = DEFAULT_MODEL if settings.llm_model == "auto" else settings.llm_model
    choice = model_choice(settings)
    folder = find_model(model, choice, lambda detail: service.report("starting", detail))
    service.report("starting", f"loading {model}")
    name, adapters = served_name(settings), adapters_of(settings)
    try:
        llm = load_engine(settings, service.closing, folder, name, num_adapters=len(adapters))
        for adapter in adapters:
            llm.check_adapter(adapter)
    except Exception as error:  # a damaged file makes its reader raise anything
        raise GeneratorUnavailable(f"{model} cannot be loaded: {error}") from error
    chat_format = chat_format_of(settings, llm)
    return ServedModel(name, llm, settings.llm_timeout_s, chat_format, adapters)


def served_name(settings: Settings) -> str:
    """The name under which clients ask for the model itself."""
    if settings.served_model_name:
        return settings.served_model_name
    return DEFAULT_MODEL if settings.llm_model == "auto" else settings.llm_model


def adapters_of(settings: Settings) -> tuple[LoRARequest, ...]:
    """The adapters that are served as models; raise InvalidInput where they are set wrongly."""
    adapters: list[LoRARequest] = []
    names = {served_name(settings)}
    for part in filter(None, map(str.strip, settings.engine_lora_modules.split(","))):
        name, _, folder = (side.strip() for side in part.partition("="))
        if not name or not folder:
            raise InvalidInput(f"FOLIO_ENGINE_LORA_MODULES has {part!r}: write name=folder")
        if name in names:
            raise InvalidInput(f"FOLIO_ENGINE_LORA_MODULES: {name} names two models")
        names.add(name)
        adapters.append(LoRARequest(name, len(adapters) + 1, folder))
    return tuple(adapters)


def chat_format_of(settings: Settings, llm: "AsyncLLM") -> ChatFormat:
    """How the model writes calls and thoughts: as set, else as its chat template shows."""
    return named_chat_format(
        llm.tokenizer.chat_format,
        settings.engine_tool_parser or None,
        settings.engine_reasoning_parser or None,
    )


def model_choice(settings: Settings) -> ModelChoice:
    """What was set about the language model."""
    key = settings.llm_api_key
    return ModelChoice(
        model=settings.llm_model,
        base_url=settings.llm_base_url,
        api_key=key.get_secret_value() if key else None,
        timeout_s=settings.llm_timeout_s,
        hub_timeout_s=settings.hub_timeout_s,
    )


def load_engine(
    settings: Settings, closing: ExitStack, folder: Path, name: str, *, num_adapters: int = 0
) -> "AsyncLLM":
    """The engine with its settings, its metrics under `name`; `closing` lets go of both.

    It has room for all of `num_adapters` at once.
    """
    from app.engine import AsyncLLM  # noqa: PLC0415  torch takes seconds to import

    kv_cache_mb = settings.engine_kv_cache_mb
    llm = AsyncLLM(
        model=str(folder),
        dtype=settings.engine_dtype,
        max_model_len=settings.engine_max_model_len,
        kv_cache_memory_bytes=None if kv_cache_mb is None else kv_cache_mb * BYTES_PER_MB,
        max_num_seqs=settings.engine_max_num_seqs,
        max_num_batched_tokens=settings.engine_max_num_batched_tokens,
        max_num_queued=settings.engine_max_num_queued,
        quantization=settings.engine_quantization,
        kv_cache_dtype=settings.engine_kv_cache_dtype,
        speculative_config=_speculation(settings),
        num_threads=settings.num_threads,
        enable_lora=num_adapters > 0,
        max_loras=max(num_adapters, 1),
        max_lora_rank=settings.engine_max_lora_rank,
    )
    metrics = EngineMetrics(name, llm.stats)
    metrics.register()
    llm.observe_steps(metrics.observe)
    closing.callback(metrics.unregister)
    closing.callback(llm.shutdown)
    return llm


def _speculation(settings: Settings) -> SpeculativeConfig | None:
    num_tokens = settings.engine_speculative_tokens
    return SpeculativeConfig(num_speculative_tokens=num_tokens) if num_tokens else None
