"""Documents read on a Ray cluster: parsed, chunked and embedded there, written here.

Each reader is a Ray actor with parser and embedding model of its own. It gets a file's bytes and
gives back what `Reading.read` makes of them. Jobs, leases, retries and every write stay in this
process, so that a reader may die at any moment.
"""

import importlib
import logging
import os
import queue
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.config import Settings
from app.domain import Document, IndexSpec, JobStage
from app.errors import FolioError, InvalidInput, Unavailable
from app.rag.document_processor import Advance, FileStore, Read
from app.wiring.reading import load_reading

RAY = "ray==2.60.0"  # as in requirements-dev.txt
POLL_S = 1.0
READ_TIMEOUT_S = 1800.0
MAX_READERS = 63  # one worker thread each, and one that writes meanwhile


class Reader:
    """What runs on the cluster; the model is loaded with it."""

    def __init__(self, settings: Settings, spec: IndexSpec) -> None:
        logging.getLogger().setLevel(logging.ERROR)
        self._files = FileStore(Path(tempfile.mkdtemp(prefix="folio-reader-")))
        self._reading = load_reading(settings, spec, self._files)

    def read(self, document: Document, content: bytes) -> Read | FolioError:
        """The document as it is to be written, or why it cannot be read."""
        path = self._files.path(document.content_hash)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        try:
            return self._reading.read(document, lambda stage, progress: None)
        except FolioError as error:
            return error
        finally:
            path.unlink()


class RayReaders:
    """The readers of one run; `read` blocks, and is safe from as many threads as there are."""

    def __init__(self, ray: Any, address: str | None) -> None:  # Any: Ray's types need Ray
        self._ray = ray
        try:
            ray.init(
                address=address or "local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise Unavailable(f"no Ray cluster answers at {address}: {error}") from error
        self.num_readers = min(MAX_READERS, max(1, int(ray.cluster_resources().get("CPU", 1))))
        self._idle: queue.Queue[Any] = queue.Queue()  # as many as there are readers

    def start(self, settings: Settings, spec: IndexSpec) -> None:
        """Have the cluster make the readers, one a CPU; that they load is not waited for."""
        for _ in range(self.num_readers):
            self._idle.put(self._make(settings, spec))

    def close(self) -> None:
        """Let go of the cluster; of one that was started here, nothing stays."""
        self._ray.shutdown()

    def read(self, document: Document, path: Path, advance: Advance) -> Read:
        """Have a reader read it. Raises what the reader raised; Unavailable where it died."""
        reader = self._take(advance)
        try:
            call = reader.read.remote(replace(document, metadata={}), path.read_bytes())
            result: Read | FolioError = self._await(call, advance)
        except self._ray.exceptions.RayError as error:
            raise Unavailable(f"a Ray reader was lost: {type(error).__name__}") from error
        finally:
            self._idle.put(reader)
        if isinstance(result, FolioError):
            raise result
        return result

    def _make(self, settings: Settings, spec: IndexSpec) -> Any:
        kind = self._ray.remote(Reader).options(num_cpus=1, max_restarts=-1)
        return kind.remote(settings, spec)

    def _take(self, advance: Advance) -> Any:
        """The next reader that is free."""
        while True:
            advance(JobStage.PARSING, 0.0)
            try:
                return self._idle.get(timeout=POLL_S)
            except queue.Empty:
                continue

    def _await(self, reference: Any, advance: Advance) -> Any:
        """What comes of a call; `advance` ends the waiting where the job is not ours any more."""
        deadline = time.monotonic() + READ_TIMEOUT_S
        while time.monotonic() < deadline:
            done, _ = self._ray.wait([reference], timeout=POLL_S)
            if done:
                return self._ray.get(reference)
            advance(JobStage.PARSING, 0.0)
        raise Unavailable(f"a Ray reader gave nothing back within {READ_TIMEOUT_S:.0f} s")


def connect(address: str | None) -> RayReaders:
    """Join the cluster at an address, or start one on this machine; InvalidInput without Ray."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it would call home
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise InvalidInput(
            f"--engine ray needs Ray: .venv/bin/python -m pip install {RAY}"
        ) from error
    return RayReaders(ray, address)
