"""The parking queue of a service: messages that no handler could take, kept for an operator.

parking = ParkingLot()
…
@rpc
def list_parked(self, limit=50):
    return self.parking.list(limit)
"""

import hashlib
import logging
import re
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

import eventlet
from amqp.basic_message import Message
from amqp.exceptions import AccessRefused
from kombu import Queue
from nameko.extensions import DependencyProvider
from prometheus_client import Gauge

from extensions.broker import CONNECTION_ERRORS, BrokerUnavailable, Publisher, Unroutable, connect, no_answer_within
from extensions.errors import NotReplayable, ServiceUnavailable
from extensions.payloads import timestamp

logger = logging.getLogger(__name__)

READ_SECONDS = 3
BODY_CHARACTERS = 2000

PARKED_MESSAGES = Gauge("forage_parked_messages", "Messages that no handler of the service could take.", ["service"])


def parking_queue(service):
    return Queue(f"parked.{service}", durable=True)


class ParkingLot(DependencyProvider):
    publisher = Publisher()

    def setup(self):
        self._queue = parking_queue(self.container.service_name)
        self.publisher.declare(self._queue)

    def get_dependency(self, worker_ctx):
        return self

    def list(self, limit):
        """{"messages": [{message_id, queue, reason, attempts, parked_at, body}, …], "total"}, newest first.

        A body of more than BODY_CHARACTERS is cut.
        """
        with self._messages() as (messages, total):
            newest = sorted(map(_view, reversed(messages)), key=lambda view: view["parked_at"] or "", reverse=True)
            return {"messages": newest[:limit], "total": total}

    def count(self):
        # One is held, so that who asks while another reads waits for the messages.
        with self._messages(prefetch=1) as (_, total):
            return total

    def replay(self, message_id):
        """Give the message to its handler once more, with all attempts; false if it isn't here.

        Raises NotReplayable.
        """
        return self._take(message_id, self._return)

    def discard(self, message_id):
        """Drop the message for good; false if it isn't here."""
        return self._take(message_id, lambda message: None)

    def _take(self, message_id, action):
        with self._messages() as (messages, _):
            for message in messages:
                if _id_of(message) == message_id:
                    action(message)
                    message.channel.basic_ack(message.delivery_tag)
                    return True
        return False

    def _return(self, message):
        parked_headers = message.headers or {}
        try:
            self.publisher.publish(
                message.body,
                exchange="",
                routing_key=parked_headers.get("x-parked-from") or "",
                headers={k: value for k, value in parked_headers.items() if not str(k).startswith("x-parked-")},
                mandatory=True,
                persistent=True,
                timeout_seconds=READ_SECONDS,
            )
        except Unroutable as error:
            raise NotReplayable from error

    @contextmanager
    def _messages(self, prefetch=0):
        """The parked messages, oldest first, and how many there are; those not acknowledged go back to their places.

        They are this caller's alone as long. prefetch: how many to read at most, 0 for all.
        """
        connection = None
        try:
            connection = connect(self.container.config["AMQP_URI"])
            with no_answer_within(READ_SECONDS):
                messages, total = self._read(connection, prefetch)
            yield messages, total
            with no_answer_within(READ_SECONDS):
                connection.close()
        except (*CONNECTION_ERRORS, BrokerUnavailable) as error:
            raise ServiceUnavailable(self.container.service_name) from error
        finally:
            if connection is not None:
                connection.collect()

    def _read(self, connection, prefetch):
        messages: list[Message] = []
        channel = connection.channel()
        channel.auto_decode = False
        self._queue(channel).declare()
        while True:
            # Not before a try: a message that another operator holds is not counted.
            with suppress(AccessRefused):
                channel.basic_qos(0, prefetch, False)
                channel.basic_consume(self._queue.name, exclusive=True, callback=messages.append)
                break
            eventlet.sleep(0.1)
        # The answer comes behind the messages that were on their way.
        while left := channel.queue_declare(self._queue.name, passive=True).message_count:
            if prefetch and len(messages) == prefetch:
                break
        return messages, len(messages) + left


def _id_of(message):
    """Its own, unless it has none that fits into an address; then one made of the body."""
    message_id = message.properties.get("message_id") or ""
    return message_id if re.fullmatch("[A-Za-z0-9-]{1,64}", message_id) else hashlib.sha256(message.body).hexdigest()


def _view(message):
    # Those that somebody else put there have none of our headers.
    headers = message.headers or {}
    parked_at = headers.get("x-parked-at")
    body = message.body.decode(errors="replace")
    return {
        "message_id": _id_of(message),
        "queue": headers.get("x-parked-from"),
        "reason": headers.get("x-parked-reason"),
        "attempts": headers.get("x-parked-attempts"),
        "parked_at": parked_at and timestamp(datetime.fromtimestamp(parked_at, UTC)),
        "body": body if len(body) <= BODY_CHARACTERS else f"{body[:BODY_CHARACTERS]}…",
    }
