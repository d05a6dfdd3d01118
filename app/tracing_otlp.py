"""The recorder behind `app.tracing`: OpenTelemetry's SDK, sending by OTLP over HTTP.

Spans wait in a bounded queue for a thread of their own; a full queue drops them, and a collector
that does not answer is given up after `EXPORT_TIMEOUT_S`.
"""

import threading
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

Item = TypeVar("Item")
MAX_QUEUED_SPANS = 4096
MAX_BATCH = 512
SEND_EACH_S = 2.0
EXPORT_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 3.0
TRACES_PATH = "/v1/traces"


class Recorder:
    """Records spans of this process and sends them; see `app.tracing` for what each is for."""

    def __init__(self, endpoint: str, role: str, version: str) -> None:
        resource = {"service.name": "folio", "service.version": version, "folio.role": role}
        self._provider = TracerProvider(resource=Resource.create(resource), shutdown_on_exit=False)
        exporter = OTLPSpanExporter(traces_url(endpoint), timeout=EXPORT_TIMEOUT_S)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                exporter,
                max_queue_size=MAX_QUEUED_SPANS,
                schedule_delay_millis=SEND_EACH_S * 1000,
                max_export_batch_size=MAX_BATCH,
            )
        )
        self._tracer = self._provider.get_tracer("folio", version)
        self._propagator = TraceContextTextMapPropagator()

    def close(self) -> None:
        """Send what waits; leave it behind where that takes longer than `CLOSE_TIMEOUT_S`."""
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(CLOSE_TIMEOUT_S)

    @contextmanager
    def span(self, name: str, attributes: Mapping[str, str | int | float | bool]) -> Iterator[None]:
        """A part of the current span."""
        with ended(self._tracer.start_span(name, attributes=attributes)) as span, current(span):
            yield

    @contextmanager
    def request(self, method: str, headers: Mapping[str, str]) -> Iterator[None]:
        """The span of a request that came in."""
        parent = self._propagator.extract(headers)
        span = self._tracer.start_span(method, parent, SpanKind.SERVER)
        with ended(span), current(span):
            yield

    def note(self, attributes: Mapping[str, str | int | float | bool], name: str | None) -> None:
        """Add to the current span."""
        span = trace.get_current_span()
        span.set_attributes(attributes)
        if name:
            span.update_name(name)

    def event(self, name: str) -> None:
        """Mark this moment in the current span."""
        trace.get_current_span().add_event(name)

    def headers(self) -> dict[str, str]:
        """The current span, as W3C Trace Context writes it."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return carrier

    async def traced(
        self, name: str, stream: AsyncGenerator[Item], first_item: str | None
    ) -> AsyncGenerator[Item]:
        """A stream, each step of which is taken with the span as the current one.

        Between two steps the span is not current: the code that runs then is the consumer's.
        """
        with ended(self._tracer.start_span(name)) as span:
            try:
                while True:
                    with current(span):
                        try:
                            item = await anext(stream)
                        except StopAsyncIteration:
                            return
                    if first_item:
                        span.add_event(first_item)
                        first_item = None
                    yield item
            finally:
                with current(span):
                    await stream.aclose()


def traces_url(endpoint: str) -> str:
    """The collector's address with the path of traces, where it is not there yet."""
    base = endpoint.rstrip("/")
    return base if base.endswith(TRACES_PATH) else base + TRACES_PATH


@contextmanager
def ended(span: Span) -> Iterator[Span]:
    """End the span after the block, with how that ended; errors by their type alone."""
    try:
        yield span
    except Exception as error:  # a client that leaves, or a stop, is none
        span.set_status(Status(StatusCode.ERROR, type(error).__name__))
        raise
    finally:
        span.end()


def current(span: Span) -> AbstractContextManager[Span]:
    """Make the span current for the block."""
    return trace.use_span(span, record_exception=False, set_status_on_exception=False)
