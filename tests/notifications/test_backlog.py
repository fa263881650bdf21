"""What PostgreSQL reads of a large table: for the next mails, for a list, and for the limit of an address."""

from uuid import uuid4

import pytest
from sqlalchemy import create_engine

from contracts.notifications import NotificationQuery
from contracts.types import load
from nameko_reliable.statements import PARAMETER
from nameko_reliable.testing.waiting import wait_for
from services.notifications import Notifications
from services.notifications_statements import (
    CLAIM_ACCOUNT_MAILS,
    CLAIM_ORDER_MAILS,
    STORE_FOR_UNPROVEN,
    read_notifications,
)
from tests.factories import order_created
from tests.infrastructure.plans import explaining, filled_database

# Two events for each order: sent ones, and a backlog of due and waiting ones after an outage of the mail server.
HISTORY_AND_BACKLOG = """
    INSERT INTO notifications
        (event_id, event_name, payload, order_id, sequence, user_id, recipient_email, subject, message, status,
         next_try_at)
    SELECT gen_random_uuid(), 'order.created', '{}', n / 2, 1 + n %% 2, 1, n %% 1000 || '@forage.example', 'Your order',
        'Thanks', CASE WHEN n <= 20000 THEN 'sent' ELSE 'pending' END, now() + %s * interval '1 second'
    FROM generate_series(2, 42001) AS n
"""
ACCOUNT_MAILS = """;
    INSERT INTO notifications (event_id, event_name, payload, user_id, recipient_email, subject, message, status)
    SELECT gen_random_uuid(), 'user.registered', '{}', n, n || '@forage.example', 'Welcome', 'Confirm', 'sent'
    FROM generate_series(1, 1000) AS n
"""

# Stored 20 hours ago, due, and waiting for a mail that never came.
WAITING = """
    INSERT INTO notifications
        (event_id, event_name, payload, order_id, sequence, user_id, recipient_email, subject, message, created_at)
    SELECT gen_random_uuid(), 'order.created', '{}', -n, 2, 1, 'ada@forage.example', 'Your order', 'Thanks',
        now() - interval '20 hours'
    FROM generate_series(1, 500) AS n
"""


@pytest.mark.parametrize("due_in_seconds", (-60, 600))
@pytest.mark.parametrize(
    ("claim", "index"),
    [
        (CLAIM_ORDER_MAILS, "ix_notifications_due_order_mails"),
        (CLAIM_ACCOUNT_MAILS, "ix_notifications_due_account_mails"),
    ],
    ids=["order mails", "account mails"],
)
def test_the_next_mails_are_claimed_without_reading_the_others(database, claim, index, due_in_seconds):
    engine = create_engine(database("notifications"))
    parameters = {"lease": uuid4(), "seconds": 30, "most": 20}
    with engine.begin() as connection:
        connection.exec_driver_sql(HISTORY_AND_BACKLOG, (due_in_seconds,))
        connection.exec_driver_sql("ANALYZE notifications")
        # As after a connection's first uses of the statement.
        connection.exec_driver_sql("SET LOCAL plan_cache_mode = force_generic_plan")
        connection.exec_driver_sql(claim.prepare)

        lines = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS) {claim.execute}", parameters).scalars()

        plan = "\n".join(lines)
    engine.dispose()
    assert f"Index Scan using {index} on notifications" in plan, plan
    assert "Index Scan using notifications_pkey on notifications" in plan, plan
    assert "Sort" not in plan and "Seq Scan" not in plan, plan


def test_mails_that_wait_for_another_do_not_stay_due(own_shop, smtp):
    own_shop.sql("notifications", WAITING)
    own_shop.run(Notifications)

    own_shop.publish(event := order_created())

    wait_for(lambda: smtp.messages(to=event.user_email))
    left = "SELECT count(*) FROM notifications WHERE order_id < 0 AND next_try_at > now() + interval '14 minutes'"
    assert own_shop.sql("notifications", f"{left} AND status = 'pending' AND tries = 0") == [(500,)]


@pytest.mark.parametrize(
    "query, index",
    (
        ({}, "Index Only Scan Backward using notifications_pkey"),
        ({"after_id": 30_000}, "Index Only Scan using notifications_pkey"),
        ({"status": "failed"}, "using ix_notifications_failed"),
        ({"order_id": 5000}, "uq_notifications_order_id_sequence"),
        ({"recipient": "7@forage.example"}, "Index Only Scan using ix_notifications_recipient_email on"),
    ),
)
def test_a_list_is_found_by_an_index(database, query, index):
    with filled_database(database("notifications"), HISTORY_AND_BACKLOG, (0,)) as connection:
        plan, _ = read_notifications(explaining(connection), None, load(NotificationQuery(), query))

    assert index in plan, plan


def test_the_limit_of_an_address_is_checked_without_reading_what_was_summed_up(database):
    _, execute = STORE_FOR_UNPROVEN.execute.split("; ")
    parameters = dict.fromkeys(PARAMETER.findall(execute))
    with filled_database(database("notifications"), HISTORY_AND_BACKLOG + ACCOUNT_MAILS, (0,)) as connection:
        connection.exec_driver_sql("SET plan_cache_mode = force_generic_plan")
        connection.exec_driver_sql(STORE_FOR_UNPROVEN.prepare)
        plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN {execute}", parameters).scalars())

    assert plan.count("ix_notifications_recipient_email_created_at ") == 2, plan
    assert "ix_notifications_recipient_email " not in plan, plan
