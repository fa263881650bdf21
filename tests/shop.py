"""Services in containers of this process, with real RPC, and access to their databases and queues."""

import json
from contextlib import contextmanager
from uuid import uuid4

import psycopg2
import psycopg2.extras
from kombu import Connection, Queue
from nameko.containers import ServiceContainer
from nameko.exceptions import deserialize
from nameko.standalone.rpc import ClusterRpcProxy
from nameko.testing.services import entrypoint_hook

from contracts.types import SERVICES
from nameko_reliable.testing.outbox import OutboxTable
from nameko_reliable.testing.waiting import wait_for
from tests.infrastructure.configuration import configuration

psycopg2.extras.register_uuid()


class Shop:
    """`run(Orders)` starts a replica; `rpc.orders.create_order(…)` calls it, as in `nameko shell`."""

    def __init__(self, config, broker):
        self.config, self.broker = config, broker
        self._containers = []
        of_nameko = {name: config.get(name) for name in ("AMQP_URI", "AMQP_SSL")}
        self._client = ClusterRpcProxy(of_nameko, timeout=30)
        self.rpc = self._client.start()

    def run(self, service_class, **settings):
        container = ServiceContainer(service_class, {**self.config, **settings})
        container.start()
        self._containers.append(container)
        return container

    def stop(self):
        self._client.stop()
        for container in self._containers:
            container.kill()

    def fire(self, container, method):
        """Run a timer's method now, and return its result."""
        with entrypoint_hook(container, method) as run:
            return run()

    @contextmanager
    def client(self, **context):
        """Another `rpc`, whose calls have this context, for example `time_left`."""
        with ClusterRpcProxy({"AMQP_URI": self.config["AMQP_URI"]}, context_data=context, timeout=30) as rpc:
            yield rpc

    def publish(self, event):
        self.broker.publish_event(event)

    def outbox(self, service_class):
        return OutboxTable(service_class, self.config["DB_URIS"][service_class.name])

    def call_twice(self, service, method, **kwargs):
        """The two answers to a call that the broker delivers twice, as after the death of a replica before its ack."""
        with Connection(self.config["AMQP_URI"]) as connection, connection.channel() as channel:
            reply_to, correlation_id = uuid4().hex, uuid4().hex
            channel.queue_declare(reply_to, exclusive=True)
            channel.queue_bind(reply_to, self.config["rpc_exchange"], reply_to)
            replies = Queue(reply_to, channel=channel, no_declare=True)
            answers = []
            for _ in range(2):
                self.broker.publish(
                    {"args": [], "kwargs": kwargs},
                    exchange=self.config["rpc_exchange"],
                    routing_key=f"{service}.{method}",
                    reply_to=reply_to,
                    correlation_id=correlation_id,
                )
                reply = json.loads(wait_for(lambda: replies.get(no_ack=True)).body)
                answers.append(deserialize(reply["error"]) if reply["error"] else reply["result"])
        return answers

    def sql(self, service, statement, *parameters):
        """The rows of a statement, run in its own transaction."""
        with self.transaction(service) as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def transaction(self, service, statement=None):
        """A transaction on the service's database, open during the block. It holds the locks of `statement`."""
        connection = psycopg2.connect(self.config["DB_URIS"][service].replace("+psycopg2", ""))
        try:
            with connection, connection.cursor() as cursor:
                if statement is not None:
                    cursor.execute(statement)
                yield cursor
        finally:
            connection.close()

    def wait_until_locked(self, service, waiters=1):
        """Return once this number of the service's transactions wait for a lock."""
        waiting = (
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND wait_event_type = 'Lock' AND application_name = %s"
        )
        wait_for(lambda: self.sql(service, waiting, service) == [(waiters,)])


@contextmanager
def running_shop(brokers, databases, smtp, *service_classes, **settings):
    """A shop that the tests of a folder share. They make their own customers. settings: as in config.yaml."""
    broker = brokers.new()
    uris = {service: databases.new(service) for service in SERVICES}
    shop = Shop(configuration(broker, uris, smtp, **settings), broker)
    try:
        shop.containers = {service_class.name: shop.run(service_class) for service_class in service_classes}
        yield shop
    finally:
        shop.stop()
        for uri in uris.values():
            databases.drop(uri)
        brokers.delete(broker)


def refusal_of(call):
    """The error of a pending call, or None if it succeeds."""
    try:
        call.result()
    except Exception as error:
        return error
    return None
