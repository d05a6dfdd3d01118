"""What a client asks for, in the engine's words."""

from dataclasses import replace
from typing import Any

from app.api.generate.schemas import ChatIn, CompletionIn, EmbeddingIn, GenerationIn, QuoteOnly
from app.engine import (
    InvalidRequest,
    QuoteOnlyParams,
    QuoteSource,
    SamplingParams,
    StructuredOutputsParams,
)
from app.engine.options import RequestOptions
from app.engine_service import ServedModel

# fields that the engine calls by the same name
SAME = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "seed",
    "stop",
    "stop_token_ids",
    "bad_words",
    "min_tokens",
    "ignore_eos",
    "skip_special_tokens",
    "include_stop_str_in_output",
    "prompt_logprobs",
)
COMPLETION_TOKENS = 16  # OpenAI's default


def chat_params(served: ServedModel, wanted: ChatIn) -> SamplingParams:
    """A chat's answer goes on to the model's limit where the client sets none."""
    max_tokens = wanted.max_completion_tokens
    if max_tokens is None:
        max_tokens = wanted.max_tokens
    logprobs = (wanted.top_logprobs or 0) if wanted.logprobs else None
    return _params(served, wanted, max_tokens, logprobs=logprobs)


def completion_params(served: ServedModel, wanted: CompletionIn) -> SamplingParams:
    """With `echo` the prompt's log probabilities are those of the answer."""
    max_tokens = COMPLETION_TOKENS if wanted.max_tokens is None else wanted.max_tokens
    if (
        max_tokens == 0
    ):  # a prompt's log probabilities are asked for: one token is made, and dropped
        max_tokens = 1
    params = _params(served, wanted, max_tokens, logprobs=wanted.logprobs)
    if wanted.echo and wanted.logprobs is not None:
        params = replace(params, prompt_logprobs=wanted.logprobs)
    return params


def request_options(served: ServedModel, wanted: GenerationIn | EmbeddingIn) -> RequestOptions:
    """What goes with the request; the `user` is a tenant, so that none waits for another's many."""
    return {
        "priority": wanted.priority,
        "cache_salt": wanted.cache_salt,
        "tenant": wanted.user or "",
        "lora_request": served.adapter,
    }


def _params(
    served: ServedModel, wanted: GenerationIn, max_tokens: int | None, *, logprobs: int | None
) -> SamplingParams:
    given: dict[str, Any] = {  # the engine's dataclass checks them
        name: value for name in SAME if (value := getattr(wanted, name)) is not None
    }
    default = served.llm.get_default_sampling_params()
    return replace(
        default,
        max_tokens=max_tokens,
        logprobs=logprobs,
        structured_outputs=_structured_outputs(wanted),
        **given,
    )


def _structured_outputs(wanted: GenerationIn) -> StructuredOutputsParams | None:
    """The form of the answer, in OpenAI's words or in vLLM's."""
    given, response = wanted.structured_outputs, wanted.response_format
    if response is not None and response.type != "text":
        if given is not None:
            raise InvalidRequest("give either response_format or structured_outputs")
        if response.json_schema is None:
            return StructuredOutputsParams(json_object=True)
        return StructuredOutputsParams(json=response.json_schema.schema_)
    if given is None:
        return None
    return StructuredOutputsParams(
        json=given.json_,
        regex=given.regex,
        choice=given.choice,
        grammar=given.grammar,
        json_object=given.json_object,
        quote_only=_quote_only(given.quote_only),
    )


def _quote_only(given: QuoteOnly | None) -> QuoteOnlyParams | None:
    if given is None:
        return None
    fields = given.model_dump()
    return QuoteOnlyParams(**fields | {"sources": [QuoteSource(**s) for s in fields["sources"]]})
