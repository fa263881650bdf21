"""Databases for the services that a test starts, and none for the others."""

import secrets

from sqlalchemy import NullPool, create_engine, select
from sqlalchemy.orm import Session


class Databases:
    """Databases with tables, each a copy of its service's template.

    server: a nameko_reliable.testing.servers.PostgresServer. `make_tables(service, engine)` is called once for each
    service, with an engine of its template, which is empty.
    """

    def __init__(self, server, make_tables):
        self.server, self._make_tables = server, make_tables
        self._templates = {}

    def new(self, service):
        """The URI of a new database of the service's."""
        if service not in self._templates:
            template = self.create(service)
            # PostgreSQL copies no database that has a connection: this engine keeps none.
            self._make_tables(service, create_engine(self.server.postgres.uri(template), poolclass=NullPool))
            self._templates[service] = template
        return self.server.postgres.uri(self.create(service, f'TEMPLATE "{self._templates[service]}"'))

    def create(self, service, options=""):
        """The name of a new database. options: of CREATE DATABASE."""
        name = f"test_{service}_{secrets.token_hex(4)}"
        self.server.execute(f'CREATE DATABASE "{name}" {options}')
        return name

    def drop(self, uri):
        name = uri.rpartition("/")[2]
        self.server.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


class DatabaseUris(dict):
    """DB_URIS of a configuration: `make(service)` makes the database of each service that is asked for."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def __missing__(self, service):
        self[service] = self.make(service)
        return self[service]

    def get(self, service, default=None):
        return self[service]

    def __bool__(self):
        return True


class Tables:
    """A service's database, for a test to look into. Each statement is a transaction of its own."""

    def __init__(self, uri):
        self.engine = create_engine(uri, isolation_level="AUTOCOMMIT")

    def all(self, column):
        """The values of a column, or of another expression, in all rows."""
        with Session(self.engine) as session:
            return session.scalars(select(column)).all()

    def execute(self, statement):
        with self.engine.connect() as connection:
            connection.execute(statement)
