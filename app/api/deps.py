"""What routes ask for: the services, what the caller may use of them, the runs, the evaluations.

All are coroutines: a plain function would take one of the threads that blocking routes need.
"""

from typing import Annotated

from fastapi import Depends, Request

from app.accounts import Accounts
from app.api.guards import get_access
from app.api.permitted import Permitted
from app.api.runs import Runs
from app.domain import Access
from app.errors import Conflict
from app.evaluations import Evaluations
from app.services import Services


async def get_services(request: Request) -> Services:
    """The services of the application."""
    services: Services = request.app.state.services
    return services


async def get_permitted(
    request: Request, access: Annotated[Access, Depends(get_access)]
) -> Permitted:
    """The library as the caller may use it."""
    return Permitted(request.app.state.services, access)


async def get_accounts(request: Request) -> Accounts:
    """The accounts; Conflict where there are none."""
    accounts: Accounts | None = request.app.state.accounts
    if accounts is None:
        raise Conflict("there are no accounts here: FOLIO_AUTH is off, set it to users")
    return accounts


async def get_runs(request: Request) -> Runs:
    """The runs of the application."""
    runs: Runs = request.app.state.runs
    return runs


async def get_evaluations(request: Request) -> Evaluations:
    """The evaluations of the application."""
    evaluations: Evaluations = request.app.state.evaluations
    return evaluations


AccessDep = Annotated[Access, Depends(get_access)]
AccountsDep = Annotated[Accounts, Depends(get_accounts)]
PermittedDep = Annotated[Permitted, Depends(get_permitted)]
EvaluationsDep = Annotated[Evaluations, Depends(get_evaluations)]
ServicesDep = Annotated[Services, Depends(get_services)]
RunsDep = Annotated[Runs, Depends(get_runs)]
