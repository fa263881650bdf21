"""The events that were published to the broker: a test waits for one, or looks at all.

    def test_a_cake_is_announced(run_service, rpc, wait_for_event):
        run_service(Bakery)

        rpc.bakery.bake("Torte")

        event = wait_for_event(CakeBaked, where=lambda event: event.cake == "Torte")
        assert event.oven == 2

The broker itself keeps a copy of each, so nothing needs to be bound to its exchange.
"""

import json
from uuid import uuid4

from kombu import Exchange, Queue

from nameko_reliable.messages import from_payload
from nameko_reliable.testing.waiting import wait_for


class PublishedEvents:
    """What is published to the exchanges of events from now on, hints too, whether somebody listens or not.

    broker: a nameko_reliable.testing.brokers.Broker. Events are named by their class, `CakeBaked`, or by source and
    name, `"bakery", "cake.baked"`; these are given as the payload.
    """

    def __init__(self, broker):
        self._broker, self._queue = broker, f"published-{uuid4().hex}"
        self._messages = []
        broker.trace()
        broker.declare(
            self._queue, exchange=Exchange("amq.rabbitmq.trace", type="topic"), routing_key="publish.#.events"
        )

    def close(self):
        with self._broker.channel() as channel:
            channel.queue_delete(self._queue)

    def all(self, *event, where=lambda event: True):
        """Those so far that `where` is true of, the oldest first."""
        with self._broker.channel() as channel:
            queue = Queue(self._queue, channel=channel, no_declare=True)
            while message := queue.get(no_ack=True):
                self._messages.append(message)
        return list(filter(where, self._read(*event)))

    def wait_for(self, *event, where=lambda event: True, seconds=30):
        """The first that `where` is true of. Raises AssertionError when there is none in time."""

        def first():
            published = self.all(*event)
            found = [one for one in published if where(one)]
            assert found, f"{event[-1]} is not among those published: {published}"
            return found[:1]

        return wait_for(first, seconds)[0]

    def _read(self, event, name=None):
        source, name = (event, name) if name else (event.source, event.name)
        payloads = [
            json.loads(message.body)
            for message in self._messages
            if message.headers["exchange_name"] == f"{source}.events" and message.headers["routing_keys"] == [name]
        ]
        return payloads if isinstance(event, str) else [from_payload(event, payload) for payload in payloads]
