"""Who comes in, by API key or account, and protection from what other sites make a browser do.

The guards are coroutines: a plain function would take one of the threads that blocking routes need.
"""

import asyncio
import hmac
import re
from collections.abc import Collection
from ipaddress import ip_address
from typing import Annotated

from fastapi import Depends, Request

from app.domain import WITHOUT_ACCOUNTS, Access, User
from app.errors import Forbidden, Unauthorized

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
SESSION_COOKIE = "folio_session"
PORT = re.compile(r":\d*$")
SAME_SITE = frozenset({"same-origin", "none"})


async def get_access(request: Request) -> Access:
    """What the caller may use; Unauthorized for one that is not known.

    Every route but a few has it among its dependencies: it is the one way in.
    """
    if request.app.state.accounts is None:
        await require_api_key(request)
        access = WITHOUT_ACCOUNTS
    elif has_service_key(request):
        access = Access(user_id="", is_admin=True)
    else:
        user = await recognise(request)
        if user is None:
            raise Unauthorized("log in, or send a key of yours as Authorization: Bearer <key>")
        access = await asyncio.to_thread(request.app.state.accounts.access_of, user)
    request.state.access = access  # for the MCP server, which has no dependencies
    return access


async def require_admin(access: Annotated[Access, Depends(get_access)]) -> None:
    """Let in administrators alone."""
    if not access.is_admin:
        raise Forbidden("this is for administrators")


async def guard_metrics(request: Request) -> None:
    """Where there are accounts, figures are for administrators and FOLIO_API_KEY."""
    if request.app.state.accounts is not None:
        await require_admin(await get_access(request))


async def recognise(request: Request) -> User | None:
    """Whose key or session comes with the request; a key goes before a session."""
    accounts = request.app.state.accounts
    user: User | None
    if key := bearer_token(request):
        user = await asyncio.to_thread(accounts.by_key, key)
    elif token := request.cookies.get(SESSION_COOKIE):
        user = await asyncio.to_thread(accounts.by_session, token)
    else:
        user = None
    return user


async def require_api_key(request: Request) -> None:
    """Where a key is set, let in only who shows it as a bearer token."""
    if request.app.state.api_key is not None and not has_service_key(request):
        raise Unauthorized("the API key is missing or wrong: send Authorization: Bearer <key>")


def has_service_key(request: Request) -> bool:
    """Whether a FOLIO_API_KEY is set and comes with the request."""
    expected: str | None = request.app.state.api_key
    given = bearer_token(request)
    return expected is not None and hmac.compare_digest(given.encode(), expected.encode())


def bearer_token(request: Request) -> str:
    """The token of the authorization header; empty where there is none."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else ""


async def refuse_other_sites(request: Request) -> None:
    """Refuse what a page of another site makes the user's browser ask for.

    Browsers say where a request comes from by Sec-Fetch-Site, over plain HTTP by Origin alone.
    """
    headers = request.headers
    host = headers.get("host", "")
    # A session's cookie belongs to one name: under another the browser is not logged in.
    is_open = request.app.state.api_key is None and request.app.state.accounts is None
    if is_open and not is_known_host(host, request.app.state.allowed_hosts):
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
