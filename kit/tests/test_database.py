"""nameko_reliable.database and its pool: what is committed and when, and which error an unreachable database causes."""

import time

import eventlet
import nameko_sqlalchemy
import pytest
from eventlet.event import Event
from eventlet.green import socket
from nameko.exceptions import ConfigurationError
from sqlalchemy import select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, InternalError, OperationalError, ProgrammingError
from sqlalchemy.orm import DeclarativeBase

from bakery import Base, Cake
from nameko_reliable import database as kit
from nameko_reliable import pool
from nameko_reliable.database import Database, DatabaseSession
from nameko_reliable.errors import DatabaseUnavailable, RpcTimeout, ServiceUnavailable
from nameko_reliable.rpc import rpc
from nameko_reliable.sessions import after_commit
from nameko_reliable.statements import Statement
from nameko_reliable.testing.waiting import wait_for


class Bakery:
    name = "bakery"

    db = Database(Base)
    # Keeps a reference: without one the sessions would be closed.
    left_open = []

    @rpc
    def look(self):
        self.db.check()

    @rpc
    def bake(self, name):
        add_cake(self.db, name)

    @rpc
    def bake_in_autocommit(self, name):
        self.db.execute(Statement("INSERT INTO cakes (name) VALUES (%(name)s::text)"), name=name)

    @rpc
    def greet(self):
        return "Hello"

    @rpc
    def leave_open(self, terminated=False):
        """The process ids of the sessions' connections. The first session has a cake that is not committed."""
        sessions = [self.db.session, self.db.get_session()]
        self.left_open.extend(sessions)
        pids = [session.scalar(text("SELECT pg_backend_pid()")) for session in sessions]
        sessions[0].add(Cake(name="Torte"))
        sessions[0].flush()
        if terminated:
            with self.db.transaction() as session:
                session.execute(text("SELECT pg_terminate_backend(pid) FROM unnest(:pids) AS pid"), {"pids": pids})
        return pids


class StockBakery:
    """A service that still uses nameko-sqlalchemy beside the kit."""

    name = "bakery"

    db = Database(Base)
    session = DatabaseSession(Base)
    stock_session = nameko_sqlalchemy.DatabaseSession(Base)

    @rpc
    def bake(self):
        """Commits a cake by each session. Its name is the application name of the session's connection."""
        for session in (self.db.session, self.session, self.stock_session):
            session.add(Cake(name=session.scalar(text("SHOW application_name"))))
            session.commit()


def add_cake(db, name="Torte"):
    with db.transaction() as session:
        session.add(Cake(name=name))


def outcome(function, *args):
    try:
        function(*args)
    except Exception as error:
        return type(error)


def test_a_transaction_commits_at_its_end(db_of, tables):
    cakes = tables("bakery")
    db = db_of()

    add_cake(db)

    assert cakes.all(Cake.name) == ["Torte"]


def test_a_transaction_that_an_exception_leaves_is_rolled_back(db_of, tables):
    cakes = tables("bakery")
    db = db_of()

    with pytest.raises(KeyError), db.transaction() as session:
        session.add(Cake(name="Torte"))
        session.flush()
        raise KeyError

    assert cakes.all(Cake.name) == []


def test_a_transaction_begins_in_one_message_with_its_first_statement(db_of, tables):
    db = db_of()

    with db.transaction() as session:
        pid = session.scalar(text("SELECT pg_backend_pid()"))
        last_query = tables("bakery").all(text(f"query FROM pg_stat_activity WHERE pid = {pid}"))

    assert last_query == ["BEGIN; SELECT pg_backend_pid()"]


def add_in_one_statement(session):
    session.execute(text("INSERT INTO cakes (name) VALUES ('Torte'), ('Eclair')"))


def add_one_by_one(session):
    session.connection().exec_driver_sql("INSERT INTO cakes (name) VALUES (%s)", [("Torte",), ("Eclair",)])


def add_after_a_statement_that_postgresql_cannot_read(session):
    with pytest.raises(ProgrammingError):
        session.execute(text("SELEC"))
    add_in_one_statement(session)


def stream(session):
    return session.scalars(select(Cake.name).order_by(Cake.id), execution_options={"yield_per": 1}).all()


def add_after_streaming(session):
    assert stream(session) == []
    add_in_one_statement(session)


def stream_after_adding(session):
    add_in_one_statement(session)
    assert stream(session) == ["Torte", "Eclair"]


@pytest.mark.parametrize(
    "add",
    [
        add_in_one_statement,
        add_one_by_one,
        add_after_a_statement_that_postgresql_cannot_read,
        add_after_streaming,
        stream_after_adding,
    ],
)
def test_a_transaction_holds_all_of_its_statements(db_of, tables, add):
    cakes = tables("bakery")
    db = db_of()

    with pytest.raises(KeyError), db.transaction() as session:
        add(session)
        raise KeyError
    rolled_back = cakes.all(Cake.name)
    with db.transaction() as session:
        add(session)

    assert (rolled_back, cakes.all(Cake.name)) == ([], ["Torte", "Eclair"])
    assert db.execute(Statement("SELECT count(*) AS cakes FROM cakes"))[0].cakes == 2


def test_an_error_of_the_service_is_no_outage(db_of):
    db = db_of()

    with pytest.raises(IntegrityError), db.transaction() as session:
        session.add(Cake(name=None))
    with pytest.raises(ProgrammingError), db.transaction() as session:
        session.execute(text("SELECT nonsense"))


def test_a_slow_statement_does_not_block_other_greenlets(db_of):
    db = db_of()
    done, begun = [], Event()

    def sleep():
        with db.transaction() as session:
            session.execute(select(1))
            # The waiting greenlet continues when this one yields: while the statement runs.
            begun.send()
            session.execute(text("SELECT pg_sleep(1)"))
        done.append("slow")

    slow = eventlet.spawn(sleep)
    begun.wait()

    db.check()
    done.append("quick")

    slow.wait()
    assert done == ["quick", "slow"]


def test_an_unreachable_database_is_unavailable_until_it_is_back(db_of, database_proxy):
    proxy = database_proxy("bakery")
    db = db_of(proxy.uri)
    db.check()
    proxy.go_away()

    outcomes = [outcome(db.check) for _ in range(5)]

    assert outcomes == [DatabaseUnavailable] * 5
    proxy.come_back()
    db.check()


def test_a_database_that_hangs_on_connect_is_unavailable(db_of, database_proxy, monkeypatch):
    monkeypatch.setattr(pool, "CONNECT_SECONDS", 0.3)
    proxy = database_proxy("bakery")
    db = db_of(proxy.uri)
    proxy.hold()

    with eventlet.Timeout(5, AssertionError("the connect hangs")):
        assert outcome(db.check) is DatabaseUnavailable


def raise_sqlstate(db, code):
    with db.transaction() as session:
        session.execute(text(f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$"))


def raise_sqlstate_in_autocommit(db, code):
    db.execute(Statement("SELECT raise_sqlstate(%(code)s::text)"), code=code)


@pytest.mark.parametrize("raise_sqlstate", [raise_sqlstate, raise_sqlstate_in_autocommit])
def test_the_sqlstate_decides_between_an_outage_a_statement_error_and_a_bug(db_of, tables, raise_sqlstate):
    tables("bakery").execute(
        text(
            "CREATE FUNCTION raise_sqlstate(code text) RETURNS void LANGUAGE plpgsql "
            "AS $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = code; END $$"
        )
    )
    db = db_of()
    expected = {
        **dict.fromkeys(["08006", "08P01", "25006", "53100", "53300", "57P01", "57P03", "58030"], DatabaseUnavailable),
        **dict.fromkeys(["40001", "40P01", "53200", "53400", "55P03", "57014"], ServiceUnavailable),
        **{"23502": IntegrityError, "42P01": ProgrammingError, "54001": OperationalError, "XX000": InternalError},
    }

    outcomes = {code: outcome(raise_sqlstate, db, code) for code in expected}

    assert outcomes == expected
    db.check()


@pytest.fixture
def sessions(tables):
    """`sessions()`: the process ids of the bakery's connections, from PostgreSQL."""
    bakery = tables("bakery")
    own = text("SELECT pid FROM pg_stat_activity WHERE application_name = 'bakery' AND datname = current_database()")

    def sessions():
        with bakery.engine.connect() as connection:
            return set(connection.scalars(own))

    return sessions


def test_an_outage_closes_idle_connections_at_once_and_used_ones_when_they_come_back(db_of, sessions):
    db = db_of()
    may_end = Event()

    def hold():
        with db.transaction() as session:
            session.execute(select(1))
            may_end.wait()

    others = [eventlet.spawn(hold) for _ in range(3)]
    wait_for(lambda: len(sessions()) == 3)
    may_end.send()
    [other.wait() for other in others]

    with db.transaction() as session:
        in_use = {session.scalar(text("SELECT pg_backend_pid()"))}
        assert outcome(raise_sqlstate, db, "53100") is DatabaseUnavailable
        wait_for(lambda: sessions() == in_use)
        assert session.scalar(select(1)) == 1

    wait_for(lambda: sessions() == set())
    db.check()


def test_a_database_that_hangs_during_a_statement_is_unavailable(db_of, database_proxy, monkeypatch):
    proxy = database_proxy("bakery")
    db = db_of(proxy.uri)

    # Not an Exception, which the hanging transaction would turn into an outage.
    with eventlet.Timeout(5):
        with pytest.raises(DatabaseUnavailable), db.transaction() as session:
            session.execute(select(1))
            proxy.hold()
            monkeypatch.setattr(pool, "ANSWER_SECONDS", 0.3)
            session.execute(select(2))

    monkeypatch.undo()
    proxy.release()
    db.check()


@pytest.mark.parametrize("method", ["look", "bake", "bake_in_autocommit"])
def test_a_call_to_a_hanging_database_ends_soon_after_its_deadline(
    run_service, cluster, database_proxy, monkeypatch, method
):
    monkeypatch.setattr(kit, "OVERDUE_SECONDS", 0.2)
    proxy = database_proxy("bakery")
    run_service(Bakery, DB_URIS={"bakery": proxy.uri}, max_workers=1)
    cluster.bakery.look()
    proxy.hold()

    with pytest.raises(RpcTimeout):
        getattr(cluster.within(seconds=0.3).bakery, method)(*["Torte"] * (method != "look"))

    assert cluster.bakery.greet() == "Hello"


def test_a_vanished_host_is_noticed_while_nothing_is_sent(db_of):
    db = db_of()

    with db.transaction() as session:
        descriptor = session.connection().connection.dbapi_connection.fileno()
        with socket.fromfd(descriptor, socket.AF_INET, socket.SOCK_STREAM) as connection:
            keeps_alive = connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            options = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT]
            idle, interval, count = (connection.getsockopt(socket.IPPROTO_TCP, option) for option in options)

    assert keeps_alive
    assert idle + interval * count < 10


@pytest.fixture
def silent_host():
    """`silent_host(address, port)` accepts connections, sends nothing, and lists them in `accepted`."""
    listeners = []

    def silent_host(address="127.0.0.1", port=0):
        listener = eventlet.listen((address, port))
        listener.accepted = []
        listeners.append(listener)

        def accept():
            while True:
                listener.accepted.append(listener.accept())

        listener.accepting = eventlet.spawn(accept)
        return listener

    yield silent_host
    for listener in listeners:
        listener.accepting.kill()
        listener.close()


@pytest.mark.parametrize(
    "several_hosts",
    [
        "{account}@127.0.0.1:{silent},127.0.0.1:{good}/{name}",
        "{account}@/{name}?host=127.0.0.1:{silent}&host=127.0.0.1:{good}",
    ],
    ids=["in the form of libpq", "in the form of SQLAlchemy"],
)
def test_a_silent_host_is_skipped_and_not_tried_again(db_of, database, silent_host, monkeypatch, several_hosts):
    monkeypatch.setattr(pool, "ADDRESS_SECONDS", 0.5)
    good, silent = make_url(database("bakery")), silent_host()
    account = f"postgresql+psycopg2://{good.username}:{good.password}"
    port = silent.getsockname()[1]
    db = db_of(several_hosts.format(account=account, silent=port, good=good.port, name=good.database))

    db.check()
    assert outcome(raise_sqlstate, db, "57P01") is DatabaseUnavailable
    db.check()

    assert len(silent.accepted) == 1


def test_each_address_of_a_name_is_tried(db_of, database, silent_host, monkeypatch):
    good = make_url(database("bakery"))
    silent = silent_host("127.0.0.2", good.port)
    look_up = socket.getaddrinfo

    def two_addresses(host, *args, **kwargs):
        addresses = ["127.0.0.2", "127.0.0.1"] if host == "db.example" else [host]
        return [found for address in addresses for found in look_up(address, *args, **kwargs)]

    monkeypatch.setattr(pool.socket, "getaddrinfo", two_addresses)
    db = db_of(good.set(host="db.example").render_as_string(hide_password=False))

    db.check()

    assert len(silent.accepted) == 1


def test_a_host_name_without_an_address_is_an_outage_and_is_logged(db_of, database, caplog):
    db = db_of(make_url(database("bakery")).set(host="nowhere.invalid").render_as_string(hide_password=False))

    assert outcome(db.check) is DatabaseUnavailable

    assert "nowhere.invalid could not be looked up" in caplog.text


def test_while_one_greenlet_tries_to_connect_others_fail_at_once(db_of, silent_host, monkeypatch):
    silent = silent_host()
    db = db_of(f"postgresql+psycopg2://postgres@127.0.0.1:{silent.getsockname()[1]}/bakery")
    monkeypatch.setattr(pool, "CONNECT_SECONDS", 0.3)
    assert outcome(db.check) is DatabaseUnavailable
    monkeypatch.setattr(pool, "CONNECT_SECONDS", 60)
    trying = eventlet.spawn(outcome, db.check)
    wait_for(lambda: len(silent.accepted) == 2)

    refused = [outcome(db.check) for _ in range(3)]

    assert refused == [DatabaseUnavailable] * 3
    assert len(silent.accepted) == 2
    trying.kill()


def test_a_connection_lost_in_a_transaction_is_an_outage_and_commits_nothing(db_of, tables, database_proxy):
    cakes = tables("bakery")
    proxy = database_proxy("bakery")
    db = db_of(proxy.uri)

    with pytest.raises(DatabaseUnavailable), db.transaction() as session:
        session.add(Cake(name="Torte"))
        session.flush()
        proxy.cut()

    assert cakes.all(Cake.name) == []
    db.check()


def test_a_transaction_without_a_free_connection_waits_and_then_fails(db_of, monkeypatch):
    monkeypatch.setattr(pool, "POOL_WAIT_SECONDS", 0.3)
    db = db_of(max_workers=1)
    holding, may_end = [], Event()

    def hold():
        with db.transaction() as session:
            holding.append(session.scalar(select(1)))
            may_end.wait()

    threads = [eventlet.spawn(outcome, hold) for _ in range(3)]
    wait_for(lambda: len(holding) == 3)

    assert outcome(db.check) is DatabaseUnavailable

    may_end.send()
    assert [thread.wait() for thread in threads] == [None] * 3
    db.check()


def test_a_lock_timeout_is_no_outage(db_of, tables, monkeypatch, caplog):
    cakes = tables("bakery")
    monkeypatch.setitem(pool.CONNECTION_SETTINGS, "options", "-c lock_timeout=200ms")
    db = db_of()

    with cakes.engine.connect().execution_options(isolation_level="READ COMMITTED") as other, other.begin():
        other.execute(text("LOCK TABLE cakes"))

        assert outcome(add_cake, db) is ServiceUnavailable

    assert "canceling statement due to lock timeout" in caplog.text
    assert "Torte" not in caplog.text


def test_a_killed_worker_gives_its_connection_back(db_of):
    db = db_of(max_workers=1)

    def sleep(begun):
        with db.transaction() as session:
            session.execute(select(1))
            begun.send()
            session.execute(text("SELECT pg_sleep(60)"))

    for _ in range(5):
        begun = Event()
        thread = eventlet.spawn(sleep, begun)
        begun.wait()
        thread.kill()

    db.check()


def test_a_stopped_service_leaves_no_connection(run_service, tables, cluster):
    others = text("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'bakery'")
    bakery = tables("bakery")
    container = run_service(Bakery)
    cluster.bakery.look()

    container.stop()

    def count():
        with bakery.engine.connect() as connection:
            return connection.scalar(others)

    wait_for(lambda: count() == 0)


def test_after_commit_calls_in_order_and_once(db_of):
    db = db_of()
    called = []

    with db.transaction() as session:
        after_commit(session, lambda: called.append(1))
        after_commit(session, lambda: called.append(2))
        session.execute(select(1))
        before = list(called)
        session.commit()
        session.execute(select(1))

    assert (before, called) == ([], [1, 2])


# The API of nameko-sqlalchemy


def test_a_worker_has_one_session_and_others_that_commit_at_the_end_of_their_block(db_of, tables):
    cakes = tables("bakery")
    db = db_of()

    db.session.add(Cake(name="Torte"))
    assert cakes.all(Cake.name) == []
    db.session.commit()
    with db.get_session() as session:
        session.add(Cake(name="Eclair"))
    with pytest.raises(KeyError), db.get_session(close_on_exit=True) as session:
        session.add(Cake(name="Brownie"))
        session.flush()
        raise KeyError

    assert cakes.all(Cake.name) == ["Torte", "Eclair"]


def commit_by_itself(db):
    db.session.add(Cake(name="Torte"))
    db.session.commit()


def commit_by_a_session_of_its_own(db):
    with db.get_session() as session:
        session.add(Cake(name="Torte"))


def commit_by_a_block(db):
    with db.session.begin():
        db.session.add(Cake(name="Torte"))


def commit_the_injected_session(session):
    session.add(Cake(name="Torte"))
    session.commit()


@pytest.mark.parametrize(
    ("provider", "commit"),
    [
        (None, commit_by_itself),
        (None, commit_by_a_session_of_its_own),
        (None, commit_by_a_block),
        (DatabaseSession(Base), commit_the_injected_session),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_session_commits_nothing_past_the_calls_deadline(db_of, tables, provider, commit):
    cakes = tables("bakery")
    db = db_of(provider=provider, deadline=time.monotonic() + 60)
    overdue = db_of(provider=provider, deadline=time.monotonic())

    commit(db)
    with pytest.raises(RpcTimeout):
        commit(overdue)

    assert cakes.all(Cake.name) == ["Torte"]


def test_a_session_without_a_database_or_a_free_connection_raises_the_kits_error(db_of, database_proxy, monkeypatch):
    monkeypatch.setattr(pool, "POOL_WAIT_SECONDS", 0.1)
    proxy = database_proxy("bakery")
    db = db_of(proxy.uri, max_workers=1)
    held = [db.get_session() for _ in range(3)]
    [session.connection() for session in held]

    overloaded = outcome(db.session.execute, select(1))
    proxy.go_away()
    lost = outcome(held[0].execute, select(1))
    held[1].rollback()
    unreachable = outcome(db.session.execute, select(1))

    assert [overloaded, lost, unreachable] == [DatabaseUnavailable] * 3


def test_sessions_left_open_are_closed_at_the_workers_end(run_service, tables, cluster):
    bakery = tables("bakery")
    run_service(Bakery)

    pids = cluster.bakery.leave_open()

    states = text("SELECT state FROM pg_stat_activity WHERE pid = ANY(:pids)")
    with bakery.engine.connect() as connection:
        wait_for(lambda: connection.scalars(states, {"pids": pids}).all() == ["idle", "idle"])
    assert bakery.all(Cake.name) == []


def test_open_sessions_with_lost_connections_do_not_stop_the_container(run_service, tables, cluster, caplog):
    tables("bakery")
    container = run_service(Bakery, max_workers=1)

    # More often than the pool has connections.
    for _ in range(4):
        cluster.bakery.leave_open(terminated=True)

    assert cluster.bakery.greet() == "Hello"
    assert caplog.text.count("could not be closed: DatabaseUnavailable('bakery')") == 8
    [provider] = container.dependencies
    assert provider.pool.engine.pool.checkedout() == 0


def test_nameko_sqlalchemys_own_session_works_too_with_its_own_key_and_pool(run_service, tables, cluster, database):
    cakes = tables("bakery")
    run_service(StockBakery, DB_URIS={"bakery:Base": database("bakery")})

    cluster.bakery.bake()

    assert cakes.all(Cake.name) == ["bakery", "bakery", ""]


def test_options_apply_to_every_session(db_of, tables):
    bakery = tables("bakery")
    db = db_of(
        provider=Database(
            Base,
            session_options={"info": {"oven": 3}},
            engine_options={
                "isolation_level": "REPEATABLE READ",
                "pool_pre_ping": True,
                "connect_args": {"client_encoding": "latin1"},
            },
        )
    )

    def seen(session):
        names = ("transaction_isolation", "client_encoding", "lock_timeout")
        return [session.info["oven"], *(session.scalar(text(f"SHOW {name}")) for name in names)]

    with db.transaction() as session:
        in_transaction = seen(session)
    # The ping notices that, and opens another connection.
    own = "application_name = 'bakery' AND datname = current_database()"
    bakery.execute(text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {own}"))
    in_session = seen(db.session)

    assert in_transaction == in_session == [3, "repeatable read", "LATIN1", "4s"]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"session_options": {"bind": None}}, "bind"),
        ({"engine_options": {"pool_size": 20, "echo": True}}, "pool_size"),
        ({"engine_options": {"connect_args": {"options": "-c lock_timeout=0"}}}, "options"),
        ({"engine_options": {"isolation_level": "AUTOCOMMIT"}}, "AUTOCOMMIT"),
    ],
)
@pytest.mark.parametrize("provider", [Database, DatabaseSession])
def test_an_option_that_breaks_a_guarantee_of_the_kit_is_refused(provider, options, name):
    with pytest.raises(ValueError, match=rf"{provider.__name__}: .*\b{name}\b"):
        provider(Base, **options)


def test_databases_of_one_service_with_different_options_are_refused(run_service):
    class Undecided:
        name = "bakery"

        db = Database(Base, engine_options={"pool_recycle": 60})
        other = Database(Base, engine_options={"pool_recycle": 90})

    with pytest.raises(ConfigurationError, match="pool_recycle"):
        run_service(Undecided)


def test_databases_of_one_service_with_several_addresses_are_refused(run_service, database):
    class OtherBase(DeclarativeBase):
        pass

    class Undecided:
        name = "bakery"

        db = Database(Base)
        other = Database(OtherBase)

    with pytest.raises(ConfigurationError, match="as `bakery`"):
        run_service(Undecided, DB_URIS={"bakery:Base": database("bakery"), "bakery:OtherBase": database("other")})
