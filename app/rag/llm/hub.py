"""Models on the hub: in its cache on this disk, or fetched within bounds.

Nothing here can hang: what asks the network runs on a daemon thread that is left behind where its
time is up. huggingface_hub is imported when it is needed: that takes half a second.
"""

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Generic, TypeVar

from app.errors import GeneratorUnavailable

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
OnProgress = Callable[[str], None]

MODEL_FILES = ["*.json", "*.safetensors", "*.jinja"]
INDEX_FILE = "model.safetensors.index.json"
# A download that brings nothing for so long has failed.
STALLED_S = 60.0
POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model as the hub describes it."""

    name: str
    num_bytes: int


class ModelHub:
    """A model hub and its cache; None means the usual address and place."""

    def __init__(
        self, *, timeout_s: float, endpoint: str | None = None, cache_dir: Path | None = None
    ) -> None:
        from huggingface_hub import constants  # noqa: PLC0415  see above

        self._timeout_s = timeout_s
        self._endpoint = endpoint or constants.ENDPOINT
        self._cache_dir = cache_dir or Path(constants.HF_HUB_CACHE)
        self._is_offline = constants.is_offline_mode()

    def cached(self, name: str) -> Path | None:
        """The model's folder in the cache, where it is complete; asks no network."""
        from huggingface_hub import snapshot_download  # noqa: PLC0415
        from huggingface_hub.errors import (  # noqa: PLC0415
            HFValidationError,
            LocalEntryNotFoundError,
        )

        try:
            path = snapshot_download(
                name,
                local_files_only=True,
                cache_dir=self._cache_dir,
                allow_patterns=MODEL_FILES,
            )
        except (LocalEntryNotFoundError, HFValidationError):
            return None
        lack = missing_files(Path(path))
        if lack:
            logger.info("the cached model is not complete model=%s lacks=%s", name, lack)
        return None if lack else Path(path)

    def download(self, name: str, on_progress: OnProgress) -> Path:
        """Fetch a model, if the hub answers in time. Raises GeneratorUnavailable."""
        if self._is_offline:
            raise GeneratorUnavailable(f"{name} is not on this disk, and HF_HUB_OFFLINE is set")
        on_progress(f"asking {self._endpoint} for {name}")
        model = self._describe(name)
        self._check_room(model)
        try:
            folder = self._watch(Background(lambda: self._fetch(model)), model, on_progress)
        except Exception as error:  # whatever its HTTP library of the day raises
            raise GeneratorUnavailable(
                f"the download of {name} from {self._endpoint} failed ({_short(error)}); "
                "the next start goes on with it"
            ) from error
        if lack := missing_files(folder):
            raise GeneratorUnavailable(f"{name} cannot be used, it lacks {lack}")
        return folder

    def _describe(self, name: str) -> HubModel:
        asking = Background(lambda: self._ask(name))
        try:
            return asking.result(self._timeout_s)
        except TimeoutError:
            reason = f"{self._endpoint} did not answer within {self._timeout_s:g} s"
        except Exception as error:  # noqa: BLE001  as its HTTP library of the day raises
            reason = f"{self._endpoint} does not give it ({_short(error)})"
        raise GeneratorUnavailable(f"{name} is not on this disk, and {reason}")

    def _ask(self, name: str) -> HubModel:
        from huggingface_hub import HfApi  # noqa: PLC0415

        info = HfApi(endpoint=self._endpoint).model_info(name, files_metadata=True)
        files = [
            file
            for file in info.siblings or []
            if any(fnmatch(file.rfilename, pattern) for pattern in MODEL_FILES)
        ]
        return HubModel(name, sum(file.size or 0 for file in files))

    def _check_room(self, model: HubModel) -> None:
        self._cache_dir.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._cache_dir).free
        if free < model.num_bytes:
            raise GeneratorUnavailable(
                f"{model.name} takes {_megabytes(model.num_bytes)} and {self._cache_dir} has "
                f"{_megabytes(free)} left: make room, or set HF_HOME to another disk"
            )

    def _fetch(self, model: HubModel) -> Path:
        from huggingface_hub import snapshot_download  # noqa: PLC0415

        path = snapshot_download(
            model.name,
            endpoint=self._endpoint,
            cache_dir=self._cache_dir,
            allow_patterns=MODEL_FILES,
            tqdm_class=_silent_bar(),
        )
        return Path(path)

    def _watch(
        self, fetching: "Background[Path]", model: HubModel, on_progress: OnProgress
    ) -> Path:
        """Wait for a download, tell how far it is, and give up on one that stands still."""
        blobs = self._cache_dir / f"models--{model.name.replace('/', '--')}" / "blobs"
        num_bytes, changed_at = 0, time.monotonic()
        while True:
            try:
                return fetching.result(POLL_S)
            except TimeoutError:
                if fetching.is_done:
                    raise
            now = _size(blobs)
            if now != num_bytes:
                num_bytes, changed_at = now, time.monotonic()
            if time.monotonic() - changed_at > STALLED_S:
                raise OSError(f"nothing came for {STALLED_S:g} s")
            share = min(1.0, num_bytes / max(1, model.num_bytes))
            total = _megabytes(model.num_bytes)
            on_progress(f"downloading {model.name}: {share:.0%} of {total}")


class Background(Generic[Result]):
    """A call on a daemon thread, whose result may be waited for, for a while."""

    def __init__(self, call: Callable[[], Result]) -> None:
        self._call = call
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._done = threading.Event()
        threading.Thread(target=self._run, name="model-hub", daemon=True).start()

    @property
    def is_done(self) -> bool:
        """Whether the call has returned or raised."""
        return self._done.is_set()

    def result(self, timeout_s: float) -> Result:
        """What the call returned; raise what it raised, or TimeoutError."""
        if not self._done.wait(timeout_s):
            raise TimeoutError
        if self._error:
            raise self._error
        return self._result  # type: ignore[return-value]  # set, unless the call raised

    def _run(self) -> None:
        try:
            self._result = self._call()
        except BaseException as error:  # noqa: BLE001  handed to whoever waits
            self._error = error
        finally:
            self._done.set()


def missing_files(folder: Path) -> str:
    """What a model's folder lacks to be loaded; empty where it is complete."""
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            return name
    shards = {"model.safetensors"}
    if (folder / INDEX_FILE).is_file():
        try:
            index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
            shards = set(index["weight_map"].values())
        except (ValueError, KeyError, AttributeError):
            return f"a readable {INDEX_FILE}"
    return ", ".join(sorted(shard for shard in shards if not (folder / shard).is_file()))


def _size(folder: Path) -> int:
    """Bytes of the files in a folder, which come and go meanwhile."""
    total = 0
    for path in folder.glob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def _silent_bar() -> type:
    """A progress bar that shows nothing: progress goes to the status page and the log."""
    from tqdm.auto import tqdm  # type: ignore[import-untyped]  # noqa: PLC0415

    class SilentBar(tqdm):  # type: ignore[misc]  # tqdm is untyped
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **{**options, "disable": True})

    return SilentBar


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.0f} MB"


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
