"""Hints: transient events, to the services that listen at that moment.

    class Bakery:
        hints = Hints(interval_seconds=0.25)

        @rpc
        def warm(self, oven, degrees):
            with self.db.transaction() as session:
                …
                self.hints.after_commit(session, OvenWarmed(oven=oven, degrees=degrees), key=oven)

A `broadcast_handler` (nameko_reliable.events) hears them.
"""

import logging

import eventlet
from nameko.extensions import DependencyProvider
from nameko.standalone.events import get_event_exchange

from nameko_reliable.amqp.broker import BrokerUnavailable, Publisher, encode
from nameko_reliable.events import PUBLISH_SECONDS, operation_on
from nameko_reliable.messages import to_payload
from nameko_reliable.rpc import HEADER_PREFIX
from nameko_reliable.sessions import after_commit
from nameko_reliable.telemetry.tracing import HEADER, Tracer, trace_headers

logger = logging.getLogger(__name__)


class Hints(DependencyProvider):
    """Sends at most one hint for each key in an interval.

    Within an interval the last event of a key wins, and it always goes out. A hint that the broker
    doesn't take is logged and gone, as with the process: a listener must come right without.
    The events' source is the service itself.
    """

    publisher = Publisher()
    tracer = Tracer()

    def __init__(self, interval_seconds=0):
        self.interval_seconds = interval_seconds
        self._waiting = {}

    def setup(self):
        self._exchange = get_event_exchange(self.container.service_name, self.container.config)
        self.publisher.declare(self._exchange)

    def stop(self):
        with eventlet.Timeout(2 * self.interval_seconds + 1, False):
            while self._waiting:
                eventlet.sleep(0.05)

    def get_dependency(self, worker_ctx):
        return _BoundHints(self, worker_ctx.data.get("request_id"))

    def send(self, hint, key, rank):
        """hint: the arguments of a publish."""
        if key not in self._waiting:
            self._waiting[key] = None
            self.container.spawn_managed_thread(lambda: self._send_and_hold(hint, key))
        elif self._waiting[key] is None or rank >= self._waiting[key][0]:
            self._waiting[key] = rank, hint

    def _send_and_hold(self, hint, key):
        """Send, then each interval what came meanwhile, until nothing did."""
        self._publish(hint)
        eventlet.sleep(self.interval_seconds)
        while self._waiting[key] is not None:
            (_, hint), self._waiting[key] = self._waiting[key], None
            self._publish(hint)
            eventlet.sleep(self.interval_seconds)
        del self._waiting[key]

    def _publish(self, hint):
        operation = operation_on(self._exchange.name, hint["routing_key"], "send", "producer")
        try:
            with self.tracer.span(operation, parent=hint["headers"].get(HEADER)):
                self.publisher.publish(**hint, exchange=self._exchange.name, timeout_seconds=PUBLISH_SECONDS)
        except BrokerUnavailable as error:
            logger.warning("a hint of %s was lost: %s", hint["routing_key"], error)


class _BoundHints:
    def __init__(self, hints, request_id):
        self._hints, self._request_id = hints, request_id

    def after_commit(self, session, event, key=None, rank=0):
        """Send the event once the session's transaction has committed; not at all if it doesn't.

        rank: of two events of a key that wait, the higher one is the last: two transactions may get to know
        of their commits in another order than they committed in.
        """
        request_id = {HEADER_PREFIX + "request_id": self._request_id} if self._request_id else {}
        hint = {
            # Here, where a payload that is no JSON fails the transaction that it belongs to.
            "body": encode(to_payload(event)),
            "routing_key": event.name,
            "headers": {**request_id, **trace_headers()},
        }
        key = (event.name, event.event_id if key is None else key)
        after_commit(session, lambda: self._hints.send(hint, key, rank))
