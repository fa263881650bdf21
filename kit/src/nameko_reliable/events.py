"""Events: durable handlers and broadcast handlers.

An event class is a frozen dataclass below `nameko_reliable.messages.Event`. It sets the class attributes `source` (the
publishing service), `name` and `subscribers` ((service, method), …).

    class Cafe:
        name = "cafe"
        db = Database(Base)

        @event_handler(CakeBaked)
        def display(self, event):
            with self.db.transaction() as session:
                if InboxEntry.take(session, event.event_id):
                    session.add(Cake(name=event.cake))

Guaranteed: a message is acknowledged only after its handler has returned, or after the broker has confirmed its copy in
a delay queue or the parking queue. Not guaranteed: that a handler gets an event only once (use nameko_reliable.inbox),
or in order (put a sequence number into the event).

Queues and exchanges have Nameko's names, so its own publishers and handlers work with ours. The outbox of its source
sends an event directly to the handlers that its class names as subscribers. Other handlers get it from the exchange.

An event of Nameko's EventDispatcher has no class. Its handler gives the source and the name, and gets the JSON value:

    @event_handler("oven", "oven.heated")
    def bake(self, data):
        …

Such a plain event is acknowledged, retried and parked like any other. It has no `event_id`, so the inbox can't
recognize a second delivery: the handler itself must be idempotent.
"""

import functools
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol, TypeAlias, TypeVar, overload
from uuid import uuid4

import eventlet
import eventlet.event
from amqp.basic_message import Message
from kombu import Queue
from nameko.extensions import Entrypoint
from nameko.standalone.events import get_event_exchange
from prometheus_client import Histogram

from nameko_reliable.amqp.broker import BrokerUnavailable, Publisher, Unroutable
from nameko_reliable.amqp.consumers import Consumers
from nameko_reliable.amqp.queues import delay_queue, handler_queue, own_headers, parking_queue
from nameko_reliable.errors import DatabaseUnavailable
from nameko_reliable.messages import Event, EventType, PlainEvent, from_payload
from nameko_reliable.parking import PARKED_MESSAGES
from nameko_reliable.rpc import context_from_headers
from nameko_reliable.telemetry.gauges import QUEUE_MESSAGES, QueueDepths
from nameko_reliable.telemetry.registry import KIT
from nameko_reliable.telemetry.tracing import Kind, Operation

logger = logging.getLogger(__name__)

PAUSES_SECONDS = (1, 5, 30, 120, 600)
ATTEMPT_HEADER = "x-attempt"
PUBLISH_SECONDS = 5
UNAVAILABLE_PAUSE_SECONDS = 1

HANDLED_EVENTS = Histogram(
    "event_handler_duration_seconds",
    "Attempts to handle an event, from its receipt. outcome: handled, retried (after a pause), parked, postponed (the "
    "database is unavailable), failed (a broadcast, which is dropped).",
    ["service", "event", "handler", "outcome"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=KIT,
)
EVENT_LAG = Histogram(
    "event_lag_seconds",
    "From an event's timestamp to the end of its handling. Plain events have no timestamp and are not counted.",
    ["service", "event", "handler"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200),
    registry=KIT,
)


F = TypeVar("F", bound=Callable[..., Any])
S = TypeVar("S")
E = TypeVar("E", bound=Event)
R = TypeVar("R")
# The decorator of a method (self, event).
HandlerDecorator: TypeAlias = Callable[[Callable[[S, E], R]], Callable[[S, E], R]]


class Unreadable(Exception):
    """The message is malformed: no attempt could handle it."""


def named_event(event: Any, name: str | None) -> EventType:
    """The event class or PlainEvent that a handler's first arguments give. Raises TypeError."""
    if isinstance(event, type) and hasattr(event, "source") and hasattr(event, "name") and name is None:
        event_class: type[Event] = event
        return event_class
    if isinstance(event, str) and isinstance(name, str):
        return PlainEvent(event, name)
    given = repr(event) if name is None else f"{event!r}, {name!r}"
    raise TypeError(f"A handler takes an event class, or the source and the name of a plain event, not ({given}).")


def read_event(event_type: EventType, message: Message) -> Any:
    """The event, or the JSON value of a plain event. Raises Unreadable."""
    try:
        payload = json.loads(message.body)
    except (ValueError, RecursionError):
        raise Unreadable("not JSON") from None
    if isinstance(event_type, PlainEvent):
        return payload
    version = payload.get("version", 1) if isinstance(payload, dict) else 1
    if version != 1:
        raise Unreadable(f"unknown version {version!r:.40}")
    try:
        return from_payload(event_type, payload)
    except Exception as error:
        raise Unreadable(f"wrong shape: {error}") from None


def event_context(event: Any, message: Message) -> dict[str, Any]:
    """The worker's context data for an event, with the fields of its log lines."""
    context = context_from_headers(message)
    # Nameko's dispatcher adds those of the worker that published, which handled another call or event.
    context.pop("call_id", None)
    context.pop("event_id", None)
    # A plain event has none.
    if hasattr(event, "event_id"):
        context["event_id"] = str(event.event_id)
    context.setdefault("request_id", context.get("event_id") or _plain_event_request_id(context, message))
    return context


def _plain_event_request_id(context: Mapping[str, Any], message: Message) -> str:
    """The first call of Nameko's call stack, else the id of the message."""
    first_call: str | None = next(iter(context.get("call_id_stack", ())), None)
    return first_call or message.properties.get("message_id") or uuid4().hex


def count_attempt(
    handler: "EventHandler | BroadcastHandler", outcome: str, started_at: float, event: Any = None
) -> None:
    """event: None if the message could not be read."""
    labels = handler.container.service_name, handler.event.name, handler.method_name
    handled_events(*labels, outcome).observe(time.perf_counter() - started_at)
    if outcome == "handled" and hasattr(event, "timestamp"):
        event_lag(*labels).observe(max(0, (datetime.now(UTC) - event.timestamp).total_seconds()))


@functools.cache
def handled_events(service: str, event: str, handler: str, outcome: str) -> Histogram:
    return HANDLED_EVENTS.labels(service, event, handler, outcome)


@functools.cache
def event_lag(service: str, event: str, handler: str) -> Histogram:
    return EVENT_LAG.labels(service, event, handler)


@functools.cache
def operation_on(exchange: str, routing_key: str, name: str, kind: Kind, queue: str | None = None) -> Operation:
    destination = f"{exchange}:{routing_key}"
    attributes = {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": name,
        "messaging.operation.type": name,
        "messaging.destination.name": f"{destination}:{queue}" if queue else destination,
        "messaging.rabbitmq.destination.routing_key": routing_key,
    }
    return Operation(f"{name} {destination}", kind, attributes)


class EventHandler(Entrypoint):
    """Handles the events of a class, or of a source and a name, from a durable queue that the service's replicas share.

    workers: how many events a replica handles at once.
    pauses_seconds: the pauses before the second attempt, the third, …. After the last one the message is parked.
    """

    consumers = Consumers()
    publisher = Publisher()
    depths = QueueDepths()

    def __init__(
        self,
        event: type[Event] | str,
        name: str | None = None,
        *,
        workers: int = 1,
        pauses_seconds: Iterable[int] = PAUSES_SECONDS,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.event = named_event(event, name)
        self.workers = self.prefetch = workers
        self.pauses_seconds = tuple(pauses_seconds)
        self._stopping = eventlet.event.Event()

    def setup(self) -> None:
        config = self.container.config
        self._parking = parking_queue(self.container.service_name, config)
        self.declare = [*(delay_queue(pause, config) for pause in self.pauses_seconds), self._parking]
        self.consumers.register(self)
        self.depths.watch(self.queue().name, QUEUE_MESSAGES, self.queue().name)
        self.depths.watch(self._parking.name, PARKED_MESSAGES)

    def stop(self) -> None:
        if not self._stopping.ready():
            self._stopping.send()
        self.consumers.unregister(self)

    def queue(self) -> Queue:
        return handler_queue(self.event, self.container.service_name, self.method_name, self.container.config)

    def operation(self) -> Operation:
        exchange = get_event_exchange(self.event.source, self.container.config)
        return operation_on(exchange.name, self.event.name, "process", "consumer", self.queue().name)

    def pause_after(self, attempt: int) -> int | None:
        """Seconds between a failed attempt and the next one. None after the last attempt. attempt: 1 for the first."""
        return self.pauses_seconds[attempt - 1] if attempt <= len(self.pauses_seconds) else None

    def disconnected(self) -> None:
        pass

    def handle(self, message: Message) -> None:
        started_at = time.perf_counter()
        try:
            event = read_event(self.event, message)
        except Unreadable as error:
            count_attempt(self, "parked", started_at)
            reason = str(error)
            self.consumers.spawn(message, lambda: self._park(message, reason))
            return

        def settle(worker_ctx: Any, result: Any, exc_info: Any) -> tuple[Any, Any]:
            error = None if exc_info is None else exc_info[1]
            count_attempt(self, self._outcome(message, error), started_at, event)
            self._settle(message, error)
            return result, exc_info

        self.consumers.start_worker(
            self, (event,), {}, context_data=event_context(event, message), handle_result=settle
        )

    def _outcome(self, message: Message, error: Exception | None) -> str:
        if error is None:
            return "handled"
        if isinstance(error, DatabaseUnavailable):
            return "postponed"
        return "parked" if self.pause_after(self._earlier_attempts(message) + 1) is None else "retried"

    def _settle(self, message: Message, error: Exception | None) -> None:
        if error is None:
            self.consumers.ack(message)
        elif isinstance(error, DatabaseUnavailable):
            # Unacknowledged, the message counts against the prefetch, so consuming pauses until the database is back.
            self.consumers.spawn(message, lambda: self._handle_after_pause(message))
        else:
            self._delay(message, error)

    def _handle_after_pause(self, message: Message) -> None:
        if not self._stopped_within(UNAVAILABLE_PAUSE_SECONDS) and self.consumers.holds(message):
            # Reads the message again, since the handler may have changed the data of a plain event.
            self.handle(message)

    def _delay(self, message: Message, error: Exception) -> None:
        attempt = self._earlier_attempts(message) + 1
        errors = [error] if error.__cause__ is None else [error, error.__cause__]
        # Only the first lines: PostgreSQL's further lines contain the row and the statement.
        reason = ", from ".join(f"{type(each).__name__}: {each}".partition("\n")[0] for each in errors)
        pause = self.pause_after(attempt)
        if pause is None:
            self._park(message, f"gave up after attempt {attempt}: {reason}")
            return
        logger.warning("attempt %d failed, the next in %d s", attempt, pause)
        delay = delay_queue(pause, self.container.config)
        headers = {**own_headers(message), ATTEMPT_HEADER: attempt}
        self._move(message, delay.exchange.name, self.queue().name, headers, message.properties.get("message_id"))

    def _park(self, message: Message, reason: str) -> None:
        logger.error("parked a message of %s: %s", self.queue().name, reason)
        headers = {
            **own_headers(message),
            "x-parked-from": self.queue().name,
            "x-parked-reason": reason[:500],
            "x-parked-at": int(time.time()),
            "x-parked-attempts": self._earlier_attempts(message) + 1,
        }
        headers.pop(ATTEMPT_HEADER, None)
        self._move(message, "", self._parking.name, headers, uuid4().hex)

    def _move(
        self,
        message: Message,
        exchange: str,
        routing_key: str,
        headers: Mapping[str, Any],
        message_id: str | None,
    ) -> None:
        """Publish a copy of the message, and acknowledge the message when the broker has confirmed the copy."""
        while True:
            try:
                self.publisher.publish(
                    message.body,
                    exchange=exchange,
                    routing_key=routing_key,
                    headers=headers,
                    message_id=message_id,
                    mandatory=True,
                    persistent=True,
                    timeout_seconds=PUBLISH_SECONDS,
                )
            except (BrokerUnavailable, Unroutable) as error:
                logger.warning("a message could not be moved to %s, it stays: %r", routing_key, error)
                # An operator may have deleted the queue or its exchange.
                self.consumers.declare_again()
                if not self._stopped_within(UNAVAILABLE_PAUSE_SECONDS) and self.consumers.holds(message):
                    continue
            else:
                self.consumers.ack(message)
            return

    def _stopped_within(self, seconds: float) -> bool:
        with eventlet.Timeout(seconds, False):
            self._stopping.wait()
        return bool(self._stopping.ready())

    @staticmethod
    def _earlier_attempts(message: Message) -> int:
        attempts = (message.headers or {}).get(ATTEMPT_HEADER, 0)
        return max(0, attempts) if isinstance(attempts, int) else 0


class EventHandlerDecorator(Protocol):
    @overload
    def __call__(
        self, event: type[E], /, *, workers: int = 1, pauses_seconds: Iterable[int] = PAUSES_SECONDS, **options: Any
    ) -> HandlerDecorator[S, E, R]: ...

    @overload
    def __call__(
        self,
        source: str,
        name: str,
        /,
        *,
        workers: int = 1,
        pauses_seconds: Iterable[int] = PAUSES_SECONDS,
        **options: Any,
    ) -> Callable[[F], F]: ...


event_handler: EventHandlerDecorator = EventHandler.decorator


class BroadcastHandler(Entrypoint):
    """Passes each event to every replica that listens at that moment. Nothing is stored or retried."""

    consumers = Consumers()
    declare = ()
    prefetch = 1
    workers = 1

    def __init__(self, event: type[Event] | str, name: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.event = named_event(event, name)

    def setup(self) -> None:
        self.consumers.register(self)

    def stop(self) -> None:
        self.consumers.unregister(self)

    def queue(self) -> Queue:
        return Queue(
            f"evt-{self.event.source}-{self.event.name}--"
            f"{self.container.service_name}.{self.method_name}-{uuid4().hex}",
            exchange=get_event_exchange(self.event.source, self.container.config),
            routing_key=self.event.name,
            durable=False,
            exclusive=True,
            auto_delete=True,
        )

    def operation(self) -> Operation:
        queue = self.queue()
        return operation_on(queue.exchange.name, queue.routing_key, "process", "consumer")

    def disconnected(self) -> None:
        pass

    def handle(self, message: Message) -> None:
        started_at = time.perf_counter()
        try:
            event = read_event(self.event, message)
        except Unreadable as error:
            logger.warning("dropped a broadcast of %s: %s", self.event.name, error)
            count_attempt(self, "failed", started_at)
            self.consumers.ack(message)
            return

        def acknowledge(worker_ctx: Any, result: Any, exc_info: Any) -> tuple[Any, Any]:
            count_attempt(self, "handled" if exc_info is None else "failed", started_at, event)
            self.consumers.ack(message)
            return result, exc_info

        self.consumers.start_worker(
            self, (event,), {}, context_data=event_context(event, message), handle_result=acknowledge
        )


class BroadcastHandlerDecorator(Protocol):
    @overload
    def __call__(self, event: type[E], /, **options: Any) -> HandlerDecorator[S, E, R]: ...

    @overload
    def __call__(self, source: str, name: str, /, **options: Any) -> Callable[[F], F]: ...


broadcast_handler: BroadcastHandlerDecorator = BroadcastHandler.decorator
