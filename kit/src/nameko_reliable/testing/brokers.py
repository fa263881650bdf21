"""A virtual host of the broker for each test, and ways to inspect it."""

import json
import re
import urllib.request
from base64 import b64encode
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any
from urllib.parse import quote

from amqp.exceptions import NotFound
from kombu import Connection, Queue
from kombu.message import Message
from nameko.standalone.events import get_event_exchange

from nameko_reliable.amqp.queues import handler_queue
from nameko_reliable.messages import Event, to_payload
from nameko_reliable.testing.servers import RabbitMQ


class Brokers:
    """Creates virtual hosts by the management API. To a service, each one is a broker of its own.

    rabbitmq: must have a management port.
    """

    def __init__(self, rabbitmq: RabbitMQ) -> None:
        self.rabbitmq = rabbitmq
        self._numbers = count(1)

    def new(self) -> "Broker":
        broker = Broker(self, f"test-{next(self._numbers)}")
        self.request("PUT", f"vhosts/{broker.vhost}")
        everything = dict.fromkeys(("configure", "write", "read"), ".*")
        self.request("PUT", f"permissions/{broker.vhost}/{self.rabbitmq.user}", everything)
        return broker

    def delete(self, broker: "Broker") -> None:
        self.request("DELETE", f"vhosts/{broker.vhost}")

    def request(self, method: str, path: str, body: object = None) -> Any:
        """The JSON that the management API answers, or None."""
        credentials = b64encode(f"{self.rabbitmq.user}:{self.rabbitmq.password}".encode()).decode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.rabbitmq.management_port}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Basic {credentials}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None


class Broker:
    """One virtual host, and its `uri`."""

    def __init__(self, brokers: Brokers, vhost: str) -> None:
        self._brokers = brokers
        self.vhost = vhost
        self.uri = brokers.rabbitmq.uri(vhost)

    @contextmanager
    def channel(self) -> Iterator[Any]:
        with Connection(self.uri) as connection, connection.channel() as channel:
            yield channel

    def publish(
        self,
        body: object,
        queue: str | None = None,
        exchange: str = "",
        routing_key: str | None = None,
        **properties: Any,
    ) -> None:
        """Publish a raw message: bytes as they are, text as UTF-8, anything else as JSON."""
        with self.channel() as channel:
            _publish(channel, [(exchange, routing_key or queue or "")], body, **properties)

    def publish_event(self, event: Event, **properties: Any) -> None:
        """Publish it like the relay of its source: to the existing queues of its subscribers, and to the exchange."""
        exchange = get_event_exchange(event.source, {})
        # A queue's name does not depend on the configuration.
        queues = [handler_queue(type(event), service, method, {}).name for service, method in event.subscribers]
        addresses = [*(("", queue) for queue in queues), (exchange.name, event.name)]
        with self.channel() as channel:
            exchange(channel).declare()
            _publish(channel, addresses, to_payload(event), message_id=str(event.event_id), **properties)

    def declare(self, name: str, **options: Any) -> None:
        """Declare a queue. options: of kombu's Queue."""
        with self.channel() as channel:
            Queue(name, channel=channel, **options).declare()

    def queue_exists(self, name: str) -> bool:
        return name in self.queues()

    def depth(self, name: str) -> int:
        """The number of ready messages. Raises AssertionError if there is no such queue, so `wait_for` waits for it."""
        with self._existing_queue(name) as channel:
            return int(channel.queue_declare(name, passive=True).message_count)

    def consumers(self, name: str) -> int:
        """The number of the queue's consumers; 0 if there is no such queue."""
        with self.channel() as channel:
            try:
                return int(channel.queue_declare(name, passive=True).consumer_count)
            except NotFound:
                return 0

    def peek(self, name: str, most: int = 100) -> list[Message]:
        """The ready messages, which stay in the queue. Raises AssertionError if there is no such queue."""
        with self._existing_queue(name) as channel:
            queue = Queue(name, channel=channel, no_declare=True)
            messages: list[Message] = []
            while len(messages) < most and (message := queue.get(no_ack=False)):
                messages.append(message)
            # They return to the queue when the channel closes.
            return messages

    def queues(self) -> list[str]:
        return [queue["name"] for queue in self._get(f"queues/{self.vhost}?columns=name")]

    def connections(self) -> list[str]:
        return [connection["name"] for connection in self._get(f"vhosts/{self.vhost}/connections?columns=name")]

    def drop_connections(self) -> None:
        """End all connections, like a restart of the broker."""
        for name in self.connections():
            self._brokers.request("DELETE", f"connections/{quote(name, safe='')}")

    def trace(self) -> None:
        """From now on the broker publishes a copy of each message to the exchange amq.rabbitmq.trace."""
        self._brokers.request("PUT", f"vhosts/{self.vhost}", {"tracing": True})

    @contextmanager
    def full(self, name: str) -> Iterator[None]:
        """During the block the queue accepts no more messages. An empty queue still accepts one."""
        policy = f"policies/{self.vhost}/full"
        definition = {"max-length": max(1, self.depth(name)), "overflow": "reject-publish"}
        pattern = f"^{re.escape(name)}$"
        self._brokers.request("PUT", policy, {"pattern": pattern, "definition": definition, "apply-to": "queues"})
        try:
            yield
        finally:
            self._brokers.request("DELETE", policy)

    def bindings(self, exchange: str) -> list[str]:
        """The names of the queues that are bound to the exchange."""
        return [binding["destination"] for binding in self._get(f"exchanges/{self.vhost}/{exchange}/bindings/source")]

    @contextmanager
    def _existing_queue(self, name: str) -> Iterator[Any]:
        with self.channel() as channel:
            try:
                yield channel
            except NotFound as error:
                raise AssertionError(f"There is no queue {name}.") from error

    def _get(self, path: str) -> Any:
        return self._brokers.request("GET", path)


def _publish(channel: Any, addresses: Iterable[tuple[str, str]], body: object, **properties: Any) -> None:
    properties.setdefault("content_type", "application/json")
    if not isinstance(body, (bytes, str)):
        body = json.dumps(body)
    if isinstance(body, str):
        body = body.encode()
    message = channel.prepare_message(
        body,
        content_type=properties.pop("content_type"),
        content_encoding=properties.pop("content_encoding", "utf-8"),
        headers=properties.pop("headers", {}),
        properties=properties,
    )
    channel.confirm_select()
    for exchange, routing_key in addresses:
        channel.basic_publish_confirm(message, exchange=exchange, routing_key=routing_key)
