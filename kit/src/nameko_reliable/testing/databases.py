"""Databases for the services that a test starts, and none for the others."""

import secrets
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Engine, Executable, NullPool, create_engine, select
from sqlalchemy.orm import Session

from nameko_reliable.testing.servers import PostgresServer


class Databases:
    """Databases with tables, each a copy of its service's template.

    `make_tables(service, engine)` is called once for each service, with an engine of its empty template.
    """

    def __init__(self, server: PostgresServer, make_tables: Callable[[str, Engine], object]) -> None:
        self.server, self._make_tables = server, make_tables
        self._templates: dict[str, str] = {}

    def new(self, service: str) -> str:
        """The URI of a new database for the service."""
        if service not in self._templates:
            template = self.create(service)
            # PostgreSQL can't copy a database that has connections: this engine keeps none open.
            self._make_tables(service, create_engine(self.server.postgres.uri(template), poolclass=NullPool))
            self._templates[service] = template
        return self.server.postgres.uri(self.create(service, f'TEMPLATE "{self._templates[service]}"'))

    def create(self, service: str, options: str = "") -> str:
        """The name of a new database. options: of CREATE DATABASE."""
        name = f"test_{service}_{secrets.token_hex(4)}"
        self.server.execute(f'CREATE DATABASE "{name}" {options}')
        return name

    def drop(self, uri: str) -> None:
        name = uri.rpartition("/")[2]
        self.server.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


class UrisOnDemand(dict[str, str]):
    """DB_URIS of a configuration. The first look-up of a service creates its database, by `make(service)`."""

    def __init__(self, make: Callable[[str], str]) -> None:
        super().__init__()
        self.make = make

    def __missing__(self, service: str) -> str:
        self[service] = self.make(service)
        return self[service]

    def get(self, service: str, default: object = None) -> str:
        return self[service]

    def __bool__(self) -> bool:
        return True


class Tables:
    """A service's database, for a test to read and change. Each statement is a transaction of its own."""

    def __init__(self, uri: str) -> None:
        self.engine = create_engine(uri, isolation_level="AUTOCOMMIT")

    def all(self, column: Any) -> Sequence[Any]:
        """The values of a column, or of another expression, in all rows."""
        with Session(self.engine) as session:
            return session.scalars(select(column)).all()

    def execute(self, statement: Executable) -> None:
        with self.engine.connect() as connection:
            connection.execute(statement)
