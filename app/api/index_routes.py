"""Routes of the index: which one serves, making another one, switching, and going back."""

from fastapi import APIRouter, Response

from app.api.convert import out
from app.api.deps import ServicesDep
from app.api.errors import ACCEPTED, NO_CONTENT
from app.api.index_schemas import IndexesOut, IndexOut, RebuildIn, RecallOut, SwitchIn
from app.domain import IndexInfo, IndexState
from app.services import Services

router = APIRouter(prefix="/api/index", tags=["index"])
MAX_FOREIGN_SHARE = 0.05
IN_PROGRESS = (IndexState.BUILDING, IndexState.READY, IndexState.WARNING)


@router.get("")
def get_indexes(services: ServicesDep) -> IndexesOut:
    """All indexes, the models that another one may be made of, and whether that is advised."""
    return _indexes(services)


@router.post("/rebuild", status_code=ACCEPTED)
def rebuild_index(wanted: RebuildIn, services: ServicesDep) -> IndexesOut:
    """Begin to make an index for another embedding model; the present one goes on serving."""
    spec = services.require(services.index_models).spec(wanted.embedding_model)
    services.require(services.index_builder).rebuild(spec, switches_itself=wanted.switches_itself)
    return _indexes(services)


@router.post("/switch")
def switch_index(wanted: SwitchIn, services: ServicesDep) -> IndexesOut:
    """Have the new index serve; one with a warning only where it is forced."""
    services.require(services.index_builder).switch(is_forced=wanted.is_forced)
    return _indexes(services)


@router.post("/rollback")
def roll_back_index(services: ServicesDep) -> IndexesOut:
    """Have the previous index serve again; what changed since is indexed again for it."""
    services.require(services.index_builder).roll_back()
    return _indexes(services)


@router.delete("/build", status_code=NO_CONTENT, response_class=Response)
def cancel_build(services: ServicesDep) -> None:
    """Give up the index that is being made."""
    services.require(services.index_builder).discard(*IN_PROGRESS)


@router.delete("/previous", status_code=NO_CONTENT, response_class=Response)
def discard_previous(services: ServicesDep) -> None:
    """Delete the previous index; there is no way back to it."""
    services.require(services.index_builder).discard(IndexState.PREVIOUS)


def _indexes(services: Services) -> IndexesOut:
    builder = services.require(services.index_builder)
    models = services.require(services.index_models)
    share = builder.cjk_share()
    is_foreign = (
        share > MAX_FOREIGN_SHARE and not services.require(services.embedder).is_multilingual
    )
    return IndexesOut(
        indexes=[_index(info) for info in services.records.indexes.all()],
        models=list(models.names()),
        multilingual_model=models.multilingual(),
        cjk_share=share,
        is_model_unfit=is_foreign,
    )


def _index(info: IndexInfo) -> IndexOut:
    return IndexOut(
        name=info.spec.name,
        embedding_model=info.spec.embedding_model,
        dimension=info.spec.dimension,
        chunker=info.spec.chunker,
        state=info.state,
        num_documents=info.num_documents,
        num_missing=info.num_missing,
        num_failed=info.num_failed,
        num_chunks=info.num_chunks,
        switches_itself=info.switches_itself,
        recall=out(RecallOut, info.recall) if info.recall else None,
        reason=info.reason,
        created_at=info.created_at,
        switched_at=info.switched_at,
    )
