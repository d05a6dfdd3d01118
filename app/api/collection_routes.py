"""Routes of knowledge bases."""

from fastapi import APIRouter, Response

from app.api.deps import PermittedDep
from app.api.errors import CREATED, NO_CONTENT
from app.api.permitted import Permitted
from app.api.schemas import CollectionIn, CollectionOut
from app.domain import Collection

router = APIRouter(prefix="/api/collections", tags=["collections"])


@router.get("")
def list_collections(permitted: PermittedDep) -> list[CollectionOut]:
    """All knowledge bases that the caller may read."""
    return [collection_out(permitted, collection) for collection in permitted.collections()]


@router.post("", status_code=CREATED)
def create_collection(new: CollectionIn, permitted: PermittedDep) -> CollectionOut:
    """A new, empty knowledge base of the caller's; names are unique."""
    collections = permitted.services.records.collections
    return collection_out(permitted, collections.create(new.name, permitted.owner or None))


@router.delete("/{collection_id}", status_code=NO_CONTENT, response_class=Response)
def delete_collection(collection_id: str, permitted: PermittedDep) -> None:
    """Delete a knowledge base with its documents."""
    services = permitted.services
    permitted.collection(collection_id, "owner")
    services.require_processor().delete_collection(collection_id)


def collection_out(permitted: Permitted, collection: Collection) -> CollectionOut:
    """A knowledge base with what the caller may do in it."""
    is_own = collection.owner_id is not None and collection.owner_id == permitted.owner
    role = "owner" if is_own else permitted.access.role_in(collection.id)
    assert role is not None, "what may not be read is not shown"
    return CollectionOut(
        id=collection.id,
        name=collection.name,
        num_documents=collection.num_documents,
        created_at=collection.created_at,
        access=role,
    )
