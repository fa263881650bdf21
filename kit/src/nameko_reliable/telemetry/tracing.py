"""Traces: what became of a request in every process that it came through, as OpenTelemetry has it.

    class Bakery:
        name = "bakery"
        tracing = WorkerSpans()

Settings: OTEL_EXPORTER_OTLP_ENDPOINT, the base URL of a collector that takes OTLP over HTTP; empty, nothing is
traced, and nothing of OpenTelemetry imported. OTEL_TRACES_SAMPLER_ARG, the part of all traces that is kept, 0 to 1.
What else OpenTelemetry's exporter and resource read from the environment holds, too: OTEL_EXPORTER_OTLP_HEADERS,
OTEL_RESOURCE_ATTRIBUTES, …; and OTEL_BSP_SCHEDULE_DELAY.

A trace begins with a request, or with a call, a message or a timer that comes without one. All below it follows
that first decision, kept or not: what belongs to no trace, or to one that is not kept, makes no spans and costs next
to nothing. A greenlet begins in no trace: who spawns one within a trace runs it in `contextvars.copy_context()`.

Where a trace crosses to another process, or waits in a table, it is a `traceparent` as W3C Trace Context has it.
Nothing of a person goes into a span: no parameters, no addresses, no texts of errors.

Not guaranteed: that a span arrives. While the collector is away the newest are kept, up to MAX_QUEUED.
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
# Encoding so many stops the loop for some 8 ms; sending them takes a millisecond or two, however many they are.
BATCH_SPANS = 256
FLUSH_SECONDS = 2
WARN_EVERY_SECONDS = 60
TRACEPARENT = re.compile("00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")

# The traceparent of the span that this greenlet works in; of a trace that is not kept, its only one.
_current: ContextVar[str | None] = ContextVar("traceparent", default=None)

traceparent = _current.get
_CURRENT_SPAN: Any = object()


Kind: TypeAlias = Literal["server", "client", "producer", "consumer", "internal"]


class Operation(NamedTuple):
    """What a span is about. kind: server, client, producer, consumer or internal."""

    name: str
    kind: Kind = "internal"
    attributes: Mapping[str, Any] | None = None


def trace_fields() -> dict[str, str]:
    """For a line of the log: trace_id, and span_id where the trace is kept."""
    current = _current.get()
    if current is None:
        return {}
    if _is_sampled(current):
        return {"trace_id": current[3:35], "span_id": current[36:52]}
    return {"trace_id": current[3:35]}


def trace_headers() -> dict[str, str]:
    """What a message carries of the trace that it is sent in."""
    current = _current.get()
    return {} if current is None else {HEADER: current}


def context_of(message: Any) -> dict[str, Any]:
    """What a worker's context data keep of it."""
    given = (message.headers or {}).get(HEADER)
    return {} if given is None else {HEADER: given}


class Tracer(SharedExtension):
    """What the extensions of a service make their spans with."""

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
        # Its thread is a greenlet, since Nameko's command patches threads.
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
        """A span for the block, the first one here of its trace: of `parent`'s, else of a new one.

        parent, link: the traceparent of a caller that decides about the trace, or that is only named by it;
        what is none counts as missing.
        """
        if not self.is_on:
            return NO_SPAN
        parent = _parse(parent)
        if parent is None:
            return self._root(operation, _parse(link))
        return self._child(operation, parent) if _is_sampled(parent) else _TraceScope(parent)

    def span(self, operation: Operation, parent: str | None = _CURRENT_SPAN, began_at: int | None = None) -> "Span":
        """A span for the block, if it is part of a trace that is kept.

        parent: a traceparent or None, in the place of the one that the greenlet works in.
        began_at: in nanoseconds since 1970, if not now.
        """
        if parent is _CURRENT_SPAN:
            parent = _current.get()
        if parent is None or not _is_sampled(parent) or not self.is_on:
            return NO_SPAN
        return self._child(operation, parent, began_at)

    def _root(self, operation: Operation, link: str | None) -> "Span":
        if random.random() >= self._ratio:  # noqa: S311 - who guesses it gains nothing
            # In one go, as most requests pay for it.
            ids = _random_hex(24)
            return _TraceScope(f"00-{ids[:32]}-{ids[32:]}-00")
        return RecordedSpan(self, operation, _random_hex(16), link=link)

    def _child(self, operation: Operation, parent: str, began_at: int | None = None) -> "RecordedSpan":
        return RecordedSpan(self, operation, parent[3:35], parent, began_at=began_at)

    def export(self, span: "RecordedSpan") -> None:
        """Send a span that has ended, with others, later.

        OpenTelemetry hears of it only now: its own tracer, which hears of a span's start, costs twice as much.
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
    """So many bytes, in hexadecimal."""
    return random.randbytes(count).hex()  # noqa: S311 - who guesses it gains nothing


def _is_sampled(traceparent: str) -> bool:
    return traceparent[-1] == "1"


def _parse(given: object) -> str | None:
    """A traceparent with no flag but the one that matters; None for anything else."""
    if not isinstance(given, str) or not (match := TRACEPARENT.fullmatch(given)):
        return None
    return f"{given[:-2]}0{int(match[3], 16) & 1}"


class RecordedSpan:
    """The greenlet works in it within the `with`; an exception that leaves that is the span's."""

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
        """Once, for a span in which nobody works, so without `with`."""
        if error is not None:
            self._record_error(error)
        self._tracer.export(self)

    def _record_error(self, error: BaseException) -> None:
        if "rpc.method" in self.attributes:
            self.set_attributes({"rpc.response.status_code": type(error).__name__})
        # A handler has nobody to answer.
        if self.kind == "consumer" or outcome_of(error) != "refused":
            self.set_error(f"{type(error).__module__}.{type(error).__qualname__}")

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        # Not in place: those of an operation are shared.
        self.attributes = {**self.attributes, **attributes}

    def set_error(self, error_type: str) -> None:
        """error_type: a class or a status; never a text, which may quote what somebody typed."""
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
    """The greenlet works in a trace, but in no span of ours there; nothing below it begins a trace of its own."""

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
    """A span for each call, event and run of a timer of the service.

    An entrypoint whose workers have spans has an `operation()` that they are about.
    Within a worker, `continued` takes up a trace that waited in a table.
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
        """For a block that belongs to that trace; with None, to the one that the worker is in."""
        parent = _parse(traceparent) if self.tracer.is_on else None
        return nullcontext() if parent is None else _TraceScope(parent)


def _operation_of(entrypoint: Any) -> Operation | None:
    if isinstance(entrypoint, Timer):
        return Operation(f"{entrypoint.container.service_name}.{entrypoint.method_name}")
    return entrypoint.operation() if hasattr(entrypoint, "operation") else None


class _RateLimit(logging.Filter):
    """A line a minute: a collector that is away is told of again with every batch, and each span that is dropped."""

    _next_at = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now < self._next_at:
            return False
        self._next_at = now + WARN_EVERY_SECONDS
        return True


_limit_export_warnings, _limit_drop_warnings = _RateLimit(), _RateLimit()
