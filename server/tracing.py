"""OpenTelemetry traces: a span for each request and websocket, and in it one for each turn.

Only where the operator names an endpoint, and then the extra `otel` must be installed; otherwise nothing of it is
imported. Spans carry routes, ids, counts and times, and nothing that a client wrote.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from idefics_chat.server.start_error import StartError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

Attributes = Mapping[str, str | int | float]


class Tracing:
    """Makes spans. With no provider it makes none."""

    def __init__(self, provider: "TracerProvider | None" = None) -> None:
        self._provider = provider
        self._tracer = None if provider is None else provider.get_tracer("idefics-chat")

    @contextlib.contextmanager
    def request(self, headers: Mapping[str, str]) -> Iterator["SpanNote"]:
        """A span around one request, under the caller's where its headers name one (W3C trace context)."""
        if self._tracer is None:
            yield SpanNote(None)
            return
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(headers)
        with self._tracer.start_as_current_span(
            "request", parent, SpanKind.SERVER, record_exception=False, set_status_on_exception=False
        ) as span:
            yield SpanNote(span)

    def turn(self) -> "SpanNote":
        """A span of one turn, under the request's that asked for it; ended with `SpanNote.end`."""
        return SpanNote(None if self._tracer is None else self._tracer.start_span("turn"))

    def stop(self) -> None:
        """Send what waits."""
        if self._provider is not None:
            self._provider.shutdown()


class SpanNote:
    """A span, or none."""

    __slots__ = ("_span",)

    def __init__(self, span: "Span | None") -> None:
        self._span = span

    def note(self, name: str, attributes: Attributes) -> None:
        """Name it, and say what is known of it."""
        if self._span is not None:
            self._span.update_name(name)
            self._span.set_attributes(dict(attributes))

    def end(self, attributes: Attributes) -> None:
        """It is over."""
        if self._span is not None:
            self._span.set_attributes(dict(attributes))
            self._span.end()
            self._span = None


def start_tracing(endpoint: str | None) -> Tracing:
    """Traces that are sent to an OTLP endpoint over HTTP; none without one.

    Raises:
        StartError: the endpoint is no URL, or the extra is not installed.
    """
    if endpoint is None:
        return Tracing()
    if not re.match(r"https?://[^/\s]", endpoint, re.IGNORECASE):
        raise StartError(f"trace_endpoint {endpoint!r} is no URL; write http://collector:4318/v1/traces, or https.")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise StartError("trace_endpoint needs OpenTelemetry: pip install 'idefics-chat[otel]'.") from error
    provider = TracerProvider(resource=Resource.create({"service.name": "idefics-chat"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return Tracing(provider)
