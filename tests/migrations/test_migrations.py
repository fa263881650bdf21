import importlib
import os
import subprocess
import sys

import eventlet
import pytest
from alembic.config import main as alembic
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.pool import NullPool

from contracts.types import SERVICES
from dev.settings import ROOT
from nameko_reliable.testing.waiting import wait_for

every_service = pytest.mark.parametrize("service", SERVICES)


@pytest.fixture
def migrate(database, monkeypatch):
    """`migrate("orders", "upgrade", "head")` on an empty database. Returns its tables after that."""
    uri = database("empty")

    def migrate(service, *command):
        monkeypatch.setenv(f"{service.upper()}_DB_URI", uri)
        alembic(["-c", str(ROOT / "alembic.ini"), "-n", service, *command])
        return set(inspect(create_engine(uri, poolclass=NullPool)).get_table_names())

    monkeypatch.chdir(ROOT)
    return migrate


@every_service
def test_an_empty_database_is_migrated_to_the_schema_of_the_models(migrate, service):
    tables = migrate(service, "upgrade", "head")

    assert service in tables
    assert migrate(service, "check") == tables


# Not compared by `alembic check`: defaults, identities, the conditions of checks and indexes.
SCHEMA = (
    """
    SELECT table_name, column_name, data_type, is_nullable, column_default, is_identity, numeric_precision
    FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2
""",
    """
    SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2
""",
    """
    SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1
""",
)


def schema(engine):
    with engine.connect() as connection:
        return [tuple(row) for query in SCHEMA for row in connection.execute(text(query))]


@every_service
def test_migrations_and_models_make_exactly_the_same_schema(database, service):
    migrated, modelled = (create_engine(database(name), poolclass=NullPool) for name in (service, "empty"))

    importlib.import_module(f"services.{service}_models").Base.metadata.create_all(modelled)

    with migrated.begin() as connection:
        connection.execute(text("DROP TABLE alembic_version"))
    assert schema(migrated) == schema(modelled)


@every_service
def test_a_migration_can_be_downgraded_and_repeated(migrate, service):
    tables = migrate(service, "upgrade", "head")

    left = migrate(service, "downgrade", "base")

    assert left == {"alembic_version"}
    assert migrate(service, "upgrade", "head") == tables


def test_a_difference_between_models_and_migrations_is_reported(migrate):
    migrate("users", "upgrade", "head")
    migrate("users", "downgrade", "base")
    migrate("users", "stamp", "head")

    with pytest.raises(SystemExit):
        migrate("users", "check")


def test_without_its_database_a_migration_reports_what_to_set(migrate, monkeypatch):
    monkeypatch.setattr("os.environ", {})

    with pytest.raises(SystemExit, match="ORDERS_DB_URI is not set"):
        alembic(["-c", str(ROOT / "alembic.ini"), "-n", "orders", "upgrade", "head"])


def test_the_migration_of_account_mails_can_be_downgraded_with_such_mails(migrate, database):
    migrate("notifications", "upgrade", "head")
    with create_engine(database("empty"), poolclass=NullPool).begin() as connection:
        connection.execute(
            text(
                "INSERT INTO notifications (event_id, event_name, payload, user_id, recipient_email, subject, message) "
                "VALUES (gen_random_uuid(), 'user.registered', '{}', 1, 'ada@forage.example', '', '')"
            )
        )

    assert "notifications" in migrate("notifications", "downgrade", "0001")


def test_the_index_of_pending_mails_is_rebuilt_while_a_mail_is_sent(migrate, database):
    migrate("notifications", "upgrade", "0003")
    engine = create_engine(database("empty"), poolclass=NullPool)
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with engine.connect() as sender:
        sender.execute(text("SELECT id FROM notifications FOR UPDATE"))
        migration = eventlet.spawn(migrate, "notifications", "upgrade", "head")
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as other:
            wait_for(lambda: other.scalar(waiting))
            other.execute(text("SET lock_timeout = '1s'"))

            assert other.scalar(text("SELECT count(*) FROM notifications")) == 0

    assert "notifications" in migration.wait()


@pytest.fixture
def migrate_all(database):
    """Run the migration of a release. The first of each database's two hosts is unreachable."""

    def migrate_all():
        uris = {
            f"{service.upper()}_DB_URI": database(service).replace("@127.0.0.1:", "@127.0.0.1:1,127.0.0.1:")
            for service in SERVICES
        }
        return subprocess.run(
            [sys.executable, "-m", "ops.migrate"],
            cwd=ROOT,
            env={**os.environ, **uris},
            capture_output=True,
            text=True,
        )

    return migrate_all


def stamp(uri, revision):
    with create_engine(uri, poolclass=NullPool).begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})


def test_a_database_migrated_by_a_newer_release_is_not_changed(database, migrate_all):
    orders = create_engine(database("orders"), poolclass=NullPool)
    with orders.begin() as connection:
        connection.execute(text("ALTER TABLE orders ADD COLUMN gift_note text"))
    stamp(database("orders"), "9999")
    before = schema(orders)

    done = migrate_all()

    assert (done.returncode, done.stdout) == (0, "orders: left at revision 9999, which a newer release has made\n")
    assert schema(orders) == before
    with orders.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).all() == [("9999",)]


def test_a_database_at_an_unknown_revision_is_refused(database, migrate_all):
    stamp(database("orders"), "0002x")

    done = migrate_all()

    assert done.returncode != 0
    assert "Can't locate revision identified by '0002x'" in done.stdout + done.stderr
