"""What the routes of the generate role ask for."""

from dataclasses import replace
from typing import Annotated

from fastapi import Depends, Request

from app.engine_service import EngineService, ServedModel
from app.errors import NotFound


class ModelNotFound(NotFound):
    """A `model` that is not served here."""

    code = "model_not_found"


async def get_service(request: Request) -> EngineService:
    """The service of the application."""
    service: EngineService = request.app.state.services
    return service


async def get_served(request: Request) -> ServedModel:
    """The model; raises Starting or Unavailable."""
    service: EngineService = request.app.state.services
    return service.require()


ServiceDep = Annotated[EngineService, Depends(get_service)]
ServedDep = Annotated[ServedModel, Depends(get_served)]


def with_model(served: ServedModel, name: str | None) -> ServedModel:
    """The model with the adapter of that name, if it is one; None means the model itself.

    Raises ModelNotFound.
    """
    if name is None or name == served.name:
        return served
    for adapter in served.adapters:
        if adapter.lora_name == name:
            return replace(served, adapter=adapter)
    names = [served.name, *(adapter.lora_name for adapter in served.adapters)]
    raise ModelNotFound(
        f"the model {name!r} does not exist; there is {', '.join(map(repr, names))}"
    )
