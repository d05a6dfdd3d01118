"""What is shipped: half-precision weights in small files, the tokenizer, the losses drawn."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaForCausalLM

from app.scripts.train_reader.tokens import save_tokenizer

SHARD = "15MB"
WIDTH, HEIGHT, MARGIN = 640, 300, 40
COLOURS = {"loss": "#b4552d", "choice_accuracy": "#2d6fb4"}


def export(model: LlamaForCausalLM, tokenizer: Tokenizer, log: Path, folder: Path) -> None:
    """Write the model's folder, as engines and transformers read it."""
    folder.mkdir(parents=True, exist_ok=True)
    end = model.config.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=end, do_sample=False)  # type: ignore[no-untyped-call]  # transformers has no types here
    model.to(torch.float16).save_pretrained(folder, max_shard_size=SHARD)  # type: ignore[arg-type]  # transformers takes a device there
    save_tokenizer(tokenizer, folder)
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    (folder / "training.svg").write_text(draw(entries), encoding="utf-8")


def draw(entries: Sequence[dict[str, float]]) -> str:
    """Loss and accuracy of the choices over the steps, as SVG; each scaled to its own range."""
    lines = []
    last = max(entry["step"] for entry in entries)
    for row, (name, colour) in enumerate(COLOURS.items()):
        values = [entry[name] for entry in entries]
        low, high = 0.0, max(*values, 1.0)
        points = " ".join(
            f"{MARGIN + (WIDTH - 2 * MARGIN) * entry['step'] / last:.1f},"
            f"{HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (value - low) / (high - low):.1f}"
            for entry, value in zip(entries, values, strict=True)
        )
        lines += [
            f'<polyline points="{points}" fill="none" stroke="{colour}"/>',
            f'<text x="{MARGIN}" y="{16 + 14 * row}" fill="{colour}">'
            f"{name}: 0 to {high:.1f}, at the end {values[-1]:.3f}</text>",
        ]
    body = "\n".join(lines)
    frame = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    axis = f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 12}" text-anchor="end">{last:.0f} steps</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12">\n{frame}\n{body}\n{axis}\n</svg>\n'
    )
