"""The weights a run starts from: what a reader must do first, laid in instead of learned.

From random weights a small model needs more text than a CPU reads in an hour before it even
copies. So three layers begin with the circuits that matching question and sentences takes; what
they then weigh, and all else, is trained.

1. A token sees the token before it, and whether it belongs to the question (the first line).
2. It sees the first two tokens of its own line, and whether the question has it, by its rarity.
3. Where an answer or its next sentence begins, the lines' first tokens are voted for by the lines'
   tokens that the question has; after a first token the second ones; then what stood there goes on.

The residual stream is cut into a token's own identity, that of the token before, those of its
line's first two tokens (IDENTITY dimensions each), and flags.
"""

import math
import re
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from app.scripts.train_reader.special_tokens import ASSISTANT, USER

IDENTITY = 64
HIDDEN = 5 * IDENTITY
HEADS = 5
LAYERS = 3
ROPE_THETA = 1e9
OWN, BEFORE, FIRST, SECOND = (slice(i * IDENTITY, (i + 1) * IDENTITY) for i in range(4))
CONSTANT, RARITY, IS_SECOND, IS_ASKED, MATCHED, BALLAST = range(4 * IDENTITY, 4 * IDENTITY + 6)
# Norm of the stream that each layer reads, as its parts add up.
NORMS = (1.74, 2.05, 2.45)
NUM_PAIRS = IDENTITY // 2
FIRST_STILL_PAIR = 11  # these turn too slowly to matter within a prompt
FLAG_DIM = NUM_PAIRS - 1  # the stillest: sums of flags
# Of an identity, the dimensions that a head compares where positions do not matter: forms of one
# word have them in common, and the rest tells them apart.
STILL_DIMS = [dim for pair in range(FIRST_STILL_PAIR, FLAG_DIM) for dim in (pair, pair + NUM_PAIRS)]
WORD_SHARE = 0.7  # of an identity's squared norm, what forms of one word share
MATCH, PLACE, VOTE, COPY = 24.0, 28.0, 12.0, 6.0
SINK = 0.7  # of a match's score: what the first token draws where nothing matches
ENDING = re.compile(r"(?:ing|ed|es|s|ly|e)$")


def lay_circuits(model: LlamaForCausalLM, tokenizer: Tokenizer, rarity: Tensor) -> None:
    """Overwrite a new model's weights; `rarity` [vocab] is in 0..1 for each token."""
    generator = torch.Generator().manual_seed(1)
    table = _embeddings(tokenizer, rarity, generator)
    newline, user, assistant, bracket = (
        table[_id(tokenizer, text), OWN] for text in ("\n", USER, ASSISTANT, "]")
    )
    starts = newline + assistant
    project = torch.zeros(IDENTITY, IDENTITY)
    project[STILL_DIMS, STILL_DIMS] = 1 / math.sqrt(WORD_SHARE)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(0.1)
        model.model.embed_tokens.weight.copy_(table)
        *_, last = all_layers = model.model.layers
        for layer in all_layers[2:-1]:  # these have nothing to say yet
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        bare = (all_layers[0], all_layers[1], last)
        layers = [_Layer(layer, norm) for layer, norm in zip(bare, NORMS, strict=True)]
        _lay_neighbours(layers[0], starts, newline, user)
        _lay_lines(layers[1], starts, user, project)
        _lay_answers(layers[2], assistant + bracket, user, project)


def token_rarity(counts: Tensor) -> Tensor:
    """1 for a token that hardly occurs, down to 0.6 for the most frequent ones."""
    weight = torch.log1p(counts.sum() / (counts + 1.0))
    return (1 + torch.log(weight / weight.max()) / VOTE * 3).clamp(0.3, 1.0)


class _Layer:
    """One layer's projections, written head by head for a stream of a known norm."""

    def __init__(self, layer: nn.Module, norm: float) -> None:
        self._attention: Any = layer.self_attn  # torch does not know a module's own fields
        self._scale = norm / math.sqrt(HIDDEN)

    def ask(self, head: int, dim: int | slice, part: int | slice, weight: Tensor | float) -> None:
        self._put(self._attention.q_proj, head, dim, part, weight)

    def offer(self, head: int, dim: int | slice, part: int | slice, weight: Tensor | float) -> None:
        self._put(self._attention.k_proj, head, dim, part, weight)

    def clear(self, head: int) -> None:
        own = slice(head * IDENTITY, (head + 1) * IDENTITY)
        for projection in (self._attention.q_proj, self._attention.k_proj, self._attention.v_proj):
            projection.weight[own] = 0
        self._attention.o_proj.weight[:, own] = 0

    def carry(self, head: int, source: int | slice, target: int | slice, gain: float = 1.0) -> None:
        """Write what the head sees of one part into another."""
        width = 1 if isinstance(source, int) else IDENTITY
        values = slice(head * IDENTITY, head * IDENTITY + width)
        self._attention.v_proj.weight[values, source] = _square(width) * self._scale
        self._attention.o_proj.weight[target, values] = _square(width) * gain

    def carry_match(self, head: int, identity: Tensor, target: int) -> None:
        """Write how much the token seen is this one."""
        row = head * IDENTITY
        self._attention.v_proj.weight[row, OWN] = identity * self._scale
        self._attention.o_proj.weight[target, row] = 1.0

    def _put(
        self,
        linear: nn.Linear,
        head: int,
        dim: int | slice,
        part: int | slice,
        weight: Tensor | float,
    ) -> None:
        offset = head * IDENTITY
        rows = dim + offset if isinstance(dim, int) else slice(offset, offset + IDENTITY)
        linear.weight[rows, part] += weight * self._scale

    def score(
        self, head: int, parts: Sequence[tuple[int | slice, Tensor | float]], gain: float
    ) -> None:
        """Add to each key's score `gain` times the sum of its flags or likenesses."""
        root = math.sqrt(gain * math.sqrt(IDENTITY))
        self.ask(head, FLAG_DIM, CONSTANT, root)
        for part, weight in parts:
            self.offer(head, FLAG_DIM, part, weight * root)

    def place(self, head: int, curve: Tensor) -> None:
        """Add to each key's score a function of its distance, given by `fit_curve`."""
        for pair, (cosine, sine) in enumerate(curve.tolist()):
            self.ask(head, pair, CONSTANT, math.sqrt(IDENTITY))
            self.offer(head, pair, CONSTANT, cosine)
            self.offer(head, pair + NUM_PAIRS, CONSTANT, sine)

    def match(self, head: int, project: Tensor, asking: slice, offering: slice) -> None:
        """Add to each key's score MATCH times its likeness with the query's token."""
        root = math.sqrt(MATCH * math.sqrt(IDENTITY))
        self.ask(head, slice(0, IDENTITY), asking, project * root)
        self.offer(head, slice(0, IDENTITY), offering, project * root)


def _lay_neighbours(layer: _Layer, starts: Tensor, newline: Tensor, user: Tensor) -> None:
    for head in range(3):
        layer.clear(head)
    layer.place(0, _neighbour(1))
    layer.carry(0, OWN, BEFORE)
    layer.place(1, _neighbour(2))
    layer.carry_match(1, starts, IS_SECOND)
    layer.score(2, [(OWN, 2 * newline + user)], PLACE)
    layer.carry_match(2, user, IS_ASKED)


def _lay_lines(layer: _Layer, starts: Tensor, user: Tensor, project: Tensor) -> None:
    recent = _fit(torch.arange(1024.0), -16 * torch.log2(1 + torch.arange(1024.0) / 16))
    for head in range(3):
        layer.clear(head)
    layer.place(0, recent)
    layer.score(0, [(BEFORE, starts)], 3 * PLACE)
    layer.carry(0, OWN, FIRST)
    layer.place(1, recent)
    layer.score(1, [(IS_SECOND, 1.0)], 3 * PLACE)
    layer.carry(1, OWN, SECOND)
    layer.match(2, project, OWN, OWN)
    layer.score(2, [(IS_ASKED, 1.0), (OWN, user * SINK)], MATCH)
    layer.carry(2, RARITY, MATCHED)


def _lay_answers(layer: _Layer, begins: Tensor, user: Tensor, project: Tensor) -> None:
    for head in range(3):
        layer.clear(head)
    root = math.sqrt(VOTE * math.sqrt(IDENTITY))
    layer.ask(0, FLAG_DIM, OWN, begins * root)
    layer.offer(0, FLAG_DIM, MATCHED, root)
    layer.offer(0, FLAG_DIM, IS_ASKED, -root)
    layer.carry(0, FIRST, OWN, COPY)
    layer.match(1, project, OWN, FIRST)
    layer.score(1, [(MATCHED, 0.5), (IS_ASKED, -1.0), (OWN, user * 2.1)], MATCH)
    layer.carry(1, SECOND, OWN, COPY)
    layer.match(2, project, OWN, BEFORE)
    layer.score(2, [(MATCHED, 0.1), (OWN, user * SINK)], MATCH)
    layer.carry(2, OWN, OWN, COPY)


def _embeddings(tokenizer: Tokenizer, rarity: Tensor, generator: torch.Generator) -> Tensor:
    """Each token's row [vocab, HIDDEN]: forms of one word are alike."""
    size = tokenizer.get_vocab_size()
    table = torch.zeros(size, HIDDEN)
    own = torch.randn(size, IDENTITY, generator=generator)
    for token in range(size):
        text = tokenizer.decode([token], skip_special_tokens=False)
        word = text.strip().lower()
        if word and "\ufffd" not in text:
            seed = zlib.crc32(ENDING.sub("", word).encode() if len(word) > 4 else word.encode())
            shared = torch.randn(len(STILL_DIMS), generator=torch.Generator().manual_seed(seed))
            own[token, STILL_DIMS] = shared
        if not any(map(str.isalnum, text)):
            rarity[token] = 0.0
    rest = [dim for dim in range(IDENTITY) if dim not in STILL_DIMS]
    for dims, share in ((STILL_DIMS, WORD_SHARE), (rest, 1 - WORD_SHARE)):
        own[:, dims] = nn.functional.normalize(own[:, dims], dim=1) * math.sqrt(share)
    table[:, OWN] = own
    table[:, CONSTANT] = 1.0
    table[:, RARITY] = rarity
    for text in (USER, ASSISTANT):
        table[_id(tokenizer, text), RARITY] = 0.0
    # All rows of one norm, so that the constant stays one behind a normalisation.
    table[:, BALLAST] = (1 - table[:, RARITY] ** 2).clamp(min=0).sqrt()
    return table


def _neighbour(distance: int) -> Tensor:
    """A sharp peak at a distance."""
    angle = _frequencies()[:9] * distance
    return torch.stack([angle.cos(), angle.sin()], dim=1) * PLACE


def _fit(distances: Tensor, wanted: Tensor) -> Tensor:
    """The pairs' cosines and sines [FIRST_STILL_PAIR + 4, 2] that come nearest to a curve."""
    angles = distances[:, None] * _frequencies()[None, : FIRST_STILL_PAIR + 4]
    basis = torch.cat([angles.cos(), angles.sin()], dim=1).double()
    ridge = 1e-3 * torch.eye(basis.shape[1], dtype=torch.double)
    solved: Tensor = torch.linalg.solve(basis.T @ basis + ridge, basis.T @ wanted.double())
    return solved.float().view(2, -1).T


def _frequencies() -> Tensor:
    base = torch.tensor(ROPE_THETA)
    return torch.pow(base, -torch.arange(NUM_PAIRS) / NUM_PAIRS)


def _square(width: int) -> Tensor | float:
    return 1.0 if width == 1 else torch.eye(width)


def _id(tokenizer: Tokenizer, text: str) -> int:
    token = tokenizer.token_to_id(text)
    if token is None:
        [token] = tokenizer.encode(text, add_special_tokens=False).ids
    return int(token)
