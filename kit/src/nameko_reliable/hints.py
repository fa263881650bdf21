"""Hints are transient events, for the services that listen at that moment.

    class Bakery:
        hints = Hints(interval_seconds=0.25)

        @rpc
        def warm(self, oven, degrees):
            with self.db.transaction() as session:
                …
                self.hints.after_commit(session, OvenWarmed(oven=oven, degrees=degrees), key=oven)

A `broadcast_handler` (nameko_reliable.events) gets them.
"""

import logging
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import eventlet
from nameko.extensions import DependencyProvider
from nameko.standalone.events import get_event_exchange
from sqlalchemy.orm import Session

from nameko_reliable.amqp.broker import BrokerUnavailable, Publisher, encode
from nameko_reliable.events import operation_on
from nameko_reliable.messages import Event, to_payload
from nameko_reliable.rpc import HEADER_PREFIX
from nameko_reliable.sessions import after_commit
from nameko_reliable.telemetry.tracing import HEADER, Tracer, trace_headers

logger = logging.getLogger(__name__)


class Hints(DependencyProvider):
    """Sends at most one hint for each key in an interval.

    Of the hints that wait for the end of an interval, the last one of each key is sent. Hints have no confirms, so any
    can be lost, with the connection or with the process: a listener must not depend on them. The source of the events
    is the service itself.
    """

    publisher = Publisher()
    tracer = Tracer()

    def __init__(self, interval_seconds: float = 0) -> None:
        self.interval_seconds = interval_seconds
        # (rank, hint) of the hint that waits, or None, for each key whose interval has not ended.
        self._waiting: dict[Hashable, tuple[float, dict[str, Any]] | None] = {}
        # The hints with their keys that the next greenlet sends. One change often causes several.
        self._unsent: list[tuple[dict[str, Any], Hashable]] = []

    if TYPE_CHECKING:
        # In a worker, Nameko replaces the attribute by the result of `get_dependency`.
        def __get__(self, service: object, owner: type) -> "WorkerHints": ...

    def setup(self) -> None:
        self._exchange = get_event_exchange(self.container.service_name, self.container.config)
        self.publisher.declare(self._exchange)

    def stop(self) -> None:
        with eventlet.Timeout(2 * self.interval_seconds + 1, False):
            while self._waiting:
                eventlet.sleep(0.05)

    def get_dependency(self, worker_ctx: Any) -> "WorkerHints":
        return WorkerHints(self, worker_ctx.data.get("request_id"))

    def send(self, hint: dict[str, Any], key: Hashable, rank: float) -> None:
        """hint: the arguments of a publish."""
        if key not in self._waiting:
            self._waiting[key] = None
            self._unsent.append((hint, key))
            if len(self._unsent) == 1:
                self.container.spawn_managed_thread(self._send_and_wait)
            return
        waiting = self._waiting[key]
        if waiting is None or rank >= waiting[0]:
            self._waiting[key] = rank, hint

    def _send_and_wait(self) -> None:
        """Send the hints of one turn of the event loop, and after each interval those of their keys that wait."""
        hints, self._unsent = self._unsent, []
        for hint, _ in hints:
            self._publish(hint)
        keys = [key for _, key in hints]
        while keys:
            eventlet.sleep(self.interval_seconds)
            keys = [key for key in keys if self._publish_waiting(key)]

    def _publish_waiting(self, key: Hashable) -> bool:
        """False if no hint of the key waits: its interval has ended."""
        waiting = self._waiting[key]
        if waiting is None:
            del self._waiting[key]
            return False
        self._waiting[key] = None
        self._publish(waiting[1])
        return True

    def _publish(self, hint: dict[str, Any]) -> None:
        operation = operation_on(self._exchange.name, hint["routing_key"], "send", "producer")
        try:
            with self.tracer.span(operation, parent=hint["headers"].get(HEADER)):
                self.publisher.send_hint(**hint, exchange=self._exchange.name)
        except BrokerUnavailable as error:
            logger.warning("a hint of %s was lost: %s", hint["routing_key"], error)


class WorkerHints:
    """The Hints of one worker."""

    def __init__(self, hints: Hints, request_id: str | None) -> None:
        self._hints, self._request_id = hints, request_id

    def after_commit(self, session: Session, event: Event, key: Hashable = None, rank: float = 0) -> None:
        """Send the event once the session's transaction has committed. A rollback drops it.

        key: hints with the same key replace each other; by default none do. rank: of the waiting hints of a key, the
        one with the highest rank is sent. Use it if transactions may learn of their commits out of order.
        """
        after_commit(session, self._sending(event, key, rank))

    def send(self, event: Event, key: Hashable = None, rank: float = 0) -> None:
        """Send the event at once: its change is committed, by a statement in autocommit. key and rank as above."""
        self._sending(event, key, rank)()

    def _sending(self, event: Event, key: Hashable, rank: float) -> Callable[[], None]:
        request_id = {HEADER_PREFIX + "request_id": self._request_id} if self._request_id else {}
        hint = {
            # Encoded before the commit, so that a payload that is not JSON fails its transaction.
            "body": encode(to_payload(event)),
            "routing_key": event.name,
            "headers": {**request_id, **trace_headers()},
        }
        event_key = event.name, event.event_id if key is None else key
        return lambda: self._hints.send(hint, event_key, rank)
