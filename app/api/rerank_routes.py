"""Texts ordered by how well they answer a query, in the shape of Cohere and Jina."""

from typing import Annotated
from uuid import uuid4

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from app.api.deps import ServicesDep
from app.api.wire_model import Text
from app.errors import InvalidInput

router = APIRouter(prefix="/v1", tags=["openai"])
MAX_DOCUMENTS = 100
NO_RERANKER = "no reranker is set: FOLIO_RERANKER_MODEL names the folder of a cross-encoder"
Passage = Annotated[Text, Field(min_length=1, max_length=20_000)]


class DocumentIn(BaseModel):
    """A text under a name, as some clients send it."""

    model_config = ConfigDict(extra="ignore")

    text: Passage


class RerankIn(BaseModel):
    """Texts to order; the best `top_n` come back."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    query: Annotated[Text, Field(min_length=1, max_length=4000)]
    documents: Annotated[list[Passage | DocumentIn], Field(min_length=1, max_length=MAX_DOCUMENTS)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = False


class RankedOut(BaseModel):
    """One text by its place in the request; the score is 0 to 1."""

    index: int
    relevance_score: float
    document: DocumentIn | None = None


class RerankOut(BaseModel):
    """The texts, best first."""

    id: str
    model: str
    results: list[RankedOut]


@router.post("/rerank", response_model_exclude_none=True)
def rerank(wanted: RerankIn, services: ServicesDep) -> RerankOut:
    """Score every text by the reranker that orders the passages of answers."""
    reranker = services.reranker
    if reranker is None:
        raise InvalidInput(NO_RERANKER)
    if wanted.model not in (None, reranker.name, reranker.name.rpartition("/")[2]):
        raise InvalidInput(f"the reranker here is {reranker.name}, not {wanted.model!r}")
    texts = [item if isinstance(item, str) else item.text for item in wanted.documents]
    scores = reranker.score(wanted.query, texts)
    best_first = sorted(range(len(texts)), key=lambda index: -scores[index])
    return RerankOut(
        id=f"rerank-{uuid4().hex}",
        model=reranker.name,
        results=[
            RankedOut(
                index=index,
                relevance_score=scores[index],
                document=DocumentIn(text=texts[index]) if wanted.return_documents else None,
            )
            for index in best_first[: wanted.top_n]
        ],
    )
