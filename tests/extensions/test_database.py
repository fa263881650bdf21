"""extensions.database: what is committed and when, and what a database that is away looks like."""

import eventlet
import pytest
from eventlet.event import Event
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError, ProgrammingError

from extensions import database as kit
from extensions.database import Database, after_commit
from extensions.errors import DatabaseUnavailable
from extensions.rpc import rpc
from tests.extensions.bakery import Cake
from tests.infrastructure.waiting import wait_for


class Bakery:
    name = "bakery"

    db = Database()

    @rpc
    def look(self):
        self.db.check()


@pytest.fixture
def db_of(run_service):
    """`db_of(uri)`: what a worker of the bakery has as its `db`."""

    class Worker:
        service_name = "bakery"
        data = {}

    def db_of(uri=None, **settings):
        container = run_service(Bakery, **({"DB_URIS": {"bakery": uri}} if uri else {}), **settings)
        [provider] = container.dependencies
        return provider.get_dependency(Worker)

    return db_of


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


def test_an_error_of_ours_is_no_outage(db_of, tables):
    tables("bakery")
    db = db_of()

    with pytest.raises(IntegrityError), db.transaction() as session:
        session.add(Cake(name=None))
    with pytest.raises(ProgrammingError), db.transaction() as session:
        session.execute(text("SELECT nonsense"))


def test_a_slow_statement_holds_up_nobody_else(db_of):
    db = db_of()
    done, begun = [], Event()

    def sleep():
        with db.transaction() as session:
            session.execute(select(1))
            # Whoever waits for it goes on when this greenlet gives way: while the statement runs.
            begun.send()
            session.execute(text("SELECT pg_sleep(1)"))
        done.append("slow")

    slow = eventlet.spawn(sleep)
    begun.wait()

    db.check()
    done.append("quick")

    slow.wait()
    assert done == ["quick", "slow"]


def test_a_database_that_is_away_is_unavailable_and_then_it_is_not(db_of, database_proxy):
    proxy = database_proxy("bakery")
    db = db_of(proxy.uri)
    db.check()
    proxy.go_away()

    away = [outcome(db.check) for _ in range(5)]

    assert away == [DatabaseUnavailable] * 5
    proxy.come_back()
    db.check()


def test_a_database_that_hangs_on_connect_is_unavailable(db_of, database_proxy, monkeypatch):
    monkeypatch.setattr(kit, "CONNECT_SECONDS", 0.3)
    proxy = database_proxy("bakery")
    db = db_of(proxy.uri)
    proxy.hold()

    with eventlet.Timeout(5, AssertionError("the connect hangs")):
        assert outcome(db.check) is DatabaseUnavailable


def test_a_connection_lost_amid_a_transaction_is_an_outage_and_commits_nothing(db_of, tables, database_proxy):
    cakes = tables("bakery")
    proxy = database_proxy("bakery")
    db = db_of(proxy.uri)

    with pytest.raises(DatabaseUnavailable), db.transaction() as session:
        session.add(Cake(name="Torte"))
        session.flush()
        proxy.cut()

    assert cakes.all(Cake.name) == []
    db.check()


def test_more_transactions_than_connections_wait_and_then_give_up(db_of, monkeypatch):
    monkeypatch.setattr(kit, "POOL_WAIT_SECONDS", 0.3)
    db = db_of(max_workers=1)
    holding, leave = [], Event()

    def hold():
        with db.transaction() as session:
            holding.append(session.scalar(select(1)))
            leave.wait()

    threads = [eventlet.spawn(outcome, hold) for _ in range(3)]
    wait_for(lambda: len(holding) == 3)

    assert outcome(db.check) is DatabaseUnavailable

    leave.send()
    assert [thread.wait() for thread in threads] == [None] * 3
    db.check()


def test_a_lock_that_another_holds_too_long_is_an_outage(db_of, tables, monkeypatch):
    cakes = tables("bakery")
    monkeypatch.setitem(kit.CONNECTION_SETTINGS, "options", "-c lock_timeout=200ms")
    db = db_of()

    with cakes.engine.connect().execution_options(isolation_level="READ COMMITTED") as other, other.begin():
        other.execute(text("LOCK TABLE cakes"))

        assert outcome(add_cake, db) is DatabaseUnavailable


def test_a_worker_that_is_killed_gives_its_connection_back(db_of):
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
