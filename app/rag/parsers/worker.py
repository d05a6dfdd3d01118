"""The parser process: reads requests from stdin, parses within its limits, answers on stdout.

Run as `python -m app.rag.parsers.worker MEMORY_MB TIMEOUT_S`. It ends when stdin closes, and
kills itself when one file takes far longer than its parent would wait, so that no parent's death
leaves it behind.
"""

import json
import logging
import os
import resource
import signal
import sys
import warnings
from pathlib import Path
from typing import Any, BinaryIO

from app.errors import FolioError, ParseLimitExceeded
from app.rag.parsers import sandbox
from app.rag.parsers.access import Access
from app.rag.parsers.formats import parse_file
from app.rag.parsers.progress import Report
from app.rag.parsers.wire import LENGTH, document_fields, pack

GRACE_S = 10
NICENESS = 5  # reading files must not slow down answers
RECURSION_LIMIT = 3000


def main(memory_mb: int, timeout_s: float) -> None:
    """Serve until stdin closes."""
    requests, replies = sys.stdin.buffer, _take_stdout()
    _limit(memory_mb)
    while (request := _read(requests)) is not None:

        def send(message: bytes) -> None:
            signal.setitimer(signal.ITIMER_REAL, timeout_s + GRACE_S)  # its default action kills
            replies.write(message)
            replies.flush()

        def report(page: int, num_pages: int) -> None:
            send(pack({"page": page, "num_pages": num_pages}))

        report(0, 0)
        send(_answer(json.loads(request), memory_mb, report))
        signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(request: dict[str, Any], memory_mb: int, report: Report) -> bytes:  # Any: JSON
    name = request["name"]
    try:
        access = Access(tuple(request["passwords"]))
        document = parse_file(Path(request["path"]), name, request["media_type"], report, access)
        return pack(document_fields(document) | {"peak_mb": _peak_mb()})
    except FolioError as error:
        return _error(type(error).__name__, str(error))
    except MemoryError:
        message = (
            f"“{name}” needs more than {memory_mb} MB to read: raise parse_memory_mb or split it"
        )
        return _error(ParseLimitExceeded.__name__, message)
    # The border between us and libraries that were handed a hostile file: whatever they raise is
    # the file's failure, and the process lives on for the next one.
    except Exception as error:  # noqa: BLE001
        reason = f"{type(error).__name__}: {error}"[:300]
        return _error("ParseFailed", f"“{name}” is damaged or not what its suffix says ({reason})")


def _error(kind: str, message: str) -> bytes:
    return pack({"error": kind, "message": message})


def _take_stdout() -> BinaryIO:
    """Keep the pipe for replies alone: what libraries print goes to stderr."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return replies


def _limit(memory_mb: int) -> None:
    """Bound memory, written files and core dumps, refuse network and programs, be nice.

    RLIMIT_DATA counts what is really allocated; RLIMIT_AS would count libraries' mappings too.
    """
    num_bytes = memory_mb << 20
    resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, num_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(NICENESS)
    sys.setrecursionlimit(RECURSION_LIMIT)
    sys.addaudithook(_refuse_network)
    sandbox.restrict()  # where the kernel has no seccomp the hook is what there is
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")


def _refuse_network(event: str, _: tuple[object, ...]) -> None:
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        raise PermissionError("a parser may not use the network")


def _read(stream: BinaryIO) -> bytes | None:
    header = stream.read(LENGTH.size)
    if len(header) < LENGTH.size:
        return None
    return stream.read(LENGTH.unpack(header)[0])


def _peak_mb() -> int:
    """The most memory this process had resident, in MiB.

    Linux hands ru_maxrss down from the process that started us, however large that is; the
    high-water mark of our own memory is in /proc.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) >> 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
