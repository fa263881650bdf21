"""nameko_reliable.statements: what a statement commits, and how it runs once it is prepared."""

import json
import time
from decimal import Decimal
from uuid import uuid4

import eventlet
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from bakery import Base, Cake
from nameko_reliable.database import Database
from nameko_reliable.errors import RpcTimeout, ServiceUnavailable
from nameko_reliable.statements import Statement, run, run_in, run_last
from nameko_reliable.testing.waiting import wait_for

BAKE = Statement("INSERT INTO cakes (name) VALUES (%(name)s::text) RETURNING id, name")
NAMES = Statement("SELECT name FROM cakes ORDER BY id")
PREPARED = Statement("SELECT name, generic_plans AS runs FROM pg_prepared_statements ORDER BY name")
# Under a lock, so that each counts the cakes of those before it.
BAKE_FIRST = Statement(
    """
    INSERT INTO cakes (name) SELECT %(name)s::text
    WHERE NOT EXISTS (SELECT FROM cakes WHERE name = %(name)s::text) RETURNING id
    """,
    lock="hashtext(%(name)s::text)",
)
RENAME_IN_TIME = Statement("""
WITH locked AS MATERIALIZED (
    SELECT id FROM cakes ORDER BY id FOR UPDATE
), tested AS MATERIALIZED (
    SELECT count(*) AS cakes, clock_timestamp() - statement_timestamp() >
           make_interval(secs => %(seconds_left)s::float8) IS TRUE AS is_late FROM locked
), renamed AS (
    UPDATE cakes c SET name = 'Strudel' FROM locked l, tested t WHERE c.id = l.id AND NOT t.is_late RETURNING c.id
)
SELECT is_late, (SELECT count(*) FROM renamed) AS renamed FROM tested
""")


def names(db):
    return [row.name for row in db.execute(NAMES)]


def runs(db):
    """How often each prepared statement of the connection ran."""
    return {row.name: row.runs for row in db.execute(PREPARED)}


def test_a_statement_is_committed_when_it_returns(db_of, tables):
    db = db_of()

    [row] = db.execute(BAKE, name="Torte")

    assert tables("bakery").all(Cake.name) == ["Torte"]
    assert (row.id, row.name) == (1, "Torte")


def test_in_a_session_a_statement_is_part_of_its_transaction(db_of, tables):
    db = db_of()

    with pytest.raises(KeyError), db.transaction() as session:
        session.add(Cake(name="Torte"))
        run(session, BAKE, name="Strudel")
        assert [row.name for row in run(session, NAMES)] == ["Torte", "Strudel"]
        raise KeyError

    assert tables("bakery").all(Cake.name) == []


@pytest.mark.parametrize("is_prepared", [0, 1])
def test_values_of_all_types_arrive_as_they_are(db_of, is_prepared):
    db = db_of(PREPARED_STATEMENTS=is_prepared)
    ids = [uuid4(), uuid4()]
    echo = Statement("""
    SELECT %(ids)s::uuid[] AS ids, %(prices)s::numeric[] AS prices, %(none)s::bigint AS none, %(text)s::text AS text,
           %(texts)s::text[] AS texts, %(payload)s::jsonb AS payload, %(is_new)s::bool AS is_new,
           %(number)s::bigint AS number, 7 %% 4 AS rest
    """)
    values = {"prices": [], "none": None, "text": "100 % '$1' \\ \"é\"", "texts": ["a,b", None], "is_new": True}

    [row] = db.execute(echo, ids=ids, payload=json.dumps({"price": "9.50"}), number=-3, **values)

    assert row._asdict() == {**values, "ids": ids, "payload": {"price": "9.50"}, "number": -3, "rest": 3}


def test_a_decimal_keeps_its_trailing_zeros(db_of):
    [row] = db_of().execute(Statement("SELECT %(price)s::numeric AS price"), price=Decimal("9.50"))

    assert str(row.price) == "9.50"


def test_a_connection_prepares_a_statement_once(db_of):
    db = db_of()

    for name in ("Torte", "Strudel"):
        db.execute(BAKE, name=name)
    with db.transaction() as session:
        run(session, BAKE, name="Krapfen")

    assert runs(db)[BAKE.name] == 3


def test_with_prepared_statements_off_nothing_is_prepared(db_of):
    db = db_of(PREPARED_STATEMENTS="0")

    db.execute(BAKE, name="Torte")

    assert runs(db) == {} and names(db) == ["Torte"]


# {SQLSTATE: (whether the statement ran before, what makes it fail)}
FAULTS = {
    "26000": (True, "DEALLOCATE ALL"),
    "42P05": (False, f"PREPARE {NAMES.name} AS SELECT 1"),
    "0A000": (True, "ALTER TABLE cakes ALTER COLUMN name TYPE varchar(50)"),
}


@pytest.fixture(params=FAULTS)
def spoilt(request, db_of):
    """A database whose connection can't run NAMES as prepared."""
    ran_before, fault = FAULTS[request.param]
    db = db_of()
    db.execute(BAKE, name="Torte")
    if ran_before:
        db.execute(NAMES)
    with db.transaction() as session:
        session.execute(text(fault))
    return db


def test_a_statement_that_cannot_run_as_prepared_runs_plainly_at_once(spoilt, caplog):
    assert [names(spoilt), names(spoilt)] == [["Torte"]] * 2

    assert caplog.text.count("unprepared from now on") == 1


def test_in_a_session_a_statement_that_cannot_run_as_prepared_fails_once(spoilt):
    with pytest.raises(ServiceUnavailable), spoilt.transaction() as session:
        run(session, NAMES)

    with spoilt.transaction() as session:
        assert [row.name for row in run(session, NAMES)] == ["Torte"]


def test_an_error_of_the_statement_is_raised_and_leaves_it_prepared(db_of):
    db = db_of()
    db.execute(BAKE, name="Torte")

    with pytest.raises(IntegrityError):
        db.execute(BAKE, name=None)

    db.execute(BAKE, name="Strudel")
    assert names(db) == ["Torte", "Strudel"]
    assert BAKE.name in runs(db)


def test_no_statement_starts_past_the_deadline(db_of, tables):
    db = db_of(deadline=time.monotonic())

    with pytest.raises(RpcTimeout):
        db.execute(BAKE, name="Torte")

    assert tables("bakery").all(Cake.name) == []


def test_a_statement_that_gets_its_locks_past_the_deadline_writes_nothing(db_of, tables):
    cakes = tables("bakery")
    cakes.execute(text("INSERT INTO cakes (name) VALUES ('Torte')"))
    deadline = time.monotonic() + 0.3
    db = db_of(deadline=deadline)

    with cakes.engine.connect().execution_options(isolation_level="READ COMMITTED") as other:
        other.execute(text("SELECT FROM cakes FOR UPDATE"))
        renaming = eventlet.spawn(db.execute, RENAME_IN_TIME)
        wait_for(lambda: time.monotonic() > deadline + 0.1)
        other.rollback()

    with pytest.raises(RpcTimeout):
        renaming.wait()
    assert cakes.all(Cake.name) == ["Torte"]


@pytest.mark.parametrize("seconds", [None, 60])
def test_a_statement_within_the_deadline_or_without_one_writes(db_of, seconds):
    db = db_of(deadline=seconds and time.monotonic() + seconds)
    db.execute(BAKE, name="Torte")

    [row] = db.execute(RENAME_IN_TIME)

    assert (row.renamed, names(db)) == (1, ["Strudel"])


@pytest.mark.parametrize("is_prepared", [0, 1])
def test_a_statement_with_a_lock_sees_what_others_did_under_it(db_of, is_prepared):
    db = db_of(PREPARED_STATEMENTS=is_prepared)

    baking = [eventlet.spawn(db.execute, BAKE_FIRST, name="Torte") for _ in range(8)]

    assert sorted(len(each.wait()) for each in baking) == [0] * 7 + [1]


@pytest.mark.parametrize("is_prepared", [0, 1])
def test_a_statement_sees_what_its_first_one_did(db_of, is_prepared):
    db = db_of(PREPARED_STATEMENTS=is_prepared)
    heat = "SELECT set_config('bakery.heat', '180', true)"

    [row] = db.execute(Statement("SELECT current_setting('bakery.heat') AS heat", first=heat))

    assert row.heat == "180"


@pytest.mark.parametrize("options", [{}, {"isolation_level": "REPEATABLE READ"}], ids=["plain", "isolated"])
def test_the_last_statement_of_a_transaction_commits_it(db_of, tables, options):
    cakes = tables("bakery")
    db = db_of(provider=Database(Base, engine_options=options))

    with db._pool.connection() as connection:
        run_in(connection, BAKE, {"name": "Torte"})
        run_last(connection, BAKE, {"name": "Strudel"})
        committed = cakes.all(Cake.name)
        run_in(connection, BAKE, {"name": "Krapfen"})

    assert committed == cakes.all(Cake.name) == ["Torte", "Strudel"]


@pytest.mark.parametrize("sql", ["SELECT %(name)s", "SELECT %(name)s::text, %(name)s::bigint"])
def test_a_parameter_needs_one_type(sql):
    with pytest.raises(ValueError, match="the parameter name has"):
        Statement(sql)
