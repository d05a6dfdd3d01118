"""The wire models of files and vector stores: OpenAI's shapes over documents and collections.

A vector store is a collection. A file is one that was sent to /v1/files, or a document that came
by another way, under the document's id.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from app.api.filters import FilterIn, Metadata
from app.api.wire_model import Text

MAX_BATCH = 500
MAX_RESULTS = 50
FileId = Annotated[Text, Field(min_length=1, max_length=64)]
Name = Annotated[Text, Field(min_length=1, max_length=200)]
Query = Annotated[Text, Field(min_length=1, max_length=4000)]


class FileOut(BaseModel):
    """A file that was sent."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str = "assistants"
    status: Literal["uploaded", "processed", "error"] = "processed"


class Page(BaseModel):
    """What all lists share."""

    object: Literal["list"] = "list"
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileList(Page):
    """One page of files."""

    data: list[FileOut]


class DeletedOut(BaseModel):
    """Something is gone."""

    id: str
    object: str
    deleted: Literal[True] = True


class FileCounts(BaseModel):
    """A store's files by their state."""

    in_progress: int
    completed: int
    failed: int
    cancelled: int
    total: int


class VectorStoreOut(BaseModel):
    """A collection."""

    id: str
    object: Literal["vector_store"] = "vector_store"
    created_at: int
    name: str
    usage_bytes: int
    file_counts: FileCounts
    status: Literal["in_progress", "completed"]
    last_active_at: int
    metadata: dict[str, str] = Field(default_factory=dict)


class VectorStoreList(Page):
    """One page of vector stores."""

    data: list[VectorStoreOut]


class StoreOptions(BaseModel):
    """What a vector store cannot have here is refused."""

    model_config = ConfigDict(extra="ignore")

    expires_after: Any = None
    chunking_strategy: Any = None
    metadata: Any = None

    @field_validator("expires_after", "metadata")
    @classmethod
    def refuse(cls, value: object) -> None:
        """Collections do not expire and carry no metadata of their own."""
        if value:
            raise ValueError("is not supported")

    @field_validator("chunking_strategy")
    @classmethod
    def refuse_static(cls, value: object) -> None:
        """How documents are cut is a setting of the whole index."""
        if value and value != {"type": "auto"}:
            raise ValueError("is set for the whole index by FOLIO_CHUNK_SIZE_TOKENS: leave it out")


class NewVectorStore(StoreOptions):
    """A new collection; without a name it gets one."""

    name: Name | None = None
    file_ids: Annotated[list[FileId], Field(max_length=MAX_BATCH, default_factory=list)]


class VectorStorePatch(StoreOptions):
    """A new name."""

    name: Name | None = None


class NewStoreFile(StoreOptions):
    """A file to put into a store."""

    file_id: FileId
    attributes: Metadata | None = None


class AttributesIn(BaseModel):
    """A file's metadata from now on."""

    attributes: Metadata


class LastError(BaseModel):
    """Why a file failed."""

    code: Literal["server_error", "invalid_file"]
    message: str


class StoreFileOut(BaseModel):
    """A file in a store."""

    id: str
    object: Literal["vector_store.file"] = "vector_store.file"
    created_at: int
    usage_bytes: int
    vector_store_id: str
    status: Literal["in_progress", "completed", "cancelled", "failed"]
    last_error: LastError | None
    attributes: Metadata
    chunking_strategy: dict[str, str] = Field(default_factory=lambda: {"type": "other"})


class StoreFileList(Page):
    """One page of a store's files."""

    data: list[StoreFileOut]


class NewBatch(StoreOptions):
    """Files to put into a store together: their ids, or each with its own attributes."""

    file_ids: Annotated[list[FileId], Field(max_length=MAX_BATCH, default_factory=list)]
    files: Annotated[list[NewStoreFile], Field(max_length=MAX_BATCH, default_factory=list)]
    attributes: Metadata | None = None

    @model_validator(mode="after")
    def has_one(self) -> Self:
        """Either of both."""
        if bool(self.file_ids) == bool(self.files):
            raise ValueError("give either file_ids or files")
        return self


class BatchOut(BaseModel):
    """Files that were put into a store together."""

    id: str
    object: Literal["vector_store.files_batch"] = "vector_store.files_batch"
    created_at: int
    vector_store_id: str
    status: Literal["in_progress", "completed", "cancelled", "failed"]
    file_counts: FileCounts


class RankingOptions(BaseModel):
    """Results below the threshold (of the fused score) are left out."""

    model_config = ConfigDict(extra="ignore")

    ranker: str | None = None
    score_threshold: Annotated[float, Field(ge=0, le=1)] = 0.0


class StoreSearchIn(BaseModel):
    """A search in one store; several queries are one question after another."""

    model_config = ConfigDict(extra="ignore")

    query: Query | Annotated[list[Query], Field(min_length=1, max_length=10)]
    filters: FilterIn | None = None
    max_num_results: Annotated[int, Field(ge=1, le=MAX_RESULTS)] = 10
    ranking_options: Annotated[RankingOptions, Field(default_factory=RankingOptions)]
    rewrite_query: bool = False


class ContentOut(BaseModel):
    """A stretch of text."""

    type: Literal["text"] = "text"
    text: str


class SearchResultOut(BaseModel):
    """A chunk; `chunk_id`, `page` and `start` and `end` are ours."""

    file_id: str
    filename: str
    score: float
    attributes: Metadata
    content: list[ContentOut]
    chunk_id: str
    page: int | None
    start: int
    end: int


class StoreSearchOut(BaseModel):
    """What was found, best first."""

    object: Literal["vector_store.search_results.page"] = "vector_store.search_results.page"
    search_query: list[str]
    data: list[SearchResultOut]
    has_more: bool = False
    next_page: str | None = None


class FileContentOut(BaseModel):
    """The text that was read from a file."""

    object: Literal["vector_store.file_content.page"] = "vector_store.file_content.page"
    data: list[ContentOut]
    has_more: bool = False
    next_page: str | None = None
