"""Orders chunks again by a cross-encoder, which reads question and chunk together.

On a CPU that takes milliseconds to tenths of a second a chunk, so it goes from the best chunk on
until its time is up. It knows neither where the chunks come from nor how they were found.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Any, Protocol

import torch

from app.domain import ChunkSpan, SearchHit
from app.errors import InvalidInput, Unavailable
from app.metrics import reranks
from app.rag.text import language_of

logger = logging.getLogger(__name__)

# Chunks that are scored at a time: fewer end nearer to the budget, more use a CPU better.
BATCH_SIZE = 4
# Longest pair of question and chunk; models read more, but attention grows with its square.
MAX_TOKENS = 512
# How long a caller of `score` waits, who wants every text scored.
SCORE_TIMEOUT_S = 30.0
CHINESE_SAMPLE = "请问这份文件里写了什么内容"

TextOf = Callable[[str, ChunkSpan], str]  # title and chunk -> what is read


class PairScorer(Protocol):
    """Scores how well texts answer a query, 0 to 1. Blocks; one call at a time."""

    @property
    def name(self) -> str: ...
    @property
    def is_multilingual(self) -> bool: ...
    def score(self, query: str, texts: Sequence[str]) -> list[float]: ...


class BudgetedReranker:
    """Implements Reranker on a scorer; `text_of` makes of title and chunk what it reads.

    Scored hits stand by their score, the others below in the order they came. A model that fails
    or has no time leaves that order as it is: `folio_reranks_total` tells how often.
    """

    def __init__(self, scorer: PairScorer, text_of: TextOf, budget_s: float) -> None:
        self._scorer = scorer
        self._text_of = text_of
        self._budget_s = budget_s
        # One thread: two questions at a time would each be half as fast.
        self._executor = ThreadPoolExecutor(1, "reranker")

    @property
    def name(self) -> str:
        """The model's name."""
        return self._scorer.name

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """Score every text, 0 to 1, in their order. Raises Unavailable after `SCORE_TIMEOUT_S`."""
        deadline = time.monotonic() + SCORE_TIMEOUT_S
        scores: list[float] = []
        work = self._executor.submit(self._score, query, texts, deadline, scores)
        try:
            work.result(SCORE_TIMEOUT_S)
        except TimeoutError:
            work.cancel()
        except (RuntimeError, ValueError, IndexError) as error:  # of torch and tokenizers
            raise Unavailable(f"the reranker {self.name} failed: {error}") from error
        if len(scores) < len(texts):
            raise Unavailable(
                f"the reranker {self.name} read {len(scores)} of {len(texts)} texts in"
                f" {SCORE_TIMEOUT_S:g} s: send fewer, or shorter ones"
            )
        return scores

    def rerank(self, query: str, hits: Sequence[SearchHit]) -> list[SearchHit]:
        """Return the same hits, best first; takes the budget at most."""
        if not hits or (language_of(query) == "zh" and not self._scorer.is_multilingual):
            return list(hits)
        scores, has_failed = self._scores_in_time(query, hits)
        reranks.labels(_outcome(len(scores), len(hits), has_failed)).inc()
        scored = [
            replace(hit, scores=replace(hit.scores, rerank=score))
            for hit, score in zip(hits, scores, strict=False)
        ]
        scored.sort(key=lambda hit: -(hit.scores.rerank or 0.0))
        return [*scored, *hits[len(scores) :]]

    def _scores_in_time(self, query: str, hits: Sequence[SearchHit]) -> tuple[list[float], bool]:
        """Scores of the first hits, as many as there was time for, and whether the model failed.

        The wait has the budget, not the model: the batch in work ends by itself, in vain.
        """
        scores: list[float] = []
        deadline = time.monotonic() + self._budget_s
        texts = (self._text_of(hit.document_title, hit.chunk.span) for hit in hits)
        work = self._executor.submit(self._score, query, texts, deadline, scores)
        try:
            work.result(self._budget_s)
        except TimeoutError:
            work.cancel()
        except (RuntimeError, ValueError, IndexError):  # what torch and tokenizers raise
            logger.exception("reranker failed model=%s", self._scorer.name)
            return scores[:], True
        return scores[:], False

    def _score(
        self, query: str, texts: Iterable[str], deadline: float, scores: list[float]
    ) -> None:
        rest = iter(texts)
        while some := list(islice(rest, BATCH_SIZE)):
            if time.monotonic() >= deadline:
                return
            batch = self._scorer.score(query, some)
            if not all(map(math.isfinite, batch)):
                raise ValueError(f"the reranker {self._scorer.name} gave scores {batch}")
            scores.extend(batch)


def _outcome(num_scored: int, num_hits: int, has_failed: bool) -> str:
    if has_failed:
        return "failed"
    if num_scored == num_hits:
        return "complete"
    return "partial" if num_scored else "late"


def load_cross_encoder(name: str) -> "CrossEncoder":
    """Load a model from a folder or from the hub's local cache, never from the network.

    Raises InvalidInput where it is absent, or is no model that scores pairs.
    """
    # 4 s to import, and needed only where a reranker was set.
    from transformers import (  # noqa: PLC0415
        AutoModelForSequenceClassification,
        AutoTokenizer,
        utils,
    )

    utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers is untyped
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"FOLIO_RERANKER_MODEL={name} is neither the folder of a model nor in the local hub "
            f"cache ({error}): run `hf download {name}` on a machine with network, or unset it"
        ) from error
    if info["missing_keys"] or model.config.num_labels > 2:
        raise InvalidInput(
            f"FOLIO_RERANKER_MODEL={name} does not score pairs of texts: name a cross-encoder, "
            "such as BAAI/bge-reranker-v2-m3"
        )
    logger.info("reranker loaded name=%s", name)
    return CrossEncoder(name, model.float().eval(), tokenizer)


class CrossEncoder:
    """Implements PairScorer on a sequence classifier of transformers with one or two labels."""

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:  # transformers is untyped
        self.name = name
        self._model = model
        self._tokenizer = tokenizer
        # RoBERTa and its kin begin to count positions at 2.
        positions = getattr(model.config, "max_position_embeddings", MAX_TOKENS + 2) - 2
        self._max_tokens = min(MAX_TOKENS, positions, tokenizer.model_max_length)

    @property
    def is_multilingual(self) -> bool:
        """True where the tokenizer knows every character of a plain Chinese sentence."""
        return self._tokenizer.unk_token_id not in self._tokenizer(CHINESE_SAMPLE)["input_ids"]

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """Scores in the order of the texts; of a pair that is too long the longer text is cut."""
        inputs = self._tokenizer(
            [query] * len(texts),
            list(texts),
            padding=True,
            truncation="longest_first",
            max_length=self._max_tokens,
            return_tensors="pt",
        )
        with torch.inference_mode():
            logits = self._model(**inputs).logits.float()  # [num_texts, num_labels]
        if logits.shape[1] == 1:
            return [float(score) for score in torch.sigmoid(logits[:, 0])]
        return [float(score) for score in torch.softmax(logits, dim=1)[:, 1]]
