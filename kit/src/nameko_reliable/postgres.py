"""PostgreSQL: which kind an error is, and addresses with several hosts."""

import re

import psycopg2
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

# The kit's only lists of SQLSTATEs. An error that is in neither is a bug of the service.
# See https://www.postgresql.org/docs/current/errcodes-appendix.html.

# An outage: no statement succeeds now, and any may succeed later. Two characters mean a whole class.
OUTAGE_STATES = (
    "08",  # connection exceptions, also from PgBouncer when no server is free
    "25006",  # read_only_sql_transaction: a standby, or a primary that was demoted
    "53100",  # disk_full: no write succeeds until there is room
    "53300",  # too_many_connections
    "57P01",  # admin_shutdown: the server stops, or an operator ended the session
    "57P02",  # crash_shutdown: another process of the server crashed, so all sessions end
    "57P03",  # cannot_connect_now: the server is starting, stopping or recovering
    "57P04",  # database_dropped: on the primary, during a session on a standby
    "57P05",  # idle_session_timeout: the server ended an idle session of the pool
    "58000",  # system_error: an error of the server's machine
    "58030",  # io_error: an error of its disk
)
# A statement error: the database works, and the same statement may succeed later.
STATEMENT_STATES = (
    "25P03",  # idle_in_transaction_session_timeout: we were too slow between two statements
    "40001",  # serialization_failure: a concurrent update, or replay on a standby
    "40003",  # statement_completion_unknown
    "40P01",  # deadlock_detected: the other transaction continues
    "53000",  # insufficient_resources: any without a code of its own
    "53200",  # out_of_memory: too little for this statement at this moment
    "53400",  # configuration_limit_exceeded: temp_file_limit, for example
    "55006",  # object_in_use
    "55P03",  # lock_not_available: lock_timeout, or NOWAIT
    "57014",  # query_canceled: statement_timeout, or an operator
)

# For programs without eventlet, such as migrations: libpq picks the first host that accepts writes.
WRITABLE_HOST = {"connect_timeout": 5, "target_session_attrs": "read-write"}

MULTI_HOST_URI = re.compile(r"([^:/]+://(?:[^/?#]*@)?)([^/?#@]*,[^/?#@]*)([/?#].*)?")
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::([0-9]+))?")


def is_outage(error: BaseException | None) -> bool:
    """Whether the database is unavailable. The psycopg2 error of a lost connection has no SQLSTATE."""
    if isinstance(error, psycopg2.Error) and error.pgcode:
        return bool(error.pgcode.startswith(OUTAGE_STATES))
    return isinstance(error, (psycopg2.OperationalError, psycopg2.InterfaceError))


def is_statement_error(error: BaseException | None) -> bool:
    """Whether only this statement failed, so that another try may succeed."""
    return isinstance(error, psycopg2.Error) and error.pgcode in STATEMENT_STATES


def database_url(uri: str) -> URL:
    """A database's address as SQLAlchemy's URL. Raises ValueError or ArgumentError.

    The address can name several hosts, in the form of libpq, `…://user:password@a:5432,b:5433/bakery_db`, or of
    SQLAlchemy, `…://user:password@/bakery_db?host=a:5432&host=b:5433`.
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
