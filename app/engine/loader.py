"""Finds a model's folder and reads its config and weights."""

import json
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from app.engine.errors import InvalidRequest, ModelNotFound, UnsupportedModel
from app.engine.model_config import ModelConfig, parse_model_config, token_id_set
from app.engine.sampling_params import SamplingParams

logger = logging.getLogger(__name__)

HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt"]
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
RECOMMENDED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def find_model(model: str) -> Path:
    """The folder of a model: local, in the hub's cache, or downloaded now."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(model, local_files_only=True, allow_patterns=HUB_FILES))
    except (LocalEntryNotFoundError, RepositoryNotFoundError, ValueError):
        logger.info("downloading model model=%s", model)
    try:
        return Path(snapshot_download(model, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError, OSError) as error:
        raise ModelNotFound(
            f"{model} is no local folder and could not be had from the hub ({error}): "
            "name a folder with config.json, tokenizer.json and *.safetensors"
        ) from error


def load_model_config(folder: Path) -> ModelConfig:
    """Read `config.json`, and the end tokens of `generation_config.json`, which count for more."""
    config = parse_model_config(_read_json(folder / "config.json"))
    eos = token_id_set(_generation_config(folder).get("eos_token_id"))
    return config.with_eos(eos or config.eos_token_ids)


def load_default_sampling_params(folder: Path) -> SamplingParams:
    """What the model's makers recommend in `generation_config.json`."""
    generation = _generation_config(folder)
    given = {name: generation[name] for name in RECOMMENDED if generation.get(name) is not None}
    try:
        return SamplingParams(**given)
    except InvalidRequest as error:
        logger.warning("recommended sampling ignored folder=%s reason=%s", folder, error)
        return SamplingParams()


class WeightReader:
    """Reads tensors of a safetensors checkpoint, in one file or sharded, by name.

    Names are those of a causal language model alone, `model.layers.0.…`, whatever the checkpoint
    has before them. A context manager: the files are open, memory-mapped, within its block.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self._folder = folder
        self._dtype = dtype
        self._device = device
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}  # safetensors has no types for its handles
        self._places: dict[str, tuple[str, str]] = {}  # a name's file, and what it is called there
        self._unread: set[str] = set()

    def __enter__(self) -> Self:
        index = self._folder / INDEX_FILE
        if index.is_file():
            file_of = _read_json(index)["weight_map"]
        elif (self._folder / SINGLE_FILE).is_file():
            file_of = dict.fromkeys(self._open(SINGLE_FILE).keys(), SINGLE_FILE)
        else:
            raise ModelNotFound(
                f"{self._folder} has neither {SINGLE_FILE} nor {INDEX_FILE}: only safetensors "
                "checkpoints are read"
            )
        self._places = {_decoder_name(stored): (file, stored) for stored, file in file_of.items()}
        self._unread = set(self._places)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()
        self._files.clear()

    def __contains__(self, name: str) -> bool:
        """Whether the checkpoint has a tensor of that name."""
        return name in self._places

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors, without reading them."""
        return {
            name: tuple(self._open(file).get_slice(stored).get_shape())
            for name, (file, stored) in self._places.items()
        }

    def leftovers(self) -> list[str]:
        """What was not read, but for biases of zero, which some quantising programs write."""
        return [
            name for name in self._unread if not name.endswith(".bias") or self._read(name).any()
        ]

    def __call__(self, name: str) -> Tensor:
        """The tensor of that name, in the engine's dtype and on its device."""
        self._unread.discard(name)
        return self._read(name).to(device=self._device, dtype=self._dtype, copy=True)

    def stored(self, name: str) -> Tensor:
        """The tensor of that name in the checkpoint's dtype, on the engine's device."""
        self._unread.discard(name)
        return self._read(name).to(device=self._device, copy=True)

    def _read(self, name: str) -> Tensor:
        if name not in self._places:
            raise UnsupportedModel(f"the checkpoint in {self._folder} lacks the weight {name}")
        file_name, stored = self._places[name]
        tensor: Tensor = self._open(file_name).get_tensor(stored)
        return tensor

    def _open(self, file_name: str) -> Any:
        if file_name not in self._files:
            path = self._folder / file_name
            try:
                handle = self._stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise ModelNotFound(f"{path} cannot be read: {error}") from error
            self._files[file_name] = handle
        return self._files[file_name]


def _decoder_name(stored: str) -> str:
    """`model.…` or `lm_head.…` for a decoder within a model of images, or saved without head."""
    for outer, inner in (("model.language_model.", "model."), ("language_model.", "")):
        if stored.startswith(outer):
            return inner + stored.removeprefix(outer)
    has_no_prefix = stored.startswith(("layers.", "embed_tokens.", "norm."))
    return f"model.{stored}" if has_no_prefix else stored


def _generation_config(folder: Path) -> Mapping[str, Any]:
    path = folder / "generation_config.json"
    return _read_json(path) if path.is_file() else {}


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        value: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelNotFound(f"{path} cannot be read: {error}") from error
    return value
