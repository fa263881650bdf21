import pytest
from kombu import Exchange

from bakery import Base
from nameko_reliable.database import Database
from nameko_reliable.rpc import Cluster, ClusterClient


@pytest.fixture(scope="session")
def make_tables():
    return lambda service, engine: Base.metadata.create_all(engine)


@pytest.fixture
def db_of(run_service):
    """`db_of(uri)`: the `db` of a worker of a bakery.

    provider: the bakery's Database, or another. deadline: of the worker's call.
    """

    made = []

    def db_of(uri=None, provider=None, deadline=None, **settings):
        class Worker:
            service_name = "bakery"
            data = {"deadline": deadline}

        class Bakery:
            name = "bakery"
            db = Database(Base) if provider is None else provider

        container = run_service(Bakery, **({"DB_URIS": {"bakery": uri}} if uri else {}), **settings)
        [bound] = container.dependencies
        made.append(bound.get_dependency(Worker))
        return made[-1]

    yield db_of
    for each in made:
        each.close()


class Caller:
    name = "caller"

    cluster = ClusterClient()


@pytest.fixture
def cluster_of(run_service):
    """`cluster_of(Caller)`: the client with which a worker of that service calls others."""

    def cluster_of(service_class, **settings):
        container = run_service(service_class, **settings)
        [client] = [provider for provider in container.dependencies if isinstance(provider, ClusterClient)]
        return Cluster(client, deadline=None, request_id="the test")

    return cluster_of


@pytest.fixture
def cluster(cluster_of):
    """Calls with the kit's client: `cluster.greeter.greet("Ada")`."""
    return cluster_of(Caller)


class Calls:
    """Sends calls as raw messages, and reads their answers."""

    def __init__(self, broker):
        self.broker = broker
        exchange = Exchange("nameko-rpc", type="topic", durable=True)
        broker.declare("answers", exchange=exchange, routing_key="answers", durable=True)

    def send(self, method, *args, **properties):
        """method: `greeter.greet`. A `body` replaces the arguments."""
        body = properties.pop("body", {"args": args, "kwargs": properties.pop("kwargs", {})})
        properties.setdefault("reply_to", "answers")
        self.broker.publish(body, exchange="nameko-rpc", routing_key=method, **properties)

    def answers(self, correlation_id=None):
        """All answers, or those to one call."""
        messages = self.broker.peek("answers")
        if correlation_id is not None:
            messages = [message for message in messages if message.properties.get("correlation_id") == correlation_id]
        return [message.payload for message in messages]


@pytest.fixture
def calls(broker):
    return Calls(broker)


@pytest.fixture
def deaths():
    """`deaths(container)`: the error that ended it, or None while it runs."""
    return lambda container: container._died.ready() and container._died._exc
