"""The route of a search without an answer."""

import time

from fastapi import APIRouter

from app.api.convert import search_out
from app.api.deps import PermittedDep
from app.api.filters import read_filter
from app.api.schemas import SearchIn, SearchOut
from app.domain import Question

router = APIRouter(prefix="/api/search", tags=["search"])


@router.post("")
def search(wanted: SearchIn, permitted: PermittedDep) -> SearchOut:
    """The chunks that an answer would be made from, with the scores of each leg."""
    started_at = time.perf_counter()
    services = permitted.services
    scope = permitted.scope(wanted.collection_ids, read_filter(wanted.filters))
    question = Question(wanted.query, scope=scope)
    evidence = services.require(services.retriever).retrieve(question, wanted.limit)
    return search_out(evidence, time.perf_counter() - started_at)
