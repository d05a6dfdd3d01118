"""Parses in processes of their own, with limits on time, memory and output.

A hostile or broken file can end its process, never the appliance: the parent waits with a
deadline, kills by process id, and starts a new process for the next file.
"""

import logging
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import app
from app.domain import ParsedDocument
from app.errors import ParseFailed, ParseLimitExceeded, UnsupportedFormat
from app.rag.parsers.wire import LENGTH, Progress, document_from_reply, pack

logger = logging.getLogger(__name__)

MAX_REPLY_BYTES = 512 << 20
MAX_EXTENSIONS = 30
KILL_TIMEOUT_S = 10
READ_BYTES = 1 << 16
STDERR_CHARS = 500
# The process gets no environment of ours: it needs no secret.
_ENVIRONMENT = {
    "PYTHONPATH": str(Path(app.__file__).parent.parent),
    "PYTHONUTF8": "1",
    "LC_ALL": "C.UTF-8",
    "PATH": os.defpath,
}


class SubprocessParser:
    """A `Parser` whose calls may come from several threads; each runs in a reused process.

    `passwords` are tried in turn on files that are protected; they go through the pipe alone.
    """

    def __init__(self, timeout_s: float, memory_mb: int, passwords: Sequence[str] = ()) -> None:
        self._passwords = list(passwords)
        self._timeout_s = timeout_s
        self._memory_mb = memory_mb
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._busy: dict[_Process, int] = {}  # the thread that waits for each
        self._is_closed = False

    def parse(
        self,
        path: Path,
        name: str,
        media_type: str,
        on_progress: Callable[[float], None] | None = None,
    ) -> ParsedDocument:
        """Raise UnsupportedFormat, ParseFailed or ParseLimitExceeded with reason and way out.

        `on_progress` is told the share of the pages (0–1) after each that took long; what it
        raises ends the process and the call.
        """
        request = pack(
            {
                "path": str(path.resolve()),
                "name": name,
                "media_type": media_type,
                "passwords": self._passwords,
            }
        )
        try:
            return self._parse(request, name, on_progress)
        except _DiedIdle:
            logger.info("parser process was gone, starting another")
        try:
            return self._parse(request, name, on_progress)
        except _DiedIdle as error:
            raise ParseFailed(f"“{name}”: the parser process does not start ({error})") from error

    def _parse(
        self, request: bytes, name: str, on_progress: Callable[[float], None] | None
    ) -> ParsedDocument:
        process = self._take()
        is_reusable = False
        try:
            document, peak_mb = process.call(request, name, on_progress)
            is_reusable = peak_mb < self._memory_mb // 2
            return document
        except ParseLimitExceeded:
            raise
        except (ParseFailed, UnsupportedFormat):
            is_reusable = True  # where the process died it is not alive, and not reused
            raise
        finally:
            self._give_back(process, is_reusable)

    def interrupt(self, thread_id: int) -> None:
        """End the process that a thread waits for, if it does: its call fails."""
        with self._lock:
            for process, waiting in self._busy.items():
                if waiting == thread_id:
                    process.interrupt()

    def close(self) -> None:
        """End the processes; a call in flight fails."""
        with self._lock:
            self._is_closed = True
            for process in self._busy:
                process.interrupt()
            idle, self._idle = self._idle, []
        for process in idle:
            process.kill()

    def _take(self) -> "_Process":
        with self._lock:
            if self._is_closed:
                raise ParseFailed("the parser is closed")
            while self._idle:
                process = self._idle.pop()
                if process.is_alive:
                    self._busy[process] = threading.get_ident()
                    return process
                process.kill()
            process = _Process(self._timeout_s, self._memory_mb)
            self._busy[process] = threading.get_ident()
            return process

    def _give_back(self, process: "_Process", is_reusable: bool) -> None:
        with self._lock:
            self._busy.pop(process, None)
            if is_reusable and process.is_alive and not self._is_closed:
                self._idle.append(process)
                return
        process.kill()


class _DiedIdle(Exception):
    """A process ended before it took the file: the file has no part in it."""


class _Process:
    """One parser process and its pipes."""

    def __init__(self, timeout_s: float, memory_mb: int) -> None:
        self._timeout_s = timeout_s
        self._memory_mb = memory_mb
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in kill)
        # -P: the folder that the appliance was started in must not shadow a module.
        command = [sys.executable, "-P", "-m", "app.rag.parsers.worker"]
        self._popen = subprocess.Popen(
            [*command, str(memory_mb), str(timeout_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=_ENVIRONMENT,
            start_new_session=True,  # Ctrl-C is for the appliance, which then closes us
        )

    @property
    def is_alive(self) -> bool:
        return self._popen.poll() is None

    def call(
        self, request: bytes, name: str, on_progress: Callable[[float], None] | None
    ) -> tuple[ParsedDocument, int]:
        """Send a request (smaller than a pipe's buffer); return the document and peak memory.

        The time limit starts again when the process reports progress, MAX_EXTENSIONS times.
        """
        assert self._popen.stdin is not None
        start = time.monotonic()
        latest = start + MAX_EXTENSIONS * self._timeout_s
        deadline, where, has_begun = start + self._timeout_s, "", False
        try:
            self._popen.stdin.write(request)
            self._popen.stdin.flush()
        except OSError as error:
            raise _DiedIdle(str(error)) from error
        while True:
            try:
                reply = document_from_reply(self._read_reply(deadline, name))
            except EOFError:
                raise self._crash(name, has_begun) from None
            except TimeoutError:
                raise ParseLimitExceeded(
                    f"reading “{name}” took longer than {time.monotonic() - start:.0f} s"
                    f"{where and f' (after {where})'}: raise parse_timeout_s or split it"
                ) from None
            if not isinstance(reply, Progress):
                return reply
            has_begun = True
            deadline = min(time.monotonic() + self._timeout_s, latest)
            if reply.page:
                where = f"page {reply.page} of {reply.num_pages}"
                if on_progress:
                    on_progress(reply.page / reply.num_pages)

    def _read_reply(self, deadline: float, name: str) -> bytes:
        (length,) = LENGTH.unpack(self._read(LENGTH.size, deadline))
        if length > MAX_REPLY_BYTES:
            raise ParseLimitExceeded(
                f"“{name}” makes {length >> 20} MiB of text and structure, "
                f"{MAX_REPLY_BYTES >> 20} MiB is the most: split it"
            )
        return self._read(length, deadline)

    def interrupt(self) -> None:
        """End the process from another thread; the call in flight fails and then cleans up."""
        self._popen.kill()

    def kill(self) -> None:
        """End the process, reap it and close its pipes."""
        self._popen.kill()
        try:
            self._popen.wait(KILL_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            logger.error("parser process does not end pid=%d", self._popen.pid)
        for stream in (self._popen.stdin, self._popen.stdout, self._stderr):
            assert stream is not None
            try:
                stream.close()
            except OSError:  # a request that was never read
                logger.debug("parser pipe was broken pid=%d", self._popen.pid)

    def _read(self, num_bytes: int, deadline: float) -> bytes:
        assert self._popen.stdout is not None
        data = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self._popen.stdout, selectors.EVENT_READ)
            while len(data) < num_bytes:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                part = os.read(self._popen.stdout.fileno(), min(READ_BYTES, num_bytes - len(data)))
                if not part:
                    raise EOFError
                data += part
        return bytes(data)

    def _crash(self, name: str, has_begun: bool) -> Exception:
        """The error for a process that closed its output: its end, or the file's fault."""
        try:
            code = self._popen.wait(KILL_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return ParseFailed(f"“{name}”: the parser closed its output")
        reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        self._stderr.seek(0)
        stderr = self._stderr.read()[-STDERR_CHARS:].decode(errors="replace")
        logger.warning("parser process ended reason=%s stderr=%r", reason, stderr)
        if not has_begun:
            return _DiedIdle(f"{reason}: {stderr.strip().rpartition(chr(10))[2]}")
        return ParseFailed(
            f"the parser crashed on “{name}” ({reason}): the file is damaged, or needs more than "
            f"{self._memory_mb} MB (parse_memory_mb)"
        )
