"""Who may come in: the API key, and protection from what other sites make a browser do.

The guards are coroutines: a plain function would take one of the threads that blocking routes need.
"""

import hmac
import re
from collections.abc import Collection
from ipaddress import ip_address

from fastapi import Request

from app.api.errors import Forbidden, Unauthorized

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
PORT = re.compile(r":\d*$")
SAME_SITE = frozenset({"same-origin", "none"})


async def require_api_key(request: Request) -> None:
    """Where a key is set, let in only who shows it as a bearer token."""
    expected: str | None = request.app.state.api_key
    if expected is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    is_right = hmac.compare_digest(given.strip().encode(), expected.encode())
    if scheme.lower() != "bearer" or not is_right:
        raise Unauthorized("the API key is missing or wrong: send Authorization: Bearer <key>")


async def refuse_other_sites(request: Request) -> None:
    """Refuse what a page of another site makes the user's browser ask for.

    Browsers say where a request comes from by Sec-Fetch-Site, over plain HTTP by Origin alone.
    """
    headers = request.headers
    host = headers.get("host", "")
    if request.app.state.api_key is None and not is_known_host(
        host, request.app.state.allowed_hosts
    ):
        # A name of another site may lead here (DNS rebinding): to the browser we are that site.
        raise Forbidden(
            f"Folio does not know the name {host}: add it to FOLIO_ALLOWED_HOSTS, or set "
            "FOLIO_API_KEY"
        )
    if request.method in SAFE_METHODS:
        return
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is None and origin is not None:
        own = host, headers.get("x-forwarded-host")
        site = "same-origin" if origin.partition("://")[2] in own else "cross-site"
    if (site or "none") not in SAME_SITE:
        raise Forbidden(f"this request came from another site ({origin or site})")


def parse_hosts(names: str) -> frozenset[str]:
    """The setting FOLIO_ALLOWED_HOSTS as a set."""
    return frozenset(name for part in names.split(",") if (name := part.strip().lower()))


def is_known_host(host: str, allowed: Collection[str]) -> bool:
    """Whether no other site can own the name: an address, a name without a dot, an allowed one."""
    name = PORT.sub("", host.lower()).removesuffix(".")
    if "." not in name and ":" not in name:
        return True
    return name in allowed or name.endswith(".localhost") or is_address(name.strip("[]"))


def is_address(name: str) -> bool:
    """Whether a host is an IP address."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
