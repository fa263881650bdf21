"""pytest fixtures: servers for the session, a broker and databases for each test.

Load them with `-p nameko_reliable.testing.plugin`.

A project overrides `make_tables`, and `config` to add its own settings:

    @pytest.fixture(scope="session")
    def make_tables():
        return lambda service, engine: Base.metadata.create_all(engine)

    @pytest.fixture
    def config(config):
        return {**config, "OVENS": 2}

`-m "not server"` runs the tests that start no server. A test that starts one without these fixtures, or another
program, is marked by hand: `@pytest.mark.server`.
"""

import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from nameko.standalone.rpc import ClusterRpcProxy
from psycogreen.eventlet import patch_psycopg
from sqlalchemy import Engine

from nameko_reliable.testing.brokers import Broker, Brokers
from nameko_reliable.testing.collector import Collector
from nameko_reliable.testing.configuration import configuration
from nameko_reliable.testing.databases import Databases, Tables, UrisOnDemand
from nameko_reliable.testing.events import PublishedEvents
from nameko_reliable.testing.outbox import OutboxTable
from nameko_reliable.testing.proxy import UriProxy
from nameko_reliable.testing.servers import Postgres, PostgresServer, RabbitMQ, RabbitMQServer, free_port

Servers: TypeAlias = tuple[PostgresServer, RabbitMQServer]
MakeTables: TypeAlias = Callable[[str, Engine], object]
UriOf: TypeAlias = Callable[[str], str]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "server: starts a server or another program; `-m 'not server'` runs the others")
    # A statement of a test must not block the services in its process.
    patch_psycopg()
    # Like Ctrl-C, SIGTERM ends the session's servers.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


# So that `-m` sees the mark.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"servers", "own_broker"}.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.server)


@pytest.fixture(scope="session")
def local_folder() -> Iterator[Path]:
    """A folder for all data of this session. The accounts of its servers can pass through it."""
    folder = Path(tempfile.mkdtemp(prefix="nameko-reliable-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres(local_folder: Path) -> Postgres:
    """The configuration of the session's PostgreSQL."""
    return Postgres(local_folder / "postgres", free_port(), secrets.token_hex(16), is_throwaway=True)


@pytest.fixture(scope="session")
def rabbitmq(local_folder: Path) -> RabbitMQ:
    """The configuration of the session's RabbitMQ."""
    return RabbitMQ(local_folder / "rabbitmq", free_port(), secrets.token_hex(16), management_port=free_port())


@pytest.fixture(scope="session")
def servers(local_folder: Path, postgres: Postgres, rabbitmq: RabbitMQ) -> Iterator[Servers]:
    """The session's PostgreSQL and RabbitMQ, as a pair. They start at the same time."""
    database, broker = PostgresServer(postgres, local_folder), RabbitMQServer(rabbitmq, local_folder)
    try:
        broker.start()
        database.start()
        database.wait_until_ready()
        broker.wait_until_ready()
        yield database, broker
    finally:
        # Its data is not needed any more, and with the management plugin an orderly stop takes 6 s.
        broker.kill()
        database.stop()


@pytest.fixture(scope="session")
def brokers(servers: Servers) -> Brokers:
    return Brokers(servers[1].rabbitmq)


@pytest.fixture
def broker(brokers: Brokers) -> Iterator[Broker]:
    """This test's own broker: `uri`, `publish`, `peek`, `depth`, `drop_connections`, …"""
    broker = brokers.new()
    yield broker
    brokers.delete(broker)


@pytest.fixture
def published_events(broker: Broker) -> PublishedEvents:
    """The events that are published in this test: `published_events.all(CakeBaked)` returns those so far."""
    return PublishedEvents(broker)


@pytest.fixture
def wait_for_event(published_events: PublishedEvents) -> Callable[..., Any]:
    """`wait_for_event(CakeBaked)` returns the first one that is published in this test, as soon as it is.

    `wait_for_event("bakery", "cake.baked", where=lambda payload: payload["cake"] == "Torte", seconds=5)`
    """
    return published_events.wait_for


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[RabbitMQServer]:
    """A RabbitMQ node that this test may stop, kill and start again. It takes some seconds."""
    rabbitmq = RabbitMQ(tmp_path / "rabbitmq", free_port(), secrets.token_hex(16), management_port=free_port())
    server = RabbitMQServer(rabbitmq, tmp_path)
    server.start()
    server.wait_until_ready()
    yield server
    # Not stopped, for the same reasons as the session's.
    server.kill()


@pytest.fixture
def proxy(broker: Broker) -> Iterator[UriProxy]:
    """A proxy to the test's broker, which can hang, cut or refuse connections."""
    proxy = UriProxy(broker.uri)
    yield proxy
    proxy.release()
    proxy.go_away()


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that refuses connections. It is bound, so no server gets it, but nothing listens on it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture
def collector() -> Iterator[Collector]:
    """An OpenTelemetry collector: a service with `collector.settings` sends its spans to it, into `collector.spans`."""
    collector = Collector()
    yield collector
    collector.stop()


@pytest.fixture(scope="session")
def make_tables() -> MakeTables:
    """`make_tables(service, engine)` creates the tables of a service in an empty database. By default it creates none.

    It is called once for each service. The databases of the tests are copies.
    """
    return lambda service, engine: None


@pytest.fixture(scope="session")
def databases(servers: Servers, make_tables: MakeTables) -> Databases:
    return Databases(servers[0], make_tables)


@pytest.fixture
def database(databases: Databases) -> Iterator[UriOf]:
    """`database("bakery")` is the URI of this test's own database for the service, with tables and no rows."""
    made = UrisOnDemand(databases.new)
    yield made.get
    for uri in made.values():
        databases.drop(uri)


@pytest.fixture
def database_proxy(database: UriOf) -> Iterator[Callable[[str], UriProxy]]:
    """`database_proxy("bakery")`: a proxy to the service's database, which can hang, cut or refuse connections."""
    made: list[UriProxy] = []

    def database_proxy(service: str) -> UriProxy:
        made.append(UriProxy(database(service)))
        return made[-1]

    yield database_proxy
    for proxy in made:
        proxy.release()
        proxy.go_away()


@pytest.fixture
def tables(database: UriOf) -> Iterator[Callable[[str], Tables]]:
    """`tables("bakery").all(Cake.name)` reads the service's database; `execute` changes it."""
    made: dict[str, Tables] = {}

    def tables(service: str) -> Tables:
        if service not in made:
            made[service] = Tables(database(service))
        return made[service]

    yield tables
    for each in made.values():
        each.engine.dispose()


@pytest.fixture
def outbox(database: UriOf) -> Callable[[Any], OutboxTable]:
    """`outbox(Bakery).pending()`: the events of the service that are committed and not published yet.

    The relay publishes them at once, except in the block `with outbox(Bakery).held() as pending:`.
    """
    return lambda service_class: OutboxTable(service_class, database(service_class.name))


@pytest.fixture
def config(broker: Broker, database: UriOf) -> dict[str, Any]:
    """The configuration of a service under test, with this test's own broker and databases."""
    return configuration(broker, UrisOnDemand(database))


@pytest.fixture
def run_service(config: dict[str, Any], container_factory: Any) -> Callable[..., Any]:
    """`run_service(Bakery)` starts the class in a Nameko container of this process. Keywords replace settings."""

    def run(service_class: type, **settings: Any) -> Any:
        container = container_factory(service_class, {**config, **settings})
        container.start()
        return container

    return run


@pytest.fixture
def rpc(config: dict[str, Any]) -> Iterator[Any]:
    """`rpc.bakery.bake(…)`, as in `nameko shell`."""
    with ClusterRpcProxy({"AMQP_URI": config["AMQP_URI"]}, timeout=30) as cluster:
        yield cluster
