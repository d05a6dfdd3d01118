"""The error tree of the appliance; the engine has its own.

FolioError
├── InvalidInput          a value that the caller can correct
│   ├── UnsupportedFormat a file type that no parser reads
│   └── TooLarge          a file or prompt over its limit
├── Unauthorized          nobody that we know: log in, or send a key
├── Forbidden             there, but not for whoever asks
├── NotFound              an id that does not exist
├── Conflict              the thing exists already, or is busy
│   └── LeaseLost         a job was cancelled, replaced or taken by another worker
├── ParseFailed           a file that its parser could not read
│   └── ParseLimitExceeded  it took too long or too much memory
├── Overloaded            a queue is full; carries `retry_after_s`
└── Unavailable           something we depend on does not answer
    ├── Starting              a part is still being loaded
    ├── StoreUnavailable      the vector store
    └── GeneratorUnavailable  the language model
"""

from typing import ClassVar


class FolioError(Exception):
    """A failure with a stable code; its message names the thing, the limit and the way out."""

    code: ClassVar[str] = "internal"


class InvalidInput(FolioError):
    """A value that the caller can correct."""

    code = "invalid_input"


class UnsupportedFormat(InvalidInput):
    """A file type that no parser reads."""

    code = "unsupported_format"


class TooLarge(InvalidInput):
    """A file, a prompt or a request over its limit."""

    code = "too_large"


class Unauthorized(FolioError):
    """Nobody that we know: the session, key or password is missing or wrong."""

    code = "unauthorized"


class Forbidden(FolioError):
    """Something that is there, but not for whoever asks, or that another site asked for."""

    code = "forbidden"


class NotFound(FolioError):
    """An id that does not exist."""

    code = "not_found"


class Conflict(FolioError):
    """The thing exists already, or is busy."""

    code = "conflict"


class LeaseLost(Conflict):
    """A job was cancelled, replaced or taken by another worker: its work is void."""

    code = "lease_lost"


class ParseFailed(FolioError):
    """A file that its parser could not read."""

    code = "parse_failed"


class ParseLimitExceeded(ParseFailed):
    """Reading a file took more time or memory than allowed."""

    code = "parse_limit_exceeded"


class Overloaded(FolioError):
    """A queue is full; try again after `retry_after_s` seconds."""

    code = "overloaded"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(FolioError):
    """Something that we depend on does not answer."""

    code = "unavailable"


class Starting(Unavailable):
    """A part is still being loaded; try again in a moment."""

    code = "starting"


class StoreUnavailable(Unavailable):
    """The vector store does not answer."""

    code = "store_unavailable"


class GeneratorUnavailable(Unavailable):
    """The language model does not answer."""

    code = "generator_unavailable"
