"""Events: durable handlers and broadcast handlers.

An event class is a frozen dataclass with the class attributes `source` (the publishing service),
`name` and `subscribers` ((service, method), …), and the fields `event_id` (UUID), `timestamp` (aware) and
`version` (int).

    class Cafe:
        name = "cafe"
        db = Database(Base)

        @event_handler(CakeBaked)
        def display(self, event):
            with self.db.transaction() as session:
                if InboxEntry.take(session, event.event_id):
                    session.add(Cake(name=event.cake))

Guaranteed: a message is acknowledged once the handler has returned, or once the broker has confirmed
its copy in a delay queue or the parking queue, and never sooner. Not guaranteed: that a handler sees
an event once (use nameko_reliable.inbox), or in order (put a sequence into the event).

Queues and exchanges are named as Nameko's, so its own publishers and handlers fit. An event reaches the handlers that
its class names as subscribers by the outbox of its source, and other handlers by its exchange.

An event without a class, as Nameko's EventDispatcher sends it, is named by its source and its name. Its handler gets
the JSON value as it is:

    @event_handler("oven", "oven.heated")
    def bake(self, data):
        …

Such a plain event is acknowledged, tried again and parked like any other. It has no `event_id`, so the inbox can't
recognize a second delivery: the handler itself must make a repeat harmless.
"""

import functools
import json
import logging
import time
from contextlib import suppress
from datetime import UTC, datetime
from uuid import uuid4

import eventlet
from eventlet.event import Event
from kombu import Queue
from nameko.exceptions import ContainerBeingKilled
from nameko.extensions import Entrypoint
from nameko.standalone.events import get_event_exchange
from prometheus_client import Histogram

from nameko_reliable.amqp.broker import BrokerUnavailable, Publisher, Unroutable
from nameko_reliable.amqp.consumers import Consumers
from nameko_reliable.amqp.queues import delay_queue, handler_queue, own_headers, parking_queue
from nameko_reliable.errors import DatabaseUnavailable
from nameko_reliable.messages import PlainEvent, from_payload
from nameko_reliable.parking import PARKED_MESSAGES
from nameko_reliable.rpc import context_from_headers
from nameko_reliable.telemetry.gauges import QUEUE_MESSAGES, QueueDepths
from nameko_reliable.telemetry.registry import KIT
from nameko_reliable.telemetry.tracing import Operation

logger = logging.getLogger(__name__)

PAUSES_SECONDS = (1, 5, 30, 120, 600)
ATTEMPT_HEADER = "x-attempt"
PUBLISH_SECONDS = 5
UNAVAILABLE_PAUSE_SECONDS = 1

HANDLED_EVENTS = Histogram(
    "event_handler_duration_seconds",
    "Attempts to handle an event, from its receipt. outcome: handled, retried (it comes again after a pause), parked, "
    "postponed (the database is unavailable), failed (a hint, which is gone).",
    ["service", "event", "handler", "outcome"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=KIT,
)
EVENT_LAG = Histogram(
    "event_lag_seconds",
    "From the time that an event bears to the end of its handling. A plain event bears none and is not counted.",
    ["service", "event", "handler"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200),
    registry=KIT,
)


class Unreadable(Exception):
    """No attempt could ever handle this message."""


def named_event(event, name):
    """The event class, or the PlainEvent, that a handler's first arguments name."""
    if isinstance(event, type) and hasattr(event, "source") and hasattr(event, "name") and name is None:
        return event
    if isinstance(event, str) and isinstance(name, str):
        return PlainEvent(event, name)
    given = repr(event) if name is None else f"{event!r}, {name!r}"
    raise TypeError(f"A handler takes an event class, or the source and the name of a plain event, not ({given}).")


def read_event(event_class, message):
    """What the handler is given. Raises Unreadable."""
    try:
        payload = json.loads(message.body)
    except (ValueError, RecursionError):
        raise Unreadable("not JSON") from None
    if isinstance(event_class, PlainEvent):
        return payload
    version = payload.get("version", 1) if isinstance(payload, dict) else 1
    if version != 1:
        raise Unreadable(f"unknown version {version!r:.40}")
    try:
        return from_payload(event_class, payload)
    except Exception as error:
        raise Unreadable(f"wrong shape: {error}") from None


def event_context(event, message):
    """The worker's context data for an event, log fields included."""
    context = context_from_headers(message)
    # Nameko's dispatcher hands on those of the worker it was used in; an event is no part of what that worked on.
    context.pop("call_id", None)
    context.pop("event_id", None)
    # Plain data have none.
    if hasattr(event, "event_id"):
        context["event_id"] = str(event.event_id)
    context.setdefault("request_id", context.get("event_id") or _cause(context, message))
    return context


def _cause(context, message):
    """An id for what a plain event belongs to: the first call of Nameko's call stack, or the message alone."""
    first_call = next(iter(context.get("call_id_stack", ())), None)
    return first_call or message.properties.get("message_id") or uuid4().hex


def count(handler, outcome, started_at, event=None):
    """Count one attempt of an event handler. event: None for what could not be read."""
    labels = handler.container.service_name, handler.event.name, handler.method_name
    HANDLED_EVENTS.labels(*labels, outcome).observe(time.perf_counter() - started_at)
    if outcome == "handled" and hasattr(event, "timestamp"):
        EVENT_LAG.labels(*labels).observe(max(0, (datetime.now(UTC) - event.timestamp).total_seconds()))


@functools.cache
def operation_on(exchange, routing_key, name, kind, queue=None):
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
    """Handles each event of a class, or of a source and a name, in a durable queue that the service's replicas share.

    workers: how many events a replica handles at once.
    pauses_seconds: before the second attempt, the third, …; after the last the message is parked.
    """

    consumers = Consumers()
    publisher = Publisher()
    depths = QueueDepths()

    def __init__(self, event, name=None, *, workers=1, pauses_seconds=PAUSES_SECONDS, **kwargs):
        super().__init__(**kwargs)
        self.event = named_event(event, name)
        self.workers = self.prefetch = workers
        self.pauses_seconds = tuple(pauses_seconds)
        self._stopping = Event()

    def setup(self):
        config = self.container.config
        self._parking = parking_queue(self.container.service_name, config)
        self.declare = [*(delay_queue(pause, config) for pause in self.pauses_seconds), self._parking]
        self.consumers.register(self)
        self.depths.watch(self.queue().name, QUEUE_MESSAGES, self.queue().name)
        self.depths.watch(self._parking.name, PARKED_MESSAGES)

    def stop(self):
        if not self._stopping.ready():
            self._stopping.send()
        self.consumers.unregister(self)

    def queue(self):
        return handler_queue(self.event, self.container.service_name, self.method_name, self.container.config)

    def operation(self):
        exchange = get_event_exchange(self.event.source, self.container.config)
        return operation_on(exchange.name, self.event.name, "process", "consumer", self.queue().name)

    def disconnected(self):
        pass

    def handle(self, message):
        started_at = time.perf_counter()
        try:
            event = read_event(self.event, message)
        except Unreadable as error:
            count(self, "parked", started_at)
            self._park(message, str(error))
        else:
            self._attempt(message, event)

    def _attempt(self, message, event):
        started_at = time.perf_counter()

        def settle(worker_ctx, result, exc_info):
            count(self, self._outcome(message, exc_info), started_at, event)
            return self._settle(message, result, exc_info)

        with suppress(ContainerBeingKilled):  # Not acknowledged, it goes back with the connection.
            self.container.spawn_worker(
                self,
                (event,),
                {},
                context_data=event_context(event, message),
                handle_result=settle,
            )

    def _outcome(self, message, exc_info):
        if exc_info is None:
            return "handled"
        if isinstance(exc_info[1], DatabaseUnavailable):
            return "postponed"
        return "retried" if self._attempts(message) < len(self.pauses_seconds) else "parked"

    def _settle(self, message, result, exc_info):
        if exc_info is None:
            self.consumers.ack(message)
        elif isinstance(exc_info[1], DatabaseUnavailable):
            # No fault of the message. It is kept, and with it the queue's prefetch, so that
            # consumption pauses until the database is back.
            self.container.spawn_managed_thread(lambda: self._attempt_again(message))
        else:
            self._delay(message, exc_info[1])
        return result, exc_info

    def _attempt_again(self, message):
        if not self._stopped_within(UNAVAILABLE_PAUSE_SECONDS) and self.consumers.holds(message):
            # Read again, as the handler may have changed plain data.
            self.handle(message)

    def _delay(self, message, error):
        attempt = self._attempts(message) + 1
        reason = f"{type(error).__name__}: {error}"
        if error.__cause__ is not None:
            # PostgreSQL's further lines quote the statement.
            reason += f", from {type(error.__cause__).__name__}: {error.__cause__}".partition("\n")[0]
        if attempt > len(self.pauses_seconds):
            self._park(message, f"failed {attempt} times, at last with {reason}")
            return
        pause = self.pauses_seconds[attempt - 1]
        logger.warning("attempt %d failed, the next in %d s", attempt, pause)
        delay = delay_queue(pause, self.container.config)
        headers = {**own_headers(message), ATTEMPT_HEADER: attempt}
        self._move(message, delay.exchange.name, self.queue().name, headers, message.properties.get("message_id"))

    def _park(self, message, reason):
        logger.error("parked a message of %s: %s", self.queue().name, reason)
        headers = {
            **own_headers(message),
            "x-parked-from": self.queue().name,
            "x-parked-reason": reason[:500],
            "x-parked-at": int(time.time()),
            "x-parked-attempts": self._attempts(message) + 1,
        }
        headers.pop(ATTEMPT_HEADER, None)
        self._move(message, "", self._parking.name, headers, uuid4().hex)

    def _move(self, message, exchange, routing_key, headers, message_id):
        """Acknowledge a message once its copy is confirmed elsewhere; until then keep it."""
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
                # An operator may have deleted the queue, or its exchange.
                self.consumers.declare_again()
                if not self._stopped_within(UNAVAILABLE_PAUSE_SECONDS) and self.consumers.holds(message):
                    continue
            else:
                self.consumers.ack(message)
            return

    def _stopped_within(self, seconds):
        with eventlet.Timeout(seconds, False):
            self._stopping.wait()
        return self._stopping.ready()

    @staticmethod
    def _attempts(message):
        attempts = (message.headers or {}).get(ATTEMPT_HEADER, 0)
        return max(0, attempts) if isinstance(attempts, int) else 0


event_handler = EventHandler.decorator


class BroadcastHandler(Entrypoint):
    """Hands each event to every replica that listens at that moment. Transient: nothing is kept."""

    consumers = Consumers()
    declare = ()
    prefetch = 1
    workers = 1

    def __init__(self, event, name=None, **kwargs):
        super().__init__(**kwargs)
        self.event = named_event(event, name)

    def setup(self):
        self.consumers.register(self)

    def stop(self):
        self.consumers.unregister(self)

    def queue(self):
        return Queue(
            f"evt-{self.event.source}-{self.event.name}--"
            f"{self.container.service_name}.{self.method_name}-{uuid4().hex}",
            exchange=get_event_exchange(self.event.source, self.container.config),
            routing_key=self.event.name,
            durable=False,
            exclusive=True,
            auto_delete=True,
        )

    def operation(self):
        queue = self.queue()
        return operation_on(queue.exchange.name, queue.routing_key, "process", "consumer")

    def disconnected(self):
        pass

    def handle(self, message):
        started_at = time.perf_counter()
        try:
            event = read_event(self.event, message)
        except Unreadable as error:
            logger.warning("dropped a hint of %s: %s", self.event.name, error)
            count(self, "failed", started_at)
            self.consumers.ack(message)
            return

        def acknowledge(worker_ctx, result, exc_info):
            count(self, "handled" if exc_info is None else "failed", started_at, event)
            self.consumers.ack(message)
            return result, exc_info

        with suppress(ContainerBeingKilled):  # A hint: nothing is owed.
            self.container.spawn_worker(
                self, (event,), {}, context_data=event_context(event, message), handle_result=acknowledge
            )


broadcast_handler = BroadcastHandler.decorator
