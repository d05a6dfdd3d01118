"""The engine: a paged-attention generator that lives in the caller's process.

    from app.engine import LLM, SamplingParams

Light names come at once; the faces load torch when they are first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from app.engine.beam_search import BeamSearchParams
from app.engine.chat_format import (
    ChatFormat,
    ToolFormat,
    detect_chat_format,
    force_tool_calls,
    named_chat_format,
)
from app.engine.chat_parser import ChatParser, ContentDelta, ReasoningDelta, ToolCallDelta
from app.engine.config import EngineConfig, SpeculativeConfig
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
from app.engine.lora_request import LoRARequest
from app.engine.outputs import (
    BeamSearchOutput,
    BeamSearchSequence,
    CompletionOutput,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    EngineStats,
    FinishedStats,
    Logprob,
    RequestMetrics,
    RequestOutput,
    ScoringOutput,
    ScoringRequestOutput,
    StepStats,
)
from app.engine.pooling import PoolingParams
from app.engine.sampling_params import (
    QuoteOnlyParams,
    QuoteSource,
    RequestOutputKind,
    SamplingParams,
    StructuredOutputsParams,
)

if TYPE_CHECKING:
    from app.engine.async_llm import AsyncLLM
    from app.engine.llm import LLM
    from app.engine.prompts import TextPrompt, TokensPrompt

__all__ = [
    "LLM",
    "AsyncLLM",
    "BeamSearchOutput",
    "BeamSearchParams",
    "BeamSearchSequence",
    "ChatFormat",
    "ChatParser",
    "CompletionOutput",
    "ContentDelta",
    "EmbeddingOutput",
    "EmbeddingRequestOutput",
    "EngineConfig",
    "EngineError",
    "EngineOverloaded",
    "EngineStats",
    "EngineStopped",
    "FinishedStats",
    "GenerationFailed",
    "InvalidRequest",
    "LoRARequest",
    "Logprob",
    "ModelNotFound",
    "OutOfMemory",
    "PoolingParams",
    "PromptTooLong",
    "QuoteOnlyParams",
    "QuoteSource",
    "ReasoningDelta",
    "RequestMetrics",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "ScoringOutput",
    "ScoringRequestOutput",
    "SpeculativeConfig",
    "StepStats",
    "StructuredOutputsParams",
    "TextPrompt",
    "TokensPrompt",
    "ToolCallDelta",
    "ToolFormat",
    "UnsupportedModel",
    "detect_chat_format",
    "force_tool_calls",
    "named_chat_format",
]


# name -> module: these load torch or the tokenizers, which takes a second or more
HEAVY = {
    "LLM": "app.engine.llm",
    "AsyncLLM": "app.engine.async_llm",
    "TextPrompt": "app.engine.prompts",
    "TokensPrompt": "app.engine.prompts",
}


def __getattr__(name: str) -> object:
    if name in HEAVY:
        return getattr(import_module(HEAVY[name]), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
