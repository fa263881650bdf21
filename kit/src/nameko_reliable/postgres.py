"""What we know of PostgreSQL itself: whose fault an error is, and how an address may name several hosts."""

import re

import psycopg2
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

# The one table of SQLSTATEs. All that is in neither list is a bug of ours.
# See https://www.postgresql.org/docs/current/errcodes-appendix.html.

# The database: no statement would succeed now, and any may later. A prefix of two stands for its whole class.
OUTAGE_STATES = (
    "08",  # connection exceptions; PgBouncer's, too, when it has no server to give
    "25006",  # read_only_sql_transaction: a standby, or a primary that was demoted
    "53100",  # disk_full: no write succeeds until there is room
    "53300",  # too_many_connections
    "57P01",  # admin_shutdown: also a session that an operator ended
    "57P02",  # crash_shutdown: another process of the server crashed, so all sessions end
    "57P03",  # cannot_connect_now: the server starts, stops or recovers
    "57P04",  # database_dropped: of a session on a standby
    "57P05",  # idle_session_timeout: the server ended a session that lay in the pool
    "58000",  # system_error: of the machine below the server
    "58030",  # io_error: its disk
)
# This statement: the database works, and the same statement may succeed later.
STATEMENT_STATES = (
    "25P03",  # idle_in_transaction_session_timeout: we were too slow between two statements
    "40001",  # serialization_failure: a concurrent update, or a standby's replay
    "40003",  # statement_completion_unknown
    "40P01",  # deadlock_detected: the other transaction goes on
    "53000",  # insufficient_resources: none of those that have a code of their own
    "53200",  # out_of_memory: what this statement needed was too much just now
    "53400",  # configuration_limit_exceeded: temp_file_limit, for example
    "55006",  # object_in_use
    "55P03",  # lock_not_available: lock_timeout, or NOWAIT
    "57014",  # query_canceled: statement_timeout, or an operator
)

# For libpq where it waits by itself, as for migrations: of several hosts it takes the first that takes writes.
WRITABLE_HOST = {"connect_timeout": 5, "target_session_attrs": "read-write"}

MULTI_HOST_URI = re.compile(r"([^:/]+://(?:[^/?#]*@)?)([^/?#@]*,[^/?#@]*)([/?#].*)?")
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::([0-9]+))?")


def is_outage(error: BaseException | None) -> bool:
    """Whether an error of psycopg2's is the database's own. A lost connection has no SQLSTATE."""
    if isinstance(error, psycopg2.Error) and error.pgcode:
        return bool(error.pgcode.startswith(OUTAGE_STATES))
    return isinstance(error, (psycopg2.OperationalError, psycopg2.InterfaceError))


def is_statement_error(error: BaseException | None) -> bool:
    """Whether an error of psycopg2's is this statement's alone, so that another try may succeed."""
    return isinstance(error, psycopg2.Error) and error.pgcode in STATEMENT_STATES


def database_url(uri: str) -> URL:
    """SQLAlchemy's form of a database's address. Raises ValueError or ArgumentError.

    Several hosts may stand in it as libpq has them, `…://user:password@a:5432,b:5433/bakery_db`, or as SQLAlchemy has
    them, `…://user:password@/bakery_db?host=a:5432&host=b:5433`.
    """
    multi_host = MULTI_HOST_URI.fullmatch(uri)
    if multi_host is None:
        return make_url(uri)
    hosts, ports = [], []
    for host_and_port in multi_host[2].split(","):
        parts = HOST.fullmatch(host_and_port)
        if parts is None:
            raise ArgumentError("Several hosts are written host:port,host:port.")
        hosts.append(parts[1].strip("[]"))
        ports.append(parts[2] or "")
    url = make_url(multi_host[1] + (multi_host[3] or ""))
    return url.update_query_dict({"host": ",".join(hosts), "port": ",".join(ports)})
