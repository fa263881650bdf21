"""The transactional outbox: an event is published if and only if its transaction has committed.

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

The relay publishes the rows. Only one replica of a service publishes at a time. The relay sends each event to the queue
of every subscriber that its class names, and once to the exchange, for queues that the class does not name. It deletes
the row once the queues of all subscribers have confirmed the event. If the relay dies or loses the broker at any point,
the row is still there and is published again: a subscriber may get an event twice (nameko_reliable.inbox), but never
misses one. The relay declares the queues of all subscribers on each new connection, and again when one is missing.

Events with the same key leave in the order of their rows; an event that must wait delays only later ones of its key. A
queue that is full, deleted or refused delays only its own copies of events, not those of other subscribers.
"""

import functools
import logging
import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any

import eventlet
from nameko.extensions import DependencyProvider
from nameko.standalone.events import get_event_exchange
from prometheus_client import Counter, Gauge
from sqlalchemy import Connection, Row, func, select
from sqlalchemy.orm import Session

from nameko_reliable.amqp.broker import BrokerUnavailable, ReconnectingPublisher, Refused, Unroutable, encode
from nameko_reliable.amqp.queues import Unbinding, handler_queue
from nameko_reliable.errors import ServiceUnavailable
from nameko_reliable.events import operation_on
from nameko_reliable.messages import Event, to_payload
from nameko_reliable.polling import Loop
from nameko_reliable.pool import ConnectionPool
from nameko_reliable.rpc import HEADER_PREFIX
from nameko_reliable.sessions import after_commit
from nameko_reliable.settings import amqp_address
from nameko_reliable.statements import Statement, run_in, run_last
from nameko_reliable.tables import OutboxMixin, table_name
from nameko_reliable.telemetry.gauges import Inquiries, Series
from nameko_reliable.telemetry.registry import KIT
from nameko_reliable.telemetry.tracing import HEADER, Span, Tracer, traceparent

logger = logging.getLogger(__name__)

ROUND_ROWS = 200
CONFIRM_SECONDS = 5
IDLE_SECONDS = 1
OTHER_REPLICA_SECONDS = 0.05
LONGEST_WAIT_SECONDS = 30
STOP_SECONDS = 3
# Between two connections that the relay opens to declare queues again.
DECLARE_PAUSE_SECONDS = 1
# In a list of queue names: the copy of the event that goes to its exchange.
EXCHANGE_COPY = ""
REMEMBERED_ROWS = 10_000
# The advisory lock of the relay that publishes.
RELAY_LOCK = "hashtext('outbox')"

WAITING = Gauge("outbox_messages", "Events that wait in the outbox.", ["service"], registry=KIT)
OLDEST_AGE = Gauge(
    "outbox_oldest_age_seconds", "How long the oldest event has waited in the outbox.", ["service"], registry=KIT
)
PUBLISHED = Counter(
    "outbox_published_total",
    "Events sent to the broker. outcome: confirmed, refused (a queue did not take it; it is sent there again).",
    ["service", "event", "outcome"],
    registry=KIT,
)


@functools.cache
def published(service: str, event: str, outcome: str) -> Counter:
    return PUBLISHED.labels(service, event, outcome)


class Outbox(DependencyProvider):
    """model: the service's OutboxMixin model. events: all event classes that the service adds."""

    pool = ConnectionPool()
    inquiries = Inquiries()
    tracer = Tracer()

    def __init__(self, model: type[OutboxMixin], events: Collection[type[Event]]) -> None:
        self.model, self.events = model, events

    if TYPE_CHECKING:
        # In a worker, Nameko replaces the attribute by the result of `get_dependency`.
        def __get__(self, service: object, owner: type) -> "WorkerOutbox": ...

    def setup(self) -> None:
        config, service = self.container.config, self.container.service_name
        self._exchange = get_event_exchange(service, config)
        queues = {
            event_class.name: [
                handler_queue(event_class, subscriber, method, config) for subscriber, method in event_class.subscribers
            ]
            for event_class in self.events
        }
        self._queue_names = {event: [queue.name for queue in subscribed] for event, subscribed in queues.items()}
        # Releases before 0.1.0 and Nameko's own handlers bind the queues to the exchange: events would arrive twice.
        unbindings = [
            Unbinding(name, exchange=self._exchange, routing_key=event)
            for event, names in self._queue_names.items()
            for name in names
        ]
        entities = [self._exchange, *chain(*queues.values()), *unbindings]
        self._publisher = ReconnectingPublisher(amqp_address(config), entities)
        self._reconnected_at = 0.0
        # {row id: the queues that have confirmed the event, and EXCHANGE_COPY}, for rows that are not deleted yet.
        self._confirmed: dict[int, set[str]] = {}
        table = table_name(self.model)
        self._find_due, self._delete, self._postpone = _find_due_in(table), _delete_from(table), _postpone_in(table)
        self._relay = Loop(self._relay_round, IDLE_SECONDS)
        self.inquiries.add("outbox", self._gauge_values)

    def start(self) -> None:
        self._relay.start(self.container)

    def stop(self) -> None:
        # A round that hangs on the broker ends with the container. Its rows are published again later.
        with eventlet.Timeout(STOP_SECONDS, False):
            self._relay.stop()
        self._publisher.close()

    def kill(self) -> None:
        self._publisher.close()

    def get_dependency(self, worker_ctx: Any) -> "WorkerOutbox":
        return WorkerOutbox(self, worker_ctx.data.get("request_id"))

    def store(self, session: Session, event: Event, key: object, request_id: str | None) -> None:
        with self.creation_span(event):
            session.add(self.model.of(event, key, request_id=request_id, traceparent=traceparent()))
        after_commit(session, self.wake)

    def creation_span(self, event: Event) -> Span:
        if type(event) not in self.events:
            raise TypeError(f"{type(event).__name__} is not among the outbox's events")
        return self.tracer.span(operation_on(self._exchange.name, event.name, "create", "producer"))

    def wake(self) -> None:
        self._relay.wake()

    def _gauge_values(self) -> dict[Series, float]:
        age = func.extract("epoch", func.now() - func.min(self.model.created_at))
        with self.pool.session() as session:
            count, oldest = session.execute(select(func.count(), func.coalesce(age, 0)).select_from(self.model)).one()
        return {(WAITING,): count, (OLDEST_AGE,): float(oldest)}

    def _relay_round(self) -> bool:
        """Publish the rows that are due. True if another round may find more."""
        try:
            with self.pool.connection() as connection:
                found = run_in(connection, self._find_due, {"event_names": list(self._queue_names)})
                if found[0].is_relay:
                    rows = [row for row in found if row.id is not None]
                    if rows:
                        self._publish(connection, rows)
                    # What was committed meanwhile has called `wake`.
                    return len(rows) == ROUND_ROWS
        except (BrokerUnavailable, ServiceUnavailable) as error:
            logger.warning("the outbox waits: %r", error)
            return False
        # Another replica publishes. It may have selected its rows before our commit.
        eventlet.sleep(OTHER_REPLICA_SECONDS)
        return True

    def _publish(self, connection: Connection, rows: Sequence[Row[Any]]) -> None:
        """Send all rows. Delete those that every queue has confirmed, and postpone those that a queue refused."""
        failure: BrokerUnavailable | None = None
        try:
            if self._send(rows) and time.monotonic() - self._reconnected_at >= DECLARE_PAUSE_SECONDS:
                # A queue was deleted. A new connection declares it, and the events go to it again.
                self._publisher.reconnect()
                self._reconnected_at = time.monotonic()
                self._send(rows)
        except BrokerUnavailable as error:
            failure = error
        done: list[Row[Any]] = []
        refused: list[Row[Any]] = []
        waiting_keys: set[str] = set()
        for row in rows:
            if row.key in waiting_keys:
                continue
            if self._unconfirmed(row):
                waiting_keys.add(row.key)
                refused.append(row)
            else:
                done.append(row)
        if refused and failure is None:
            ids = [row.id for row in refused]
            run_in(connection, self._postpone, {"ids": ids, "longest_seconds": LONGEST_WAIT_SECONDS})
            self._count(refused, "refused")
        run_last(connection, self._delete, {"ids": [row.id for row in done]})
        self._count(done, "confirmed")
        for row in done:
            self._confirmed.pop(row.id, None)
        # A forgotten row goes to all queues again, like a row that another replica takes over.
        for row_id in list(self._confirmed)[:-REMEMBERED_ROWS]:
            del self._confirmed[row_id]
        if failure is not None:
            raise failure

    def _count(self, rows: Sequence[Row[Any]], outcome: str) -> None:
        for row in rows:
            published(self.container.service_name, row.event_name, outcome).inc()

    def _unconfirmed(self, row: Row[Any]) -> list[str]:
        """The queues that have not confirmed the event yet, and EXCHANGE_COPY if that is not sent yet."""
        confirmed = self._confirmed.get(row.id, ())
        return [queue for queue in (*self._queue_names[row.event_name], EXCHANGE_COPY) if queue not in confirmed]

    def _send(self, rows: Sequence[Row[Any]]) -> bool:
        """Send each row to the queues that have not confirmed it, and note those that confirm it now.

        Returns whether a queue is missing, or the broker refused its declaration. Raises BrokerUnavailable when the
        connection is lost.
        """
        refused, sent = self._publisher.refused(), []
        for row in rows:
            sent_at, body = time.time_ns(), row.payload.encode()
            queues = [queue for queue in self._unconfirmed(row) if queue not in refused]
            sent.append((row, sent_at, [(queue, self._send_to(queue, row, body)) for queue in queues]))
        queue_is_missing = any(queue in refused for row in rows for queue in self._queue_names[row.event_name])
        failure: BrokerUnavailable | None = None
        deadline = time.monotonic() + CONFIRM_SECONDS
        for row, sent_at, copies in sent:
            errors: list[Exception] = []
            operation = operation_on(self._exchange.name, row.event_name, "send", "producer")
            # The span records the error that leaves its block: the first one.
            with suppress(Unroutable, BrokerUnavailable), self.tracer.span(operation, row.traceparent, sent_at):
                for queue, confirm in copies:
                    try:
                        self._publisher.wait(confirm, max(0.01, deadline - time.monotonic()))
                    except (Unroutable, Refused) as error:
                        target = queue or self._exchange.name
                        logger.error("%s %s was not taken by %s: %r", row.event_name, row.event_id, target, error)
                        errors.append(error)
                        queue_is_missing = queue_is_missing or isinstance(error, Unroutable)
                        if queue == EXCHANGE_COPY:
                            # No delivery is promised to queues that are not the subscribers'.
                            self._confirmed.setdefault(row.id, set()).add(queue)
                    except BrokerUnavailable as error:
                        errors.append(error)
                        failure = error
                    else:
                        self._confirmed.setdefault(row.id, set()).add(queue)
                if errors:
                    raise errors[0]
        # A queue that has not confirmed a row gets the later rows of its key again, after that row.
        unconfirmed_by_key: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            self._confirmed.get(row.id, set()).difference_update(unconfirmed_by_key[row.key])
            unconfirmed_by_key[row.key].update(self._unconfirmed(row))
        if failure is not None:
            raise failure
        return queue_is_missing

    def _send_to(self, queue: str, row: Row[Any], body: bytes) -> Any:
        headers = {HEADER_PREFIX + "request_id": row.request_id, HEADER: row.traceparent}
        to_exchange = queue == EXCHANGE_COPY
        return self._publisher.send(
            body,
            exchange=self._exchange.name if to_exchange else "",
            routing_key=row.event_name if to_exchange else queue,
            mandatory=not to_exchange,
            persistent=True,
            message_id=row.event_id,
            headers={name: value for name, value in headers.items() if value is not None},
        )


def _find_due_in(table: str) -> Statement:
    """The oldest rows, except those behind a row of the same key that must wait. Takes the lock of the relay.

    Events with other names belong to another release. Its relay knows their subscribers, and publishes them.
    One row without an id if none is due, or, with `is_relay` false, if another replica has the lock.
    """
    return Statement(
        f"""
        WITH due AS MATERIALIZED (
            SELECT id, event_id::text AS event_id, event_name, key, payload::text AS payload, request_id, traceparent
            FROM {table} AS this
            WHERE current_setting('nameko_reliable.is_relay')::bool
              AND event_name = ANY(%(event_names)s::text[]) AND not_before <= now()
              AND (
                  SELECT true FROM {table} AS older
                  WHERE older.key = this.key AND (older.key, older.id) < (this.key, this.id)
                    AND (older.not_before > now() OR older.event_name <> ALL(%(event_names)s::text[]))
                  LIMIT 1
              ) IS NULL
            ORDER BY id LIMIT {ROUND_ROWS}
        )
        SELECT is_relay, due.id, event_id, event_name, key, payload, request_id, traceparent
        FROM (SELECT current_setting('nameko_reliable.is_relay')::bool AS is_relay) AS relay LEFT JOIN due ON true
        ORDER BY due.id
        """,  # noqa: S608
        # The lock comes first, so that the statement sees what the relay before has deleted. The plan is made while
        # the table is empty, and must suit a long one: rows by id, and for each a look at the index of keys. No other
        # index fits the comparison of pairs above, and a subquery for a value is not turned into a join.
        # The commit need not be on disk: a server that crashes and forgets it has the events sent again.
        first=f"""
        SELECT set_config('nameko_reliable.is_relay', pg_try_advisory_xact_lock({RELAY_LOCK})::text, true),
               set_config('enable_seqscan', 'off', true), set_config('synchronous_commit', 'off', true)
        """,
    )


# For `id = ANY(…)`, a plan for an empty table might take the index of keys, and read all of it.
PLAN_AT_EACH_USE = "SELECT set_config('plan_cache_mode', 'force_custom_plan', true)"


def _delete_from(table: str) -> Statement:
    return Statement(f"DELETE FROM {table} WHERE id = ANY(%(ids)s::bigint[])", first=PLAN_AT_EACH_USE)  # noqa: S608


def _postpone_in(table: str) -> Statement:
    """By 1 s, 2 s, 4 s, … and at most `longest_seconds`."""
    return Statement(
        f"""
        UPDATE {table} SET attempts = attempts + 1, not_before = now() + make_interval(
            secs => least(power(2, least(attempts, 30)), %(longest_seconds)s::float8)
        )
        WHERE id = ANY(%(ids)s::bigint[])
        """,  # noqa: S608
        first=PLAN_AT_EACH_USE,
    )


class WorkerOutbox:
    """The outbox in one worker."""

    def __init__(self, outbox: Outbox, request_id: str | None) -> None:
        self._outbox, self._request_id = outbox, request_id

    def add(self, session: Session, event: Event, key: object = None) -> None:
        """Publish the event once the session's transaction has committed, after earlier events with the same key."""
        self._outbox.store(session, event, key, self._request_id)

    def columns(self, event: Event) -> dict[str, Any]:
        """The columns of the event's row, for a statement that inserts it: all but the key. The payload is JSON text.

        Call `wake` when the statement is committed, or the event waits for the relay's next round.
        """
        with self._outbox.creation_span(event):
            return {
                "event_id": event.event_id,
                "event_name": event.name,
                "payload": encode(to_payload(event)).decode(),
                "request_id": self._request_id,
                "traceparent": traceparent(),
            }

    def wake(self) -> None:
        self._outbox.wake()
