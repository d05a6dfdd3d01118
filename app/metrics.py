"""Prometheus metrics of the appliance; names are stable, dashboards depend on them.

Those of the engine bear vLLM's names, so that its dashboards work. The engine itself knows no
Prometheus: `EngineMetrics` turns what it tells into series.
"""

from collections.abc import Callable, Iterable

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.engine import EngineStats, StepStats

LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

http_requests = Counter("folio_http_requests_total", "HTTP requests", ["method", "route", "status"])
http_latency = Histogram(
    "folio_http_request_seconds", "HTTP request time", ["route"], buckets=LATENCY_BUCKETS_S
)
retrieval_latency = Histogram(
    "folio_retrieval_seconds",
    "Retrieval time by stage (embed, dense, lexical, rank, rerank, total)",
    ["stage"],
    buckets=LATENCY_BUCKETS_S,
)
reranks = Counter(
    "folio_reranks_total",
    "Rerankings by outcome (complete, partial, late: no chunk in time, failed)",
    ["outcome"],
)
rewrites = Counter(
    "folio_rewrites_total",
    "Follow-up questions by outcome (rewritten, rejected, late, failed)",
    ["outcome"],
)
first_token_latency = Histogram(
    "folio_first_token_seconds", "Question to first token", ["generator"], buckets=LATENCY_BUCKETS_S
)
answer_latency = Histogram(
    "folio_answer_seconds", "Question to finished answer", ["generator"], buckets=LATENCY_BUCKETS_S
)
answers = Counter("folio_answers_total", "Answers by outcome", ["generator", "outcome"])
citations_checked = Counter(
    "folio_citations_total",
    "Citations that a generator wrote, by outcome (kept, dropped: its passage does not say so)",
    ["outcome"],
)
completion_tokens = Counter("folio_completion_tokens_total", "Generated tokens", ["generator"])
jobs = Counter("folio_jobs_total", "Ingestion jobs by outcome", ["outcome"])
for _outcome in ("done", "failed", "postponed", "quarantined", "lost"):
    jobs.labels(_outcome)  # shown as 0 from the start: alerts ask for what has not increased
job_stage_latency = Histogram(
    "folio_job_stage_seconds", "Ingestion time by stage", ["stage"], buckets=LATENCY_BUCKETS_S
)
documents = Gauge(
    "folio_documents", "Documents by status (ready, pending, failed); of the database", ["status"]
)
chunks = Gauge("folio_chunks", "Searchable chunks; of the database")
dependency_up = Gauge("folio_dependency_up", "1 where a dependency answers, else 0", ["dependency"])
ingestion_paused = Gauge("folio_ingestion_paused", "1 where someone has paused the queue, else 0")
answers_open = Gauge("folio_answers_open", "Answers that are written or wait in this process")
vector_query_latency = Histogram(
    "folio_vector_query_seconds",
    "Vector store calls by operation",
    ["operation"],
    buckets=LATENCY_BUCKETS_S,
)

TOKEN_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)
STEP_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5)


def _engine_histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
    return Histogram(f"vllm:{name}", text, ["model_name"], buckets=buckets)


engine_first_token = _engine_histogram(
    "time_to_first_token_seconds", "Arrival to first token", LATENCY_BUCKETS_S
)
engine_inter_token = _engine_histogram(
    "inter_token_latency_seconds", "Between two outputs of a request", STEP_BUCKETS_S
)
engine_output_token = _engine_histogram(
    "time_per_output_token_seconds", "Mean time per token after the first", STEP_BUCKETS_S
)
engine_latency = _engine_histogram(
    "e2e_request_latency_seconds", "Arrival to end", LATENCY_BUCKETS_S
)
engine_queue_time = _engine_histogram(
    "request_queue_time_seconds", "Arrival to first step", LATENCY_BUCKETS_S
)
engine_prefill_time = _engine_histogram(
    "request_prefill_time_seconds", "First step to first token", LATENCY_BUCKETS_S
)
engine_decode_time = _engine_histogram(
    "request_decode_time_seconds", "First token to end", LATENCY_BUCKETS_S
)
engine_prompt_sizes = _engine_histogram(
    "request_prompt_tokens", "Tokens of a prompt", TOKEN_BUCKETS
)
engine_answer_sizes = _engine_histogram(
    "request_generation_tokens", "Tokens generated for a request", TOKEN_BUCKETS
)
engine_step_sizes = _engine_histogram(
    "iteration_tokens_total", "Tokens computed in a step", TOKEN_BUCKETS
)
engine_ended = Counter(
    "vllm:request_success", "Requests that ended, by reason", ["model_name", "finished_reason"]
)


class EngineMetrics(Collector):
    """The series of one engine: gauges and totals are read when asked for, times as they come.

    `register` and `unregister` it with the engine's life.
    """

    def __init__(self, model_name: str, stats: Callable[[], EngineStats]) -> None:
        self._model_name = model_name
        self._stats = stats

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry would else ask for all series at once."""
        return []

    def register(self) -> None:
        """Show the series at /metrics."""
        REGISTRY.register(self)

    def unregister(self) -> None:
        """Show them no more."""
        REGISTRY.unregister(self)

    def observe(self, step: StepStats) -> None:
        """Take note of a step; the engine's thread calls this."""
        name = self._model_name
        if step.num_tokens:
            engine_step_sizes.labels(name).observe(step.num_tokens)
        _observe_all(engine_first_token.labels(name), step.first_token_s)
        _observe_all(engine_inter_token.labels(name), step.inter_token_s)
        for request in step.finished:
            engine_ended.labels(name, request.finish_reason).inc()
            engine_latency.labels(name).observe(request.latency_s)
            engine_prompt_sizes.labels(name).observe(request.num_prompt_tokens)
            engine_answer_sizes.labels(name).observe(request.num_generation_tokens)
            for histogram, seconds in (
                (engine_queue_time, request.queue_s),
                (engine_prefill_time, request.prefill_s),
                (engine_decode_time, request.decode_s),
            ):
                if seconds is not None:
                    histogram.labels(name).observe(seconds)
            if request.decode_s is not None and request.num_generation_tokens > 1:
                per_token_s = request.decode_s / (request.num_generation_tokens - 1)
                engine_output_token.labels(name).observe(per_token_s)

    def collect(self) -> Iterable[Metric]:
        """Gauges and totals, as Prometheus asks for them."""
        stats = self._stats()
        gauges = {
            "vllm:num_requests_running": stats.num_requests_running,
            "vllm:num_requests_waiting": stats.num_requests_waiting,
            "vllm:kv_cache_usage_perc": stats.kv_cache_usage,
            "vllm:num_requests_swapped": stats.num_requests_swapped,
            "folio_engine_kv_cache_waste_ratio": stats.kv_cache_waste,
        }
        totals = {
            "vllm:num_preemptions": stats.num_preemptions,
            "vllm:prompt_tokens": stats.num_prompt_tokens,
            "vllm:generation_tokens": stats.num_generation_tokens,
            "vllm:prefix_cache_queries": stats.num_prefix_queried_tokens,
            "vllm:prefix_cache_hits": stats.num_prefix_hit_tokens,
            "vllm:spec_decode_num_drafts": stats.num_drafts,
            "vllm:spec_decode_num_draft_tokens": stats.num_draft_tokens,
            "vllm:spec_decode_num_accepted_tokens": stats.num_accepted_tokens,
            "folio_engine_swap_preemptions": stats.num_swap_preemptions,
            "folio_engine_swapped_out_bytes": stats.num_swapped_out_bytes,
            "folio_engine_swapped_in_bytes": stats.num_swapped_in_bytes,
        }
        for name, value in gauges.items():
            gauge = GaugeMetricFamily(name, _TEXTS[name], labels=["model_name"])
            gauge.add_metric([self._model_name], value)
            yield gauge
        for name, value in totals.items():
            counter = CounterMetricFamily(name, _TEXTS[name], labels=["model_name"])
            counter.add_metric([self._model_name], value)
            yield counter


def _observe_all(histogram: Histogram, values: Iterable[float]) -> None:
    for value in values:
        histogram.observe(value)


_TEXTS = {
    "vllm:num_requests_running": "Sequences in the engine's batches",
    "vllm:num_requests_waiting": "Requests waiting for a seat",
    "vllm:kv_cache_usage_perc": "Share of KV blocks that some request holds, 1 for all",
    "vllm:num_requests_swapped": "Sequences whose blocks wait in host memory",
    "folio_engine_kv_cache_waste_ratio": "Share of held KV slots without a computed token",
    "vllm:spec_decode_num_drafts": "Steps with tokens guessed ahead",
    "vllm:spec_decode_num_draft_tokens": "Tokens guessed ahead",
    "vllm:spec_decode_num_accepted_tokens": "Tokens guessed right",
    "folio_engine_swap_preemptions": "Preemptions that kept the blocks in host memory",
    "folio_engine_swapped_out_bytes": "Bytes of KV moved to host memory",
    "folio_engine_swapped_in_bytes": "Bytes of KV moved back",
    "vllm:num_preemptions": "Sequences that gave up their blocks",
    "vllm:prompt_tokens": "Tokens of computed prompts",
    "vllm:generation_tokens": "Tokens generated",
    "vllm:prefix_cache_queries": "Prompt tokens looked up in the prefix cache",
    "vllm:prefix_cache_hits": "Prompt tokens found there",
}
