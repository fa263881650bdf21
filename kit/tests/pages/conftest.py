"""Fixtures for the tests in the pages: the servers of the session that runs them, and the tables of a page's `Base`."""

import json
from pathlib import Path

import pytest

from nameko_reliable.testing.databases import Databases
from nameko_reliable.testing.servers import Postgres, PostgresServer, RabbitMQ, RabbitMQServer


@pytest.fixture(scope="session")
def servers(local_folder):
    given = json.loads((Path(__file__).parent / "servers.json").read_text())
    for options in given.values():
        options["folder"] = Path(options["folder"])
    postgres, rabbitmq = Postgres(**given["postgres"]), RabbitMQ(**given["rabbitmq"])
    return PostgresServer(postgres, local_folder), RabbitMQServer(rabbitmq, local_folder)


@pytest.fixture(scope="module")
def make_tables(request):
    return lambda service, engine: request.module.Base.metadata.create_all(engine)


@pytest.fixture(scope="module")
def databases(servers, make_tables):
    return Databases(servers[0], make_tables)
