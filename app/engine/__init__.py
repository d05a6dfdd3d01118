"""The engine: a paged-attention generator that lives in the caller's process.

    from app.engine import LLM, SamplingParams

Light names come at once; the faces load torch when they are first asked for.
"""

from typing import TYPE_CHECKING

from app.engine.config import EngineConfig
from app.engine.errors import (
    EngineError,
    EngineOverloaded,
    EngineStopped,
    GenerationFailed,
    InvalidRequest,
    ModelNotFound,
    OutOfMemory,
    PromptTooLong,
    UnsupportedModel,
)
from app.engine.outputs import (
    CompletionOutput,
    EngineStats,
    Logprob,
    RequestMetrics,
    RequestOutput,
)
from app.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from app.engine.llm import LLM, AsyncLLM

__all__ = [
    "LLM",
    "AsyncLLM",
    "CompletionOutput",
    "EngineConfig",
    "EngineError",
    "EngineOverloaded",
    "EngineStats",
    "EngineStopped",
    "GenerationFailed",
    "InvalidRequest",
    "Logprob",
    "ModelNotFound",
    "OutOfMemory",
    "PromptTooLong",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "UnsupportedModel",
]


def __getattr__(name: str) -> object:
    if name in ("LLM", "AsyncLLM"):
        from app.engine import llm  # noqa: PLC0415  torch takes seconds to import

        return getattr(llm, name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
