"""A collector of OpenTelemetry: takes OTLP/HTTP as anybody's would, and keeps the spans."""

from __future__ import annotations

import gzip
from dataclasses import dataclass

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


@dataclass(frozen=True)
class Span:
    """`parent` is empty for the first of a trace; OTLP's kinds: 1 internal, 2 server, 4 sends, 5 takes a message."""

    service: str
    name: str
    kind: int
    trace: str
    id: str
    parent: str
    attributes: dict[str, str]
    is_failed: bool


class Collector:
    def __init__(self) -> None:
        self.spans: list[Span] = []

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/v1/traces", self.take, methods=["POST"])])

    async def take(self, request: Request) -> Response:
        body = await request.body()
        if request.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.spans += spans_of(ExportTraceServiceRequest.FromString(body))
        return Response(b"", media_type="application/x-protobuf")

    def of(self, trace: str) -> list[Span]:
        return [span for span in self.spans if span.trace == trace]


def spans_of(export: ExportTraceServiceRequest) -> list[Span]:
    return [
        Span(
            service=texts(group.resource.attributes)["service.name"],
            name=span.name,
            kind=span.kind,
            trace=span.trace_id.hex(),
            id=span.span_id.hex(),
            parent=span.parent_span_id.hex(),
            attributes=texts(span.attributes),
            is_failed=span.status.code == 2,
        )
        for group in export.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


def texts(attributes: object) -> dict[str, str]:
    """Of numbers, their digits."""
    return {one.key: one.value.string_value or str(one.value.int_value) for one in attributes}  # type: ignore[attr-defined]
