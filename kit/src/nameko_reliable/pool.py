"""The pool of connections to a service's database, which all extensions of the service share.

    class CakeCount(DependencyProvider):
        pool = ConnectionPool()

        def get_dependency(self, worker_ctx):
            with self.pool.session() as session:
                return session.scalar(select(func.count(Cake.id)))

The database's address is `DB_URIS[<service name>]` of the configuration. If that is missing, it is nameko-sqlalchemy's
`DB_URIS["<service name>:<base's name>"]`. nameko_reliable.postgres describes addresses with several hosts, and which
errors are outages. psycogreen makes psycopg2 yield to eventlet: without it one slow query stops every greenlet of the
process.
"""

import logging
import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeAlias, cast
from weakref import WeakSet

import eventlet
import psycopg2
from eventlet.green import socket
from nameko.exceptions import ConfigurationError
from nameko.extensions import SharedExtension
from prometheus_client import Gauge, Histogram
from psycogreen.eventlet import eventlet_wait_callback
from psycopg2 import extensions
from sqlalchemy import Connection, Engine, ExceptionContext, create_engine, event, text
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection, QueuePool

from nameko_reliable.errors import DatabaseUnavailable, ServiceUnavailable
from nameko_reliable.postgres import database_url, is_outage, is_statement_error
from nameko_reliable.statements import PREPARED, SERVICE, SOURCE
from nameko_reliable.telemetry.registry import KIT
from nameko_reliable.telemetry.tracing import Operation, Tracer

logger = logging.getLogger(__name__)

# libpq's parameters for one address.
Address: TypeAlias = dict[str, str]

CONNECT_SECONDS = 3
# For each address if there are several.
ADDRESS_SECONDS = 1
POOL_WAIT_SECONDS = 3
# More than statement_timeout: a server that is silent for longer has stopped or is unreachable.
ANSWER_SECONDS = 25
# Beyond one for each worker: one for the outbox relay, and one that gauges and /readyz share when all workers hold
# theirs. The pollers of an elastic_poll need connections too, each for single statements only.
EXTRA_CONNECTIONS = 2
CONNECTION_SETTINGS = {
    # PostgreSQL gives up locks and statements that take longer: the caller's deadline has passed by then. It ends a
    # statement within 2 s after its client has disconnected. It plans a prepared statement once: by default it may plan
    # it again at each use, which can cost more than the statement itself.
    "options": "-c lock_timeout=4s -c statement_timeout=20s -c idle_in_transaction_session_timeout=60s -c timezone=UTC "
    "-c client_connection_check_interval=2s -c plan_cache_mode=force_generic_plan",
    # A host that vanishes is noticed within 5 s while data is being sent to it, else within 9 s.
    "tcp_user_timeout": 5000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    # Do not connect to a standby, or to a primary that was demoted.
    "target_session_attrs": "read-write",
}
# Selects whether the database is read-only. The low work_mem makes it write a temporary file of about 100 kB to the
# database's own disk: if that is full, this statement fails, while plain reads still succeed.
CHECK_WRITABLE = """
SET LOCAL work_mem = '64kB';
SET LOCAL temp_tablespaces = '';
SELECT current_setting('transaction_read_only') = 'on' FROM generate_series(1, 5000) HAVING count(*) > 0
"""
SPAN_ATTRIBUTES = {"db.system.name": "postgresql"}
# The first step of a statement that writes, or that reads.
WRITE = re.compile(r"(?<!FOR )\b(INSERT|DELETE|UPDATE) (?:INTO |FROM )?(\w+)")
READ = re.compile(r"\b(SELECT)\b(?:.*?\bFROM (\w+))?", re.DOTALL)

POOL_SIZE = Gauge("db_pool_size", "Connections that the pool may hold.", ["service"], registry=KIT)
POOL_IN_USE = Gauge("db_pool_in_use", "Connections of the pool that are in use.", ["service"], registry=KIT)
POOL_WAIT = Histogram(
    "db_pool_wait_seconds",
    "How long a transaction waits for its connection. The time to open a new one counts.",
    ["service"],
    buckets=(0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 3),
    registry=KIT,
)


class ReadOnly(psycopg2.OperationalError):
    """The database answers, but it is read-only."""


class ConnectionPool(SharedExtension):
    """The service's connection pool, shared by all extensions that use its database.

    Its sessions raise DatabaseUnavailable when the database is unreachable, read-only or overloaded, and
    ServiceUnavailable when it gave up a statement that may succeed at another attempt (nameko_reliable.postgres). When
    a connection fails with DatabaseUnavailable, all are closed, and the next one is to a host that accepts writes.
    """

    tracer = Tracer()

    def __init__(self) -> None:
        # The service's Database and DatabaseSession dependencies.
        self.databases: list[Any] = []

    def setup(self) -> None:
        service = self.container.service_name
        options = _merged(each.engine_options for each in self.databases)
        extensions.set_wait_callback(_wait_for_answer)
        self.engine = create_engine(
            database_url(self._uri()),
            poolclass=_QueuePool,
            pool_size=self.container.max_workers + EXTRA_CONNECTIONS,
            max_overflow=0,
            pool_timeout=POOL_WAIT_SECONDS,
            hide_parameters=True,
            connect_args={
                **options.pop("connect_args", {}),
                **CONNECTION_SETTINGS,
                "application_name": service,
                "connection_factory": _Connection,
            },
            **options,
        )
        self._connections: WeakSet[ConnectionPoolEntry] = WeakSet()
        self._dropped_at = -math.inf
        event.listen(self.engine, "do_connect", _Connector().connect)
        event.listen(self.engine, "connect", self._add_connection)
        event.listen(self.engine, "checkin", self._close_if_dropped)
        event.listen(self.engine, "handle_error", self._drop_after_outage)
        event.listen(self.engine, "handle_error", self._error_for_callers, retval=True)
        self._wait_seconds = POOL_WAIT.labels(service)
        POOL_SIZE.labels(service).set_function(lambda: cast(QueuePool, self.engine.pool).size())
        POOL_IN_USE.labels(service).set_function(lambda: cast(QueuePool, self.engine.pool).checkedout())

    def _uri(self) -> str:
        service = self.container.service_name
        uris: Mapping[str, str] = self.container.config["DB_URIS"]
        if uri := uris.get(service):
            return uri
        names = {f"{service}:{each.declarative_base.__name__}" for each in self.databases}
        found = {uris[name] for name in names if name in uris}
        if len(found) != 1:
            raise ConfigurationError(f"DB_URIS must have the one address of the service's database, as `{service}`.")
        return found.pop()

    def start(self) -> None:
        if self.tracer.is_on:
            _trace_statements(self.engine, self.tracer)

    def stop(self) -> None:
        self.engine.dispose()

    kill = stop

    def check(self) -> None:
        """Raise DatabaseUnavailable unless the database answers and accepts writes."""
        with self.session() as session:
            if session.scalar(text(CHECK_WRITABLE)):
                self._drop()
                raise DatabaseUnavailable(self.container.service_name) from ReadOnly("the database is read-only")

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection; the caller commits."""
        with self._wait_seconds.time():
            connection = self.engine.connect()
        with connection:
            yield connection

    @contextmanager
    def autocommit(self) -> Iterator[Connection]:
        """A connection on which each statement is a transaction of its own."""
        with self.connection() as connection:
            # psycopg2's own switch. SQLAlchemy's isolation level AUTOCOMMIT costs a round trip each time it is reset.
            driver_connection: Any = connection.connection.dbapi_connection
            driver_connection.autocommit = True
            try:
                yield connection
            finally:
                if not driver_connection.closed:
                    driver_connection.autocommit = False

    @contextmanager
    def session(self, expire_on_commit: bool = False, **options: Any) -> Iterator[Session]:
        """A session; the caller commits. options: of SQLAlchemy's Session."""
        with Session(self.engine, expire_on_commit=expire_on_commit, **options) as session:
            with self._wait_seconds.time():
                session.connection()
            yield session

    def _add_connection(self, connection: "_Connection", record: ConnectionPoolEntry) -> None:
        # Only now: SQLAlchemy has made its own queries, and counts on psycopg2 to know of their transactions.
        connection.cursor_factory = _Cursor
        record.info["connected_at"] = time.monotonic()
        record.info[SERVICE] = self.container.service_name
        if int(self.container.config.get("PREPARED_STATEMENTS", 1)):
            record.info[PREPARED] = {}
        self._connections.add(record)

    def _drop(self) -> None:
        """Close all connections: idle ones now, those in use when they come back to the pool."""
        self._dropped_at = time.monotonic()
        for record in list(self._connections):
            if not record.in_use:
                record.invalidate()

    def _close_if_dropped(self, connection: object, record: ConnectionPoolEntry) -> None:
        if record.info.get("connected_at", math.inf) <= self._dropped_at:
            record.invalidate()

    def _drop_after_outage(self, failure: ExceptionContext) -> None:
        """For SQLAlchemy's `handle_error`. A failed connect says nothing about the open connections."""
        error = failure.original_exception
        is_lost = failure.is_disconnect and isinstance(error, psycopg2.Error) and not is_statement_error(error)
        if failure.connection is not None and (is_outage(error) or is_lost):
            failure.is_disconnect, failure.invalidate_pool_on_disconnect = True, False
            if failure.connection.info.get("connected_at", math.inf) > self._dropped_at:
                self._drop()

    def _error_for_callers(self, failure: ExceptionContext) -> ServiceUnavailable | None:
        """For SQLAlchemy's `handle_error`: the error to raise instead of SQLAlchemy's, or None to keep that."""
        error, service = failure.original_exception, self.container.service_name
        # SQLAlchemy's ping must get SQLAlchemy's own error.
        if failure.is_pre_ping or not isinstance(error, psycopg2.Error):
            return None
        # The lines after the first quote the statement, which may hold personal data.
        reason = str(error).partition("\n")[0]
        if is_statement_error(error):
            logger.warning("the database gave up a statement: %s", reason)
            return ServiceUnavailable(service)
        if is_outage(error) or failure.is_disconnect:
            logger.warning("the database is not available: %s", reason)
            return DatabaseUnavailable(service)
        return None


class _QueuePool(QueuePool):
    def connect(self) -> PoolProxiedConnection:
        try:
            return super().connect()
        except PoolTimeout as error:
            # SQLAlchemy calls `handle_error` only for errors of psycopg2. This one counts as an outage there.
            raise psycopg2.OperationalError(f"no connection came free in the pool: {error}") from error


class _Connection(extensions.connection):
    """A connection of the kit's pool. Other connections of the process have no time limit for answers.

    psycopg2 would send BEGIN before the first statement of a transaction, in a round trip of its own. Here a cursor
    sends both together. During such a transaction the connection is in autocommit for psycopg2, which knows nothing of
    it and begins no other.
    """

    has_begun = False

    def can_begin(self) -> bool:
        """Whether psycopg2 would send a plain BEGIN before the next statement."""
        own_settings = self.isolation_level, self.readonly, self.deferrable
        return self.status == extensions.STATUS_READY and not self.autocommit and own_settings == (None, None, None)

    def begin(self) -> None:
        """The caller sends BEGIN."""
        self.autocommit = self.has_begun = True

    def leave_to_psycopg2(self) -> None:
        self.autocommit = self.has_begun = False

    def commit(self) -> None:
        if self.has_begun:
            self._end("COMMIT")
        else:
            super().commit()

    def rollback(self) -> None:
        if self.has_begun:
            self._end("ROLLBACK")
        else:
            super().rollback()

    def _end(self, command: str) -> None:
        try:
            if self.is_in_transaction():
                with self.cursor() as cursor:
                    cursor.execute(command)
        finally:
            if not self.closed:
                self.leave_to_psycopg2()

    def is_in_transaction(self) -> bool:
        """By what the server said last."""
        return bool(self.get_transaction_status() != extensions.TRANSACTION_STATUS_IDLE)


class _Cursor(extensions.cursor):
    connection: _Connection

    def execute(self, query: Any, vars: Any = None) -> None:
        if self.name is not None and self.connection.has_begun:
            # A server-side cursor needs a transaction that psycopg2 knows of. Its BEGIN is a warning to the server.
            self.connection.leave_to_psycopg2()
        # Anything else than text is rare, and psycopg2 can do it.
        if self.name is not None or not isinstance(query, str) or not self.connection.can_begin():
            super().execute(query, vars)
            return
        self.connection.begin()
        try:
            super().execute(f"BEGIN; {query}", vars)
        finally:
            # There is none if the server could not read the statement: then it has not run BEGIN either.
            if not self.connection.closed and not self.connection.is_in_transaction():
                self.connection.leave_to_psycopg2()


def _wait_for_answer(connection: Any) -> None:
    """psycopg2's wait callback for the whole process. If it raises, psycopg2 closes the connection."""
    if not isinstance(connection, _Connection):
        eventlet_wait_callback(connection)
        return
    with eventlet.Timeout(ANSWER_SECONDS, psycopg2.OperationalError(f"no answer in {ANSWER_SECONDS} s")):
        eventlet_wait_callback(connection)


class _Connector:
    """Connects to the first address that answers and accepts writes. The last good address is tried first.

    libpq's own way would hang: its connect_timeout does not apply to the asynchronous connect that psycogreen needs,
    and no greenlet runs while it looks up a name.
    """

    def __init__(self) -> None:
        self._last_good: Address | None = None
        self._failure: Exception | None = None
        self._is_trying_again = False

    def connect(self, dialect: Dialect, record: ConnectionPoolEntry, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """For SQLAlchemy's `do_connect`. After a failure one greenlet tries again; meanwhile others fail at once."""
        if self._failure is None:
            return self._connect(dialect, args, kwargs)
        if self._is_trying_again:
            raise type(self._failure)(*self._failure.args)
        self._is_trying_again = True
        try:
            return self._connect(dialect, args, kwargs)
        finally:
            self._is_trying_again = False

    def _connect(self, dialect: Dialect, args: list[Any], kwargs: dict[str, Any]) -> Any:
        addresses, failures = _look_up(kwargs)
        addresses.sort(key=lambda address: address != self._last_good)
        seconds = ADDRESS_SECONDS if len(addresses) > 1 else CONNECT_SECONDS
        for address in addresses:
            host = address.get("hostaddr") or address.get("host")
            try:
                with eventlet.Timeout(seconds, psycopg2.OperationalError(f"no answer in {seconds} s")):
                    connection = dialect.connect(*args, **{**kwargs, **address})
            except psycopg2.OperationalError as error:
                failures.append(f"{host}: {' '.join(str(error).split())}")
            else:
                self._last_good, self._failure = address, None
                return connection
        # From libpq's message, since the error has no SQLSTATE.
        is_read_only = any("session is read-only" in failure for failure in failures)
        failure = (ReadOnly if is_read_only else psycopg2.OperationalError)("; ".join(failures))
        self._failure = failure
        raise failure


def _look_up(kwargs: Mapping[str, Any]) -> tuple[list[Address], list[str]]:
    """libpq's parameters for each address of each host, and a sentence for each host that has none."""
    if kwargs.get("hostaddr"):
        return [{}], []
    hosts, ports = str(kwargs.get("host") or "").split(","), str(kwargs.get("port") or "").split(",")
    addresses: list[Address] = []
    failures: list[str] = []
    for host, port in zip(hosts, ports * len(hosts) if len(ports) == 1 else ports, strict=True):
        parameters = {"host": host, "port": port}
        if not host or host.startswith(("/", "@")):
            addresses.append(parameters)  # A Unix socket.
            continue
        try:
            with eventlet.Timeout(ADDRESS_SECONDS, TimeoutError(f"no answer in {ADDRESS_SECONDS} s")):
                found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            failures.append(f"{host} could not be looked up: {error}")
        else:
            # Keep the name beside the address: certificates are checked against it.
            addresses.extend({**parameters, "hostaddr": sockaddr[0]} for *_, sockaddr in found)
    return addresses, failures


def _trace_statements(engine: Engine, tracer: Tracer) -> None:
    """A span for each statement, without its parameters, which may be personal data."""

    @lru_cache(maxsize=500)
    def operation(statement: str) -> Operation:
        step = WRITE.search(statement) or READ.search(statement)
        words = [word for word in step.groups() if word] if step else ["SQL"]
        if statement.startswith("PREPARE "):
            words[0] = "PREPARE"
        summary = " ".join(words)
        attributes = {
            **SPAN_ATTRIBUTES,
            "db.namespace": engine.url.database,
            "db.query.summary": summary,
            "db.query.text": statement,
        }
        return Operation(summary, "client", attributes)

    def begin(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
        context.span = tracer.span(operation(context.execution_options.get(SOURCE, statement)))

    def end(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
        vars(context).pop("span").end()

    def fail(failure: ExceptionContext) -> None:
        # There is no span if a connect failed, or the fetch of a statement's rows.
        span = failure.execution_context and vars(failure.execution_context).pop("span", None)
        if span:
            span.end(failure.original_exception)

    event.listen(engine, "before_cursor_execute", begin)
    event.listen(engine, "after_cursor_execute", end)
    event.listen(engine, "handle_error", fail)


def _merged(options_of_each: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for options in options_of_each:
        for name, value in options.items():
            if merged.setdefault(name, value) != value:
                raise ConfigurationError(f"A service's databases share one pool, but differ in engine_options: {name}.")
    return merged
