"""The limit of order mails to an unproven address, and the summary of the others."""

import pytest

from contracts.notifications import NotificationCreated
from nameko_reliable.testing.waiting import wait_for
from services.notifications import Notifications
from tests.factories import a_customer, order_created, order_status_updated


@pytest.fixture
def customer(shop, smtp):
    return a_customer()


@pytest.fixture
def pushes(published_events, customer):
    """`pushes()`: all pushes to the customer so far."""
    return lambda: published_events.all(NotificationCreated, where=lambda push: push.user_id == customer["user_id"])


def orders_that_are_cancelled(number, customer, **fields):
    """The events of `number` orders, each placed and cancelled."""
    for _ in range(number):
        placed = order_created(**customer, **fields)
        yield placed
        yield order_status_updated(placed, "cancelled", **fields)


def publish(shop, *events):
    """(status, summary_id) of each notification, once all are stored."""
    for event in events:
        shop.publish(event)
    stored = "SELECT status, summary_id FROM notifications WHERE event_id = ANY(%s)"
    ids = [event.event_id for event in events]
    return wait_for(lambda: len(rows := shop.sql("notifications", stored, ids)) == len(set(ids)) and rows)


def summaries(shop, customer):
    """(id, status) of each summary."""
    # By the event_name by which 0.1.0 knows them.
    made = (
        "SELECT id, status FROM notifications WHERE event_name = 'order.status.updated' AND order_id IS NULL"
        " AND user_id = %s ORDER BY id"
    )
    return shop.sql("notifications", made, customer["user_id"])


def order_mails(smtp, customer):
    return [mail for mail in smtp.messages(to=customer["user_email"]) if mail["X-Forage-Event"] != "order.summary"]


def summary_mails(smtp, customer):
    return [mail for mail in smtp.messages(to=customer["user_email"]) if mail["X-Forage-Event"] == "order.summary"]


def age_rows(shop, customer, minutes):
    """Make all rows of the customer's mails older."""
    shop.sql(
        "notifications",
        "UPDATE notifications SET created_at = created_at - make_interval(mins => %s),"
        " next_try_at = next_try_at - make_interval(mins => %s) WHERE user_id = %s",
        minutes,
        minutes,
        customer["user_id"],
    )


def wait_until_mailed(shop, customer):
    """Wait for all order mails. A summary may stay pending."""
    pending = "SELECT count(*) FROM notifications WHERE user_id = %s AND status = 'pending' AND order_id IS NOT NULL"
    wait_for(lambda: shop.sql("notifications", pending, customer["user_id"]) == [(0,)])


def test_an_unproven_address_gets_six_order_mails_and_every_push(shop, smtp, customer, pushes):
    events = list(orders_that_are_cancelled(5, customer))

    publish(shop, *events)

    wait_until_mailed(shop, customer)
    [(summary_id, status)] = summaries(shop, customer)
    assert status == "pending"
    assert len(smtp.messages(to=customer["user_email"])) == 6
    page = shop.rpc.notifications.list_notifications(user_id=customer["user_id"])
    assert {(row["order_id"], row["event_type"], row["status"]) for row in page["notifications"]} == {
        (event.order_id, kind, "sent")
        for event, kind in zip(events, ("order_confirmation", "order_status_update") * 5, strict=True)
    }
    assert [row["error_message"] for row in page["notifications"]].count(f"summed up in {summary_id}") == 4
    wait_for(lambda: len(pushes()) == 10)


def test_an_hour_later_one_mail_sums_up_the_other_orders(shop, smtp, customer):
    events = list(orders_that_are_cancelled(3, customer))
    placed = [order_created(**customer) for _ in range(25)]
    publish(shop, *events)
    publish(shop, *placed[:-1])
    publish(shop, placed[-1], order_status_updated(placed[-1], "confirmed"))

    age_rows(shop, customer, minutes=61)

    [mail] = wait_for(lambda: summary_mails(smtp, customer))
    assert mail["Subject"] == "Your orders of the last hour, in one mail"
    for part in (mail.get_body(("plain",)).get_content(), mail.get_body(("html",)).get_content()):
        assert f"Order {placed[-1].order_id}" in part and "confirmed" in part
        assert f"Order {placed[5].order_id}" in part and "placed" in part
        assert f"Order {placed[4].order_id}" not in part
        assert "And 5 more orders." in part
        assert f"Order {events[0].order_id}" not in part, "each of its mails went out"
    wait_for(lambda: summaries(shop, customer)[0][1] == "sent")


def test_an_hour_later_order_mails_are_sent_again(shop, smtp, customer):
    publish(shop, *orders_that_are_cancelled(4, customer))
    age_rows(shop, customer, minutes=61)
    wait_for(lambda: summary_mails(smtp, customer))

    publish(shop, *orders_that_are_cancelled(4, customer))

    wait_until_mailed(shop, customer)
    wait_for(lambda: len(order_mails(smtp, customer)) == 12)
    assert [status for _, status in summaries(shop, customer)] == ["sent", "pending"]


def test_a_summary_includes_events_that_come_while_it_waits(shop, smtp, customer):
    publish(shop, *orders_that_are_cancelled(4, customer))
    age_rows(shop, customer, minutes=30)
    shop.sql(
        "notifications",
        "UPDATE notifications SET created_at = created_at - interval '31 minutes' WHERE user_id = %s AND order_id > 0",
        customer["user_id"],
    )

    [(status, summary_id)] = publish(shop, order_created(**customer))

    assert [(summary_id, "pending")] == summaries(shop, customer)
    assert status == "sent"


def test_a_summary_interrupted_by_the_database_is_sent_later(shop, smtp, customer):
    publish(shop, *orders_that_are_cancelled(4, customer))
    lock = f"SELECT pg_advisory_xact_lock(hashtext('order mails to {customer['user_email']}'))"
    with shop.transaction("notifications", lock) as cursor:
        age_rows(shop, customer, minutes=61)
        shop.wait_until_locked("notifications")

        cursor.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'advisory'")

    wait_for(lambda: summary_mails(smtp, customer))
    wait_for(lambda: summaries(shop, customer)[0][1] == "sent")


def test_pending_mails_count_at_any_age(shop, smtp, customer):
    smtp.stop()
    publish(shop, *orders_that_are_cancelled(3, customer))
    age_rows(shop, customer, minutes=300)

    publish(shop, *orders_that_are_cancelled(3, customer))

    smtp.start()
    shop.sql("notifications", "UPDATE notifications SET next_try_at = now() WHERE order_id > 0")
    wait_for(lambda: len(order_mails(smtp, customer)) == 6)
    assert len(summaries(shop, customer)) == 1


def test_a_proven_address_gets_every_mail(shop, smtp, customer):
    publish(shop, *orders_that_are_cancelled(5, customer, email_verified=True))

    wait_for(lambda: len(order_mails(smtp, customer)) == 10)
    assert summaries(shop, customer) == []


def test_handlers_of_two_replicas_keep_the_limit(own_shop, smtp):
    for _ in range(2):
        own_shop.run(Notifications)
    customer = a_customer()
    events = [order_created(**customer) for _ in range(30)]

    # Each event twice.
    stored = publish(own_shop, *events, *events)

    wait_for(lambda: len(order_mails(smtp, customer)) == 6)
    wait_until_mailed(own_shop, customer)
    assert len(order_mails(smtp, customer)) == 6
    [(summary_id, _)] = summaries(own_shop, customer)
    assert stored.count(("sent", summary_id)) == 24


def test_only_admins_can_list_a_summary(shop, smtp, customer, pushes):
    publish(shop, *orders_that_are_cancelled(4, customer))
    [(summary_id, _)] = summaries(shop, customer)

    page = shop.rpc.notifications.list_notifications(recipient=customer["user_email"])

    [summary] = [row for row in page["notifications"] if row["id"] == summary_id]
    assert (summary["event_type"], summary["order_id"], summary["user_id"]) == (
        "order_summary",
        None,
        customer["user_id"],
    )
    own = shop.rpc.notifications.list_notifications(user_id=customer["user_id"])
    assert (own["total"], summary_id in [row["id"] for row in own["notifications"]]) == (8, False)
    wait_for(lambda: len(pushes()) == 8)
