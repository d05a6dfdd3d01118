"""The engine's own error tree; each class has a stable code.

EngineError
├── InvalidRequest       a request that its sender can correct
│   └── PromptTooLong    prompt, or prompt and answer, over a limit; the message has the numbers
├── UnsupportedModel     a checkpoint that the engine cannot run
├── ModelNotFound        no such folder, and not on the hub
├── OutOfMemory          the machine has too little memory for the model and its cache
├── EngineOverloaded     the waiting queue is full; carries `retry_after_s`
└── GenerationFailed     a step failed; the requests in it are lost, the engine goes on
    └── EngineStopped    the engine was shut down
"""

from typing import ClassVar


class EngineError(Exception):
    """A failure with a stable code; its message names the thing, the limit and the way out."""

    code: ClassVar[str] = "engine_error"


class InvalidRequest(EngineError, ValueError):
    """A request that its sender can correct."""

    code = "invalid_request"


class PromptTooLong(InvalidRequest):
    """The request needs more tokens than the model or the cache can hold."""

    code = "prompt_too_long"


class UnsupportedModel(EngineError):
    """A checkpoint that the engine cannot run."""

    code = "unsupported_model"


class ModelNotFound(EngineError):
    """No such folder, and not on the hub."""

    code = "model_not_found"


class OutOfMemory(EngineError):
    """The machine has too little memory for the model and its cache."""

    code = "out_of_memory"


class EngineOverloaded(EngineError):
    """The waiting queue is full; try again after `retry_after_s` seconds."""

    code = "overloaded"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class GenerationFailed(EngineError):
    """A step failed: the requests in it are lost, the engine goes on."""

    code = "generation_failed"


class EngineStopped(GenerationFailed):
    """The engine was shut down before the request finished."""

    code = "engine_stopped"
