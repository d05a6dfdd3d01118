"""What it costs to hold an answer to a grammar: for each token, and once for each grammar.

python -m app.scripts.benchmark structured --vocab-sizes 400,150000
"""

import json
import random
import statistics
import time
from typing import Annotated

import torch
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from app.engine import SamplingParams, StructuredOutputsParams
from app.engine.bans import forbid
from app.engine.sequence import GenerationLimits, SamplingRow, Sequence
from app.engine.structured import GrammarCompiler

END = "<|end|>"
LETTERS = "etaoinshrdlucmfwypvbgkjqxz"
SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 60},
        "pages": {"type": "array", "items": {"type": "integer"}, "maxItems": 8},
        "kind": {"enum": ["report", "letter", "table"]},
        "summary": {"type": "string"},
    },
    "required": ["title", "pages", "kind", "summary"],
}
FORMS = {
    "json_object": StructuredOutputsParams(json_object=True),
    "json": StructuredOutputsParams(json=SCHEMA),
    "regex": StructuredOutputsParams(regex=r"[a-z ]{20,400}\."),
    "choice": StructuredOutputsParams(choice=[f"answer number {i}" for i in range(40)]),
}


def structured(
    vocab_sizes: Annotated[str, typer.Option(help="Tokens of each vocabulary.")] = "400,150000",
    num_tokens: Annotated[int, typer.Option(help="Tokens to sample for each grammar.")] = 200,
) -> None:
    """Milliseconds for each token that a grammar costs on top of sampling, with random logits."""
    torch.set_num_threads(1)
    for size in map(int, vocab_sizes.split(",")):
        tokenizer = make_tokenizer(size)
        compiler = GrammarCompiler(tokenizer.to_str(), [size - 1], size)
        start = time.perf_counter()
        compiler.ban(["warm-up"])
        typer.echo(f"vocabulary {size}: tokenizer read in {time.perf_counter() - start:.2f} s")
        for name, params in FORMS.items():
            typer.echo(json.dumps({"form": name, **measure(compiler, params, size, num_tokens)}))


def make_tokenizer(size: int) -> Tokenizer:
    """A byte-level vocabulary of made-up words."""
    rng = random.Random(1)
    words = dict.fromkeys(sorted(pre_tokenizers.ByteLevel.alphabet()))
    while len(words) < size - 1:
        length = rng.randint(2, 9)
        letters = rng.choices(LETTERS, weights=range(len(LETTERS), 0, -1), k=length)
        words[rng.choice(["", "Ġ"]) + "".join(letters)] = None
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    return tokenizer


def measure(
    compiler: GrammarCompiler, params: StructuredOutputsParams, size: int, num_tokens: int
) -> dict[str, float]:
    """Times of one grammar: compiling, and what it adds to a token; answers follow each other."""
    limits = GenerationLimits(frozenset([size - 1]), max_model_len=1 << 20, vocab_size=size)
    generator = torch.Generator().manual_seed(0)
    start = time.perf_counter()
    compiler.compile(params)
    compile_ms = (time.perf_counter() - start) * 1e3
    taken_ms: list[float] = []
    while len(taken_ms) < num_tokens:
        sequence = Sequence("r", 0, [0], SamplingParams(), limits, seed=len(taken_ms))
        sequence.grammar = compiler.start(params)
        while len(taken_ms) < num_tokens and sequence.token_ids[-1] != size - 1:
            logits = torch.randn(size, generator=generator)
            start = time.perf_counter()
            bounded = forbid(logits, SamplingRow(sequence))
            taken_ms.append((time.perf_counter() - start) * 1e3)
            sequence.token_ids.append(int(bounded.argmax()))
    return {
        "compile_ms": round(compile_ms, 2),
        "mean_ms": round(statistics.mean(taken_ms), 3),
        "median_ms": round(statistics.median(taken_ms), 3),
        "p95_ms": round(statistics.quantiles(taken_ms, n=20)[-1], 3),
        "max_ms": round(max(taken_ms), 2),
    }
