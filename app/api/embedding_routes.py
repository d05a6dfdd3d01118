"""Vectors of texts by the index's embedding model, in OpenAI's shape."""

import base64
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from app.api.deps import ServicesDep
from app.api.wire_model import Text
from app.errors import InvalidInput
from app.rag.protocols import Embedder, Vectors

router = APIRouter(prefix="/v1", tags=["openai"])
MAX_TEXTS = 2048
MAX_CHARACTERS = 200_000
Input = Annotated[Text, Field(min_length=1, max_length=MAX_CHARACTERS)]


class EmbeddingIn(BaseModel):
    """Texts to make vectors of. `input_type` is "query" for what is searched with."""

    model_config = ConfigDict(extra="ignore")

    model: str
    input: Input | Annotated[list[Input], Field(min_length=1, max_length=MAX_TEXTS)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    input_type: Literal["query", "document"] = "document"


class EmbeddingOut(BaseModel):
    """One vector of length 1: numbers, or float32 in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Token counts of all texts together."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """The vectors, in the order of the texts."""

    object: Literal["list"] = "list"
    model: str
    data: list[EmbeddingOut]
    usage: EmbeddingUsage


@router.post("/embeddings")
def embed(wanted: EmbeddingIn, services: ServicesDep) -> EmbeddingList:
    """Vectors by the embedding model that the index is made with; `model` is its name."""
    embedder = services.require(services.embedder)
    require_model(embedder, wanted)
    texts = wanted.input if isinstance(wanted.input, list) else [wanted.input]
    counts = embedder.count_tokens(texts)
    is_query = wanted.input_type == "query"
    vectors = embedder.embed_queries(texts) if is_query else embedder.embed_documents(texts)
    num_tokens = sum(min(count, embedder.max_tokens) for count in counts)
    return EmbeddingList(
        model=embedder.name,
        data=[
            EmbeddingOut(index=index, embedding=encode(vector, wanted.encoding_format))
            for index, vector in enumerate(vectors)
        ],
        usage=EmbeddingUsage(prompt_tokens=num_tokens, total_tokens=num_tokens),
    )


def require_model(embedder: Embedder, wanted: EmbeddingIn) -> None:
    """Raise InvalidInput for another model or another number of dimensions."""
    if wanted.model not in (embedder.name, embedder.name.rpartition("/")[2]):
        raise InvalidInput(f"the embedding model here is {embedder.name}, not {wanted.model!r}")
    if wanted.dimensions not in (None, embedder.dimension):
        raise InvalidInput(
            f"{embedder.name} has {embedder.dimension} dimensions, not {wanted.dimensions}:"
            " leave dimensions out"
        )


def encode(vector: Vectors, encoding_format: str) -> list[float] | str:
    """The vector as numbers, or packed as OpenAI's client asks for it."""
    if encoding_format == "float":
        return [float(value) for value in vector]
    return base64.b64encode(vector.astype(np.dtype("<f4")).tobytes()).decode()
