"""The training loop: each step draws by its own seed, so a run that goes on is the same run."""

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from app.scripts.train_reader.circuits import (
    HEADS,
    HIDDEN,
    IDENTITY,
    LAYERS,
    ROPE_THETA,
    lay_circuits,
    token_rarity,
)
from app.scripts.train_reader.examples import Exercises, Size
from app.scripts.train_reader.special_tokens import END
from app.scripts.train_reader.tokens import Encoded, encode

# How much there is to read in a batch, by turns: as much as three chunks hold, and less.
SIZES = (Size(2, 4), Size(3, 4), Size(1, 5), Size(3, 6), Size(2, 3))
COPIED_WEIGHT = 0.1  # of a copied token in the loss, beside those where a choice is made
MAX_TOKENS = 1024
CHECKPOINT = "checkpoint.pt"
LOG = "training.jsonl"
LOG_EVERY = 10
SAVE_EVERY = 50


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a run is made of."""

    steps: int = 600
    batch_tokens: int = 3072
    learning_rate: float = 5e-4
    warmup: int = 20
    decay_share: float = 0.5  # of the steps, at the end
    seed: int = 1
    num_layers: int = LAYERS
    intermediate_size: int = 512


def make_model(recipe: Recipe, tokenizer: Tokenizer, counts: Tensor) -> LlamaForCausalLM:
    """A model of the ordinary Llama layout with its circuits laid in.

    `counts` [vocab] says how often each token stands in the texts.
    """
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=IDENTITY,
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(END),
    )
    model = LlamaForCausalLM(config)
    lay_circuits(model, tokenizer, token_rarity(counts))
    return model


class Training:
    """A run in a folder; `run` goes on from its checkpoint, if there is one."""

    def __init__(
        self,
        recipe: Recipe,
        exercises: Exercises,
        tokenizer: Tokenizer,
        counts: Tensor,
        folder: Path,
    ) -> None:
        self._recipe = recipe
        self._exercises = exercises
        self.tokenizer = tokenizer
        self._folder = folder
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = make_model(recipe, tokenizer, counts)
        self.model.to(device)  # type: ignore[arg-type]  # a name is a device, too
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0
        )
        self.step = 0

    def resume(self) -> None:
        """Read the checkpoint; another recipe's is refused."""
        saved = torch.load(
            self._folder / CHECKPOINT, map_location=self.model.device, weights_only=True
        )
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

    def run(self, until: float, tell: Callable[[str], None], until_step: int | None = None) -> None:
        """Train to the last step, or one before it, or until a `time.monotonic`; then save."""
        start, num_tokens, sums = time.monotonic(), 0, [0.0, 0.0, 0.0]
        self.model.train()
        end = min(self._recipe.steps, until_step or self._recipe.steps)
        while self.step < end and time.monotonic() < until:
            batch = self._batch()
            learned = self._learn(batch)
            num_tokens += sum(len(item.token_ids) for item in batch)
            sums = [total + value for total, value in zip(sums, learned, strict=True)]
            self.step += 1
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
            if self.step % SAVE_EVERY == 0:
                self.save()
        self.save()

    def _batch(self) -> list[Encoded]:
        rng = random.Random(f"{self._recipe.seed}:{self.step}")
        size = SIZES[self.step % len(SIZES)]
        batch: list[Encoded] = []
        longest = 0
        while True:
            item = encode(self._exercises.draw(rng, size), self.tokenizer, COPIED_WEIGHT)
            if len(item.token_ids) > MAX_TOKENS:
                continue
            longest = max(longest, len(item.token_ids))
            if batch and longest * (len(batch) + 1) > self._recipe.batch_tokens:
                return batch
            batch.append(item)

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
    ids = ids.to(model.device)
    states = model.model(ids, use_cache=False).last_hidden_state
    at = torch.tensor(columns)
    logits = model.lm_head(states[rows, at - 1])
    wanted = ids[rows, at]
    losses = functional.cross_entropy(logits, wanted, reduction="none")
    weight = torch.tensor(weights, device=model.device)
    right = (logits.argmax(-1) == wanted).float()
    loss = (losses * weight).sum() / weight.sum()
    return loss, float(right[firsts].mean()), float(right.mean())
