"""Settings: the only reader of the environment. `.env.example` and compose follow this list."""

import textwrap
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Every setting of the appliance; wrong values stop the start with a message.

    Most are read as `FOLIO_<NAME>`; the few with an alias keep the name that users know.
    """

    model_config = SettingsConfigDict(
        env_prefix="FOLIO_",
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        populate_by_name=True,
    )

    role: Literal["all"] = Field("all", description="What this process does.")
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for every interface.")
    port: int = Field(8000, ge=1, le=65535, description="Port to listen on.")
    data_dir: Path = Field(
        Path("data"), description="Everything that must survive a restart: SQL, files, index."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level that is logged."
    )
    log_format: Literal["text", "json"] = Field("text", description="One line per event, or JSON.")
    api_key: SecretStr | None = Field(
        None, description="When set, every call under /api and /v1 needs this bearer token."
    )
    allowed_hosts: str = Field(
        "",
        description="Names under which browsers reach Folio without a key, separated by commas, "
        "such as docs.example.com. Addresses, localhost and names without a dot always do.",
    )
    frontend_dir: Path = Field(
        Path("frontend/dist"), description="The built frontend; served at / when it is there."
    )
    manual_dir: Path | None = Field(
        Path("docs"), description="Folder ingested on the first start as Folio's manual."
    )

    database_url: str = Field(
        "", description="SQLAlchemy URL; empty for SQLite in the data folder."
    )
    milvus_uri: str = Field(
        "", description="http://host:19530 of a Milvus server; empty for Milvus Lite inside."
    )
    milvus_token: SecretStr | None = Field(None, description="user:password of the Milvus server.")

    embedding_model: str = Field(
        "sentence-transformers/all-MiniLM-L6-v2",
        description="Embedding model: the built-in name, a local folder, or a hub name.",
    )
    chunk_size_tokens: int = Field(
        200, ge=64, le=8192, description="Largest chunk, in tokens of the embedding model."
    )
    chunk_overlap_tokens: int = Field(
        0,
        ge=0,
        le=1024,
        description="Tokens of the chunk before that are repeated; at most half a chunk.",
    )

    llm_model: str = Field(
        "auto",
        validation_alias="LLM_MODEL",
        description="auto, extractive, a local folder, or a hub name for the built-in engine.",
    )
    llm_base_url: str = Field(
        "",
        validation_alias="LLM_BASE_URL",
        description="OpenAI-compatible endpoint (…/v1) to use instead of the built-in engine.",
    )
    llm_api_key: SecretStr | None = Field(
        None, validation_alias="LLM_API_KEY", description="Key of that endpoint."
    )
    llm_timeout_s: float = Field(
        120, gt=0, le=3600, description="Longest silence of a language model before giving up."
    )
    hub_timeout_s: float = Field(
        5, gt=0, le=60, description="How long to wait for a model hub to answer at the start."
    )
    max_answer_tokens: int = Field(512, ge=1, le=32768, description="Longest answer.")
    temperature: float = Field(0.2, ge=0, le=2, description="Sampling temperature of answers.")

    retrieval_top_k: int = Field(6, ge=1, le=50, description="Sources offered to the generator.")
    retrieval_candidates: int = Field(
        50, ge=5, le=500, description="Chunks that each leg of the search returns."
    )

    max_upload_mb: int = Field(100, ge=1, le=10_000, description="Largest file that is taken.")
    ingest_workers: int = Field(1, ge=1, le=64, description="Documents ingested at a time.")
    parse_timeout_s: float = Field(
        120, gt=0, le=3600, description="Longest time to parse one file; then it fails."
    )
    parse_memory_mb: int = Field(
        2048, ge=256, le=65536, description="Memory that parsing one file may use."
    )
    max_concurrent_answers: int = Field(
        16, ge=1, le=1024, description="Answers made at a time; more wait in a queue."
    )
    max_queued_answers: int = Field(
        64, ge=0, le=10_000, description="Waiting answers; more get 429 with Retry-After."
    )
    num_threads: int = Field(
        0, ge=0, le=512, description="Threads for embedding and the engine; 0 for all cores."
    )

    @model_validator(mode="after")
    def overlap_fits(self) -> Self:
        """More than half a chunk of overlap would repeat everything."""
        if self.chunk_overlap_tokens > self.chunk_size_tokens // 2:
            raise ValueError(
                f"FOLIO_CHUNK_OVERLAP_TOKENS={self.chunk_overlap_tokens} is more than half of "
                f"FOLIO_CHUNK_SIZE_TOKENS={self.chunk_size_tokens}"
            )
        return self


def example_env() -> str:
    """`.env.example`: every setting, its description and, commented out, its default."""
    lines = ["# Copy to .env and change what you need; `python -m app settings` prints this file."]
    for name, field in Settings.model_fields.items():
        variable = str(field.validation_alias or f"FOLIO_{name.upper()}")
        default = "" if field.default is None else field.default
        lines += ["", *textwrap.wrap(f"# {field.description}", 96, subsequent_indent="# ")]
        lines += [f"#{variable}={default}"]
    return "\n".join(lines) + "\n"
