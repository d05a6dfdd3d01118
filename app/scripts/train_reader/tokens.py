"""The reader's tokenizer, and examples as tokens."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from app.rag.llm.reader_prompt import reader_prompt
from app.scripts.train_reader.examples import Example
from app.scripts.train_reader.special_tokens import ASSISTANT, END, USER

# Words with the space before them, single digits, and Chinese in pieces of at most four characters:
# longer ones would be learned whole from too little text.
PIECES = (
    r"\n| ?[\u4e00-\u9fff\u3400-\u4dbf]{1,4}| ?[^\s\d\p{P}\u4e00-\u9fff\u3400-\u4dbf]+| ?\d"
    r"| ?\p{P}|\s+"
)
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] != 'system' %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}<|end|>{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NUM_CHOICE_TOKENS = 4  # at a sentence's start: by then it is told from the others


@dataclass(frozen=True, slots=True)
class Encoded:
    """Tokens of prompt and answer; `weights` of each answer token in the loss."""

    token_ids: tuple[int, ...]
    weights: tuple[float, ...]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[END, USER, ASSISTANT],
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the two files that engines and transformers read."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def encode(example: Example, tokenizer: Tokenizer, copied_weight: float = 1.0) -> Encoded:
    """The chat of an example; after a sentence's first tokens all others are copied."""
    user, assistant, end = (_ids(tokenizer, token)[0] for token in (USER, ASSISTANT, END))
    prompt = _ids(tokenizer, reader_prompt(example.question, example.sources))
    answer: list[int] = []
    weights: list[float] = []
    parts = [f"{sentence} [{number}]" for sentence, number in example.answer]
    for part in parts or [example.completion]:
        ids = _ids(tokenizer, f" {part}" if answer else part)
        answer += ids
        num_copied = max(0, len(ids) - NUM_CHOICE_TOKENS)
        weights += [1.0] * (len(ids) - num_copied) + [copied_weight] * num_copied
    token_ids = (user, *prompt, assistant, *answer, end)
    return Encoded(token_ids, (*weights, 1.0))


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def count_tokens(texts: Iterable[str], tokenizer: Tokenizer) -> dict[int, int]:
    """How often each token occurs."""
    counts: Counter[int] = Counter()
    for text in texts:
        counts.update(_ids(tokenizer, text))
    return counts
