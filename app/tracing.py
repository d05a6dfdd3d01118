"""Traces of what Folio does, span by span; without an endpoint OpenTelemetry is not even imported.

Spans carry ids, counts and outcomes, never text: no question, passage, prompt, answer or secret,
and of an error its type alone. One process has one recorder, as it has one registry of metrics.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from app.tracing_otlp import Recorder

Item = TypeVar("Item")
Attributes = Mapping[str, str | int | float | bool]
_recorder: "Recorder | None" = None


def start(endpoint: str, role: str, version: str) -> None:
    """Send spans to an OTLP/HTTP endpoint from now on; one that is not there costs no answer."""
    global _recorder
    from app.tracing_otlp import Recorder  # noqa: PLC0415  half a second that few need

    stop()
    _recorder = Recorder(endpoint, role, version)


def stop() -> None:
    """Send what is left, within bounded time, and record no more."""
    global _recorder
    recorder, _recorder = _recorder, None
    if recorder:
        recorder.close()


def span(name: str, attributes: Attributes | None = None) -> AbstractContextManager[None]:
    """Record the block as a part of the current span.

    No `yield` of a generator may be inside: what is current is the caller's; see `traced`.
    """
    return _recorder.span(name, attributes or {}) if _recorder else nullcontext()


def request(method: str, headers: Mapping[str, str]) -> AbstractContextManager[None]:
    """Record the block as a request to this server, a part of the caller's trace if it sent one."""
    return _recorder.request(method, headers) if _recorder else nullcontext()


def note(attributes: Attributes, name: str | None = None) -> None:
    """Add to the current span, or give it a better name."""
    if _recorder:
        _recorder.note(attributes, name)


def event(name: str) -> None:
    """Mark this moment in the current span."""
    if _recorder:
        _recorder.event(name)


def headers() -> dict[str, str]:
    """The W3C headers by which another server's spans become parts of the current one."""
    return _recorder.headers() if _recorder else {}


def traced(
    name: str, stream: AsyncGenerator[Item], first_item: str | None = None
) -> AsyncGenerator[Item]:
    """The same stream, recorded from its first step to its end; its steps see its span as current.

    `first_item` names the event that its first item is.
    """
    return _recorder.traced(name, stream, first_item) if _recorder else stream
