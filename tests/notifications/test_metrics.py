from nameko_reliable.testing.metrics import Watched
from nameko_reliable.testing.waiting import wait_for
from services.notifications import Notifications
from tests.factories import a_customer, order_created


def test_metrics_count_unsent_mails_and_show_the_age_of_the_oldest(own_shop, smtp):
    watched = Watched(own_shop.run(Notifications))
    refused, postponed = order_created(), order_created()
    smtp.reject(refused.user_email, "550 No such user")
    smtp.reject(postponed.user_email, "450 Later")

    own_shop.publish(refused)
    own_shop.publish(postponed)

    wait_for(lambda: watched.value("forage_mails", status="failed") == 1)
    wait_for(lambda: watched.value("forage_mails", status="pending") == 1)
    wait_for(lambda: watched.value("forage_mails_oldest_pending_age_seconds") > 0)


def test_senders_do_not_count_as_busy_workers(own_shop, smtp):
    watched = Watched(own_shop.run(Notifications))

    own_shop.publish(event := order_created())

    wait_for(lambda: smtp.messages(to=event.user_email))
    wait_for(lambda: watched.value("forage_workers_busy") == 0)


def test_a_summary_does_not_count_as_waiting_before_it_is_due(own_shop, smtp):
    watched = Watched(own_shop.run(Notifications))
    customer = a_customer()

    for _ in range(7):
        own_shop.publish(order_created(**customer))

    wait_for(lambda: len(smtp.messages(to=customer["user_email"])) == 6)
    wait_for(lambda: watched.value("forage_mails", status="pending") == 1)
    wait_for(lambda: watched.value("forage_mails_oldest_pending_age_seconds") == 0)


def test_the_age_of_a_summary_counts_from_when_it_is_due(own_shop, smtp):
    watched = Watched(own_shop.run(Notifications))
    customer = a_customer()
    for _ in range(7):
        own_shop.publish(order_created(**customer))
    wait_for(lambda: len(smtp.messages(to=customer["user_email"])) == 6)
    smtp.reject(customer["user_email"], "450 Later")

    wait_for(lambda: own_shop.sql("notifications", "SELECT 1 FROM notifications WHERE order_id IS NULL"))

    own_shop.sql(
        "notifications",
        "UPDATE notifications SET created_at = created_at - interval '61 min',"
        " next_try_at = next_try_at - interval '61 min' WHERE order_id IS NULL",
    )

    tried = "SELECT 1 FROM notifications WHERE order_id IS NULL AND attempts = 1"
    wait_for(lambda: own_shop.sql("notifications", tried))
    age_seconds = wait_for(lambda: watched.value("forage_mails_oldest_pending_age_seconds"))
    assert 60 <= age_seconds < 600
