"""The search for the next mails in a large table."""

import pytest
from sqlalchemy import create_engine
from sqlalchemy.dialects import postgresql

from services.notifications_models import Notification

# Two events for each order: sent ones, and a backlog of due and waiting ones after an outage of the mail server.
HISTORY_AND_BACKLOG = """
    INSERT INTO notifications
        (event_id, event_name, payload, order_id, sequence, user_id, recipient_email, subject, message, status,
         next_try_at)
    SELECT gen_random_uuid(), 'order.created', '{}', n / 2, 1 + n %% 2, 1, 'ada@forage.example', 'Your order', 'Thanks',
        CASE WHEN n <= 20000 THEN 'sent' ELSE 'pending' END, now() + %s * interval '1 second'
    FROM generate_series(2, 42001) AS n
"""


@pytest.mark.parametrize("due_in_seconds", (-60, 600))
@pytest.mark.parametrize("due", (Notification.due_order_mails, Notification.due_account_mails))
def test_the_next_mails_are_found_without_reading_the_others(database, due, due_in_seconds):
    engine = create_engine(database("notifications"))
    statement = due().limit(20).with_for_update(skip_locked=True)
    question = str(statement.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True}))
    with engine.begin() as connection:
        connection.exec_driver_sql(HISTORY_AND_BACKLOG, (due_in_seconds,))
        connection.exec_driver_sql("ANALYZE notifications")

        plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS) {question}").scalars())

    engine.dispose()
    assert f"Index Scan using ix_notifications_{due.__name__} on notifications" in plan, plan
    assert "Sort" not in plan and "Seq Scan" not in plan, plan
