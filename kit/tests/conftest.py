import signal
from types import SimpleNamespace
from uuid import uuid4

import pytest
from kombu import Exchange
from psycogreen.eventlet import patch_psycopg
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from bakery import Base
from nameko_reliable.rpc import Cluster, ClusterClient
from nameko_reliable.testing.databases import DatabaseUris
from nameko_reliable.testing.proxy import UriProxy

patch_psycopg()


def pytest_configure():
    # Whoever ends the tests with SIGTERM wants their servers gone, too, as with Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture
def database(servers):
    """`database("bakery")` is the URI of this test's own, empty database for the service."""
    made = {}

    def database(service):
        if service not in made:
            made[service] = f"test_{uuid4().hex}"
            servers[0].execute(f'CREATE DATABASE "{made[service]}"')
        return servers[0].postgres.uri(made[service])

    yield database
    for name in made.values():
        servers[0].execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture
def config(broker, database):
    """The kit's settings, with a broker and databases of this test's own."""
    return {
        "ENVIRONMENT": "development",
        "AMQP_URI": broker.uri,
        "rpc_exchange": "nameko-rpc",
        "max_workers": 10,
        "DB_URIS": DatabaseUris(database),
        "METRICS_HOST": "127.0.0.1",
        "METRICS_PORT": 0,
        "OTEL_EXPORTER_OTLP_ENDPOINT": "",
        "OTEL_TRACES_SAMPLER_ARG": 0.1,
    }


@pytest.fixture
def database_proxy(database):
    """`database_proxy("bakery")`: the same of a service's database."""
    made = []

    def database_proxy(service):
        made.append(UriProxy(database(service)))
        return made[-1]

    yield database_proxy
    for proxy in made:
        proxy.release()
        proxy.go_away()


@pytest.fixture
def tables(database):
    """`tables("bakery").all(Cake.name)` reads the service's database, which now has the example's tables."""
    engines = []

    def tables(service):
        engine = create_engine(database(service), isolation_level="AUTOCOMMIT")
        engines.append(engine)
        Base.metadata.create_all(engine)

        def read(what):
            with Session(engine) as session:
                return session.scalars(select(what)).all()

        def execute(statement):
            with engine.connect() as connection:
                connection.execute(statement)

        return SimpleNamespace(all=read, execute=execute, engine=engine)

    yield tables
    for engine in engines:
        engine.dispose()


class Caller:
    name = "caller"

    cluster = ClusterClient()


@pytest.fixture
def cluster_of(run_service):
    """`cluster_of(Caller)`: what a worker of the service would call others with."""

    def cluster_of(service_class, **settings):
        container = run_service(service_class, **settings)
        [client] = [provider for provider in container.dependencies if isinstance(provider, ClusterClient)]
        return Cluster(client, deadline=None, request_id="the test")

    return cluster_of


@pytest.fixture
def cluster(cluster_of):
    """Calls by the kit: `cluster.greeter.greet("Ada")`."""
    return cluster_of(Caller)


class Calls:
    """Calls as bare messages, and what came for them."""

    def __init__(self, broker):
        self.broker = broker
        exchange = Exchange("nameko-rpc", type="topic", durable=True)
        broker.declare("answers", exchange=exchange, routing_key="answers", durable=True)

    def send(self, method, *args, **properties):
        """method: `greeter.greet`. A `body` replaces the whole."""
        body = properties.pop("body", {"args": args, "kwargs": properties.pop("kwargs", {})})
        properties.setdefault("reply_to", "answers")
        self.broker.publish(body, exchange="nameko-rpc", routing_key=method, **properties)

    def answers(self, correlation_id=None):
        """All, or those to one call."""
        messages = self.broker.peek("answers")
        if correlation_id is not None:
            messages = [message for message in messages if message.properties.get("correlation_id") == correlation_id]
        return [message.payload for message in messages]


@pytest.fixture
def calls(broker):
    return Calls(broker)


@pytest.fixture
def deaths():
    """`deaths(container)`: why it died, or None while it lives."""
    return lambda container: container._died.ready() and container._died._exc
