"""RPC with deadlines, over Nameko's exchange and message format.

    class Greeter:
        name = "greeter"
        cluster = ClusterClient()

        @rpc
        def greet(self, name):
            return self.cluster.translator.translate(text=f"Hello {name}")

A call has one deadline: it covers connecting, publishing, the confirm and the reply, nested calls
inherit it less a margin, a worker doesn't start past it and a transaction (nameko_reliable.database)
doesn't commit past it. What travels is the time left (nameko_reliable.amqp.deadlines): no wall clock takes
part. A service without a listening replica is refused by the broker at once, since its queue goes
with its last consumer.

Not guaranteed: that a call which timed out was not carried out, or that a call is carried out only
once. A replica that dies between commit and acknowledgement gets its call again: writing methods
must survive that (`nameko_reliable.inbox.once`).

Nameko's own clients can call these methods, `nameko shell` included; their calls have no deadline.
"""

import functools
import inspect
import json
import logging
import time
from contextlib import suppress
from typing import Any
from uuid import uuid4

import eventlet
from eventlet.event import Event
from kombu import Queue
from nameko import exceptions
from nameko.exceptions import (
    ContainerBeingKilled,
    IncorrectSignature,
    MalformedRequest,
    MethodNotFound,
    UnserializableValueError,
)
from nameko.extensions import DependencyProvider, Entrypoint, SharedExtension
from nameko.rpc import get_rpc_exchange
from nameko.timer import Timer
from prometheus_client import Histogram

from nameko_reliable.amqp.broker import BrokerUnavailable, Publisher, Unroutable, encode
from nameko_reliable.amqp.consumers import Consumers
from nameko_reliable.amqp.deadlines import CLOCK_SKEW, FIELDS, SenderClocks, time_fields
from nameko_reliable.errors import RpcTimeout, ServiceBusy, ServiceUnavailable, outcome_of
from nameko_reliable.telemetry.gauges import QUEUE_MESSAGES, QueueDepths
from nameko_reliable.telemetry.registry import KIT
from nameko_reliable.telemetry.tracing import Operation, Tracer, context_of, trace_headers

logger = logging.getLogger(__name__)

CALL_SECONDS = 5
NESTED_MARGIN_SECONDS = 0.5
CONFIRM_SECONDS = 1
QUEUE_EXPIRES_MS = 1000
HEADER_PREFIX = "nameko."

CALL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
HANDLED_CALLS = Histogram(
    "rpc_server_duration_seconds",
    "Calls from their receipt to their answer. outcome: ok, refused (an answer of the method's own), error, timeout, "
    "unavailable; method: `unknown` for what fits none.",
    ["service", "method", "outcome"],
    buckets=CALL_BUCKETS,
    registry=KIT,
)
MADE_CALLS = Histogram(
    "rpc_client_duration_seconds",
    "Calls of other services until they are answered or given up; outcomes as the server's.",
    ["service", "target", "method", "outcome"],
    buckets=CALL_BUCKETS,
    registry=KIT,
)
# A name that came from outside must not become a label.
UNKNOWN_METHOD = "unknown"


def context_from_headers(message):
    """Nameko's worker context data: what has its prefix among the headers, without it, and what is of the trace."""
    context = {
        key.removeprefix(HEADER_PREFIX): value
        for key, value in (message.headers or {}).items()
        # One that isn't UTF-8 comes as bytes.
        if isinstance(key, str) and key.startswith(HEADER_PREFIX)
    }
    # What has another shape would end the worker before it began, and with it the container.
    stack = context.get("call_id_stack")
    if not (isinstance(stack, list) and all(isinstance(call_id, str) for call_id in stack)):
        context.pop("call_id_stack", None)
    if not isinstance(context.get("request_id"), str):
        context.pop("request_id", None)
    # The receiver of a call makes a deadline of its own of these.
    for field in FIELDS:
        context.pop(field, None)
    return {**context, **context_of(message)}


class RpcConsumer(SharedExtension):
    """The service's one request queue. It hands each call to the entrypoint of its method."""

    consumers = Consumers()
    publisher = Publisher()
    depths = QueueDepths()
    declare = ()

    def __init__(self):
        self._methods = {}
        self._clocks = SenderClocks()

    def setup(self):
        self._exchange = get_rpc_exchange(self.container.config)
        self.publisher.declare(self._exchange)
        self.consumers.register(self)
        CLOCK_SKEW.labels(self.container.service_name).set_function(self._clocks.skew)
        self.depths.watch(self.queue().name, QUEUE_MESSAGES, self.queue().name)

    @property
    def prefetch(self):
        """The workers that event handlers, polls and timers leave over, and the calls that wait without one."""
        taken = sum(
            1 if isinstance(entrypoint, Timer) else getattr(entrypoint, "workers", 0)
            for entrypoint in self.container.entrypoints
        )
        limits = {entrypoint.limit for entrypoint in self._methods.values() if entrypoint.limit is not None}
        return max(1, self.container.max_workers - taken) + sum(limit.most_waiting for limit in limits)

    def queue(self):
        name = self.container.service_name
        return Queue(
            f"rpc-{name}",
            exchange=get_rpc_exchange(self.container.config),
            routing_key=f"{name}.*",
            durable=True,
            auto_delete=True,
            queue_arguments={"x-expires": QUEUE_EXPIRES_MS},
        )

    def add(self, entrypoint):
        self._methods[entrypoint.method_name] = entrypoint

    def stop_consuming(self):
        self.consumers.unregister(self)

    def handle(self, message):
        started_at = time.perf_counter()
        try:
            entrypoint, args, kwargs = self._parse(message)
        except exceptions.BadRequest as error:
            self._answer(message, UNKNOWN_METHOD, started_at, error=error)
            return
        context = context_from_headers(message)
        context["call_id"] = message.properties.get("correlation_id") or uuid4().hex
        context.setdefault("request_id", context["call_id"])
        headers = message.headers or {}
        try:
            deadline = self._clocks.deadline({field: headers.get(HEADER_PREFIX + field) for field in FIELDS})
        except MalformedRequest as error:
            self._answer(message, entrypoint.method_name, started_at, error=error)
            return
        if deadline is not None and time.monotonic() >= deadline:
            logger.warning("dropped a call of %s past its deadline", message.delivery_info["routing_key"])
            self._answer(message, entrypoint.method_name, started_at, error=RpcTimeout(self.container.service_name))
            return
        context["deadline"] = deadline
        leave = None
        if entrypoint.limit is not None:
            try:
                leave = entrypoint.limit.enter(deadline)
            except (ServiceBusy, RpcTimeout) as error:
                self._answer(message, entrypoint.method_name, started_at, error=error)
                return

        def finish(worker_ctx, result, exc_info):
            if leave is not None:
                leave()
            answer = {"result": result} if exc_info is None else {"error": exc_info[1]}
            self._answer(message, entrypoint.method_name, started_at, **answer)
            return result, exc_info

        with suppress(ContainerBeingKilled):  # Not acknowledged, it goes back with the connection.
            self.container.spawn_worker(entrypoint, args, kwargs, context_data=context, handle_result=finish)

    def disconnected(self):
        pass

    def _answer(self, message, method, started_at, result=None, error=None):
        """Count the call, send its answer and acknowledge. What can't be sent is logged: its caller times out."""
        try:
            body = _answer_of(result, error)
        except (TypeError, ValueError, RecursionError) as failure:
            logger.exception("an answer of %s is not JSON", message.delivery_info["routing_key"])
            error = UnserializableValueError(str(failure))
            body = _answer_of(None, error)
        seconds = time.perf_counter() - started_at
        HANDLED_CALLS.labels(self.container.service_name, method, outcome_of(error)).observe(seconds)
        self._reply(message, body)

    def _reply(self, message, body):
        reply_to = message.properties.get("reply_to")
        if not reply_to:
            logger.warning("a call of %s has no reply_to", message.delivery_info["routing_key"])
        else:
            try:
                self.publisher.publish(
                    body,
                    exchange=self._exchange.name,
                    routing_key=reply_to,
                    correlation_id=message.properties.get("correlation_id"),
                    timeout_seconds=CONFIRM_SECONDS,
                )
            except BrokerUnavailable as failure:
                logger.warning("a reply of %s was lost: %s", message.delivery_info["routing_key"], failure)
        self.consumers.ack(message)

    def _parse(self, message):
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


def _answer_of(result, error):
    return encode({"result": result, "error": exceptions.serialize(error) if error is not None else None})


class Rpc(Entrypoint):
    """limit: None, or of a subclass, what each call has to enter before it takes a worker.

    `limit.enter(deadline)` returns the function that leaves it, or raises ServiceBusy or RpcTimeout.
    `limit.most_waiting` is how many calls wait in it at most.
    """

    consumer = RpcConsumer()
    limit: Any = None

    def setup(self):
        # What is meant to cross the wire is an answer, not an accident: it's logged without alarm.
        self.expected_exceptions = tuple(exceptions.registry.values())
        self.consumer.add(self)

    def stop(self):
        self.consumer.stop_consuming()

    def operation(self):
        return _operation(self.container.service_name, self.method_name, "server")

    def check_signature(self, args, kwargs):
        method = getattr(self.container.service_cls, self.method_name)
        try:
            inspect.signature(method).bind(None, *args, **kwargs)
        except TypeError as error:
            raise IncorrectSignature(f"{self.method_name}: {error}") from None


rpc = Rpc.decorator


@functools.cache
def _operation(service, method, kind):
    name = f"{service}/{method}"
    return Operation(name, kind, {"rpc.system.name": "nameko", "rpc.method": name})


class ReplyListener(SharedExtension):
    """The process's reply queue. Replies are transient: with the connection they are gone."""

    consumers = Consumers()
    declare = ()
    prefetch = None

    def __init__(self):
        self._pending = {}

    def setup(self):
        self.consumers.register(self)

    def queue(self):
        # A new name for each connection: the old queue may stand until the broker misses its owner.
        self.routing_key = uuid4().hex
        return Queue(
            f"rpc.reply-{self.container.service_name}-{self.routing_key}",
            exchange=get_rpc_exchange(self.container.config),
            routing_key=self.routing_key,
            durable=False,
            exclusive=True,
            auto_delete=True,
        )

    def expect(self, correlation_id):
        if not self.consumers.is_consuming(self):
            raise BrokerUnavailable("no connection to get the reply on")
        reply = self._pending[correlation_id] = Event()
        return reply

    def forget(self, correlation_id):
        self._pending.pop(correlation_id, None)

    def handle(self, message):
        reply = self._pending.pop(message.properties.get("correlation_id"), None)
        if reply is None:
            return  # Its caller has given up.
        try:
            body = json.loads(message.body)
            result, error = body["result"], exceptions.deserialize(body["error"]) if body["error"] else None
        except Exception as broken:
            # Whoever wrote it, an error class that refuses its arguments included: the reader must go on.
            result, error = None, exceptions.RemoteError("MalformedReply", str(broken))
        if error is not None:
            reply.send_exception(error)
        else:
            reply.send(result)

    def disconnected(self):
        pending, self._pending = self._pending, {}
        for reply in pending.values():
            reply.send_exception(BrokerUnavailable("the connection was lost before the reply"))


class ClusterClient(DependencyProvider):
    """Calls to any service: `self.cluster.bakery.find_cake(cake_id=3)`.

    Raises what the method raised (a class that it knows, else RemoteError), RpcTimeout past the
    deadline, and ServiceUnavailable when nobody listens or the broker is away. After those two,
    whether the call was carried out is not known.
    """

    listener = ReplyListener()
    publisher = Publisher()
    tracer = Tracer()

    def setup(self):
        self._exchange = get_rpc_exchange(self.container.config)
        self.publisher.declare(self._exchange)

    def get_dependency(self, worker_ctx):
        """Within a call: its deadline less a margin, never more than CALL_SECONDS from now."""
        inherited = worker_ctx.data.get("deadline")
        return Cluster(
            self,
            deadline=None if inherited is None else inherited - NESTED_MARGIN_SECONDS,
            request_id=worker_ctx.data.get("request_id") or worker_ctx.call_id,
            call_id_stack=worker_ctx.call_id_stack,
        )

    def call(self, service, method, args, kwargs, context, deadline):
        with self.tracer.span(_operation(service, method, "client")):
            return self._call(service, method, args, kwargs, context, deadline)

    def _call(self, service, method, args, kwargs, context, deadline):
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise RpcTimeout(service)
        correlation_id = uuid4().hex
        try:
            with eventlet.Timeout(remaining, RpcTimeout(service)):
                reply = self.listener.expect(correlation_id)
                fields = {**context, **time_fields(deadline)}
                self.publisher.publish(
                    encode({"args": args, "kwargs": kwargs}),
                    exchange=self._exchange.name,
                    routing_key=f"{service}.{method}",
                    mandatory=True,
                    reply_to=self.listener.routing_key,
                    correlation_id=correlation_id,
                    expiration=str(max(1, int(remaining * 1000))),
                    headers={**{HEADER_PREFIX + key: value for key, value in fields.items()}, **trace_headers()},
                    timeout_seconds=min(CONFIRM_SECONDS, remaining),
                )
                return reply.wait()
        except (Unroutable, BrokerUnavailable) as error:
            logger.warning("%s.%s could not be called: %r", service, method, error)
            if isinstance(error, Unroutable):
                # Nobody listens. Or the exchange was deleted, and our own queues have lost their bindings, too.
                self.listener.consumers.declare_again()
            raise ServiceUnavailable(service) from error
        finally:
            self.listener.forget(correlation_id)


class Cluster:
    """A ClusterClient with a deadline; services are its attributes, methods theirs."""

    def __init__(self, client, deadline, request_id, call_id_stack=()):
        self._client = client
        self._deadline = deadline
        self._context = {"request_id": request_id, "call_id_stack": list(call_id_stack)}

    def within(self, seconds, request_id=None):
        """The same cluster, all calls to be over in `seconds` from now, if not earlier; nested ones included."""
        latest = time.monotonic() + seconds
        return Cluster(
            self._client,
            latest if self._deadline is None else min(self._deadline, latest),
            request_id or self._context["request_id"],
            self._context["call_id_stack"],
        )

    def __getattr__(self, service):
        return _Service(self, service)

    def _call(self, service, method, args, kwargs):
        latest = time.monotonic() + CALL_SECONDS
        deadline = latest if self._deadline is None else min(self._deadline, latest)
        started_at, outcome = time.perf_counter(), "ok"
        try:
            return self._client.call(service, method, args, kwargs, self._context, deadline)
        except BaseException as error:
            outcome = outcome_of(error)
            raise
        finally:
            labels = (self._client.container.service_name, service, method, outcome)
            MADE_CALLS.labels(*labels).observe(time.perf_counter() - started_at)


class _Service:
    def __init__(self, cluster, name):
        self._cluster, self._name = cluster, name

    def __getattr__(self, method):
        return lambda *args, **kwargs: self._cluster._call(self._name, method, args, kwargs)
