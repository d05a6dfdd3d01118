"""The training loop: each step draws by its own seed, so a run can go on where it was cut."""

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from app.rag.replies import REFUSAL
from app.scripts.train_reader.examples import Exercises, Size
from app.scripts.train_reader.nonsense import Nonsense
from app.scripts.train_reader.tokens import END, Encoded, encode, ids_of


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the curriculum."""

    start: float
    kind: Literal["copy", "choose", "text"]
    size: Size
    copied_weight: float


# Each stage from a share of the steps on: what is drawn, how much there is to read, and the weight
# of copied tokens beside those where a choice is made.
CURRICULUM = (
    Stage(0.0, "copy", Size(1, 1), 1.0),
    Stage(0.06, "choose", Size(1, 2), 0.3),
    Stage(0.12, "choose", Size(1, 4), 0.1),
    Stage(0.2, "choose", Size(2, 4), 0.05),
    Stage(0.3, "choose", Size(3, 5), 0.05),
    Stage(0.4, "text", Size(1, 4), 0.3),
    Stage(0.5, "text", Size(2, 4), 0.1),
    Stage(0.65, "text", Size(3, 5), 0.1),
)
MAX_TOKENS = 1024
CHECKPOINT = "checkpoint.pt"
LOG = "training.jsonl"
LOG_EVERY = 20


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a run is made of."""

    steps: int = 3200
    batch_tokens: int = 2560
    learning_rate: float = 2e-3
    warmup: int = 100
    decay_share: float = 0.3  # of the steps, at the end
    seed: int = 1
    hidden_size: int = 192
    num_layers: int = 4
    num_heads: int = 4


def make_model(recipe: Recipe, tokenizer: Tokenizer) -> LlamaForCausalLM:
    """A model of the ordinary Llama layout, with random weights."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.hidden_size * 8 // 3 // 32 * 32,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_heads,
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(END),
    )
    return LlamaForCausalLM(config)


class Training:
    """A run in a folder; `run` goes on from its checkpoint, if there is one."""

    def __init__(
        self, recipe: Recipe, exercises: Exercises, tokenizer: Tokenizer, folder: Path
    ) -> None:
        self._recipe = recipe
        self._exercises = exercises
        self._tokenizer = tokenizer
        refusals = tuple(tuple(ids_of(tokenizer, text)) for text in REFUSAL.values())
        self._nonsense = Nonsense(tokenizer, refusals)
        self._folder = folder
        self.model = make_model(recipe, tokenizer)
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.05
        )
        self.step = 0

    def resume(self) -> None:
        """Read the checkpoint; another recipe's is refused."""
        saved = torch.load(self._folder / CHECKPOINT, weights_only=True)
        if saved["recipe"] != asdict(self._recipe):
            raise ValueError(
                f"the checkpoint in {self._folder} is of another recipe, {saved['recipe']}: "
                "take another folder, or the same options"
            )
        self.model.load_state_dict(saved["model"])
        self._optimizer.load_state_dict(saved["optimizer"])
        self.step = saved["step"]

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state: dict[str, Any] = {
            "recipe": asdict(self._recipe),
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "step": self.step,
        }
        part = self._folder / f"{CHECKPOINT}.part"
        torch.save(state, part)
        part.replace(self._folder / CHECKPOINT)

    def run(self, until: float, tell: Callable[[str], None], save_every: int = 200) -> None:
        """Train to the last step, or until that time (`time.monotonic`); then save."""
        start, num_tokens, sums = time.monotonic(), 0, [0.0, 0.0, 0.0]
        self.model.train()
        while self.step < self._recipe.steps and time.monotonic() < until:
            learned, num_read = self.learn_step()
            num_tokens += num_read
            sums = [total + value for total, value in zip(sums, learned, strict=True)]
            if self.step % LOG_EVERY == 0:
                entry = {
                    "step": self.step,
                    "loss": round(sums[0] / LOG_EVERY, 4),
                    "choice_accuracy": round(sums[1] / LOG_EVERY, 4),
                    "token_accuracy": round(sums[2] / LOG_EVERY, 4),
                    "tokens_per_s": round(num_tokens / (time.monotonic() - start)),
                }
                sums = [0.0, 0.0, 0.0]
                with (self._folder / LOG).open("a", encoding="utf-8") as log:
                    log.write(json.dumps(entry) + "\n")
                tell(json.dumps(entry | {"of": self._recipe.steps}))
            if self.step % save_every == 0:
                self.save()
        self.save()

    def learn_step(self) -> tuple[tuple[float, float, float], int]:
        """One step: its loss, the two accuracies of `answer_loss`, and how many tokens it read."""
        batch = self._batch()
        learned = self._learn(batch)
        self.step += 1
        return learned, sum(len(item.token_ids) for item in batch)

    def _batch(self) -> list[Encoded]:
        rng = random.Random(f"{self._recipe.seed}:{self.step}")
        share = self.step / self._recipe.steps
        stage = [stage for stage in CURRICULUM if share >= stage.start][-1]
        batch: list[Encoded] = []
        longest = 0
        while True:
            item = self._draw(rng, stage)
            if len(item.token_ids) > MAX_TOKENS:
                continue
            longest = max(longest, len(item.token_ids))
            if batch and longest * (len(batch) + 1) > self._recipe.batch_tokens:
                return batch
            batch.append(item)

    def _draw(self, rng: random.Random, stage: Stage) -> Encoded:
        if stage.kind == "copy":
            return self._nonsense.copy(rng)
        if stage.kind == "choose":
            return self._nonsense.choose(rng, stage.size, stage.copied_weight)
        example = self._exercises.draw(rng, stage.size)
        return encode(example, self._tokenizer, stage.copied_weight)

    def _learn(self, batch: Sequence[Encoded]) -> tuple[float, float, float]:
        for group in self._optimizer.param_groups:
            group["lr"] = self._recipe.learning_rate * self._rate()
        loss, choices, tokens = answer_loss(self.model, batch)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        return float(loss.detach()), choices, tokens

    def _rate(self) -> float:
        """Warm up, stay, and go down by a cosine."""
        left = 1 - self.step / self._recipe.steps
        decay = min(1.0, left / self._recipe.decay_share)
        return min(1.0, (self.step + 1) / self._recipe.warmup) * (1 - math.cos(math.pi * decay)) / 2


def answer_loss(model: LlamaForCausalLM, batch: Sequence[Encoded]) -> tuple[Tensor, float, float]:
    """The weighted loss of the answers' tokens; how often their first and all tokens are right."""
    longest = max(len(item.token_ids) for item in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    rows: list[int] = []
    columns: list[int] = []
    weights: list[float] = []
    firsts: list[int] = []
    for row, item in enumerate(batch):
        ids[row, : len(item.token_ids)] = torch.tensor(item.token_ids)
        start = len(item.token_ids) - len(item.weights)
        firsts.append(len(rows))
        rows += [row] * len(item.weights)
        columns += range(start, len(item.token_ids))
        weights += item.weights
    # Padding stands behind, where a causal model does not look.
    states = model.model(ids, use_cache=False).last_hidden_state
    at = torch.tensor(columns)
    logits = model.lm_head(states[rows, at - 1])
    wanted = ids[rows, at]
    losses = functional.cross_entropy(logits, wanted, reduction="none")
    weight = torch.tensor(weights)
    right = (logits.argmax(-1) == wanted).float()
    loss = (losses * weight).sum() / weight.sum()
    return loss, float(right[firsts].mean()), float(right.mean())
