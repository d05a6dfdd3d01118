"""What 8 and 4 bits lose: logits and next tokens against those of full weights and cache.

    python -m app.scripts.benchmark quantization --shape tiny
    python -m app.scripts.benchmark quantization --model FOLDER --text FILE

All rows of a table see the same prompts in float32 arithmetic; bfloat16 is there to compare with.
"""

import dataclasses
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from app.engine.kernels.dispatch import choose_kernels
from app.engine.kernels.metadata import AttentionMetadata, KVCache
from app.engine.layers.attention import ForwardContext
from app.engine.loader import WeightReader, load_model_config
from app.engine.machine import num_usable_cores
from app.engine.model_config import ModelConfig
from app.engine.models.llama import LlamaModel
from app.engine.tokenizer import Tokenizer
from app.engine.weights import CheckpointWeights
from app.scripts.benchmark.models import SHAPES, make_model

CPU = torch.device("cpu")
BLOCK_SIZE = 16
MIB = 2**20
RANDOM_WEIGHTS_NOTE = (
    "Random weights show that every form computes what it should, how the error grows with depth, "
    "and the bytes. They do not show a trained model's loss: they have no outlier channels, which "
    "cost 4 bits most, and their next tokens are near ties, so that KL is too small and top-1 "
    "agreement too low. Measure those with --model and --text."
)


@dataclass(frozen=True, slots=True)
class Form:
    """A way to keep weights and cache."""

    name: str
    dtype: torch.dtype = torch.float32
    quantization: str | None = None
    has_int8_cache: bool = False


FORMS = (
    Form("float32"),
    Form("bfloat16", dtype=torch.bfloat16),
    Form("int8 weights", quantization="int8"),
    Form("int4 weights", quantization="int4"),
    Form("int8 KV", has_int8_cache=True),
    Form("int8 weights, int8 KV", quantization="int8", has_int8_cache=True),
    Form("int4 weights, int8 KV", quantization="int4", has_int8_cache=True),
)


@dataclass(frozen=True, slots=True)
class Loss:
    """Against the exact logits of the same rows.

    Errors are in standard deviations of a row's exact logits, divergences in nats.
    """

    mean_error: float
    max_error: float
    mean_divergence: float
    max_divergence: float
    same_top: float

    @classmethod
    def of(cls, logits: Tensor, exact: Tensor) -> "Loss":
        """logits, exact: [rows, vocabulary] float32."""
        error = (logits - exact).abs() / exact.std(-1, keepdim=True)
        log_exact, log_other = exact.log_softmax(-1), logits.log_softmax(-1)
        divergence = (log_exact.exp() * (log_exact - log_other)).sum(-1)
        same = logits.argmax(-1) == exact.argmax(-1)
        return cls(
            float(error.mean()),
            float(error.max()),
            float(divergence.mean()),
            float(divergence.max()),
            float(same.float().mean()),
        )


def quantization(
    shape: Annotated[str, typer.Option(help=f"One of: {', '.join(SHAPES)}.")] = "tiny",
    model: Annotated[Path | None, typer.Option(help="A checkpoint in place of a shape.")] = None,
    text: Annotated[Path | None, typer.Option(help="Prompts from this file; else random.")] = None,
    prompts: Annotated[int, typer.Option(min=1)] = 2,
    prompt_tokens: Annotated[int, typer.Option(min=2)] = 128,
    threads: Annotated[int, typer.Option(min=0, help="0: all usable cores.")] = 0,
) -> None:
    """Measure the loss of each form of weights and cache, and print a table."""
    torch.set_num_threads(threads or num_usable_cores())
    console = Console()
    with tempfile.TemporaryDirectory() as made:
        folder = model or Path(made)
        if model is None:
            make_model(folder, SHAPES[shape], prompt_tokens, "float32")
        config = load_model_config(folder)
        if config.quantization is not None:
            raise typer.BadParameter(
                f"{folder} is quantised with {config.quantization.method} already: "
                "name the full checkpoint that it was made from"
            )
        tokens = _prompts(folder, config, text, (prompts, prompt_tokens))
        table = _table(f"{model or shape}, {prompts} prompts of {prompt_tokens} tokens")
        exact = None
        for form in FORMS:
            with console.status(form.name):
                loaded = _load(folder, config, form, prompt_tokens)
                logits = torch.cat([_logits(loaded, form, prompt) for prompt in tokens])
            exact = logits if exact is None else exact
            _add_row(table, form, loaded, Loss.of(logits, exact))
    console.print(table)
    if model is None:
        console.print(RANDOM_WEIGHTS_NOTE)


def num_bytes(holder: object) -> int:
    """Bytes of all tensors that an object holds, each counted once."""
    return sum({id(tensor): tensor.nbytes for tensor in _tensors(holder)}.values())


def _tensors(holder: object) -> Iterator[Tensor]:
    if isinstance(holder, Tensor):
        yield holder
    elif isinstance(holder, tuple | list):
        for item in holder:
            yield from _tensors(item)
    elif dataclasses.is_dataclass(holder):
        for part in dataclasses.fields(holder):
            yield from _tensors(getattr(holder, part.name))
    elif isinstance(holder, LlamaModel):
        yield from _tensors(list(vars(holder).values()))


def _prompts(
    folder: Path, config: ModelConfig, text: Path | None, shape: tuple[int, int]
) -> list[list[int]]:
    """As many prompts of as many tokens as `shape` says."""
    num_prompts, length = shape
    if text is None:
        rng = random.Random(0)
        return [
            [rng.randrange(config.vocab_size) for _ in range(length)] for _ in range(num_prompts)
        ]
    ids = Tokenizer.load(folder).encode(text.read_text(encoding="utf-8"))
    if len(ids) < num_prompts * length:
        raise typer.BadParameter(
            f"{text} has {len(ids)} tokens, {num_prompts} prompts of {length} need "
            f"{num_prompts * length}: lower --prompts or --prompt-tokens"
        )
    return [ids[i * length : (i + 1) * length] for i in range(num_prompts)]


def _load(folder: Path, config: ModelConfig, form: Form, num_tokens: int) -> LlamaModel:
    """As the engine's model runner loads it."""
    kernels = choose_kernels(CPU)
    packer = kernels.packer if form.dtype == torch.float32 else None
    with WeightReader(folder, form.dtype, CPU) as read_tensor:
        weights = CheckpointWeights(read_tensor, form.quantization, packer=packer)
        return LlamaModel(config, weights, num_tokens, CPU, kernels)


@torch.inference_mode()
def _logits(model: LlamaModel, form: Form, prompt: list[int]) -> Tensor:
    """[tokens, vocabulary], float32."""
    num_tokens, blocks = len(prompt), list(range(-(-len(prompt) // BLOCK_SIZE)))
    positions = list(range(num_tokens))
    metadata = AttentionMetadata.build(positions, positions, [num_tokens], [blocks], CPU)
    context = ForwardContext(_cache(model.config, form, len(blocks)), metadata)
    return model.logits(model.forward(torch.tensor(prompt), context))


def _cache(config: ModelConfig, form: Form, num_blocks: int) -> KVCache:
    shape = (num_blocks, config.num_layers, 2, config.num_kv_heads, BLOCK_SIZE)
    dtype = torch.int8 if form.has_int8_cache else form.dtype
    data = torch.zeros((*shape, config.head_dim), dtype=dtype)
    return KVCache(data, torch.zeros(shape) if form.has_int8_cache else None)


def _table(title: str) -> Table:
    table = Table(title=title)
    table.add_column("form")
    for column in (
        "weights MiB",
        "KV bytes a token",
        "logit error mean",
        "max",
        "KL mean",
        "max",
        "same top-1",
    ):
        table.add_column(column, justify="right")
    return table


def _add_row(table: Table, form: Form, model: LlamaModel, loss: Loss) -> None:
    token_bytes = num_bytes(_cache(model.config, form, 1)) // BLOCK_SIZE
    table.add_row(
        form.name,
        f"{num_bytes(model) / MIB:.1f}",
        f"{token_bytes}",
        f"{loss.mean_error:.4f}",
        f"{loss.max_error:.3f}",
        f"{loss.mean_divergence:.2e}",
        f"{loss.max_divergence:.2e}",
        f"{100 * loss.same_top:.1f} %",
    )
