"""A service's database: the API of nameko-sqlalchemy, and transactions with the deadline of their call.

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

        @rpc
        def sell(self, cake_id):
            [row] = self.db.execute(SELL, cake_id=cake_id)

`transaction()` holds its connection only during the block. If the database hangs, it raises RpcTimeout at most
OVERDUE_SECONDS after the call's deadline. `execute` runs a statement (nameko_reliable.statements) in autocommit, with
the same deadline. `session` and `get_session()` are nameko-sqlalchemy's: a session lasts until its worker ends, and
uncommitted changes are then rolled back. The deadline is checked before each of their commits. A worker with two open
sessions takes two connections of a pool that has `max_workers` + EXTRA_CONNECTIONS.

All databases of a service, its outbox and its gauges share one pool (nameko_reliable.pool), so they have one address.

Do not use nameko-sqlalchemy's `transaction_retry` in a service with an outbox: after a commit whose answer was lost, it
runs the method again, which adds the events again. It does not know the errors of these sessions either.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import eventlet
import nameko_sqlalchemy
from nameko.extensions import DependencyProvider
from nameko_sqlalchemy import database as stock
from sqlalchemy import Row, event
from sqlalchemy.orm import DeclarativeBase, Session

from nameko_reliable.errors import RpcTimeout
from nameko_reliable.pool import CONNECTION_SETTINGS, SPAN_ATTRIBUTES, ConnectionPool
from nameko_reliable.statements import Statement, run_alone
from nameko_reliable.tables import AnswerMixin
from nameko_reliable.telemetry.tracing import Operation

logger = logging.getLogger(__name__)

# How long after its deadline a call may still wait for the database. Its caller has given up by then.
OVERDUE_SECONDS = 1
# The options of `create_engine` and of sessions that only the kit may set: its guarantees depend on them.
OWN_ENGINE_OPTIONS = {"creator", "hide_parameters", "max_overflow", "pool", "pool_size", "pool_timeout", "poolclass"}
OWN_CONNECT_ARGS = {*CONNECTION_SETTINGS, "application_name", "connection_factory"}
OWN_SESSION_OPTIONS = {"bind", "binds", "class_"}
TRANSACTION = Operation("transaction", attributes=SPAN_ATTRIBUTES)


class DeadlineSession(Session):
    """Raises RpcTimeout instead of committing past the deadline."""

    def __init__(self, pool: ConnectionPool, deadline: float | None, **options: Any) -> None:
        super().__init__(pool.engine, **options)
        self._service, self._deadline = pool.container.service_name, deadline

    def check_deadline(self) -> None:
        _check_deadline(self._service, self._deadline)


@event.listens_for(DeadlineSession, "before_commit")
def _flush_in_time(session: DeadlineSession) -> None:
    # SQLAlchemy itself flushes only after this event, and a flush may take long.
    session.flush()
    session.check_deadline()


class WorkerSession(DeadlineSession, stock.Session):
    """As a context manager it commits, or rolls back after an exception."""


class _SharedPoolMixin(DependencyProvider):
    """Gives nameko-sqlalchemy's dependencies the service's pool instead of an engine of their own."""

    pool = ConnectionPool()

    def __init__(
        self,
        declarative_base: type[DeclarativeBase],
        session_options: Mapping[str, Any] | None = None,
        engine_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(declarative_base, session_options, engine_options)
        self._refuse("session_options", OWN_SESSION_OPTIONS & self.session_options.keys())
        self._refuse("engine_options", OWN_ENGINE_OPTIONS & self.engine_options.keys())
        self._refuse("connect_args", OWN_CONNECT_ARGS & self.engine_options.get("connect_args", {}).keys())
        if self.engine_options.get("isolation_level") == "AUTOCOMMIT":
            raise ValueError(f"{type(self).__name__}: with AUTOCOMMIT nothing could be rolled back.")

    def _refuse(self, where: str, names: set[str]) -> None:
        if names:
            raise ValueError(f"{type(self).__name__}: the kit itself sets {', '.join(sorted(names))} of {where}.")

    def bind(self, container: Any, attr_name: str) -> Any:
        bound = super().bind(container, attr_name)
        bound.pool.databases.append(bound)
        return bound

    def setup(self) -> None:
        """Replaces nameko-sqlalchemy's: the pool creates the engine."""

    def stop(self) -> None:
        """Replaces nameko-sqlalchemy's: other extensions may still use the pool."""

    kill = stop


class Database(_SharedPoolMixin, stock.Database):
    """nameko-sqlalchemy's Database on the service's pool, with transactions that have the deadline of their call.

    session_options: of SQLAlchemy's Session, for all sessions; in `transaction()`, `expire_on_commit` is false by
    default. engine_options: of `create_engine`, for the pool. Raises ValueError for options that the kit itself sets:
    OWN_SESSION_OPTIONS, OWN_ENGINE_OPTIONS, OWN_CONNECT_ARGS.
    answers: the service's model of nameko_reliable.tables.AnswerMixin, if it has methods marked `once`.
    """

    def __init__(
        self,
        declarative_base: type[DeclarativeBase],
        session_options: Mapping[str, Any] | None = None,
        engine_options: Mapping[str, Any] | None = None,
        answers: type[AnswerMixin] | None = None,
    ) -> None:
        super().__init__(declarative_base, session_options, engine_options)
        self.answers = answers

    if TYPE_CHECKING:
        # In a worker, Nameko replaces the attribute by the result of `get_dependency`.
        def __get__(self, service: object, owner: type) -> "WorkerDatabase": ...

    def get_dependency(self, worker_ctx: Any) -> "WorkerDatabase":
        self.dbs[worker_ctx] = database = WorkerDatabase(self, worker_ctx)
        return database


class DatabaseSession(_SharedPoolMixin, nameko_sqlalchemy.DatabaseSession):
    """nameko-sqlalchemy's DatabaseSession on the service's pool: the worker gets the session itself.

    It has the options of Database. A service may also use nameko-sqlalchemy's own, which has a pool of its own.
    """

    if TYPE_CHECKING:
        # In a worker, Nameko replaces the attribute by the result of `get_dependency`.
        def __get__(self, service: object, owner: type) -> DeadlineSession: ...

    def get_dependency(self, worker_ctx: Any) -> DeadlineSession:
        session = DeadlineSession(self.pool, worker_ctx.data.get("deadline"), **self.session_options)
        self.sessions[worker_ctx] = session
        return session

    def worker_teardown(self, worker_ctx: Any) -> None:
        _close(self.sessions.pop(worker_ctx))


def _close(session: Session) -> None:
    """Close it without raising: at the end of a worker, an exception would stop the container."""
    try:
        session.close()
    except Exception as error:
        logger.warning("a session that its worker left open could not be closed: %r", error)
        session.invalidate()


def _check_deadline(service: str, deadline: float | None) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise RpcTimeout(service)


class WorkerDatabase(stock.DatabaseWrapper):
    """The database in one worker."""

    # From nameko-sqlalchemy, which has no types.
    session: WorkerSession
    get_session: Callable[..., WorkerSession]

    def __init__(self, database: Database, worker_ctx: Any) -> None:
        self._pool = database.pool
        self._service = worker_ctx.service_name
        self._deadline = worker_ctx.data.get("deadline")
        self._session_options = database.session_options
        super().__init__(partial(WorkerSession, self._pool, self._deadline, **self._session_options))
        self.call_id = worker_ctx.data.get("call_id")
        self.answers = database.answers
        # Whether a method with nameko_reliable.inbox.once has begun in this call.
        self.is_answered = False

    def close(self) -> None:
        for session in (self._worker_session, *self._context_sessions):
            if session is not None:
                _close(session)

    @contextmanager
    def transaction(self, past_deadline: bool = False) -> Iterator[Session]:
        """A session that commits at the end of the block, or rolls back if the block raises.

        Raises RpcTimeout instead of committing past the call's deadline, unless `past_deadline` is true. After
        DatabaseUnavailable the commit may or may not have happened.
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

    def execute(self, statement: Statement, **parameters: Any) -> Sequence[Row[Any]]:
        """The rows of the statement, which runs in autocommit: when this returns, its changes are committed.

        It takes one round trip, where a transaction takes two. Raises RpcTimeout if the call's deadline has passed.

        A statement that must not write after the deadline checks the deadline itself. This method sets its parameter
        `seconds_left` (None without a deadline). Once the statement holds its locks, it compares that with the time
        since `statement_timestamp()`. If it is late, it writes nothing, its rows have a true `is_late`, and this method
        raises RpcTimeout.

        After DatabaseUnavailable the statement may or may not have been committed.
        """
        with self._ended_when_overdue(), self._pool.autocommit() as connection:
            _check_deadline(self._service, self._deadline)
            rows = run_alone(connection, statement, parameters, lambda: self.seconds_left)
        if statement.has_seconds_left and rows and rows[0].is_late:
            raise RpcTimeout(self._service)
        return rows

    @property
    def seconds_left(self) -> float | None:
        """Until the call's deadline. None without one."""
        return None if self._deadline is None else self._deadline - time.monotonic()

    def check(self) -> None:
        """Raise DatabaseUnavailable unless the database answers and accepts writes."""
        with self._ended_when_overdue():
            self._pool.check()

    @contextmanager
    def _ended_when_overdue(self) -> Iterator[None]:
        """Raise RpcTimeout when the block still runs OVERDUE_SECONDS after the deadline: the database hangs."""
        seconds = self.seconds_left
        overdue = eventlet.Timeout(None if seconds is None else seconds + OVERDUE_SECONDS)
        try:
            yield
        except eventlet.Timeout as timeout:
            if timeout is not overdue:
                raise
            raise RpcTimeout(self._service) from None
        finally:
            overdue.cancel()
