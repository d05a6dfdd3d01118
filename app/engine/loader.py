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

from app.engine.config import ModelConfig, parse_model_config, token_id_set
from app.engine.errors import ModelNotFound, UnsupportedModel

logger = logging.getLogger(__name__)

HUB_FILES = ["*.json", "*.safetensors", "*.jinja"]
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


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
    generation = folder / "generation_config.json"
    if not generation.is_file():
        return config
    eos = token_id_set(_read_json(generation).get("eos_token_id"))
    return config.with_eos(eos or config.eos_token_ids)


class WeightReader:
    """Reads tensors of a safetensors checkpoint, in one file or sharded, by name.

    A context manager: the files are open, memory-mapped, within its block.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self._folder = folder
        self._dtype = dtype
        self._device = device
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}  # safetensors has no types for its handles
        self._file_of: dict[str, str] = {}

    def __enter__(self) -> Self:
        index = self._folder / INDEX_FILE
        if index.is_file():
            self._file_of = _read_json(index)["weight_map"]
        elif (self._folder / SINGLE_FILE).is_file():
            self._file_of = dict.fromkeys(self._open(SINGLE_FILE).keys(), SINGLE_FILE)
        else:
            raise ModelNotFound(
                f"{self._folder} has neither {SINGLE_FILE} nor {INDEX_FILE}: only safetensors "
                "checkpoints are read"
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()
        self._files.clear()

    def __call__(self, name: str) -> Tensor:
        """The tensor of that name, in the engine's dtype and on its device."""
        file_name = self._file_of.get(name)
        if file_name is None:
            raise UnsupportedModel(f"the checkpoint in {self._folder} lacks the weight {name}")
        tensor: Tensor = self._open(file_name).get_tensor(name)
        return tensor.to(device=self._device, dtype=self._dtype, copy=True)

    def _open(self, file_name: str) -> Any:
        if file_name not in self._files:
            path = self._folder / file_name
            try:
                handle = self._stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise ModelNotFound(f"{path} cannot be read: {error}") from error
            self._files[file_name] = handle
        return self._files[file_name]


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        value: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelNotFound(f"{path} cannot be read: {error}") from error
    return value
