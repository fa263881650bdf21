"""RPC with deadlines, over Nameko's exchange and message format.

    class Greeter:
        name = "greeter"
        cluster = ClusterClient()

        @rpc
        def greet(self, name):
            return self.cluster.translator.translate(text=f"Hello {name}")

A call has one deadline. It covers connecting, publishing and the reply. Nested calls inherit it less a margin. A call
that arrives past it is not carried out, and no transaction (nameko_reliable.database) commits past it. A call carries
the time that it has left (nameko_reliable.amqp.deadlines), so wall clocks do not matter. If no replica of the service
listens, the call fails at once: the service's queue is deleted with its last consumer, so the broker returns the call.
It also fails at once when a connection to the broker is lost, and within about a second when the broker hangs.

Not guaranteed: that the method did not run when a call timed out, or that it runs only once. A replica that dies
between its commit and its acknowledgement gets the call again. Mark methods that write with
`nameko_reliable.inbox.once`.

Nameko's own clients, such as `nameko shell`, can call these methods. Their calls have no deadline.
"""

import functools
import inspect
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, overload
from uuid import uuid4

import eventlet
from amqp.basic_message import Message
from eventlet.event import Event
from kombu import Queue
from nameko import exceptions
from nameko.exceptions import (
    IncorrectSignature,
    MalformedRequest,
    MethodNotFound,
    UnserializableValueError,
)
from nameko.extensions import DependencyProvider, Entrypoint, SharedExtension
from nameko.rpc import get_rpc_exchange
from nameko.timer import Timer
from prometheus_client import Histogram

from nameko_reliable.amqp.broker import BrokerUnavailable, PendingCalls, Publisher, Unroutable, encode
from nameko_reliable.amqp.consumers import Consumers
from nameko_reliable.amqp.deadlines import CLOCK_SKEW, FIELDS, SenderClocks, time_fields
from nameko_reliable.errors import RpcTimeout, ServiceBusy, ServiceUnavailable, outcome_of
from nameko_reliable.telemetry.gauges import QUEUE_MESSAGES, QueueDepths
from nameko_reliable.telemetry.registry import KIT
from nameko_reliable.telemetry.tracing import Kind, Operation, Tracer, context_of, trace_headers

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])

CALL_SECONDS = 5
NESTED_MARGIN_SECONDS = 0.5
# A reply that can't be sent for so long is dropped.
REPLY_SECONDS = 1
QUEUE_EXPIRES_MS = 1000
HEADER_PREFIX = "nameko."

CALL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
SERVER_CALLS = Histogram(
    "rpc_server_duration_seconds",
    "Calls from their receipt to their reply. outcome: ok, refused (a registered error), error, timeout, "
    "unavailable; method: `unknown` for a call of no known method.",
    ["service", "method", "outcome"],
    buckets=CALL_BUCKETS,
    registry=KIT,
)
CLIENT_CALLS = Histogram(
    "rpc_client_duration_seconds",
    "Calls of other services until their reply or failure. outcome: ok, refused, error, timeout, unavailable.",
    ["service", "target", "method", "outcome"],
    buckets=CALL_BUCKETS,
    registry=KIT,
)
# For any name that the caller made up: it must not become a label.
UNKNOWN_METHOD = "unknown"


@functools.cache
def server_calls(service: str, method: str, outcome: str) -> Histogram:
    return SERVER_CALLS.labels(service, method, outcome)


@functools.cache
def client_calls(service: str, target: str, method: str, outcome: str) -> Histogram:
    return CLIENT_CALLS.labels(service, target, method, outcome)


def context_from_headers(message: Message) -> dict[str, Any]:
    """The worker's context data: the headers with Nameko's prefix, without that prefix, and the trace."""
    context = {
        key.removeprefix(HEADER_PREFIX): value
        for key, value in (message.headers or {}).items()
        # A name that isn't UTF-8 is bytes.
        if isinstance(key, str) and key.startswith(HEADER_PREFIX)
    }
    # A value of another type would raise in Nameko's worker setup, which ends the container.
    stack = context.get("call_id_stack")
    if not (isinstance(stack, list) and all(isinstance(call_id, str) for call_id in stack)):
        context.pop("call_id_stack", None)
    if not isinstance(context.get("request_id"), str):
        context.pop("request_id", None)
    # The receiver of a call computes its own deadline from these.
    for field in FIELDS:
        context.pop(field, None)
    return {**context, **context_of(message)}


class CallLimit(Protocol):
    """Admits calls before they take a worker."""

    @property
    def most_waiting(self) -> int:
        """How many calls may wait for admission at once."""

    def enter(self, deadline: float | None) -> Callable[[], object]:
        """Wait until the call may take a worker. Returns the function to call when the call has ended.

        deadline: by the monotonic clock. Raises ServiceBusy or RpcTimeout.
        """


class RpcConsumer(SharedExtension):
    """Consumes the service's request queue, and passes each call to the entrypoint of its method."""

    consumers = Consumers()
    publisher = Publisher()
    depths = QueueDepths()
    declare = ()

    def __init__(self) -> None:
        self._methods: dict[str, Rpc] = {}
        self._clocks = SenderClocks()

    def setup(self) -> None:
        self._exchange = get_rpc_exchange(self.container.config)
        self.publisher.declare(self._exchange)
        self.consumers.register(self)
        CLOCK_SKEW.labels(self.container.service_name).set_function(self._clocks.skew)
        self.depths.watch(self.queue().name, QUEUE_MESSAGES, self.queue().name)

    @property
    def prefetch(self) -> int:
        """The workers that event handlers, polls and timers leave free, plus the calls that may wait for admission."""
        taken = sum(
            1 if isinstance(entrypoint, Timer) else getattr(entrypoint, "workers", 0)
            for entrypoint in self.container.entrypoints
        )
        limits = {entrypoint.limit for entrypoint in self._methods.values() if entrypoint.limit is not None}
        free_workers: int = max(1, self.container.max_workers - taken)
        return free_workers + sum(limit.most_waiting for limit in limits)

    def queue(self) -> Queue:
        name = self.container.service_name
        return Queue(
            f"rpc-{name}",
            exchange=get_rpc_exchange(self.container.config),
            routing_key=f"{name}.*",
            durable=True,
            auto_delete=True,
            queue_arguments={"x-expires": QUEUE_EXPIRES_MS},
        )

    def add(self, entrypoint: "Rpc") -> None:
        self._methods[entrypoint.method_name] = entrypoint

    def stop_consuming(self) -> None:
        self.consumers.unregister(self)

    def handle(self, message: Message) -> None:
        started_at = time.perf_counter()
        method = UNKNOWN_METHOD
        try:
            entrypoint, args, kwargs = self._parse(message)
            method = entrypoint.method_name
            deadline = self._deadline(message)
        except (exceptions.BadRequest, RpcTimeout) as error:
            refusal = error
            self.consumers.spawn(message, lambda: self._finish(message, method, started_at, error=refusal))
            return
        context = context_from_headers(message)
        context["call_id"] = message.properties.get("correlation_id") or uuid4().hex
        context.setdefault("request_id", context["call_id"])
        context["deadline"] = deadline

        def start(leave: Callable[[], object] | None = None) -> None:
            def handle_result(worker_ctx: Any, result: Any, exc_info: Any) -> tuple[Any, Any]:
                if leave is not None:
                    leave()
                error = None if exc_info is None else exc_info[1]
                self._finish(message, method, started_at, result, error)
                return result, exc_info

            self.consumers.start_worker(entrypoint, args, kwargs, context_data=context, handle_result=handle_result)

        def start_when_admitted(limit: CallLimit) -> None:
            try:
                leave = limit.enter(deadline)
            except (ServiceBusy, RpcTimeout) as error:
                self._finish(message, method, started_at, error=error)
            else:
                start(leave)

        if (limit := entrypoint.limit) is None:
            start()
        else:
            self.consumers.spawn(message, lambda: start_when_admitted(limit))

    def _deadline(self, message: Message) -> float | None:
        """By the monotonic clock; None if the call has none. Raises RpcTimeout past it, and MalformedRequest."""
        headers = message.headers or {}
        deadline = self._clocks.deadline({field: headers.get(HEADER_PREFIX + field) for field in FIELDS})
        if deadline is not None and time.monotonic() >= deadline:
            logger.warning("dropped a call of %s past its deadline", message.delivery_info["routing_key"])
            raise RpcTimeout(self.container.service_name)
        return deadline

    def disconnected(self) -> None:
        pass

    def _finish(
        self, message: Message, method: str, started_at: float, result: Any = None, error: BaseException | None = None
    ) -> None:
        """Count the call, send its reply and acknowledge it. If the reply can't be sent, the caller times out."""
        try:
            body = _reply_body(result, error)
        except (TypeError, ValueError, RecursionError) as failure:
            logger.exception("a result of %s is not JSON", message.delivery_info["routing_key"])
            error = UnserializableValueError(str(failure))
            body = _reply_body(None, error)
        seconds = time.perf_counter() - started_at
        server_calls(self.container.service_name, method, outcome_of(error)).observe(seconds)
        self._reply(message, body)

    def _reply(self, message: Message, body: bytes) -> None:
        reply_to = message.properties.get("reply_to")
        if not reply_to:
            logger.warning("a call of %s has no reply_to", message.delivery_info["routing_key"])
        else:
            try:
                with eventlet.Timeout(REPLY_SECONDS, BrokerUnavailable("not sent in time")):
                    self.publisher.send_unconfirmed(
                        body,
                        exchange=self._exchange.name,
                        routing_key=reply_to,
                        correlation_id=message.properties.get("correlation_id"),
                    )
            except BrokerUnavailable as failure:
                logger.warning("a reply of %s was lost: %s", message.delivery_info["routing_key"], failure)
        self.consumers.ack(message)

    def _parse(self, message: Message) -> "tuple[Rpc, list[Any], dict[str, Any]]":
        try:
            body = json.loads(message.body)
            args, kwargs = body["args"], body["kwargs"]
            if not isinstance(args, list) or not isinstance(kwargs, dict):
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError):
            raise MalformedRequest("A call is a JSON object with a list `args` and an object `kwargs`.") from None
        method_name = message.delivery_info["routing_key"].partition(".")[2]
        entrypoint = self._methods.get(method_name)
        if entrypoint is None:
            raise MethodNotFound(method_name)
        entrypoint.check_signature(args, kwargs)
        return entrypoint, args, kwargs


def _reply_body(result: Any, error: BaseException | None) -> bytes:
    return encode({"result": result, "error": exceptions.serialize(error) if error is not None else None})


class Rpc(Entrypoint):
    """The entrypoint of a method that other services call. limit: a subclass may set one for its calls."""

    consumer = RpcConsumer()
    limit: CallLimit | None = None

    def setup(self) -> None:
        # Registered errors are answers, not failures of the service: Nameko logs them as warnings.
        self.expected_exceptions = tuple(exceptions.registry.values())
        self._signature = inspect.signature(getattr(self.container.service_cls, self.method_name))
        self.consumer.add(self)

    def stop(self) -> None:
        self.consumer.stop_consuming()

    def operation(self) -> Operation:
        return _operation(self.container.service_name, self.method_name, "server")

    def check_signature(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        try:
            self._signature.bind(None, *args, **kwargs)
        except TypeError as error:
            raise IncorrectSignature(f"{self.method_name}: {error}") from None


class RpcDecorator(Protocol):
    @overload
    def __call__(self, method: F, /) -> F: ...

    @overload
    def __call__(self, **options: Any) -> Callable[[F], F]: ...


rpc: RpcDecorator = Rpc.decorator


@functools.cache
def _operation(service: str, method: str, kind: Kind) -> Operation:
    name = f"{service}/{method}"
    return Operation(name, kind, {"rpc.system.name": "nameko", "rpc.method": name})


class ReplyListener(SharedExtension):
    """Consumes the process's reply queue. Replies are transient: a lost connection loses them."""

    consumers = Consumers()
    publisher = Publisher()
    declare = ()
    prefetch = None

    def setup(self) -> None:
        self.consumers.register(self)

    def queue(self) -> Queue:
        # A new name for each connection: the old queue exists until the broker notices that its connection is lost.
        self.routing_key = uuid4().hex
        return Queue(
            f"rpc.reply-{self.container.service_name}-{self.routing_key}",
            exchange=get_rpc_exchange(self.container.config),
            routing_key=self.routing_key,
            durable=False,
            exclusive=True,
            auto_delete=True,
        )

    def expect(self, correlation_id: str) -> Event:
        if not self.consumers.is_consuming(self):
            raise BrokerUnavailable("no connection to receive the reply")
        return self.pending.add(correlation_id)

    @property
    def pending(self) -> PendingCalls:
        return self.publisher.core.calls

    def handle(self, message: Message) -> None:
        reply = self.pending.pop(message.properties.get("correlation_id"))
        if reply is None:
            return  # The caller has timed out.
        try:
            body = json.loads(message.body)
            result, error = body["result"], exceptions.deserialize(body["error"]) if body["error"] else None
        except Exception as broken:
            # An error class may raise anything when it refuses its arguments: the reader must continue.
            result, error = None, exceptions.RemoteError("MalformedReply", str(broken))
        if error is not None:
            reply.send_exception(error)
        else:
            reply.send(result)

    def disconnected(self) -> None:
        self.pending.fail(BrokerUnavailable("the connection was lost before the reply"))


class ClusterClient(DependencyProvider):
    """Calls to any service: `self.cluster.bakery.find_cake(cake_id=3)`.

    Raises the method's own error if its class is registered (`deserialize_to_instance`), else RemoteError. Raises
    RpcTimeout past the deadline, and ServiceUnavailable when no replica listens or the broker is unreachable. After
    these two the method may or may not have run.
    """

    listener = ReplyListener()
    publisher = Publisher()
    tracer = Tracer()

    def setup(self) -> None:
        self._exchange = get_rpc_exchange(self.container.config)
        self.publisher.declare(self._exchange)

    def get_dependency(self, worker_ctx: Any) -> "Cluster":
        """The worker's client. Its deadline is that of the worker's own call less a margin."""
        inherited = worker_ctx.data.get("deadline")
        return Cluster(
            self,
            deadline=None if inherited is None else inherited - NESTED_MARGIN_SECONDS,
            request_id=worker_ctx.data.get("request_id") or worker_ctx.call_id,
            call_id_stack=worker_ctx.call_id_stack,
        )

    def call(
        self,
        service: str,
        method: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        context: Mapping[str, Any],
        deadline: float,
    ) -> Any:
        with self.tracer.span(_operation(service, method, "client")):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise RpcTimeout(service)
            correlation_id = uuid4().hex
            try:
                with eventlet.Timeout(remaining, RpcTimeout(service)):
                    reply = self.listener.expect(correlation_id)
                    fields = {**context, **time_fields(deadline)}
                    self.publisher.send_unconfirmed(
                        encode({"args": args, "kwargs": kwargs}),
                        exchange=self._exchange.name,
                        routing_key=f"{service}.{method}",
                        mandatory=True,
                        reply_to=self.listener.routing_key,
                        correlation_id=correlation_id,
                        expiration=str(max(1, int(remaining * 1000))),
                        headers={**{HEADER_PREFIX + key: value for key, value in fields.items()}, **trace_headers()},
                    )
                    return reply.wait()
            except (Unroutable, BrokerUnavailable) as error:
                logger.warning("%s.%s could not be called: %r", service, method, error)
                if isinstance(error, Unroutable):
                    # No replica listens, or the exchange was deleted. Then our own queues have lost their bindings too.
                    self.listener.consumers.declare_again()
                raise ServiceUnavailable(service) from error
            finally:
                self.listener.pending.pop(correlation_id)


class Cluster:
    """A ClusterClient with a deadline. Its attributes are services, and their attributes are methods."""

    def __init__(
        self, client: ClusterClient, deadline: float | None, request_id: str, call_id_stack: Iterable[str] = ()
    ) -> None:
        self._client = client
        self._deadline = deadline
        self._context: dict[str, Any] = {"request_id": request_id, "call_id_stack": list(call_id_stack)}

    def within(self, seconds: float, request_id: str | None = None) -> "Cluster":
        """A client whose deadline is in `seconds`, or earlier if this one's is. All its calls share it."""
        latest = time.monotonic() + seconds
        return Cluster(
            self._client,
            latest if self._deadline is None else min(self._deadline, latest),
            request_id or self._context["request_id"],
            self._context["call_id_stack"],
        )

    def __getattr__(self, service: str) -> "_Service":
        return _Service(self, service)

    def _call(self, service: str, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        latest = time.monotonic() + CALL_SECONDS
        deadline = latest if self._deadline is None else min(self._deadline, latest)
        started_at, outcome = time.perf_counter(), "ok"
        try:
            return self._client.call(service, method, args, kwargs, self._context, deadline)
        except BaseException as error:
            outcome = outcome_of(error)
            raise
        finally:
            calls = client_calls(self._client.container.service_name, service, method, outcome)
            calls.observe(time.perf_counter() - started_at)


class _Service:
    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster, self._name = cluster, name

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: self._cluster._call(self._name, method, args, kwargs)
