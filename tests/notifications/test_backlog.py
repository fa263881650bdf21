"""What a table that has grown does to the search for the next mail."""

from sqlalchemy import create_engine, text
from sqlalchemy.dialects import postgresql

from services.notifications_models import Notification

# Statuses as they are after an outage of the mail server, two events an order.
HISTORY_AND_BACKLOG = text(
    """
    INSERT INTO notifications
        (event_id, event_name, payload, order_id, sequence, user_id, recipient_email, subject, message, status)
    SELECT gen_random_uuid(), 'order.created', '{}', n / 2, 1 + n % 2, 1, 'ada@forage.example', 'Your order', 'Thanks',
        CASE WHEN n <= 20000 THEN 'sent' ELSE 'pending' END
    FROM generate_series(2, 22001) AS n
    """
)


def test_the_next_mail_of_a_backlog_is_found_without_a_look_at_those_that_were_sent(database):
    engine = create_engine(database("notifications"))
    statement = Notification.due().limit(1).with_for_update(skip_locked=True)
    question = str(statement.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True}))
    with engine.begin() as connection:
        connection.execute(HISTORY_AND_BACKLOG)
        connection.execute(text("ANALYZE notifications"))

        plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN {question}").scalars())

    engine.dispose()
    assert "Index Scan using ix_notifications_pending on notifications " in plan, plan
    assert "Sort" not in plan and "notifications_pkey" not in plan, plan
