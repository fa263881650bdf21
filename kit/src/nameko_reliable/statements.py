"""Statements in SQL that each do a whole step, prepared on each connection.

    SELL = Statement('''
    WITH locked AS MATERIALIZED (
        SELECT id, pieces FROM cakes WHERE id = %(cake_id)s::bigint FOR UPDATE
    ), tested AS MATERIALIZED (
        SELECT count(*) AS cakes, clock_timestamp() - statement_timestamp() >
               make_interval(secs => %(seconds_left)s::float8) IS TRUE AS is_late FROM locked
    ), sold AS (
        UPDATE cakes c SET pieces = l.pieces - 1 FROM locked l, tested t
        WHERE c.id = l.id AND l.pieces > 0 AND NOT t.is_late RETURNING c.id, c.pieces
    )
    SELECT t.is_late, t.cakes, sold.pieces FROM tested t LEFT JOIN sold ON true
    ''')

        @rpc
        def sell(self, cake_id):
            [row] = self.db.execute(SELL, cake_id=cake_id)      # In autocommit: one round trip, and it is committed.
            …
            with self.db.transaction() as session:
                rows = run(session, SELL, …)                    # In the session's transaction.

Every parameter has a cast, `%(name)s::type` with a type of one word: `bigint`, `float8`, `timestamptz`, `uuid[]`. JSON
is given as a string, `%(payload)s::jsonb`. Columns of the result are named, never `*`: PostgreSQL refuses a prepared
statement whose columns a migration has changed. A literal percent sign is `%%`.

PostgreSQL plans a prepared statement once, without its values, and plans it again when the statistics of its tables
change. So write one statement for each case: `user_id = %(user_id)s::bigint OR %(user_id)s::bigint IS NULL` would
read the whole table.

A connection prepares a statement at its first use. Poolers that share connections between transactions, such as
PgBouncer, need PREPARED_STATEMENTS: 0 in the configuration. Then each statement is sent and planned as it is.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any, TypeAlias

from sqlalchemy import Connection, Row
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from nameko_reliable.errors import ServiceUnavailable

logger = logging.getLogger(__name__)

SecondsLeft: TypeAlias = Callable[[], float | None]

# Keys of a connection's `info`. PREPARED: {name: whether that statement works as prepared}, missing if nothing is to be
# prepared. SERVICE: the service of the pool.
PREPARED, SERVICE = "prepared", "service"
# The execution option with the SQL of an EXECUTE, for traces.
SOURCE = "source_sql"
# The parameter that the kit fills in.
SECONDS_LEFT = "seconds_left"
# SQLSTATEs after which the statement has done nothing, and must be run unprepared.
UNPREPARED_STATES = (
    "26000",  # invalid_sql_statement_name: a pooler has changed the server's connection
    "42P05",  # duplicate_prepared_statement: the same
    "0A000",  # feature_not_supported: a migration has changed the type of a column of the result
)
PARAMETER = re.compile(r"%\((\w+)\)s")
PARAMETER_AND_TYPE = re.compile(PARAMETER.pattern + r"::(\w+(?:\[\])?)")


class Statement:
    """A statement with named parameters.

    lock: an expression for the key of an advisory lock, which is held until the statement has committed, or the
    transaction around it has. It is taken first, so the statement sees what others did under the same lock.
    first: in place of `lock`, another statement that is sent before this one, in the same round trip.
    """

    def __init__(self, sql: str, lock: str | None = None, first: str | None = None) -> None:
        if lock:
            first = f"SELECT pg_advisory_xact_lock({lock})"
        before = f"{first}; " if first else ""
        types: dict[str, str] = {}
        for name, its_type in PARAMETER_AND_TYPE.findall(sql):
            if types.setdefault(name, its_type) != its_type:
                raise ValueError(f"the parameter {name} has two types, {types[name]} and {its_type}")
        for name in PARAMETER.findall(PARAMETER_AND_TYPE.sub("", before + sql)):
            raise ValueError(f"the parameter {name} has no type: write %({name})s::type")
        # From its text, so that two releases behind one pooler never use each other's statements.
        self.name = f"kit_{sha256(sql.encode()).hexdigest()[:16]}"
        self.has_seconds_left = SECONDS_LEFT in types
        numbers = {name: number for number, name in enumerate(types, 1)}
        body = PARAMETER_AND_TYPE.sub(lambda parameter: f"${numbers[parameter[1]]}", sql)
        values = ", ".join(f"%({name})s::{its_type}" for name, its_type in types.items())
        self.plain = before + sql
        self.prepare = f"PREPARE {self.name}{_in_brackets(', '.join(types.values()))} AS {body}"
        self.execute = f"{before}EXECUTE {self.name}{_in_brackets(values)}"
        self.options = {SOURCE: sql}


def _in_brackets(texts: str) -> str:
    # PostgreSQL refuses an empty pair.
    return f" ({texts})" if texts else ""


class _Unprepared(Exception):
    """The statement did not run. From now on it is not prepared on this connection."""


def run(session: Session, statement: Statement, **parameters: Any) -> Sequence[Row[Any]]:
    """The rows of the statement, which runs in the session's transaction. The deadline is checked at its commit.

    Raises ServiceUnavailable if the connection can't run it as prepared: the next attempt runs it plainly.
    """
    session.flush()
    return run_in(session.connection(), statement, parameters)


def run_in(
    connection: Connection, statement: Statement, parameters: Mapping[str, Any], then: str = ""
) -> Sequence[Row[Any]]:
    """The same in the transaction of a connection. then: more SQL in the same round trip, which has the rows."""
    try:
        return _run(connection, statement, parameters, lambda: None, then)
    except _Unprepared as error:
        # The failed statement has ended the transaction.
        raise ServiceUnavailable(connection.info[SERVICE]) from error


def run_last(connection: Connection, statement: Statement, parameters: Mapping[str, Any]) -> None:
    """Run the statement, without its rows, and commit the connection's transaction in the same round trip."""
    driver_connection: Any = connection.connection.dbapi_connection
    # A transaction that psycopg2 has begun must be ended by psycopg2 (nameko_reliable.pool).
    run_in(connection, statement, parameters, then="; COMMIT" if driver_connection.has_begun else "")
    connection.commit()


def run_alone(
    connection: Connection, statement: Statement, parameters: Mapping[str, Any], seconds_left: SecondsLeft
) -> Sequence[Row[Any]]:
    """The rows of the statement, on a connection in autocommit."""
    try:
        return _run(connection, statement, parameters, seconds_left)
    except _Unprepared:
        return _run(connection, statement, parameters, seconds_left)


def _run(
    connection: Connection,
    statement: Statement,
    parameters: Mapping[str, Any],
    seconds_left: SecondsLeft,
    then: str = "",
) -> Sequence[Row[Any]]:
    prepared: dict[str, bool] | None = connection.info.get(PREPARED)
    if prepared is None or prepared.get(statement.name) is False:
        return _rows(connection, statement, statement.plain + then, parameters, seconds_left)
    try:
        if statement.name not in prepared:
            # This may wait for a lock of a table.
            connection.exec_driver_sql(statement.prepare)
            prepared[statement.name] = True
        return _rows(connection, statement, statement.execute + then, parameters, seconds_left)
    except DBAPIError as error:
        state = getattr(error.orig, "pgcode", None)
        if state not in UNPREPARED_STATES:
            raise
        prepared[statement.name] = False
        logger.warning(
            "a connection runs a statement unprepared from now on, after SQLSTATE %s; "
            "behind a pooler such as PgBouncer set PREPARED_STATEMENTS to 0",
            state,
        )
        raise _Unprepared from error


def _rows(
    connection: Connection,
    statement: Statement,
    sql: str,
    parameters: Mapping[str, Any],
    seconds_left: SecondsLeft,
) -> Sequence[Row[Any]]:
    given = {**parameters, SECONDS_LEFT: seconds_left()} if statement.has_seconds_left else dict(parameters)
    result = connection.exec_driver_sql(sql, given, execution_options=statement.options)
    return result.all() if result.returns_rows else []
