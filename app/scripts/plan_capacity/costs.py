"""Unit costs: of one document, one question, one token. Where each comes from: docs/scaling.md."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Costs:
    """Processor time is of one core. `terms_per_chunk` is what the lexical index holds of each."""

    chunks_per_document: float
    ingest_core_s_per_chunk: float
    question_core_s: float
    sql_bytes_per_chunk: int
    terms_per_chunk: int
    file_bytes_per_document: int


# 1 160 files of text in English and Chinese, on machine A with Postgres 15: docs/performance.md.
MEASURED = Costs(
    chunks_per_document=3.49,
    ingest_core_s_per_chunk=0.0353,
    question_core_s=0.0782,
    sql_bytes_per_chunk=5282,
    terms_per_chunk=54,
    file_bytes_per_document=2099,
)
