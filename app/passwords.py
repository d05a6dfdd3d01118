"""Passwords and tokens: hashing, and how often somebody may guess."""

import hashlib
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from ipaddress import ip_address, ip_network

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from pwdlib import PasswordHash

from app.errors import InvalidInput, Overloaded

MIN_LENGTH, MAX_LENGTH = 8, 256
# Each hashing takes 64 MiB for a moment.
MAX_AT_A_TIME = 2
WAIT_S = 10.0
WINDOW_MIN = 15
PER_NAME = RateLimitItemPerMinute(10, WINDOW_MIN)
PER_ADDRESS = RateLimitItemPerMinute(100, WINDOW_MIN)
RETRY_S = 60.0
IPV6_PREFIX = 64  # what one line is given
# Names and addresses are counted in so many drawers, so that guessing at many fills no memory.
NUM_DRAWERS = 65_536


class Passwords:
    """Argon2id, few at a time. Its calls block for tens of milliseconds."""

    def __init__(self) -> None:
        self._hasher = PasswordHash.recommended()
        self._turns = threading.BoundedSemaphore(MAX_AT_A_TIME)

    def hash(self, password: str) -> str:
        """Raise InvalidInput for a password that is too short or too long."""
        if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
            raise InvalidInput(
                f"the password has {len(password)} characters, it must have {MIN_LENGTH} to "
                f"{MAX_LENGTH}"
            )
        with self._turn():
            return self._hasher.hash(password)

    def verify(self, password: str, password_hash: str | None) -> bool:
        """Whether it is right. Without a hash the work is the same, and the answer no."""
        known = password_hash or self._nobodys
        with self._turn():
            is_right = self._hasher.verify(password[:MAX_LENGTH], known)
        return is_right and password_hash is not None and len(password) <= MAX_LENGTH

    @cached_property
    def _nobodys(self) -> str:
        return self.hash(secrets.token_urlsafe())

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._turns.acquire(timeout=WAIT_S):
            raise Overloaded("too many are logging in: try again in a moment", WAIT_S)
        try:
            yield
        finally:
            self._turns.release()


class Guesses:
    """Counts failed logins by name and by address, in memory."""

    def __init__(self) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def begin(self, name: str, address: str) -> None:
        """Raise Overloaded where there were too many. The try counts until `succeeded`.

        `name` is the same for all spellings by which one user is found.
        """
        has_room = self._limiter.test(PER_ADDRESS, drawer("address", network_of(address)))
        if not has_room or not self._limiter.hit(PER_NAME, drawer("name", name)):
            raise Overloaded(
                f"too many failed logins in {WINDOW_MIN} minutes: wait some minutes and try again",
                RETRY_S,
            )

    def failed(self, address: str) -> None:
        """Note that the try came to nothing."""
        self._limiter.hit(PER_ADDRESS, drawer("address", network_of(address)))

    def succeeded(self, name: str) -> None:
        """Forget the tries for this name."""
        self._limiter.clear(PER_NAME, drawer("name", name))


def drawer(kind: str, key: str) -> str:
    """The drawer in which a name or an address is counted."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) % NUM_DRAWERS
    return f"{kind}-{number}"


def network_of(address: str) -> str:
    """The address, of IPv6 the part that a line has for itself."""
    try:
        ip = ip_address(address)
    except ValueError:
        return address
    return str(ip_network((ip, IPV6_PREFIX), strict=False)) if ip.version == 6 else address


def new_token() -> str:
    """A random secret of 256 bits."""
    return secrets.token_urlsafe(32)


def hash_of(token: str) -> str:
    """What is kept of a random secret, which nobody can guess: a plain SHA-256."""
    return hashlib.sha256(token.encode()).hexdigest()
