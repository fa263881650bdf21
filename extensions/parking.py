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
from amqp.exceptions import ResourceLocked
from kombu import Queue
from nameko.extensions import DependencyProvider
from prometheus_client import Gauge

from extensions.broker import CONNECTION_ERRORS, BrokerUnavailable, Publisher, Unroutable, connect, no_answer_within
from extensions.errors import NotReplayable, ServiceUnavailable
from extensions.payloads import timestamp
from extensions.queues import own_headers, parking_queue
from extensions.settings import amqp_address

logger = logging.getLogger(__name__)

READ_SECONDS = 3
BODY_CHARACTERS = 2000
# A quorum queue gives a consumer no more at once.
CONSUMER_MESSAGES = 2000
STATE_HEADER = re.compile("x-parked-|x-attempt$")
BROKERS_REASONS = {"delivery_limit": "came back unanswered too often: its handlers died, or lost the broker"}

PARKED_MESSAGES = Gauge("forage_parked_messages", "Messages that no handler of the service could take.", ["service"])


class ParkingLot(DependencyProvider):
    publisher = Publisher()

    def setup(self):
        self._address = amqp_address(self.container.config)
        self._queue = parking_queue(self.container.service_name, self.container.config)
        self.publisher.declare(self._queue)

    def get_dependency(self, worker_ctx):
        return self

    def list(self, limit):
        """{"messages": [{message_id, queue, reason, attempts, parked_at, body}, …], "total"}, newest first.

        A body of more than BODY_CHARACTERS is cut.
        """
        with self._messages() as messages:
            newest = sorted(map(_view, reversed(messages)), key=lambda view: view["parked_at"] or "", reverse=True)
            return {"messages": newest[:limit], "total": len(messages)}

    def count(self):
        with self._channel() as channel:
            return self._depth(channel)

    def replay(self, message_id):
        """Give the message to its handler once more, with all attempts; false if it isn't here.

        Raises NotReplayable.
        """
        return self._take(message_id, self._return)

    def discard(self, message_id):
        """Drop the message for good; false if it isn't here."""
        return self._take(message_id, lambda message: None)

    def _take(self, message_id, action):
        with self._messages() as messages:
            for message in messages:
                if _id_of(message) == message_id:
                    action(message)
                    message.channel.basic_ack(message.delivery_tag)
                    messages.remove(message)
                    return True
        return False

    def _return(self, message):
        headers = parked_headers(message)
        try:
            self.publisher.publish(
                message.body,
                exchange="",
                routing_key=headers.get("x-parked-from") or "",
                headers={key: value for key, value in headers.items() if not STATE_HEADER.match(str(key))},
                mandatory=True,
                persistent=True,
                timeout_seconds=READ_SECONDS,
            )
        except Unroutable as error:
            raise NotReplayable from error

    @contextmanager
    def _messages(self):
        """The parked messages, oldest first. Those still in the list at the end go back to their places."""
        with self._channel() as channel:
            with no_answer_within(READ_SECONDS):
                messages = self._read(channel)
            try:
                yield messages
            finally:
                with no_answer_within(READ_SECONDS):
                    self._give_back(channel, len(messages))

    @contextmanager
    def _channel(self):
        """A channel to the queue, which is this caller's alone as long."""
        connection = None
        try:
            connection = connect(self._address)
            with no_answer_within(READ_SECONDS):
                channel = connection.channel()
                channel.auto_decode = False
                self._queue(channel).declare()
                # Quorum queues have no exclusive consumers. This one goes with its connection.
                reader = Queue(f"{self._queue.name}.reader", channel=channel, exclusive=True, durable=False)
                while True:
                    with suppress(ResourceLocked):
                        reader.declare()
                        break
                    eventlet.sleep(0.1)
            yield channel
            with no_answer_within(READ_SECONDS):
                connection.close()
        except (*CONNECTION_ERRORS, BrokerUnavailable) as error:
            raise ServiceUnavailable(self.container.service_name) from error
        finally:
            if connection is not None:
                connection.collect()

    def _read(self, channel):
        messages: list[Message] = []
        total = self._depth(channel)
        channel.basic_qos(0, CONSUMER_MESSAGES, False)
        for _ in range(0, total, CONSUMER_MESSAGES):
            channel.basic_consume(self._queue.name, callback=messages.append)
        while len(messages) < total:
            channel.connection.drain_events(timeout=READ_SECONDS)
        return messages

    def _give_back(self, channel, number):
        """Before the next reader may come, who would miss those that are on their way."""
        for tag in list(channel.callbacks):
            channel.basic_cancel(tag)
        channel.basic_recover(requeue=True)
        while self._depth(channel) < number:
            eventlet.sleep(0.01)

    def _depth(self, channel):
        return channel.queue_declare(self._queue.name, passive=True).message_count


def _id_of(message):
    """Its own, unless it has none that fits into an address; then one made of the body."""
    message_id = message.properties.get("message_id") or ""
    return message_id if re.fullmatch("[A-Za-z0-9-]{1,64}", message_id) else hashlib.sha256(message.body).hexdigest()


def _view(message):
    body = message.body.decode(errors="replace")
    return {
        "message_id": _id_of(message),
        **_circumstances(message),
        "body": body if len(body) <= BODY_CHARACTERS else f"{body[:BODY_CHARACTERS]}…",
    }


def _circumstances(message):
    """{queue, reason, attempts, parked_at}, each None for what somebody else put there."""
    headers = parked_headers(message)
    parked_at = headers.get("x-parked-at")
    return {
        "queue": headers.get("x-parked-from"),
        "reason": headers.get("x-parked-reason"),
        "attempts": headers.get("x-parked-attempts"),
        "parked_at": parked_at and timestamp(datetime.fromtimestamp(parked_at, UTC)),
    }


def parked_headers(message):
    """A parked message's own headers. They tell, too, what the broker tells by others when it parked it itself."""
    headers = own_headers(message)
    # Of another shape, somebody made it up.
    match (message.headers or {}).get("x-death"):
        case [{"reason": str(reason), "queue": str(queue), "time": datetime() as time}, *_]:
            headers["x-parked-from"] = queue
            headers["x-parked-reason"] = BROKERS_REASONS.get(reason, reason)
            headers["x-parked-at"] = int(time.replace(tzinfo=UTC).timestamp())
    return headers
