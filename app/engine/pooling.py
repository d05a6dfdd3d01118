"""Requests for an embedding: a prompt is computed as any other, then its states are pooled."""

import math
from dataclasses import dataclass

from app.engine.errors import InvalidRequest
from app.engine.outputs import EmbeddingOutput, EmbeddingRequestOutput
from app.engine.sequence import FinishReason, PooledStates, PoolingType, Sequence
from app.engine.stats import Timeline


@dataclass(frozen=True, slots=True)
class PoolingParams:
    """How a prompt's final hidden states become one vector.

    "last" takes the state of the last token, which has seen all others; "mean" averages all.
    `dimensions` keeps so many of the first numbers, for models that were trained for it.
    """

    pooling_type: PoolingType = "last"
    normalize: bool = True
    dimensions: int | None = None

    def __post_init__(self) -> None:
        if self.pooling_type not in ("last", "mean"):
            raise InvalidRequest(f"pooling_type is {self.pooling_type}, known: last, mean")
        if self.dimensions is not None and self.dimensions < 1:
            raise InvalidRequest(f"dimensions is {self.dimensions}, it must be at least 1")


class PoolingRequest:
    """Follows the one sequence of an embedding; only the engine's step changes it."""

    def __init__(self, sequence: Sequence, params: PoolingParams) -> None:
        self.sequences = [sequence]
        self.request_id = sequence.request_id
        self._params = params
        self._chunks: list[PooledStates] = []
        self.timeline = Timeline()

    @property
    def is_finished(self) -> bool:
        """Whether its sequence has ended."""
        return self.sequences[0].is_finished

    def add_states(self, states: PooledStates) -> None:
        """Take note of a chunk's states; those computed again after a preemption replace it."""
        self._chunks = [chunk for chunk in self._chunks if chunk.start < states.start]
        self._chunks.append(states)

    def close(self) -> None:
        """Nothing is held back."""

    def output(self) -> EmbeddingRequestOutput:
        """The embedding; empty when the request was aborted."""
        sequence = self.sequences[0]
        is_complete = sequence.finish_reason is FinishReason.STOP
        return EmbeddingRequestOutput(
            request_id=self.request_id,
            outputs=EmbeddingOutput(self._embedding() if is_complete else []),
            prompt_token_ids=tuple(sequence.token_ids),
            finished=self.is_finished,
            num_cached_tokens=sequence.num_cached_tokens,
        )

    def _embedding(self) -> list[float]:
        num_rows = sum(chunk.num_rows for chunk in self._chunks)
        columns = zip(*(chunk.total for chunk in self._chunks), strict=True)
        vector = [math.fsum(column) / num_rows for column in columns][: self._params.dimensions]
        if not self._params.normalize:
            return vector
        length = math.sqrt(math.fsum(x * x for x in vector)) or 1.0
        return [x / length for x in vector]
