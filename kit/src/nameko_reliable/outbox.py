"""Events that leave exactly when their transaction has committed: the transactional outbox.

    class OutboxEntry(OutboxMixin, Base):
        pass

    class Bakery:
        name = "bakery"
        db = Database(Base)
        outbox = Outbox(OutboxEntry, events=[CakeBaked])

        @rpc
        def bake(self, cake, oven):
            with self.db.transaction() as session:
                …
                self.outbox.add(session, CakeBaked(cake=cake), key=oven)

The relay publishes the rows, one replica of a service at a time. An event goes to the queue of each subscriber
that its class names, by itself, and once to the exchange, for queues of services that we don't know. Its row is
deleted once all subscribers' queues have confirmed it. The relay dies or loses the broker at any point: the row
is still there and goes out again, so a subscriber may see an event twice (nameko_reliable.inbox), but never not at
all. On a new connection, and when an event was returned, the relay declares the queues of all subscribers.

Events with the same key leave in the order of their rows; one that must wait holds back only those. A queue that
is full, deleted or refused holds back its own events and no other subscriber's copy of them.
"""

import logging
import time
from collections import defaultdict
from contextlib import suppress
from itertools import chain

import eventlet
from nameko.extensions import DependencyProvider
from nameko.standalone.events import get_event_exchange
from prometheus_client import Counter, Gauge
from sqlalchemy import delete, func, or_, select, text, update
from sqlalchemy.orm import aliased

from nameko_reliable.amqp.broker import BrokerUnavailable, ConfirmingPublisher, Refused, Unroutable, encode
from nameko_reliable.amqp.queues import Unbinding, handler_queue
from nameko_reliable.errors import ServiceUnavailable
from nameko_reliable.events import operation_on
from nameko_reliable.polling import Loop
from nameko_reliable.pool import ConnectionPool
from nameko_reliable.rpc import HEADER_PREFIX
from nameko_reliable.sessions import after_commit
from nameko_reliable.settings import amqp_address
from nameko_reliable.telemetry.gauges import Inquiries
from nameko_reliable.telemetry.registry import KIT
from nameko_reliable.telemetry.tracing import HEADER, Tracer, traceparent

logger = logging.getLogger(__name__)

ROUND_ROWS = 200
CONFIRM_SECONDS = 5
IDLE_SECONDS = 1
OTHER_REPLICA_SECONDS = 0.05
LONGEST_WAIT_SECONDS = 30
STOP_SECONDS = 3
# Between two connections that are made to declare queues again.
DECLARE_PAUSE_SECONDS = 1
# In the place of a queue's name.
EXCHANGE = ""
REMEMBERED_ROWS = 10_000
# Held by the relay that is at work.
RELAY_LOCK = func.hashtext("outbox")

WAITING = Gauge("outbox_messages", "Events that wait in the outbox.", ["service"], registry=KIT)
OLDEST_AGE = Gauge(
    "outbox_oldest_age_seconds", "How long the oldest event waits in the outbox.", ["service"], registry=KIT
)
PUBLISHED = Counter(
    "outbox_published_total",
    "Events that the broker was given. outcome: confirmed, refused (a queue did not take it; it goes there again).",
    ["service", "event", "outcome"],
    registry=KIT,
)


class Outbox(DependencyProvider):
    """model: the service's OutboxMixin model. events: every event class that the service adds."""

    pool = ConnectionPool()
    inquiries = Inquiries()
    tracer = Tracer()

    def __init__(self, model, events):
        self.model, self.events = model, events

    def setup(self):
        config, service = self.container.config, self.container.service_name
        self._exchange = get_event_exchange(service, config)
        queues = {
            event_class.name: [
                handler_queue(event_class, subscriber, method, config) for subscriber, method in event_class.subscribers
            ]
            for event_class in self.events
        }
        self._queue_names = {event: [queue.name for queue in subscribed] for event, subscribed in queues.items()}
        # Releases before 0.1.0 bound the queues, and so do Nameko's own handlers: each event would come twice.
        unbindings = [
            Unbinding(name, exchange=self._exchange, routing_key=event)
            for event, names in self._queue_names.items()
            for name in names
        ]
        entities = [self._exchange, *chain(*queues.values()), *unbindings]
        self._publisher = ConfirmingPublisher(amqp_address(config), entities)
        self._connected_at = 0.0
        # By rows that could not be deleted yet: the queues that have the event, EXCHANGE among them.
        self._taken = {}
        self._due = _due(self.model, list(self._queue_names))
        self._relay = Loop(self._relay_round, IDLE_SECONDS)
        self.inquiries.add("outbox", self._waiting)

    def start(self):
        self._relay.start(self.container)

    def stop(self):
        # A round that hangs on the broker is ended with the container: its rows go out again.
        with eventlet.Timeout(STOP_SECONDS, False):
            self._relay.stop()
        self._publisher.close()

    def kill(self):
        self._publisher.close()

    def get_dependency(self, worker_ctx):
        return _BoundOutbox(self, worker_ctx.data.get("request_id"))

    def add(self, session, event, key, request_id):
        if type(event) not in self.events:
            raise TypeError(f"{type(event).__name__} is not among the outbox's events")
        with self.tracer.span(operation_on(self._exchange.name, event.name, "create", "producer")):
            session.add(self.model.of(event, key, request_id=request_id, traceparent=traceparent()))
        after_commit(session, self._relay.wake)

    def _waiting(self):
        """For the gauges."""
        age = func.extract("epoch", func.now() - func.min(self.model.created_at))
        with self.pool.session() as session:
            count, oldest = session.execute(select(func.count(), func.coalesce(age, 0)).select_from(self.model)).one()
        return {(WAITING,): count, (OLDEST_AGE,): float(oldest)}

    def _relay_round(self):
        """Publish what is due; true when another round may find more."""
        try:
            with self.pool.session() as session:
                if not session.scalar(select(func.pg_try_advisory_xact_lock(RELAY_LOCK))):
                    # Another replica's round; it may have looked before our commit.
                    eventlet.sleep(OTHER_REPLICA_SECONDS)
                    return True
                rows = session.scalars(self._due).all()
                if rows:
                    self._publish(session, rows)
                session.commit()
                return bool(rows)
        except (BrokerUnavailable, ServiceUnavailable) as error:
            logger.warning("the outbox waits: %r", error)
            return False

    def _publish(self, session, rows):
        """Give the broker all rows; delete those that every queue has, put off those that one does not take."""
        failure = None
        try:
            if self._send(rows) and time.monotonic() - self._connected_at >= DECLARE_PAUSE_SECONDS:
                # A queue was deleted. A new connection declares it, and the events go to it again.
                self._publisher.reconnect()
                self._connected_at = time.monotonic()
                self._send(rows)
        except BrokerUnavailable as error:
            failure = error
        done, waiting_keys = [], set()
        for row in rows:
            if row.key in waiting_keys:
                continue
            if self._lacking(row):
                waiting_keys.add(row.key)
                if failure is None:
                    self._put_off(session, row)
            else:
                done.append(row.id)
                self._taken.pop(row.id, None)
                PUBLISHED.labels(self.container.service_name, row.event_name, "confirmed").inc()
        # What is forgotten goes to all queues again, and so does what another replica takes over.
        for row_id in list(self._taken)[:-REMEMBERED_ROWS]:
            del self._taken[row_id]
        if done:
            session.execute(delete(self.model).where(self.model.id.in_(done)))
        if failure is not None:
            session.commit()
            raise failure

    def _lacking(self, row):
        """The queues that don't have the event yet, EXCHANGE among them."""
        taken = self._taken.get(row.id, ())
        return [queue for queue in (*self._queue_names[row.event_name], EXCHANGE) if queue not in taken]

    def _send(self, rows):
        """Send each row to the queues that lack it, and note those that take it.

        Returns whether a queue is missing, or is not what it must be. Raises BrokerUnavailable when the connection is
        lost.
        """
        refused, sent = self._publisher.refused(), []
        for row in rows:
            sent_at, body = time.time_ns(), encode(row.payload)
            queues = [queue for queue in self._lacking(row) if queue not in refused]
            sent.append((row, sent_at, [(queue, self._send_to(queue, row, body)) for queue in queues]))
        is_missing = any(queue in refused for row in rows for queue in self._queue_names[row.event_name])
        failure, deadline = None, time.monotonic() + CONFIRM_SECONDS
        for row, sent_at, copies in sent:
            errors: list[Exception] = []
            operation = operation_on(self._exchange.name, row.event_name, "send", "producer")
            # The first error is raised for the span, which shows it.
            with suppress(Unroutable, BrokerUnavailable), self.tracer.span(operation, row.traceparent, sent_at):
                for queue, confirm in copies:
                    try:
                        self._publisher.wait(confirm, max(0.01, deadline - time.monotonic()))
                    except (Unroutable, Refused) as error:
                        target = queue or self._exchange.name
                        logger.error("%s %s was not taken by %s: %r", row.event_name, row.event_id, target, error)
                        errors.append(error)
                        is_missing = is_missing or isinstance(error, Unroutable)
                        if queue == EXCHANGE:
                            # Nothing is owed to queues that we don't know.
                            self._taken.setdefault(row.id, set()).add(queue)
                    except BrokerUnavailable as error:
                        errors.append(error)
                        failure = error
                    else:
                        self._taken.setdefault(row.id, set()).add(queue)
                if errors:
                    raise errors[0]
        # A queue that lacks a row gets those behind it of the same key again, after it.
        lacking_by_key: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            self._taken.get(row.id, set()).difference_update(lacking_by_key[row.key])
            lacking_by_key[row.key].update(self._lacking(row))
        if failure is not None:
            raise failure
        return is_missing

    def _send_to(self, queue, row, body):
        headers = {HEADER_PREFIX + "request_id": row.request_id, HEADER: row.traceparent}
        to_exchange = queue == EXCHANGE
        return self._publisher.send(
            body,
            exchange=self._exchange.name if to_exchange else "",
            routing_key=row.event_name if to_exchange else queue,
            mandatory=not to_exchange,
            persistent=True,
            message_id=str(row.event_id),
            headers={name: value for name, value in headers.items() if value is not None},
        )

    def _put_off(self, session, row):
        PUBLISHED.labels(self.container.service_name, row.event_name, "refused").inc()
        wait_seconds = min(2**row.attempts, LONGEST_WAIT_SECONDS)
        session.execute(
            update(self.model)
            .where(self.model.id == row.id)
            .values(attempts=row.attempts + 1, not_before=func.now() + text(f"interval '{wait_seconds} s'"))
        )


def _due(model, event_names):
    """The oldest rows, without those behind one of their key that must wait.

    Events of other names are another release's: they are left to its relay, which knows their subscribers.
    """
    older = aliased(model)
    must_wait = or_(older.not_before > func.now(), older.event_name.not_in(event_names))
    waits_behind = select(older.id).where(older.key == model.key, older.id < model.id, must_wait).exists()
    due = select(model).where(model.event_name.in_(event_names), model.not_before <= func.now(), ~waits_behind)
    return due.order_by(model.id).limit(ROUND_ROWS)


class _BoundOutbox:
    def __init__(self, outbox, request_id):
        self._outbox, self._request_id = outbox, request_id

    def add(self, session, event, key=None):
        """Have the event published once the session's transaction commits, after earlier ones of the key."""
        self._outbox.add(session, event, key, self._request_id)
