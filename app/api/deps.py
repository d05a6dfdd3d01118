"""What routes ask for: the services, the runs and the evaluations.

All are coroutines: a plain function would take one of the threads that blocking routes need.
"""

from typing import Annotated

from fastapi import Depends, Request

from app.api.runs import Runs
from app.evaluations import Evaluations
from app.services import Services


async def get_services(request: Request) -> Services:
    """The services of the application."""
    services: Services = request.app.state.services
    return services


async def get_runs(request: Request) -> Runs:
    """The runs of the application."""
    runs: Runs = request.app.state.runs
    return runs


async def get_evaluations(request: Request) -> Evaluations:
    """The evaluations of the application."""
    evaluations: Evaluations = request.app.state.evaluations
    return evaluations


EvaluationsDep = Annotated[Evaluations, Depends(get_evaluations)]
ServicesDep = Annotated[Services, Depends(get_services)]
RunsDep = Annotated[Runs, Depends(get_runs)]
