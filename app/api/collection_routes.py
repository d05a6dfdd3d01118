"""Routes of knowledge bases."""

from fastapi import APIRouter, Response

from app.api.convert import out
from app.api.deps import ServicesDep
from app.api.errors import CREATED, NO_CONTENT
from app.api.schemas import CollectionIn, CollectionOut

router = APIRouter(prefix="/api/collections", tags=["collections"])


@router.get("")
def list_collections(services: ServicesDep) -> list[CollectionOut]:
    """All knowledge bases."""
    return [out(CollectionOut, collection) for collection in services.records.collections.list()]


@router.post("", status_code=CREATED)
def create_collection(new: CollectionIn, services: ServicesDep) -> CollectionOut:
    """A new, empty knowledge base; names are unique."""
    return out(CollectionOut, services.records.collections.create(new.name))


@router.delete("/{collection_id}", status_code=NO_CONTENT, response_class=Response)
def delete_collection(collection_id: str, services: ServicesDep) -> None:
    """Delete a knowledge base with its documents."""
    services.require(services.processor).delete_collection(collection_id)
