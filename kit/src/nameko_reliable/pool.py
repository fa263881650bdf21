"""The pool of a service's connections to its database, which all of its extensions share.

    class CakeCount(DependencyProvider):
        pool = ConnectionPool()

        def get_dependency(self, worker_ctx):
            with self.pool.session() as session:
                return session.scalar(select(func.count(Cake.id)))

Its address is `DB_URIS[<service name>]` of the configuration, or nameko-sqlalchemy's
`DB_URIS["<service name>:<base's name>"]` where that is not there; nameko_reliable.postgres says how it names several
hosts, and whose fault an error is. psycogreen makes psycopg2 yield to eventlet: without it one slow query stops every
greenlet of the process.
"""

import logging
import math
import re
import time
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, cast
from weakref import WeakSet

import eventlet
import psycopg2
from eventlet.green import socket
from nameko.exceptions import ConfigurationError
from nameko.extensions import SharedExtension
from prometheus_client import Gauge, Histogram
from psycogreen.eventlet import eventlet_wait_callback
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from nameko_reliable.errors import DatabaseUnavailable, ServiceUnavailable
from nameko_reliable.postgres import database_url, is_outage, is_statement_error
from nameko_reliable.telemetry.registry import KIT
from nameko_reliable.telemetry.tracing import Operation, Tracer

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 3
# For each address, when there are several.
ADDRESS_SECONDS = 1
POOL_WAIT_SECONDS = 3
# More than statement_timeout: a server that is silent for so long has stopped, or is out of reach.
ANSWER_SECONDS = 25
# Beside the workers: the outbox relay, and one that gauges and /readyz take by turns when all workers hold theirs.
# Members of a crew (nameko_reliable.polling) take theirs for single statements.
EXTRA_CONNECTIONS = 2
CONNECTION_SETTINGS = {
    # A lock or a statement that takes longer is refused; the caller's deadline has passed by then. A statement whose
    # client has gone ends within 2 s.
    "options": "-c lock_timeout=4s -c statement_timeout=20s -c idle_in_transaction_session_timeout=60s -c timezone=UTC "
    "-c client_connection_check_interval=2s",
    # A host that vanished is noticed within 5 s while something is being sent to it, else within 9 s.
    "tcp_user_timeout": 5000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    # A standby, or a primary that was demoted, is refused.
    "target_session_attrs": "read-write",
}
# The answer is whether only reads are taken. On the way a file of some 100 kB is written to the database's own disk,
# and removed: while that is full, reads succeed.
READ_AND_WRITE = """
SET LOCAL work_mem = '64kB';
SET LOCAL temp_tablespaces = '';
SELECT current_setting('transaction_read_only') = 'on' FROM generate_series(1, 5000) HAVING count(*) > 0
"""
DATABASE = {"db.system.name": "postgresql"}
OPERATION = re.compile(r"\b(SELECT|INSERT|UPDATE|DELETE)\b")
TARGET = re.compile(r"\b(?:FROM|INTO|UPDATE) (\w+)")

POOL_SIZE = Gauge("db_pool_size", "Connections that the pool may hold.", ["service"], registry=KIT)
POOL_IN_USE = Gauge("db_pool_in_use", "Connections of the pool that somebody uses.", ["service"], registry=KIT)
POOL_WAIT = Histogram(
    "db_pool_wait_seconds",
    "How long a transaction waits for its connection, with the time to make a new one.",
    ["service"],
    buckets=(0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 3),
    registry=KIT,
)


class ReadOnly(psycopg2.OperationalError):
    """The database answers and takes no writes."""


class ConnectionPool(SharedExtension):
    """The service's connection pool, shared by all extensions that use its database.

    Its sessions raise DatabaseUnavailable when the database is out of reach, read-only or overloaded, and
    ServiceUnavailable when it gave up a statement that may succeed at another try (nameko_reliable.postgres). After
    the former the pool is dropped, and its next connection is to a host that takes writes.
    """

    tracer = Tracer()

    def __init__(self):
        # The service's Database and DatabaseSession dependencies.
        self.users = []

    def setup(self):
        service = self.container.service_name
        options = _merged(each.engine_options for each in self.users)
        psycopg2.extensions.set_wait_callback(_wait_for_answer)
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
        event.listen(self.engine, "do_connect", _Hosts().connect)
        event.listen(self.engine, "connect", self._add)
        event.listen(self.engine, "checkin", self._close_if_dropped)
        event.listen(self.engine, "handle_error", self._drop_at_outage)
        event.listen(self.engine, "handle_error", self._error_for_callers, retval=True)
        POOL_SIZE.labels(service).set_function(lambda: cast(QueuePool, self.engine.pool).size())
        POOL_IN_USE.labels(service).set_function(lambda: cast(QueuePool, self.engine.pool).checkedout())

    def _uri(self):
        service, uris = self.container.service_name, self.container.config["DB_URIS"]
        if uri := uris.get(service):
            return uri
        names = {f"{service}:{each.declarative_base.__name__}" for each in self.users}
        found = {uris[name] for name in names if name in uris}
        if len(found) != 1:
            raise ConfigurationError(f"DB_URIS must have the one address of the service's database, as `{service}`.")
        return found.pop()

    def start(self):
        if self.tracer.is_on:
            _trace_statements(self.engine, self.tracer)

    def stop(self):
        self.engine.dispose()

    kill = stop

    def check(self):
        """Raise DatabaseUnavailable unless the database answers and takes writes."""
        with self.session() as session:
            if session.scalar(text(READ_AND_WRITE)):
                self._drop()
                raise DatabaseUnavailable(self.container.service_name) from ReadOnly("the database is read-only")

    @contextmanager
    def session(self, expire_on_commit=False, **options):
        """A session whose caller commits. options: of SQLAlchemy's Session."""
        with Session(self.engine, expire_on_commit=expire_on_commit, **options) as session:
            with POOL_WAIT.labels(self.container.service_name).time():
                session.connection()
            yield session

    def _add(self, connection, record):
        record.info["made_at"] = time.monotonic()
        self._connections.add(record)

    def _drop(self):
        """Close the pool's connections: idle ones now, those in use when they come back."""
        self._dropped_at = time.monotonic()
        for record in list(self._connections):
            if not record.in_use:
                record.invalidate()

    def _close_if_dropped(self, connection, record):
        if record.info.get("made_at", math.inf) <= self._dropped_at:
            record.invalidate()

    def _drop_at_outage(self, failure):
        """SQLAlchemy's `handle_error`. A connect that failed says nothing about the connections that stand."""
        error = failure.original_exception
        is_lost = failure.is_disconnect and isinstance(error, psycopg2.Error) and not is_statement_error(error)
        if failure.connection is not None and (is_outage(error) or is_lost):
            failure.is_disconnect, failure.invalidate_pool_on_disconnect = True, False
            if failure.connection.info.get("made_at", math.inf) > self._dropped_at:
                self._drop()

    def _error_for_callers(self, failure):
        """SQLAlchemy's `handle_error`: what is raised in the place of its own error, None for that itself."""
        error, service = failure.original_exception, self.container.service_name
        # SQLAlchemy's ping has to know the error as its own.
        if failure.is_pre_ping or not isinstance(error, psycopg2.Error):
            return None
        # What follows the first line quotes the statement, and with it what people have written.
        reason = str(error).partition("\n")[0]
        if is_statement_error(error):
            logger.warning("the database gave up a statement: %s", reason)
            return ServiceUnavailable(service)
        if is_outage(error) or failure.is_disconnect:
            logger.warning("the database is not available: %s", reason)
            return DatabaseUnavailable(service)
        return None


class _QueuePool(QueuePool):
    def connect(self):
        try:
            return super().connect()
        except PoolTimeout as error:
            # An outage to `handle_error`, which SQLAlchemy asks about errors of psycopg2's alone.
            raise psycopg2.OperationalError(f"no connection came free in the pool: {error}") from error


class _Connection(psycopg2.extensions.connection):
    """One of a pool of ours, for which the process does not wait without end."""


def _wait_for_answer(connection):
    """psycopg2's wait callback, for all of the process. What it raises makes psycopg2 close the connection."""
    if not isinstance(connection, _Connection):
        eventlet_wait_callback(connection)
        return
    with eventlet.Timeout(ANSWER_SECONDS, psycopg2.OperationalError(f"no answer in {ANSWER_SECONDS} s")):
        eventlet_wait_callback(connection)


class _Hosts:
    """Connects to the first address that answers and takes writes; the last good one is asked first.

    libpq itself would hang: its connect_timeout doesn't hold for the asynchronous connect that psycogreen brings, and
    while it looks a name up, no greenlet runs.
    """

    def __init__(self):
        self._good = None
        self._failure = None
        self._is_trying_again = False

    def connect(self, dialect, connection_record, args, kwargs):
        """SQLAlchemy's `do_connect`. After a failure one greenlet tries again; meanwhile others fail at once."""
        if self._failure is None:
            return self._connect(dialect, args, kwargs)
        if self._is_trying_again:
            raise type(self._failure)(*self._failure.args)
        self._is_trying_again = True
        try:
            return self._connect(dialect, args, kwargs)
        finally:
            self._is_trying_again = False

    def _connect(self, dialect, args, kwargs):
        addresses, failures = _look_up(kwargs)
        addresses.sort(key=lambda address: address != self._good)
        seconds = ADDRESS_SECONDS if len(addresses) > 1 else CONNECT_SECONDS
        for address in addresses:
            where = address.get("hostaddr") or address.get("host")
            try:
                with eventlet.Timeout(seconds, psycopg2.OperationalError(f"no answer in {seconds} s")):
                    connection = dialect.connect(*args, **{**kwargs, **address})
            except psycopg2.OperationalError as error:
                failures.append(f"{where}: {' '.join(str(error).split())}")
            else:
                self._good, self._failure = address, None
                return connection
        # libpq's own words: there is no SQLSTATE.
        is_read_only = any("session is read-only" in failure for failure in failures)
        self._failure = (ReadOnly if is_read_only else psycopg2.OperationalError)("; ".join(failures))
        raise self._failure


def _look_up(kwargs):
    """libpq's parameters for each address of each host, and sentences about hosts without any."""
    if kwargs.get("hostaddr"):
        return [{}], []
    hosts, ports = str(kwargs.get("host") or "").split(","), str(kwargs.get("port") or "").split(",")
    addresses, failures = [], []
    for host, port in zip(hosts, ports * len(hosts) if len(ports) == 1 else ports, strict=True):
        where = {"host": host, "port": port}
        if not host or host.startswith(("/", "@")):
            addresses.append(where)  # A socket of this machine.
            continue
        try:
            with eventlet.Timeout(ADDRESS_SECONDS, TimeoutError(f"no answer in {ADDRESS_SECONDS} s")):
                found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            failures.append(f"{host} could not be looked up: {error}")
        else:
            # The name stays beside the address: a certificate is held against it.
            addresses.extend({**where, "hostaddr": sockaddr[0]} for *_, sockaddr in found)
    return addresses, failures


def _trace_statements(engine, tracer):
    """A span for each statement, without its parameters: they are people's."""

    @lru_cache(maxsize=500)
    def operation(statement):
        verb, target = OPERATION.search(statement), TARGET.search(statement)
        summary = " ".join(found[1] for found in (verb, target) if found) or "SQL"
        attributes = {
            **DATABASE,
            "db.namespace": engine.url.database,
            "db.query.summary": summary,
            "db.query.text": statement,
        }
        return Operation(summary, "client", attributes)

    def begin(connection, cursor, statement, parameters, context, executemany):
        context.span = tracer.span(operation(statement))

    def end(connection, cursor, statement, parameters, context, executemany):
        vars(context).pop("span").end()

    def fail(failure):
        # Whatever fails, to connect or to fetch what a statement gave among it.
        span = failure.execution_context and vars(failure.execution_context).pop("span", None)
        if span:
            span.end(failure.original_exception)

    event.listen(engine, "before_cursor_execute", begin)
    event.listen(engine, "after_cursor_execute", end)
    event.listen(engine, "handle_error", fail)


def _merged(options_of_each):
    merged: dict[str, Any] = {}
    for options in options_of_each:
        for name, value in options.items():
            if merged.setdefault(name, value) != value:
                raise ConfigurationError(f"A service's databases share one pool, and differ in engine_options: {name}.")
    return merged
