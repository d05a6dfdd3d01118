"""Prometheus metrics of the appliance; names are stable, dashboards depend on them."""

from prometheus_client import Counter, Gauge, Histogram

LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

http_requests = Counter("folio_http_requests_total", "HTTP requests", ["method", "route", "status"])
http_latency = Histogram(
    "folio_http_request_seconds", "HTTP request time", ["route"], buckets=LATENCY_BUCKETS_S
)
retrieval_latency = Histogram(
    "folio_retrieval_seconds",
    "Retrieval time by stage (embed, dense, lexical, rerank, total)",
    ["stage"],
    buckets=LATENCY_BUCKETS_S,
)
first_token_latency = Histogram(
    "folio_first_token_seconds", "Question to first token", ["generator"], buckets=LATENCY_BUCKETS_S
)
answer_latency = Histogram(
    "folio_answer_seconds", "Question to finished answer", ["generator"], buckets=LATENCY_BUCKETS_S
)
answers = Counter("folio_answers_total", "Answers by outcome", ["generator", "outcome"])
completion_tokens = Counter("folio_completion_tokens_total", "Generated tokens", ["generator"])
jobs = Counter("folio_jobs_total", "Ingestion jobs by outcome", ["outcome"])
job_stage_latency = Histogram(
    "folio_job_stage_seconds", "Ingestion time by stage", ["stage"], buckets=LATENCY_BUCKETS_S
)
jobs_queued = Gauge("folio_jobs_queued", "Ingestion jobs waiting")
vector_query_latency = Histogram(
    "folio_vector_query_seconds",
    "Vector store calls by operation",
    ["operation"],
    buckets=LATENCY_BUCKETS_S,
)
