"""A virtual host of the broker, and a look at what is in it."""

import json
import re
import urllib.request
from base64 import b64encode
from contextlib import contextmanager
from itertools import count
from urllib.parse import quote

from amqp.exceptions import NotFound
from kombu import Connection, Queue
from kombu.message import Message
from nameko.standalone.events import get_event_exchange

from nameko_reliable.amqp.queues import handler_queue
from nameko_reliable.messages import to_payload


class Brokers:
    """Makes virtual hosts, each as good as a broker of its own, over the management API."""

    """rabbitmq: a nameko_reliable.testing.servers.RabbitMQ with a management port."""

    def __init__(self, rabbitmq):
        self.rabbitmq = rabbitmq
        self._numbers = count(1)

    def new(self):
        broker = Broker(self, f"test-{next(self._numbers)}")
        self.request("PUT", f"vhosts/{broker.vhost}")
        everything = dict.fromkeys(("configure", "write", "read"), ".*")
        self.request("PUT", f"permissions/{broker.vhost}/{self.rabbitmq.user}", everything)
        return broker

    def delete(self, broker):
        self.request("DELETE", f"vhosts/{broker.vhost}")

    def request(self, method, path, body=None):
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
    def __init__(self, brokers, vhost):
        self._brokers = brokers
        self.vhost = vhost
        self.uri = brokers.rabbitmq.uri(vhost)

    @contextmanager
    def channel(self):
        with Connection(self.uri) as connection, connection.channel() as channel:
            yield channel

    def publish(self, body, queue=None, exchange="", routing_key=None, **properties):
        """A raw message: bytes as they are, text as UTF-8, anything else as JSON."""
        with self.channel() as channel:
            _publish(channel, [(exchange, routing_key or queue or "")], body, **properties)

    def publish_event(self, event, **properties):
        """As the relay of the event's source does: to the exchange, and to the subscribers' queues that are there."""
        exchange = get_event_exchange(event.source, {})
        # A queue's name is the same whatever the configuration.
        queues = [handler_queue(event, service, method, {}).name for service, method in event.subscribers]
        addresses = [*(("", queue) for queue in queues), (exchange.name, event.name)]
        with self.channel() as channel:
            exchange(channel).declare()
            _publish(channel, addresses, to_payload(event), message_id=str(event.event_id), **properties)

    def declare(self, name, **options):
        with self.channel() as channel:
            Queue(name, channel=channel, **options).declare()

    def queue_exists(self, name):
        return name in self.queues()

    def depth(self, name):
        """How many messages are ready in the queue. Raises AssertionError, for which `wait_for` waits, without one."""
        with self._queue_there(name) as channel:
            return channel.queue_declare(name, passive=True).message_count

    def consumers(self, name):
        """How many consume from the queue; 0 when there is none of that name."""
        with self.channel() as channel:
            try:
                return channel.queue_declare(name, passive=True).consumer_count
            except NotFound:
                return 0

    def peek(self, name, most=100):
        """The messages that are ready, as kombu's, left where they are. Raises AssertionError without a queue."""
        with self._queue_there(name) as channel:
            queue = Queue(name, channel=channel, no_declare=True)
            messages: list[Message] = []
            while len(messages) < most and (message := queue.get(no_ack=False)):
                messages.append(message)
            # They go back as the channel closes.
            return messages

    def queues(self):
        return [queue["name"] for queue in self._ask(f"queues/{self.vhost}?columns=name")]

    def connections(self):
        return [connection["name"] for connection in self._ask(f"vhosts/{self.vhost}/connections?columns=name")]

    def drop_connections(self):
        """What a broker's restart looks like to its clients."""
        for name in self.connections():
            self._brokers.request("DELETE", f"connections/{quote(name, safe='')}")

    def trace(self):
        """Have the broker publish a copy of each message to the exchange amq.rabbitmq.trace, from now on."""
        self._brokers.request("PUT", f"vhosts/{self.vhost}", {"tracing": True})

    @contextmanager
    def full(self, name):
        """In the block the queue takes no message beyond those that are in it, and at least one."""
        policy = f"policies/{self.vhost}/full"
        definition = {"max-length": max(1, self.depth(name)), "overflow": "reject-publish"}
        pattern = f"^{re.escape(name)}$"
        self._brokers.request("PUT", policy, {"pattern": pattern, "definition": definition, "apply-to": "queues"})
        try:
            yield
        finally:
            self._brokers.request("DELETE", policy)

    def bindings(self, exchange):
        """The names of the queues that are bound to the exchange."""
        return [binding["destination"] for binding in self._ask(f"exchanges/{self.vhost}/{exchange}/bindings/source")]

    @contextmanager
    def _queue_there(self, name):
        with self.channel() as channel:
            try:
                yield channel
            except NotFound as error:
                raise AssertionError(f"There is no queue {name}.") from error

    def _ask(self, path):
        return self._brokers.request("GET", path)


def _publish(channel, addresses, body, **properties):
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
