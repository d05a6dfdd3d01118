"""Settings: the only reader of the environment. `.env.example` and compose follow this list."""

import textwrap
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, TypeAdapter, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

MAX_PASSWORDS = 32
PASSWORDS: TypeAdapter[tuple[str, ...]] = TypeAdapter(tuple[str, ...])


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

    role: Literal["all", "generate"] = Field(
        "all",
        description="What this process does: all is the whole appliance, generate the built-in "
        "engine alone behind an OpenAI-compatible API.",
    )
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for every interface.")
    port: int = Field(8000, ge=1, le=65535, description="Port to listen on.")
    data_dir: Path = Field(
        Path("data"), description="Everything that must survive a restart: SQL, files, index."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level that is logged."
    )
    log_format: Literal["text", "json"] = Field("text", description="One line per event, or JSON.")
    otlp_endpoint: str = Field(
        "",
        pattern="^(https?://.+)?$",
        description="OpenTelemetry collector that traces are sent to by OTLP over HTTP, such as "
        "http://collector:4318; empty for no traces.",
    )
    api_key: SecretStr | None = Field(
        None,
        description="When set, every call under /api and /v1 needs this bearer token; with "
        "FOLIO_AUTH=users it is an administrator's, for programs.",
    )
    auth: Literal["off", "users"] = Field(
        "off",
        description="off: whoever reaches Folio may use everything. users: everyone logs in, and "
        "sees the knowledge bases that are shared with them.",
    )
    session_days: int = Field(
        30, ge=1, le=365, description="Days after which a browser that was not used logs out."
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
    multilingual_embedding_model: str = Field(
        "intfloat/multilingual-e5-small",
        description="Embedding model to switch to where documents are in Chinese and the one in "
        "use reads English only: a local folder, or a hub name in the local cache.",
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
        description="auto, reader, extractive, a local folder, or a hub name for the built-in "
        "engine.",
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

    served_model_name: str = Field(
        "",
        description="Role generate: name under which clients ask for the model; empty for "
        "LLM_MODEL as it is written.",
    )
    drain_timeout_s: float = Field(
        20,
        ge=0,
        le=3600,
        description="Role generate: how long running answers may go on when the server stops.",
    )
    engine_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Numbers the engine computes with; auto is the fastest that fits."
    )
    engine_quantization: Literal["int8", "int4"] | None = Field(
        None, description="Weights in so many bits, made so when they are loaded; empty for none."
    )
    engine_kv_cache_dtype: Literal["auto", "int8"] = Field(
        "auto", description="Keys and values in the KV cache: int8 holds twice as many."
    )
    engine_speculative_tokens: int = Field(
        5,
        ge=0,
        le=64,
        description="Most tokens guessed ahead from the prompt and its passages, without changing "
        "the text; 0 for none.",
    )
    engine_tool_parser: Literal[
        "", "hermes", "llama3_json", "mistral", "granite", "phi4_mini_json"
    ] = Field(
        "",
        description="How the model writes tool calls: hermes, llama3_json, mistral, granite or "
        "phi4_mini_json; empty for what its chat template shows.",
    )
    engine_reasoning_parser: Literal["", "think"] = Field(
        "",
        description="How the model marks its thoughts: think; empty for what its chat template "
        "shows.",
    )
    engine_lora_modules: str = Field(
        "",
        description="Role generate: LoRA adapters that are served as models beside LLM_MODEL: "
        "name=folder, separated by commas.",
    )
    engine_max_lora_rank: int = Field(
        16, ge=1, le=512, description="Role generate: largest rank of those adapters."
    )
    engine_max_model_len: int | None = Field(
        None,
        ge=32,
        le=10_000_000,
        description="Most tokens of prompt and answer; empty for what the model was trained for, "
        "at most 32768.",
    )
    engine_kv_cache_mb: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        description="Memory for the engine's KV cache; empty for a share of what is free.",
    )
    engine_max_num_seqs: int = Field(
        32, ge=1, le=4096, description="Requests that the engine computes at a time."
    )
    engine_max_num_batched_tokens: int = Field(
        512,
        ge=16,
        le=1_000_000,
        description="Tokens in one step of the engine: more fills GPUs, fewer keeps steps short.",
    )
    engine_max_num_queued: int = Field(
        256, ge=1, le=100_000, description="Requests that wait for the engine; more get 429."
    )

    retrieval_top_k: int = Field(6, ge=1, le=50, description="Sources offered to the generator.")
    retrieval_candidates: int = Field(
        50, ge=5, le=500, description="Chunks that each leg of the search returns."
    )

    reranker_model: str = Field(
        "",
        description="Cross-encoder that orders the best chunks again: a local folder, or a hub "
        "name in the local cache; empty for none.",
    )
    rerank_budget_ms: int = Field(
        300,
        ge=10,
        le=60_000,
        description="Longest time for that; chunks it did not come to stay below.",
    )

    web_allow_private: str = Field(
        "",
        description="Private hosts and networks that init-data may fetch pages from, separated by "
        "commas, such as wiki.example.com,10.0.0.0/8. Public ones may always be fetched.",
    )
    max_upload_mb: int = Field(100, ge=1, le=10_000, description="Largest file that is taken.")
    ingest_workers: int = Field(1, ge=1, le=64, description="Documents ingested at a time.")
    parse_timeout_s: float = Field(
        120, gt=0, le=3600, description="Longest time to parse one file; then it fails."
    )
    parse_memory_mb: int = Field(
        2048, ge=256, le=65536, description="Memory that parsing one file may use."
    )
    document_passwords: SecretStr | None = Field(
        None,
        description="Passwords tried in turn on protected PDF and Office files: separated by "
        "commas, or a JSON list where one holds a comma.",
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
    def step_serves_all(self) -> Self:
        """A step gives each running request at least one token."""
        if self.engine_max_num_batched_tokens < self.engine_max_num_seqs:
            raise ValueError(
                f"FOLIO_ENGINE_MAX_NUM_BATCHED_TOKENS={self.engine_max_num_batched_tokens} is "
                f"below FOLIO_ENGINE_MAX_NUM_SEQS={self.engine_max_num_seqs}"
            )
        return self

    @property
    def passwords(self) -> tuple[str, ...]:
        """The document passwords one by one."""
        text = self.document_passwords.get_secret_value() if self.document_passwords else ""
        if text.lstrip().startswith("["):
            return PASSWORDS.validate_json(text)
        return tuple(filter(None, (part.strip() for part in text.split(","))))

    @model_validator(mode="after")
    def passwords_can_be_read(self) -> Self:
        """Each costs time on each protected file, so that there is a limit."""
        try:
            num_passwords = len(self.passwords)
        except ValidationError:
            raise ValueError("FOLIO_DOCUMENT_PASSWORDS is no JSON list of texts") from None
        if num_passwords > MAX_PASSWORDS:
            raise ValueError(
                f"FOLIO_DOCUMENT_PASSWORDS holds {num_passwords} passwords, {MAX_PASSWORDS} is the "
                "most"
            )
        return self

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
