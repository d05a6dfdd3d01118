"""What routes ask for: the services and the runs; and who may come in.

All are coroutines: a plain function would take one of the threads that blocking routes need.
"""

import hmac
from typing import Annotated

from fastapi import Depends, Request

from app.api.errors import Forbidden, Unauthorized
from app.api.runs import Runs
from app.services import Services

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
SAME_SITE = frozenset({"same-origin", "none"})


async def get_services(request: Request) -> Services:
    """The services of the application."""
    services: Services = request.app.state.services
    return services


async def get_runs(request: Request) -> Runs:
    """The runs of the application."""
    runs: Runs = request.app.state.runs
    return runs


ServicesDep = Annotated[Services, Depends(get_services)]
RunsDep = Annotated[Runs, Depends(get_runs)]


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
    """Refuse a change that a page of another site makes the user's browser ask for."""
    site = request.headers.get("sec-fetch-site", "none")
    if request.method not in SAFE_METHODS and site not in SAME_SITE:
        raise Forbidden(f"this request came from another site (Sec-Fetch-Site: {site})")
