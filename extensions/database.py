"""Transactions that know their deadline.

    class Orders:
        name = "orders"
        db = Database(Base)

        @rpc
        def cancel_order(self, order_id):
            with self.db.transaction() as session:
                …

The URI is `DB_URIS[<service name>]` of the configuration. psycogreen makes psycopg2 yield to
eventlet: without it one slow query stops every greenlet of the process.
"""

import logging
import re
import time
from contextlib import contextmanager
from functools import lru_cache
from typing import cast

import eventlet
import psycopg2
from nameko.extensions import DependencyProvider, SharedExtension
from prometheus_client import Gauge, Histogram
from psycogreen.eventlet import patch_psycopg
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

from extensions.errors import DatabaseUnavailable, RpcTimeout
from extensions.tracing import Operation, Tracer

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 3
POOL_WAIT_SECONDS = 3
# Beside the workers: the outbox relay, and one that gauges and /readyz take by turns when all workers hold theirs.
EXTRA_CONNECTIONS = 2
CONNECTION_SETTINGS = {
    # A lock or a statement that takes longer is refused; the caller's deadline has passed by then.
    "options": "-c lock_timeout=4s -c statement_timeout=20s -c idle_in_transaction_session_timeout=60s -c timezone=UTC",
    "tcp_user_timeout": 5000,
}
DATABASE = {"db.system.name": "postgresql"}
TRANSACTION = Operation("transaction", attributes=DATABASE)
OPERATION = re.compile(r"\b(SELECT|INSERT|UPDATE|DELETE)\b")
TARGET = re.compile(r"\b(?:FROM|INTO|UPDATE) (\w+)")

POOL_SIZE = Gauge("forage_db_pool_size", "Connections that the pool may hold.", ["service"])
POOL_IN_USE = Gauge("forage_db_pool_in_use", "Connections of the pool that somebody uses.", ["service"])
POOL_WAIT = Histogram(
    "forage_db_pool_wait_seconds",
    "How long a transaction waits for its connection, with the time to make a new one.",
    ["service"],
    buckets=(0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 3),
)


class Engine(SharedExtension):
    """The service's connection pool, shared by all extensions that use its database."""

    tracer = Tracer()

    def setup(self):
        service = self.container.service_name
        patch_psycopg()
        self.engine = create_engine(
            self.container.config["DB_URIS"][service],
            pool_size=self.container.max_workers + EXTRA_CONNECTIONS,
            max_overflow=0,
            pool_timeout=POOL_WAIT_SECONDS,
            hide_parameters=True,
            connect_args={**CONNECTION_SETTINGS, "application_name": service},
        )
        event.listen(self.engine, "do_connect", _connect_in_time)
        POOL_SIZE.labels(service).set_function(lambda: cast(QueuePool, self.engine.pool).size())
        POOL_IN_USE.labels(service).set_function(lambda: cast(QueuePool, self.engine.pool).checkedout())

    def start(self):
        if self.tracer.is_on:
            _trace_statements(self.engine, self.tracer)

    def stop(self):
        self.engine.dispose()

    kill = stop

    def check(self):
        """Raise DatabaseUnavailable unless the database answers."""
        with self.session() as session:
            session.execute(text("SELECT 1"))

    @contextmanager
    def session(self):
        """A session whose caller commits. Raises DatabaseUnavailable when the database is away or overloaded."""
        try:
            with Session(self.engine, expire_on_commit=False) as session:
                with POOL_WAIT.labels(self.container.service_name).time():
                    session.connection()
                yield session
        except (OperationalError, InterfaceError, PoolTimeout) as error:
            logger.warning("the database is not available: %s", error.__cause__ or error)
            raise DatabaseUnavailable(self.container.service_name) from error
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
            raise DatabaseUnavailable(self.container.service_name) from error


def after_commit(session, function):
    """Call the function once the session's transaction has committed: not if it rolls back, nor for a savepoint."""
    if "after_commit" not in session.info:
        session.info["after_commit"] = []
        event.listen(session, "after_commit", _call_functions)
        event.listen(session, "after_rollback", _forget_functions)
    session.info["after_commit"].append(function)


def _call_functions(session):
    if not session.in_nested_transaction():
        functions, session.info["after_commit"] = session.info["after_commit"], []
        for function in functions:
            function()


def _forget_functions(session):
    if not session.in_nested_transaction():
        session.info["after_commit"] = []


def _connect_in_time(dialect, connection_record, args, kwargs):
    """libpq's own connect_timeout doesn't hold for the asynchronous connect that psycogreen brings."""
    with eventlet.Timeout(CONNECT_SECONDS, psycopg2.OperationalError("no answer from the database")):
        return dialect.connect(*args, **kwargs)


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


class Database(DependencyProvider):
    """answers: the model of extensions.inbox.AnswerMixin, where the service has methods marked `once`."""

    engine = Engine()

    def __init__(self, answers=None):
        self.answers = answers

    def get_dependency(self, worker_ctx):
        return Transactions(self.engine, worker_ctx, self.answers)


class Transactions:
    """The database within one worker."""

    def __init__(self, engine, worker_ctx, answers):
        self._engine = engine
        self._service = worker_ctx.service_name
        self._deadline = worker_ctx.data.get("deadline")
        self.call_id = worker_ctx.data.get("call_id")
        self.answers = answers

    @contextmanager
    def transaction(self, past_deadline=False):
        """A session that commits at the end, unless an exception leaves the block.

        Raises RpcTimeout instead of committing past the call's deadline; `past_deadline` is for what
        must be written all the same. After DatabaseUnavailable the commit may have happened or not.
        """
        with self._engine.tracer.span(TRANSACTION), self._engine.session() as session:
            if not past_deadline:
                self._check_deadline()
            yield session
            session.flush()
            if not past_deadline:
                self._check_deadline()
            session.commit()

    def check(self):
        """Raise DatabaseUnavailable unless the database answers."""
        self._engine.check()

    def _check_deadline(self):
        if self._deadline is not None and time.time() >= self._deadline:
            raise RpcTimeout(self._service)
