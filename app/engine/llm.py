"""`LLM`: generates for lists of prompts, in the caller's thread. It loads when constructed.

The names follow vLLM's, so that its users' scripts run with the import changed.
"""

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar, Unpack

from tqdm import tqdm  # type: ignore[import-untyped]  # it has no types

from app.engine.beam_search import BeamSearchParams
from app.engine.engine_core import NewRequest, Output, load_engine
from app.engine.errors import InvalidRequest
from app.engine.lora_request import LoRARequest
from app.engine.options import SamplingOptions, VLLMOptions, make_config
from app.engine.outputs import (
    BeamSearchOutput,
    BeamSearchSequence,
    EmbeddingRequestOutput,
    EngineStats,
    RequestOutput,
    ScoringOutput,
    ScoringRequestOutput,
)
from app.engine.pooling import PoolingParams
from app.engine.prompts import (
    Prompt,
    PromptDict,
    as_conversations,
    as_prompts,
    encode_prompt,
    one_for_each,
)
from app.engine.sampling_params import RequestOutputKind, SamplingParams
from app.engine.tokenizer import ChatMessage, ChatOptions, Tokenizer

Kind = TypeVar("Kind", RequestOutput, EmbeddingRequestOutput)


class LLM:
    """Generates for a list of prompts and returns when all are done.

    Calls from several threads take turns. `use_tqdm` shows a bar where stderr is a terminal.
    """

    def __init__(self, model: str, **options: Unpack[VLLMOptions]) -> None:
        self._core = load_engine(make_config(model, options))
        self._lock = threading.Lock()

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._core.max_model_len

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._core.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's makers recommend in `generation_config.json`."""
        return self._core.default_sampling_params

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: int | Sequence[int] = 0,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        **options: Unpack[SamplingOptions],
    ) -> list[RequestOutput]:
        """Generate for each prompt, in their order.

        `sampling_params`, `priority` and `lora_request` are one for all or one for each; without
        params the model's defaults hold, and `options` change them (max_tokens=100).
        """
        many = as_prompts(prompts)
        if sampling_params is None:
            sampling_params = replace(self.get_default_sampling_params(), **options)
        elif options:
            raise InvalidRequest("give sampling_params or keyword options, not both")
        params = [
            replace(each, output_kind=RequestOutputKind.FINAL_ONLY)
            for each in one_for_each("sampling_params", sampling_params, len(many))
        ]
        priorities = one_for_each("priorities", priority, len(many))
        loras = one_for_each("lora_requests", lora_request, len(many))
        requests = [
            NewRequest(
                str(index),
                token_ids,
                params[index],
                text,
                priorities[index],
                lora_request=loras[index],
            )
            for index, (text, token_ids) in enumerate(map(self._encode, many))
        ]
        return self._run(requests, RequestOutput, use_tqdm=use_tqdm)

    def chat(
        self,
        messages: Sequence[ChatMessage] | Sequence[Sequence[ChatMessage]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        **options: Unpack[ChatOptions],
    ) -> list[RequestOutput]:
        """Answer one conversation, or several."""
        apply = self._core.tokenizer.apply_chat_template
        prompts = [
            PromptDict(prompt_token_ids=apply(conversation, **options))
            for conversation in as_conversations(messages)
        ]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm, lora_request=lora_request)

    def beam_search(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: BeamSearchParams,
        *,
        use_tqdm: bool = True,
    ) -> list[BeamSearchOutput]:
        """The `beam_width` best answers to each prompt, as `beam_search.py` defines best."""
        requests = [
            NewRequest(str(index), token_ids, SamplingParams(), text, beam_search=params)
            for index, (text, token_ids) in enumerate(map(self._encode, as_prompts(prompts)))
        ]
        outputs = self._run(requests, RequestOutput, use_tqdm=use_tqdm)
        return [BeamSearchOutput(_beam_sequences(output)) for output in outputs]

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[EmbeddingRequestOutput]:
        """A vector for each prompt, pooled from the decoder's final hidden states."""
        many = as_prompts(prompts)
        pooling = one_for_each("pooling_params", pooling_params or PoolingParams(), len(many))
        requests = [
            NewRequest(str(index), token_ids, SamplingParams(), text, pooling=pooling[index])
            for index, (text, token_ids) in enumerate(map(self._encode, many))
        ]
        return self._run(requests, EmbeddingRequestOutput, use_tqdm=use_tqdm)

    def score(
        self,
        data_1: Prompt | Sequence[Prompt],
        data_2: Prompt | Sequence[Prompt],
        *,
        use_tqdm: bool = True,
    ) -> list[ScoringRequestOutput]:
        """The cosine of two texts' embeddings: one against each, or pair by pair."""
        first, second = as_prompts(data_1), as_prompts(data_2)
        if len(first) not in (1, len(second)):
            raise InvalidRequest(
                f"{len(first)} texts are to be scored against {len(second)}: "
                "give one text, or as many"
            )
        outputs = self.embed([*first, *second], use_tqdm=use_tqdm)
        lefts = outputs[: len(first)] * (len(second) // len(first))
        return [
            ScoringRequestOutput(
                request_id=str(index),
                outputs=ScoringOutput(_dot(left.outputs.embedding, right.outputs.embedding)),
                prompt_token_ids=left.prompt_token_ids + right.prompt_token_ids,
            )
            for index, (left, right) in enumerate(zip(lefts, outputs[len(first) :], strict=True))
        ]

    def stats(self) -> EngineStats:
        """Numbers for metrics."""
        return self._core.stats()

    def _encode(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        return encode_prompt(self._core.tokenizer, prompt)

    def _run(self, requests: list[NewRequest], kind: type[Kind], *, use_tqdm: bool) -> list[Kind]:
        """Feed the requests as the queue takes them; a refused one ends the call."""
        waiting = deque(requests)
        finished: dict[str, Output] = {}
        with self._lock, _progress_bar(len(requests), is_wanted=use_tqdm) as progress:
            try:
                while waiting or self._core.has_work:
                    while waiting and self._core.has_queue_room:
                        self._core.add(waiting.popleft())
                    for output in self._core.step():
                        if output.finished:
                            finished[output.request_id] = output
                            progress.update()
            except BaseException:
                self._core.abort_all()
                raise
        ordered = [finished[request.request_id] for request in requests]
        return [output for output in ordered if isinstance(output, kind)]


def _progress_bar(num_prompts: int, *, is_wanted: bool) -> "tqdm[None]":
    """On a terminal only: `disable=None` asks tqdm to look."""
    return tqdm(total=num_prompts, desc="Processed prompts", disable=None if is_wanted else True)


def _beam_sequences(output: RequestOutput) -> list[BeamSearchSequence]:
    return [
        BeamSearchSequence(
            tokens=[*output.prompt_token_ids, *beam.token_ids],
            text=beam.text,
            cum_logprob=beam.cumulative_logprob or 0.0,
            finish_reason=beam.finish_reason or "abort",
            stop_reason=beam.stop_reason if isinstance(beam.stop_reason, int) else None,
        )
        for beam in output.outputs
    ]


def _dot(left: Iterable[float], right: Iterable[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))
