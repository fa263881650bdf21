"""The events that were published to the broker: a test waits for one, or looks at all.

    def test_a_cake_is_announced(run_service, rpc, wait_for_event):
        run_service(Bakery)

        rpc.bakery.bake("Torte")

        event = wait_for_event(CakeBaked, where=lambda event: event.cake == "Torte")
        assert event.oven == 2

The broker itself keeps a copy of each, so nothing needs to be bound to its exchange.
"""

from uuid import uuid4

from kombu import Exchange, Queue

from nameko_reliable.events import named_event, read_event
from nameko_reliable.testing.waiting import wait_for


class PublishedEvents:
    """What is published to the exchanges of events from now on, hints too.

    broker: a nameko_reliable.testing.brokers.Broker. As for a handler, events are named by their class, `CakeBaked`, or
    by source and name, `"oven", "oven.heated"`, for plain data.
    """

    def __init__(self, broker):
        self._broker, self._queue = broker, f"published-{uuid4().hex}"
        self._messages = []
        broker.trace()
        exchange = Exchange("amq.rabbitmq.trace", type="topic")
        broker.declare(self._queue, exchange=exchange, routing_key="publish.#.events")

    def close(self):
        with self._broker.channel() as channel:
            channel.queue_delete(self._queue)

    def all(self, event, name=None, where=lambda event: True):
        """Those so far that `where` is true of, the oldest first."""
        event = named_event(event, name)
        with self._broker.channel() as channel:
            queue = Queue(self._queue, channel=channel, no_declare=True)
            while message := queue.get(no_ack=True):
                self._messages.append(message)
        address = (f"{event.source}.events", [event.name])
        messages = [
            message
            for message in self._messages
            if (message.headers["exchange_name"], message.headers["routing_keys"]) == address
        ]
        return [each for each in (read_event(event, message) for message in messages) if where(each)]

    def wait_for(self, event, name=None, where=lambda event: True, seconds=30):
        """The first that `where` is true of. Raises AssertionError when there is none in time."""

        def first():
            published = self.all(event, name)
            found = [each for each in published if where(each)]
            assert found, f"{name or event.name} is not among those published: {published}"
            return found[:1]

        return wait_for(first, seconds)[0]
