"""pytest fixtures, with `-p nameko_reliable.testing.plugin`: servers of the session, each test's broker and databases.

A project overrides `make_tables`, and `config` for settings of its own:

    @pytest.fixture(scope="session")
    def make_tables():
        return lambda service, engine: Base.metadata.create_all(engine)

    @pytest.fixture
    def config(config):
        return {**config, "OVENS": 2}
"""

import secrets
import shutil
import signal
import socket
import tempfile
from pathlib import Path

import pytest
from nameko.standalone.rpc import ClusterRpcProxy
from psycogreen.eventlet import patch_psycopg

from nameko_reliable.testing.brokers import Brokers
from nameko_reliable.testing.collector import Collector
from nameko_reliable.testing.configuration import configuration
from nameko_reliable.testing.databases import Databases, DatabaseUris, Tables
from nameko_reliable.testing.events import PublishedEvents
from nameko_reliable.testing.outbox import OutboxTable
from nameko_reliable.testing.proxy import UriProxy
from nameko_reliable.testing.servers import Postgres, PostgresServer, RabbitMQ, RabbitMQServer, free_port


def pytest_configure():
    # A test's own statement must not stop the services in its process.
    patch_psycopg()
    # SIGTERM ends the session's servers, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def local_folder():
    """A folder for all data of this session. Its servers are other accounts', too."""
    folder = Path(tempfile.mkdtemp(prefix="nameko-reliable-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres(local_folder):
    """How this session's PostgreSQL is run."""
    return Postgres(local_folder / "postgres", free_port(), secrets.token_hex(16), is_throwaway=True)


@pytest.fixture(scope="session")
def rabbitmq(local_folder):
    """How this session's RabbitMQ is run."""
    return RabbitMQ(local_folder / "rabbitmq", free_port(), secrets.token_hex(16), management_port=free_port())


@pytest.fixture(scope="session")
def servers(local_folder, postgres, rabbitmq):
    """The session's PostgreSQL and RabbitMQ, as a pair. Both come up at the same time."""
    database, broker = PostgresServer(postgres, local_folder), RabbitMQServer(rabbitmq, local_folder)
    try:
        broker.start()
        database.start()
        database.wait_until_ready()
        broker.wait_until_ready()
        yield database, broker
    finally:
        # Its data are not needed any more, and with the management plugin it takes 6 s to end in order.
        broker.kill()
        database.stop()


@pytest.fixture(scope="session")
def brokers(servers):
    return Brokers(servers[1].rabbitmq)


@pytest.fixture
def broker(brokers):
    """This test's own broker: `uri`, `publish`, `peek`, `depth`, `drop_connections`, …"""
    broker = brokers.new()
    yield broker
    brokers.delete(broker)


@pytest.fixture
def published_events(broker):
    """The events that are published in this test: `published_events.all(CakeBaked)` are those so far."""
    return PublishedEvents(broker)


@pytest.fixture
def wait_for_event(published_events):
    """`wait_for_event(CakeBaked)` returns the first that is published in this test, as soon as it is.

    `wait_for_event("bakery", "cake.baked", where=lambda payload: payload["cake"] == "Torte", seconds=5)`
    """
    return published_events.wait_for


@pytest.fixture
def own_broker(tmp_path):
    """A RabbitMQ node that this test may stop, kill and start again. Takes some seconds."""
    rabbitmq = RabbitMQ(tmp_path / "rabbitmq", free_port(), secrets.token_hex(16), management_port=free_port())
    server = RabbitMQServer(rabbitmq, tmp_path)
    server.start()
    server.wait_until_ready()
    yield server
    # As with the session's.
    server.kill()


@pytest.fixture
def proxy(broker):
    """The test's broker at an address that can hang, break and be away."""
    proxy = UriProxy(broker.uri)
    yield proxy
    proxy.release()
    proxy.go_away()


@pytest.fixture
def closed_port():
    """A port that refuses connections: it is taken, so that no server gets it, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture
def collector():
    """An OpenTelemetry collector: a service with `collector.settings` sends its spans there, to `collector.spans`."""
    collector = Collector()
    yield collector
    collector.stop()


@pytest.fixture(scope="session")
def make_tables():
    """`make_tables(service, engine)` makes the tables of a service in an empty database. By default it makes none.

    It is called once for each service: the databases of the tests are copies.
    """
    return lambda service, engine: None


@pytest.fixture(scope="session")
def databases(servers, make_tables):
    return Databases(servers[0], make_tables)


@pytest.fixture
def database(databases):
    """`database("bakery")` is the URI of this test's own database of the service, with tables and no rows."""
    made = DatabaseUris(databases.new)
    yield made.get
    for uri in made.values():
        databases.drop(uri)


@pytest.fixture
def database_proxy(database):
    """`database_proxy("bakery")`: the service's database at an address that can hang, break and be away."""
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
    """`tables("bakery").all(Cake.name)` reads the service's database; `execute` changes it."""
    made = {}

    def tables(service):
        if service not in made:
            made[service] = Tables(database(service))
        return made[service]

    yield tables
    for each in made.values():
        each.engine.dispose()


@pytest.fixture
def outbox(database):
    """`outbox(Bakery).pending()`: the events of the service that have been committed and not published yet.

    They leave at once. `with outbox(Bakery).held() as pending:` keeps them there.
    """
    return lambda service_class: OutboxTable(service_class, database(service_class.name))


@pytest.fixture
def config(broker, database):
    """The configuration of a service under test, with a broker and databases of this test's own."""
    return configuration(broker, DatabaseUris(database))


@pytest.fixture
def run_service(config, container_factory):
    """`run_service(Bakery)` starts the class in a Nameko container of this process; keywords go over `config`."""

    def run(service_class, **settings):
        container = container_factory(service_class, {**config, **settings})
        container.start()
        return container

    return run


@pytest.fixture
def rpc(config):
    """`rpc.bakery.bake(…)`, as in `nameko shell`."""
    with ClusterRpcProxy({"AMQP_URI": config["AMQP_URI"]}, timeout=30) as cluster:
        yield cluster
