"""Traces: spans of all that a request causes, in every process, for OpenTelemetry.

    class Bakery:
        name = "bakery"
        tracing = WorkerSpans()

Settings: OTEL_EXPORTER_OTLP_ENDPOINT, the base URL of a collector that takes OTLP over HTTP. Without it there are no
traces, and OpenTelemetry is not imported. OTEL_TRACES_SAMPLER_ARG, the share of traces that is sampled, 0 to 1.
Variables that OpenTelemetry's exporter and resource read themselves work too: OTEL_EXPORTER_OTLP_HEADERS,
OTEL_RESOURCE_ATTRIBUTES, …; and OTEL_BSP_SCHEDULE_DELAY.

A trace begins with an HTTP request, a timer, or a call or message that carries no trace. This point decides
whether the trace is sampled, and all later parts follow. Code outside of a sampled trace makes no spans, at almost no
cost. A new greenlet is in no trace: to keep the trace, spawn `contextvars.copy_context().run`.

Between processes, and in tables, a trace is a `traceparent` of W3C Trace Context. Spans hold no personal data: no
parameters, no addresses, no texts of errors.

Not guaranteed: that a span arrives. While the collector is unreachable, the newest MAX_QUEUED spans are kept.
"""

import functools
import logging
import random
import re
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, TypeAlias
from weakref import WeakKeyDictionary

import eventlet
from nameko.extensions import DependencyProvider, SharedExtension
from nameko.timer import Timer

from nameko_reliable.errors import outcome_of

logger = logging.getLogger(__name__)

HEADER = "traceparent"
MAX_QUEUED = 2048
# Encoding 256 spans stops the event loop for about 8 ms. Sending a batch of any size takes 1 to 2 ms.
BATCH_SPANS = 256
FLUSH_SECONDS = 2
WARN_EVERY_SECONDS = 60
TRACEPARENT = re.compile("00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")

# The traceparent of the greenlet's current span. A trace that is not sampled has the same one everywhere.
_current: ContextVar[str | None] = ContextVar("traceparent", default=None)

traceparent = _current.get
_CURRENT_SPAN: Any = object()

Kind: TypeAlias = Literal["server", "client", "producer", "consumer", "internal"]


class Operation(NamedTuple):
    """The name, kind and first attributes of a span."""

    name: str
    kind: Kind = "internal"
    attributes: Mapping[str, Any] | None = None


def trace_fields() -> dict[str, str]:
    """The log fields of the current trace: trace_id, and span_id if it is sampled."""
    current = _current.get()
    if current is None:
        return {}
    if _is_sampled(current):
        return {"trace_id": current[3:35], "span_id": current[36:52]}
    return {"trace_id": current[3:35]}


def trace_headers() -> dict[str, str]:
    """The headers that carry the current trace in a message."""
    current = _current.get()
    return {} if current is None else {HEADER: current}


def context_of(message: Any) -> dict[str, Any]:
    """The part of a message's trace that a worker's context data keep."""
    given = (message.headers or {}).get(HEADER)
    return {} if given is None else {HEADER: given}


class Tracer(SharedExtension):
    """Makes spans for a service's extensions, and sends them to the collector."""

    is_on = False

    def setup(self) -> None:
        config = self.container.config
        endpoint = config.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        if endpoint:
            self._ratio = config["OTEL_TRACES_SAMPLER_ARG"]
            resource = {
                "service.name": self.container.service_name,
                "deployment.environment.name": config["ENVIRONMENT"],
            }
            self._set_up_export(endpoint, resource)
            self.is_on = True

    def _set_up_export(self, endpoint: str, resource: Mapping[str, str]) -> None:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter").addFilter(_limit_export_warnings)
        logging.getLogger("opentelemetry.sdk._shared_internal").addFilter(_limit_drop_warnings)
        self._exporter = OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces")
        # Its thread is a greenlet: Nameko's command patches threads.
        self._processor = BatchSpanProcessor(
            self._exporter, max_queue_size=MAX_QUEUED, max_export_batch_size=BATCH_SPANS
        )
        self._trace = trace
        self._ended_span = functools.partial(
            ReadableSpan, resource=Resource.create(resource), instrumentation_scope=InstrumentationScope(__name__)
        )
        self._kinds = {kind.name.lower(): kind for kind in trace.SpanKind}
        self._statuses = {False: trace.Status(), True: trace.Status(trace.StatusCode.ERROR)}

    def stop(self) -> None:
        if self.is_on:
            is_flushed = False
            with eventlet.Timeout(FLUSH_SECONDS, False):
                self._processor.shutdown()
                is_flushed = True
            if not is_flushed:
                logger.warning("the last spans were not delivered")
                self._exporter.shutdown()

    kill = stop

    def entry_span(self, operation: Operation, parent: object = None, link: object = None) -> "Span":
        """A span for the block where a trace enters this process: below `parent`, or in a new trace without one.

        parent: the caller's traceparent, whose decision on sampling holds. link: a traceparent to link to, which
        decides nothing. A malformed one counts as missing.
        """
        if not self.is_on:
            return NO_SPAN
        parent = _parse(parent)
        if parent is None:
            return self._root(operation, _parse(link))
        return self._child(operation, parent) if _is_sampled(parent) else _TraceScope(parent)

    def span(self, operation: Operation, parent: str | None = _CURRENT_SPAN, began_at: int | None = None) -> "Span":
        """A span for the block, if the trace is sampled.

        parent: a traceparent or None, instead of the greenlet's current one.
        began_at: in nanoseconds since 1970; now by default.
        """
        if parent is _CURRENT_SPAN:
            parent = _current.get()
        if parent is None or not _is_sampled(parent) or not self.is_on:
            return NO_SPAN
        return self._child(operation, parent, began_at)

    def _root(self, operation: Operation, link: str | None) -> "Span":
        if random.random() >= self._ratio:  # noqa: S311 - not a secret
            # One call for both ids, since most requests pay for it.
            ids = _random_hex(24)
            return _TraceScope(f"00-{ids[:32]}-{ids[32:]}-00")
        return RecordedSpan(self, operation, _random_hex(16), link=link)

    def _child(self, operation: Operation, parent: str, began_at: int | None = None) -> "RecordedSpan":
        return RecordedSpan(self, operation, parent[3:35], parent, began_at=began_at)

    def export(self, span: "RecordedSpan") -> None:
        """Queue a span that has ended. It is sent in a batch, later.

        OpenTelemetry's own tracer handles a span from its start, and costs twice as much.
        """
        self._processor.on_end(
            self._ended_span(
                name=span.name,
                context=self._context(span.traceparent),
                parent=None if span.parent is None else self._context(span.parent),
                attributes=span.attributes,
                links=[self._trace.Link(self._context(span.link))] if span.link else (),
                kind=self._kinds[span.kind],
                status=self._statuses[span.is_error],
                start_time=span.began_at,
                end_time=time.time_ns(),
            )
        )

    def _context(self, traceparent: str) -> Any:
        flags = self._trace.TraceFlags(_is_sampled(traceparent))
        return self._trace.SpanContext(int(traceparent[3:35], 16), int(traceparent[36:52], 16), True, flags)


def _random_hex(count: int) -> str:
    """`count` random bytes, in hexadecimal."""
    return random.randbytes(count).hex()  # noqa: S311 - not a secret


def _is_sampled(traceparent: str) -> bool:
    return traceparent[-1] == "1"


def _parse(given: object) -> str | None:
    """A traceparent with only the `sampled` flag left; None if it is malformed."""
    if not isinstance(given, str) or not (match := TRACEPARENT.fullmatch(given)):
        return None
    return f"{given[:-2]}0{int(match[3], 16) & 1}"


class RecordedSpan:
    """A span that is sent. In its `with` block it is the greenlet's current span, and notes the block's exception."""

    is_recorded: Literal[True] = True
    is_error = False

    def __init__(
        self,
        tracer: Tracer,
        operation: Operation,
        trace_id: str,
        parent: str | None = None,
        link: str | None = None,
        began_at: int | None = None,
    ) -> None:
        self._tracer = tracer
        self.name, self.kind, attributes = operation
        self.attributes: Mapping[str, Any] = attributes or {}
        self.traceparent = f"00-{trace_id}-{_random_hex(8)}-01"
        self.parent, self.link = parent, link
        self.began_at = began_at or time.time_ns()

    def __enter__(self) -> Self:
        self._token = _current.set(self.traceparent)
        return self

    def __exit__(
        self, error_class: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _current.reset(self._token)
        self.end(error)

    def end(self, error: BaseException | None = None) -> None:
        """Call it once, for a span that is used without `with`."""
        if error is not None:
            self._record_error(error)
        self._tracer.export(self)

    def _record_error(self, error: BaseException) -> None:
        if "rpc.method" in self.attributes:
            self.set_attributes({"rpc.response.status_code": type(error).__name__})
        # A refusal answers a caller, and a handler has none.
        if self.kind == "consumer" or outcome_of(error) != "refused":
            self.set_error(f"{type(error).__module__}.{type(error).__qualname__}")

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        # A new dict, since spans share the attributes of their operation.
        self.attributes = {**self.attributes, **attributes}

    def set_error(self, error_type: str) -> None:
        """error_type: a class or a status. Never an error's text, which may quote personal data."""
        self.set_attributes({"error.type": error_type})
        self.is_error = True


class _NoSpan:
    is_recorded: Literal[False] = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_class: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def end(self, error: BaseException | None = None) -> None:
        pass


Span: TypeAlias = RecordedSpan | _NoSpan

NO_SPAN = _NoSpan()


class _TraceScope(_NoSpan):
    """Makes a traceparent the greenlet's current one, without a span: code in the block continues that trace."""

    def __init__(self, traceparent: str) -> None:
        self._traceparent = traceparent

    def __enter__(self) -> Self:
        self._token = _current.set(self._traceparent)
        return self

    def __exit__(
        self, error_class: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _current.reset(self._token)


class WorkerSpans(DependencyProvider):
    """A span for each worker: for a call, an event or a run of a timer.

    Timers, and entrypoints with a method `operation()`, have spans. In a worker, `continued` continues a trace whose
    traceparent was stored in a table.
    """

    tracer = Tracer()

    def __init__(self) -> None:
        self._spans: WeakKeyDictionary[Any, Span] = WeakKeyDictionary()
        self._operations: dict[Any, Operation | None] = {}

    def get_dependency(self, worker_ctx: Any) -> Self:
        return self

    def worker_setup(self, worker_ctx: Any) -> None:
        if not self.tracer.is_on:
            return
        entrypoint = worker_ctx.entrypoint
        if entrypoint not in self._operations:
            self._operations[entrypoint] = _operation_of(entrypoint)
        operation = self._operations[entrypoint]
        if operation is not None:
            span = self.tracer.entry_span(operation, parent=worker_ctx.data.get(HEADER))
            self._spans[worker_ctx] = span.__enter__()

    def worker_result(self, worker_ctx: Any, result: Any = None, exc_info: Any = None) -> None:
        span = self._spans.pop(worker_ctx, None)
        if span is not None:
            span.__exit__(*(exc_info or (None, None, None)))

    def continued(self, traceparent: object) -> AbstractContextManager[object]:
        """Run the block in the trace of that traceparent; with None, in the worker's own."""
        parent = _parse(traceparent) if self.tracer.is_on else None
        return nullcontext() if parent is None else _TraceScope(parent)


def _operation_of(entrypoint: Any) -> Operation | None:
    if isinstance(entrypoint, Timer):
        return Operation(f"{entrypoint.container.service_name}.{entrypoint.method_name}")
    return entrypoint.operation() if hasattr(entrypoint, "operation") else None


class _RateLimit(logging.Filter):
    """Lets one line a minute pass: OpenTelemetry logs each batch that fails, and each span that it drops."""

    _next_at = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now < self._next_at:
            return False
        self._next_at = now + WARN_EVERY_SECONDS
        return True


_limit_export_warnings, _limit_drop_warnings = _RateLimit(), _RateLimit()
