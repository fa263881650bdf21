"""An OpenTelemetry collector that receives spans by OTLP over HTTP, and keeps them."""

from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message
from opentelemetry.proto.trace.v1.trace_pb2 import Status


class Span:
    """`name`, `service`, `kind`, `attributes`, `trace_id`, `span_id`, `parent_id`, `links`, `is_error`."""

    def __init__(self, service: str, message: Message) -> None:
        self.service = service
        self.name = message.name
        self.kind = Message.SpanKind.Name(message.kind).removeprefix("SPAN_KIND_").lower()
        self.attributes = _values(message.attributes)
        self.trace_id, self.span_id = message.trace_id.hex(), message.span_id.hex()
        self.parent_id = message.parent_span_id.hex() or None
        self.links = [(link.trace_id.hex(), link.span_id.hex()) for link in message.links]
        self.is_error = message.status.code == Status.STATUS_CODE_ERROR
        self.status_message = message.status.message
        self.events = list(message.events)

    def __repr__(self) -> str:
        return f"{self.service}: {self.kind} {self.name}"


class Collector:
    """endpoint: its URL. spans: those received so far. settings: with these a service sends all of its spans.

    bodies: of the requests, as they came.
    """

    def __init__(self) -> None:
        collector = self
        self.spans: list[Span] = []
        self.bodies: list[bytes] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                collector.take(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint, "OTEL_TRACES_SAMPLER_ARG": 1.0}
        Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self, body: bytes) -> None:
        self.bodies.append(body)
        for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _values(resource_spans.resource.attributes)["service.name"]
            self.spans += [
                Span(service, message) for scope_spans in resource_spans.scope_spans for message in scope_spans.spans
            ]

    def find(self, name: str, service: str | None = None, below: Span | None = None) -> list[Span]:
        """The spans with this name. service: only those of this service. below: only the children of this span."""
        return [
            span
            for span in self.spans
            if span.name == name
            and service in (None, span.service)
            and (below is None or (span.trace_id, span.parent_id) == (below.trace_id, below.span_id))
        ]

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _values(attributes: Iterable[Any]) -> dict[str, Any]:
    return {attribute.key: _value(attribute.value) for attribute in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(each) for each in value.array_value.values] if kind == "array_value" else getattr(value, kind)
