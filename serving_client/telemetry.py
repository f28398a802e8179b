"""OpenTelemetry spans, sent over OTLP/HTTP. Without a collector nothing of OpenTelemetry is imported here.

Its SDK reads OTEL_* itself: names, sampling, headers, limits. Imports neither Django nor torch.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from opentelemetry.context import Context
    from opentelemetry.trace import Span

COLLECTOR = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
OURS = "adapterhub"


@functools.cache
def is_on() -> bool:
    """Return True if the environment names a collector and the SDK is not disabled."""
    is_named = any(os.environ.get(name) for name in COLLECTOR)
    return is_named and os.environ.get("OTEL_SDK_DISABLED", "").lower() != "true"


def start(process: str) -> None:
    """Start sending this process' spans if a collector is named; the service is then named `adapterhub-<process>`.

    OTEL_SERVICE_NAME, where it is set, replaces that name.
    """
    if not is_on():
        return
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # A process waits for its last spans when it ends: a collector that is away must not delay it for long.
    os.environ.setdefault("OTEL_EXPORTER_OTLP_TIMEOUT", "2")
    name = os.environ.get("OTEL_SERVICE_NAME") or f"{OURS}-{process}"
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def begin(name: str, headers: Mapping[str, str], **attributes: Any) -> Span:
    """Begin a server span in the trace that the request's headers name, or in a new one; the caller must end it.

    In the names of `attributes`, `__` stands for a dot.
    """
    from opentelemetry import trace

    kind, span_attributes = trace.SpanKind.SERVER, dotted(attributes)
    return trace.get_tracer(OURS).start_span(name, context_of(headers), kind=kind, attributes=span_attributes)


@contextmanager
def serving(name: str, headers: Mapping[str, str], **attributes: Any) -> Iterator[Span]:
    """Run the block in a server span as `begin` makes it; spans begun in the block are its children."""
    from opentelemetry import trace

    with trace.use_span(begin(name, headers, **attributes), end_on_exit=True) as span:
        yield span


@contextmanager
def working(name: str, traceparent: str) -> Iterator[Span]:
    """Run the block in a span that is a child of another process' span, which `traceparent` (W3C's header) names.

    If that is empty or malformed, the span begins a new trace.
    """
    from opentelemetry import trace

    with trace.get_tracer(OURS).start_as_current_span(name, context_of({"traceparent": traceparent})) as span:
        yield span


def end(span: Span, status: int, **attributes: Any) -> None:
    """End the span with the answer's status; a server error marks the span as failed."""
    tell(span, status, **attributes)
    span.end()


def tell(span: Span, status: int, **attributes: Any) -> None:
    """Add the HTTP status and attributes to the span; a status from 500 on marks it as failed."""
    span.set_attributes({"http.response.status_code": status, **dotted(attributes)})
    if status >= 500:
        fail(span)


def fail(span: Span) -> None:
    """Mark the span as failed."""
    from opentelemetry.trace import StatusCode

    span.set_status(StatusCode.ERROR)


def dotted(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Convert `__` in attribute names to the dots of OpenTelemetry's names."""
    return {name.replace("__", "."): value for name, value in attributes.items()}


def headers_of(span: Span) -> dict[str, str]:
    """Return the headers that pass the span's trace context to another process."""
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, trace.set_span_in_context(span))
    return carrier


def here() -> str:
    """Return the traceparent of this thread's current span; empty outside of any span or without a collector."""
    if not is_on():
        return ""
    from opentelemetry import trace

    return headers_of(trace.get_current_span()).get("traceparent", "")


def within(traceparent: str) -> AbstractContextManager[None]:
    """Return a context manager that makes another process' span the parent of the spans begun in its block.

    It does nothing without a collector or if `traceparent`, W3C's header, is empty.
    """
    return attached(traceparent) if is_on() and traceparent else nullcontext()


@contextmanager
def attached(traceparent: str) -> Iterator[None]:
    """Make the trace context current inside the block; spans begun there have no parent if it is empty or malformed.

    Imports OpenTelemetry in any case; `within` does nothing without a collector or a context.
    """
    from opentelemetry import context

    token = context.attach(context_of({"traceparent": traceparent}))
    try:
        yield
    finally:
        context.detach(token)


def context_of(headers: Mapping[str, str]) -> Context:
    """Return the trace context that the headers carry; an empty one if they carry none."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract(headers)
