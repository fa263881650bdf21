"""What PostgreSQL reads for a page of a long list of notifications."""

import pytest

from contracts.notifications import NotificationQuery
from contracts.types import load
from services.notifications_statements import read_notifications
from tests.infrastructure.plans import explaining, filled_database

NOTIFICATIONS = """
    INSERT INTO notifications
        (event_id, event_name, payload, order_id, sequence, user_id, recipient_email, subject, message, status)
    SELECT gen_random_uuid(), 'order.created', '{}', n, 1, 1, 'ada@forage.example', 'Your order', 'Thanks', 'sent'
    FROM generate_series(1, 10000) AS n
"""


@pytest.mark.parametrize(
    "query, index",
    (
        ({}, "Index Only Scan Backward using notifications_pkey"),
        ({"after_id": 5000}, "Index Only Scan using notifications_pkey"),
        ({"status": "failed"}, "using ix_notifications_failed"),
        ({"order_id": 5000}, "using uq_notifications_order_id_sequence"),
    ),
)
def test_a_page_is_found_by_an_index(database, query, index):
    with filled_database(database("notifications"), NOTIFICATIONS) as connection:
        plan, _ = read_notifications(explaining(connection), None, load(NotificationQuery(), query))

    assert index in plan, plan
