"""The parking queue of a service: messages that no handler could take, kept for an operator.

parking = ParkingLot()
…
@rpc
def list_parked(self, limit=50):
    return self.parking.list(limit)
"""

import logging
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

import eventlet
from amqp.exceptions import AccessRefused
from kombu import Queue
from nameko.extensions import DependencyProvider

from extensions.broker import CONNECTION_ERRORS, BrokerUnavailable, Publisher, connect, no_answer_within
from extensions.errors import ServiceUnavailable
from extensions.payloads import timestamp

logger = logging.getLogger(__name__)

READ_SECONDS = 3
BODY_CHARACTERS = 2000


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
        """{"messages": [{message_id, queue, reason, attempts, parked_at, body}, …], "total"}, oldest first."""
        with self._messages() as messages:
            return {"messages": [_view(message) for message in messages[:limit]], "total": len(messages)}

    def replay(self, message_id):
        """Give the message to its handler once more, with all attempts; false if it isn't here."""
        return self._take(message_id, self._return)

    def discard(self, message_id):
        """Drop the message for good; false if it isn't here."""
        return self._take(message_id, lambda message: None)

    def _take(self, message_id, action):
        with self._messages() as messages:
            for message in messages:
                if message.properties.get("message_id") == message_id:
                    action(message)
                    message.channel.basic_ack(message.delivery_tag)
                    return True
        return False

    def _return(self, message):
        headers = {key: value for key, value in message.headers.items() if not str(key).startswith("x-parked-")}
        self.publisher.publish(
            message.body,
            exchange="",
            routing_key=message.headers["x-parked-from"],
            headers=headers,
            mandatory=True,
            persistent=True,
            timeout_seconds=READ_SECONDS,
        )

    @contextmanager
    def _messages(self):
        """All parked messages, held by this caller alone; those not acknowledged go back to their places."""
        connection = None
        try:
            connection = connect(self.container.config["AMQP_URI"])
            with no_answer_within(READ_SECONDS):
                messages = self._read(connection)
            yield messages
            with no_answer_within(READ_SECONDS):
                connection.close()
        except (*CONNECTION_ERRORS, BrokerUnavailable) as error:
            raise ServiceUnavailable(self.container.service_name) from error
        finally:
            if connection is not None:
                connection.collect()

    def _read(self, connection):
        messages = []
        channel = connection.channel()
        channel.auto_decode = False
        self._queue(channel).declare()
        while True:
            # Not before a try: a message that another operator holds is not counted.
            with suppress(AccessRefused):
                channel.basic_consume(self._queue.name, exclusive=True, callback=messages.append)
                break
            eventlet.sleep(0.1)
        # The answer comes behind the messages that were on their way.
        while channel.queue_declare(self._queue.name, passive=True).message_count:
            pass
        return messages


def _view(message):
    # Those that somebody else put there have none of our headers.
    headers = message.headers or {}
    parked_at = headers.get("x-parked-at")
    return {
        "message_id": message.properties.get("message_id"),
        "queue": headers.get("x-parked-from"),
        "reason": headers.get("x-parked-reason"),
        "attempts": headers.get("x-parked-attempts"),
        "parked_at": parked_at and timestamp(datetime.fromtimestamp(parked_at, UTC)),
        "body": message.body.decode(errors="replace")[:BODY_CHARACTERS],
    }
