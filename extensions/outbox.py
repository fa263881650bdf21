"""Events that leave exactly when their transaction has committed: the transactional outbox.

    class OutboxEntry(OutboxMixin, Base):
        pass

    class Orders:
        db = Database()
        outbox = Outbox(OutboxEntry, events=[OrderPlaced])

        @rpc
        def place_order(self, …):
            with self.db.transaction() as session:
                …
                self.outbox.add(session, OrderPlaced(order_id=order.id, …), key=order.id)

The relay publishes the rows, one replica of a service at a time, and deletes each once the broker has
confirmed it. It dies or loses the broker at any point: the row is still there and goes out again, so
a subscriber may see an event twice (extensions.inbox), but never not at all. Before it publishes on a
new connection it declares the queues of all subscribers that the event classes name.

Events with the same key leave in the order of their rows; one that must wait holds back only those.
"""

import logging
import time
from datetime import datetime
from uuid import UUID

import eventlet
from nameko.extensions import DependencyProvider
from nameko.standalone.events import get_event_exchange
from prometheus_client import Counter, Gauge
from sqlalchemy import BigInteger, DateTime, Identity, Index, Text, and_, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, aliased, declared_attr, mapped_column

from extensions.broker import BrokerUnavailable, ConfirmingPublisher, NotConfirmed, Unroutable, encode
from extensions.database import Engine, after_commit
from extensions.errors import ServiceUnavailable
from extensions.events import operation_on
from extensions.gauges import Inquiries
from extensions.payloads import to_payload
from extensions.polling import Loop
from extensions.queues import handler_queue
from extensions.rpc import HEADER_PREFIX
from extensions.settings import amqp_address
from extensions.tracing import HEADER, Tracer, traceparent

logger = logging.getLogger(__name__)

ROUND_ROWS = 200
CONFIRM_SECONDS = 5
IDLE_SECONDS = 1
OTHER_REPLICA_SECONDS = 0.05
LONGEST_WAIT_SECONDS = 30
STOP_SECONDS = 3

WAITING = Gauge("forage_outbox_messages", "Events that wait in the outbox.", ["service"])
OLDEST_AGE = Gauge("forage_outbox_oldest_age_seconds", "How long the oldest event waits in the outbox.", ["service"])
PUBLISHED = Counter(
    "forage_outbox_published_total",
    "Events that the broker was given. outcome: confirmed, refused (nobody took it; it stays and goes out again).",
    ["service", "event", "outcome"],
)


class OutboxMixin:
    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    event_id: Mapped[UUID]
    event_name: Mapped[str] = mapped_column(Text)
    key: Mapped[str] = mapped_column(Text)
    payload: Mapped[dict] = mapped_column(JSONB)
    request_id: Mapped[str | None] = mapped_column(Text)
    traceparent: Mapped[str | None] = mapped_column(Text)
    attempts: Mapped[int] = mapped_column(server_default="0")
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    not_before: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())

    @declared_attr.directive
    def __table_args__(cls):
        return (Index("ix_outbox_key_id", "key", "id"),)


class Outbox(DependencyProvider):
    """model: the service's OutboxMixin model. events: every event class that the service adds."""

    engine = Engine()
    inquiries = Inquiries()
    tracer = Tracer()

    def __init__(self, model, events):
        self.model, self.events = model, events

    def setup(self):
        config, service = self.container.config, self.container.service_name
        queues = [
            handler_queue(event_class, subscriber, method, config)
            for event_class in self.events
            for subscriber, method in event_class.subscribers
        ]
        self._exchange = get_event_exchange(service, config)
        self._mandatory = {event_class.name for event_class in self.events if event_class.subscribers}
        self._publisher = ConfirmingPublisher(amqp_address(config), [self._exchange, *queues])
        self._due = _due(self.model)
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
            session.add(
                self.model(
                    event_id=event.event_id,
                    event_name=event.name,
                    key=str(event.event_id if key is None else key),
                    payload=to_payload(event),
                    request_id=request_id,
                    traceparent=traceparent(),
                )
            )
        after_commit(session, self._relay.ring)

    def _waiting(self):
        """For the gauges."""
        age = func.extract("epoch", func.now() - func.min(self.model.created_at))
        with self.engine.session() as session:
            count, oldest = session.execute(select(func.count(), func.coalesce(age, 0)).select_from(self.model)).one()
        return {(WAITING,): count, (OLDEST_AGE,): float(oldest)}

    def _relay_round(self):
        """Publish what is due; true when another round may find more."""
        try:
            with self.engine.session() as session:
                if not session.scalar(select(func.pg_try_advisory_xact_lock(func.hashtext("outbox")))):
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
        """Send all, then wait for the confirms; delete what the broker has, put off what it refused."""
        confirms = [(row, time.time_ns(), self._send(row)) for row in rows]
        deadline = time.monotonic() + CONFIRM_SECONDS
        confirmed, refused, failure = [], False, None
        for row, sent_at, confirm in confirms:
            try:
                operation = operation_on(self._exchange.name, row.event_name, "send", "producer")
                with self.tracer.span(operation, row.traceparent, sent_at):
                    self._publisher.wait(confirm, max(0.01, deadline - time.monotonic()))
            except (Unroutable, NotConfirmed) as error:
                logger.error("%s %s was not taken by the broker: %r", row.event_name, row.event_id, error)
                self._put_off(session, row)
                refused = True
                PUBLISHED.labels(self.container.service_name, row.event_name, "refused").inc()
            except BrokerUnavailable as error:
                failure = error
            else:
                confirmed.append(row.id)
                PUBLISHED.labels(self.container.service_name, row.event_name, "confirmed").inc()
        if confirmed:
            session.execute(delete(self.model).where(self.model.id.in_(confirmed)))
        if refused:
            # Somebody may have deleted a queue: the next connection declares them again.
            self._publisher.reconnect()
        if failure is not None:
            session.commit()
            raise failure

    def _send(self, row):
        headers = {HEADER_PREFIX + "request_id": row.request_id, HEADER: row.traceparent}
        return self._publisher.send(
            encode(row.payload),
            exchange=self._exchange.name,
            routing_key=row.event_name,
            mandatory=row.event_name in self._mandatory,
            persistent=True,
            message_id=str(row.event_id),
            headers={name: value for name, value in headers.items() if value is not None},
        )

    def _put_off(self, session, row):
        wait_seconds = min(2**row.attempts, LONGEST_WAIT_SECONDS)
        session.execute(
            update(self.model)
            .where(self.model.id == row.id)
            .values(attempts=row.attempts + 1, not_before=func.now() + text(f"interval '{wait_seconds} s'"))
        )


def _due(model):
    """The oldest row of each key, so that what waits holds back its own key alone."""
    older = aliased(model)
    has_older = select(older.id).where(and_(older.key == model.key, older.id < model.id)).exists()
    return select(model).where(~has_older, model.not_before <= func.now()).order_by(model.id).limit(ROUND_ROWS)


class _BoundOutbox:
    def __init__(self, outbox, request_id):
        self._outbox, self._request_id = outbox, request_id

    def add(self, session, event, key=None):
        """Have the event published once the session's transaction commits, after earlier ones of the key."""
        self._outbox.add(session, event, key, self._request_id)
