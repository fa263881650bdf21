"""A service's database: the API of nameko-sqlalchemy, and transactions that know their deadline.

    class Bakery:
        name = "bakery"
        db = Database(Base)

        @rpc
        def bake(self, cake):
            with self.db.transaction() as session:
                …

        @rpc
        def find(self, cake_id):
            return self.db.session.get(Cake, cake_id).name

`transaction()` holds its connection for the block alone, and ends a database that hangs soon after the call's deadline.
`session` and `get_session()` are nameko-sqlalchemy's: a session is the worker's until it ends, and what it has not
committed by then is rolled back. The deadline is checked before each commit of theirs. A worker that uses two sessions
at the same time takes two connections of a pool that has `max_workers` + EXTRA_CONNECTIONS.

All of a service's databases, its outbox and its gauges share one pool (nameko_reliable.pool), and so one address.

Not for a service with an outbox is nameko-sqlalchemy's `transaction_retry`: it runs a method again after a commit whose
answer was lost, and so adds its events again. It doesn't know the errors of these sessions, either.
"""

import logging
import time
from contextlib import contextmanager, nullcontext
from functools import partial

import eventlet
import nameko_sqlalchemy
from nameko.extensions import DependencyProvider
from nameko_sqlalchemy import database as stock
from sqlalchemy import event
from sqlalchemy.orm import Session

from nameko_reliable.errors import RpcTimeout
from nameko_reliable.pool import CONNECTION_SETTINGS, SPAN_ATTRIBUTES, ConnectionPool
from nameko_reliable.telemetry.tracing import Operation

logger = logging.getLogger(__name__)

# A call waits for the database until so long after its deadline: then its caller has gone.
OVERDUE_SECONDS = 1
# Of `create_engine` and of a session: what the kit's promises hang on.
OWN_ENGINE_OPTIONS = {"creator", "hide_parameters", "max_overflow", "pool", "pool_size", "pool_timeout", "poolclass"}
OWN_CONNECT_ARGS = {*CONNECTION_SETTINGS, "application_name", "connection_factory"}
OWN_SESSION_OPTIONS = {"bind", "binds", "class_"}
TRANSACTION = Operation("transaction", attributes=SPAN_ATTRIBUTES)


class DeadlineSession(Session):
    """Raises RpcTimeout in the place of a commit past the deadline."""

    def __init__(self, pool, deadline, **options):
        super().__init__(pool.engine, **options)
        self._service, self._deadline = pool.container.service_name, deadline

    def check_deadline(self):
        _check_deadline(self._service, self._deadline)


@event.listens_for(DeadlineSession, "before_commit")
def _flush_in_time(session):
    # SQLAlchemy flushes only after this, which may take long.
    session.flush()
    session.check_deadline()


class WorkerSession(DeadlineSession, stock.Session):
    """As a context manager it commits, and rolls back after an exception."""


class _PoolUser(DependencyProvider):
    """Gives nameko-sqlalchemy's dependencies sessions of the service's pool, in the place of an engine of their own."""

    pool = ConnectionPool()

    def __init__(self, declarative_base, session_options=None, engine_options=None):
        super().__init__(declarative_base, session_options, engine_options)
        self._refuse("session_options", OWN_SESSION_OPTIONS & self.session_options.keys())
        self._refuse("engine_options", OWN_ENGINE_OPTIONS & self.engine_options.keys())
        self._refuse("connect_args", OWN_CONNECT_ARGS & self.engine_options.get("connect_args", {}).keys())
        if self.engine_options.get("isolation_level") == "AUTOCOMMIT":
            raise ValueError(f"{type(self).__name__}: with AUTOCOMMIT nothing could be rolled back.")

    def _refuse(self, where, names):
        if names:
            raise ValueError(f"{type(self).__name__}: the kit itself sets {', '.join(sorted(names))} of {where}.")

    def bind(self, container, attr_name):
        bound = super().bind(container, attr_name)
        bound.pool.databases.append(bound)
        return bound

    def setup(self):
        """The pool makes the engine."""

    def stop(self):
        """Others may still use the pool."""

    kill = stop


class Database(_PoolUser, stock.Database):
    """nameko-sqlalchemy's Database on the service's pool, with transactions that know their deadline.

    session_options: of SQLAlchemy's Session, for all sessions; `expire_on_commit` is false for `transaction()` unless
    they say otherwise. engine_options: of `create_engine`, for the pool. Raises ValueError for options that the kit
    itself sets: OWN_SESSION_OPTIONS, OWN_ENGINE_OPTIONS, OWN_CONNECT_ARGS.
    answers: the model of nameko_reliable.inbox.AnswerMixin, where the service has methods marked `once`.
    """

    def __init__(self, declarative_base, session_options=None, engine_options=None, answers=None):
        super().__init__(declarative_base, session_options, engine_options)
        self.answers = answers

    def get_dependency(self, worker_ctx):
        self.dbs[worker_ctx] = database = WorkerDatabase(self, worker_ctx)
        return database


class DatabaseSession(_PoolUser, nameko_sqlalchemy.DatabaseSession):
    """nameko-sqlalchemy's DatabaseSession on the service's pool: the worker gets the session itself.

    Options are those of Database. nameko-sqlalchemy's own works beside it, with a pool of its own.
    """

    def get_dependency(self, worker_ctx):
        session = DeadlineSession(self.pool, worker_ctx.data.get("deadline"), **self.session_options)
        self.sessions[worker_ctx] = session
        return session

    def worker_teardown(self, worker_ctx):
        _close(self.sessions.pop(worker_ctx))


def _close(session):
    """For a worker's end, where an exception would end the container."""
    try:
        session.close()
    except Exception as error:
        logger.warning("a session that its worker left open could not be closed: %r", error)
        session.invalidate()


def _check_deadline(service, deadline):
    if deadline is not None and time.monotonic() >= deadline:
        raise RpcTimeout(service)


class WorkerDatabase(stock.DatabaseWrapper):
    """The database within one worker."""

    def __init__(self, database, worker_ctx):
        self._pool = database.pool
        self._service = worker_ctx.service_name
        self._deadline = worker_ctx.data.get("deadline")
        self._session_options = database.session_options
        super().__init__(partial(WorkerSession, self._pool, self._deadline, **self._session_options))
        self.call_id = worker_ctx.data.get("call_id")
        self.answers = database.answers

    def close(self):
        for session in (self._worker_session, *self._context_sessions):
            if session is not None:
                _close(session)

    @contextmanager
    def transaction(self, past_deadline=False):
        """A session that commits at the end, unless an exception leaves the block.

        Raises RpcTimeout instead of committing past the call's deadline; `past_deadline` is for what
        must be written all the same. After DatabaseUnavailable the commit may have happened or not.
        """
        with (
            self._pool.tracer.span(TRANSACTION),
            nullcontext() if past_deadline else self._ended_when_overdue(),
            self._pool.session(**self._session_options) as session,
        ):
            if not past_deadline:
                _check_deadline(self._service, self._deadline)
            yield session
            session.flush()
            if not past_deadline:
                _check_deadline(self._service, self._deadline)
            session.commit()

    def check(self):
        """Raise DatabaseUnavailable unless the database answers and takes writes."""
        with self._ended_when_overdue():
            self._pool.check()

    @contextmanager
    def _ended_when_overdue(self):
        """A database that hangs holds no worker for much longer than the call may take."""
        seconds = None if self._deadline is None else self._deadline - time.monotonic() + OVERDUE_SECONDS
        overdue = eventlet.Timeout(seconds)
        try:
            yield
        except eventlet.Timeout as timeout:
            if timeout is not overdue:
                raise
            raise RpcTimeout(self._service) from None
        finally:
            overdue.cancel()
