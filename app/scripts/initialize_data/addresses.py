"""Which addresses pages may be fetched from: public ones, and private ones that the user allows.

A name is resolved once, every address of it is judged, and the connection goes to the judged
address: a name that resolves to something else a moment later gains nothing by it.
"""

import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import httpcore

from app.errors import InvalidInput, Unavailable

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolve = Callable[[str, int], Sequence[str]]

MAX_TRIED = 4
NAT64 = IPv6Network("64:ff9b::/96")
# public by their numbers, but private to a cloud's machines
METADATA = (
    IPv4Network("168.63.129.16/32"),
    IPv4Network("192.0.0.0/24"),
    IPv6Network("64:ff9b:1::/48"),
)
LINK_LOCAL = (IPv4Network("169.254.0.0/16"), IPv6Network("fe80::/10"))


@dataclass(frozen=True, slots=True)
class AllowedPrivate:
    """Private hosts and networks that the user opened.

    A host's name opens what it resolves to, but never link-local addresses, where clouds keep
    their credentials: those need their network.
    """

    hosts: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    def holds(self, host: str, address: Address) -> bool:
        """Whether this address of a host is open though it is not public."""
        if any(address in network for network in self.networks):
            return True
        is_link_local = any(address in network for network in (*LINK_LOCAL, *METADATA))
        return host.lower().rstrip(".") in self.hosts and not is_link_local


def read_allowed(text: str) -> AllowedPrivate:
    """Hosts and CIDR networks, separated by commas; InvalidInput names one that is neither."""
    hosts: set[str] = set()
    networks: list[Network] = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        try:
            networks.append(ip_network(entry))
        except ValueError as error:
            if "/" in entry or ":" in entry or " " in entry:
                raise InvalidInput(
                    f"FOLIO_WEB_ALLOW_PRIVATE: {entry!r} is no host and no network: write names "
                    "like wiki.example.com and networks like 10.0.0.0/8, separated by commas"
                ) from error
            hosts.add(entry.lower().rstrip("."))
    return AllowedPrivate(frozenset(hosts), tuple(networks))


def is_public(address: Address) -> bool:
    """Whether an address is anyone's on the internet.

    An IPv6 address that leads to an IPv4 one is judged by that.
    """
    inner = embedded(address)
    if inner is not None:
        return is_public(inner)
    if address.is_multicast or address.is_reserved or not address.is_global:
        return False
    if isinstance(address, IPv6Address) and address.is_site_local:
        return False
    return not any(address in network for network in METADATA)


def embedded(address: Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 one leads to (mapped, 6to4, Teredo, NAT64), if any."""
    if isinstance(address, IPv4Address):
        return None
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None)


def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, as the system resolves it."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class GuardedBackend(httpcore.NetworkBackend):
    """Opens connections to addresses that may be reached, and to no others."""

    def __init__(self, allowed: AllowedPrivate, resolve: Resolve = resolve) -> None:
        self._allowed = allowed
        self._resolve = resolve
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Raise InvalidInput where any address of the host is closed, else httpcore's errors."""
        last: Exception | None = None
        for address in self.addresses(host, port)[:MAX_TRIED]:
            try:
                return self._sockets.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                last = error
        assert last is not None  # addresses() returns at least one
        raise last

    def addresses(self, host: str, port: int) -> list[str]:
        """The addresses of a host, each judged; one that is closed closes the host."""
        try:
            found = self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise Unavailable(f"the name {host!r} cannot be resolved: {error}") from error
        if not found:
            raise Unavailable(f"the name {host!r} has no address")
        for text in found:
            address = ip_address(text.partition("%")[0])
            if not is_public(address) and not self._allowed.holds(host, address):
                raise InvalidInput(
                    f"{host} is at {text}, which is not a public address: to allow it, name the "
                    "host or its network in FOLIO_WEB_ALLOW_PRIVATE"
                )
        return list(found)
