"""The wire models of /api/index."""

from datetime import datetime

from app.api.schemas import Name
from app.api.wire_model import WireModel
from app.domain import IndexState


class RebuildIn(WireModel):
    """Which embedding model another index is made for; one of `IndexesOut.models`."""

    embedding_model: Name
    switches_itself: bool = False


class SwitchIn(WireModel):
    """`is_forced` switches to an index with a warning, too."""

    is_forced: bool = False


class RecallOut(WireModel):
    """The shares of test questions whose document each index finds among its best `k`."""

    num_queries: int
    k: int
    tolerance: float
    serving: float
    built: float


class IndexOut(WireModel):
    """An index; `num_missing` of `num_documents` are not in it yet."""

    name: str
    embedding_model: str
    dimension: int
    chunker: str
    state: IndexState
    num_documents: int
    num_missing: int
    num_failed: int
    num_chunks: int
    switches_itself: bool
    recall: RecallOut | None
    reason: str | None
    created_at: datetime
    switched_at: datetime | None


class IndexesOut(WireModel):
    """All indexes, the newest first.

    `is_model_unfit` says that the embedding model in use reads no Chinese, though `cjk_share` of
    the chunks is; `multilingual_model` is one that does, null where it is not on this machine.
    """

    indexes: list[IndexOut]
    models: list[str]
    multilingual_model: str | None
    cjk_share: float
    is_model_unfit: bool
