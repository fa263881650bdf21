"""The events that were published to the broker: a test waits for one, or reads all.

    def test_a_cake_is_announced(run_service, rpc, wait_for_event):
        run_service(Bakery)

        rpc.bakery.bake("Torte")

        event = wait_for_event(CakeBaked, where=lambda event: event.cake == "Torte")
        assert event.oven == 2

The broker's tracing copies each event, so no service needs to listen to it.
"""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

from kombu import Exchange, Queue

from nameko_reliable.events import named_event, read_event
from nameko_reliable.messages import Event
from nameko_reliable.testing.brokers import Broker
from nameko_reliable.testing.waiting import wait_for


class PublishedEvents:
    """The events that are published from now on, and hints.

    Name an event like for a handler: by its class, `CakeBaked`, or by source and name, `"oven", "oven.heated"`. The
    latter gives plain data.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker, self._queue = broker, f"published-{uuid4().hex}"
        self._messages: list[Any] = []
        broker.trace()
        exchange = Exchange("amq.rabbitmq.trace", type="topic")
        broker.declare(self._queue, exchange=exchange, routing_key="publish.#.events")

    def close(self) -> None:
        with self._broker.channel() as channel:
            channel.queue_delete(self._queue)

    def all(
        self, event: type[Event] | str, name: str | None = None, where: Callable[[Any], object] = lambda event: True
    ) -> list[Any]:
        """The events so far for which `where` is true, the oldest first."""
        wanted = named_event(event, name)
        with self._broker.channel() as channel:
            queue = Queue(self._queue, channel=channel, no_declare=True)
            while message := queue.get(no_ack=True):
                self._messages.append(message)
        address = (f"{wanted.source}.events", [wanted.name])
        messages = [
            message
            for message in self._messages
            if (message.headers["exchange_name"], message.headers["routing_keys"]) == address
        ]
        return [each for each in (read_event(wanted, message) for message in messages) if where(each)]

    def wait_for(
        self,
        event: type[Event] | str,
        name: str | None = None,
        where: Callable[[Any], object] = lambda event: True,
        seconds: float = 30,
    ) -> Any:
        """The first event for which `where` is true. Raises AssertionError if there is none in time."""

        def first() -> list[Any]:
            published = self.all(event, name)
            found = [each for each in published if where(each)]
            assert found, f"{named_event(event, name).name} is not among those published: {published}"
            return found[:1]

        return wait_for(first, seconds)[0]
