from tests.factories import order_created
from tests.infrastructure.metrics import Watched
from tests.infrastructure.waiting import wait_for


def test_failed_and_pending_mails_are_told_with_the_oldest_one_s_age(shop, smtp):
    watched = Watched(shop.containers["notifications"])
    failed, pending = (watched.value("forage_mails", status=status) for status in ("failed", "pending"))
    refused, postponed = order_created(), order_created()
    smtp.reject(refused.user_email, "550 No such user")
    smtp.reject(postponed.user_email, "450 Later")

    shop.publish(refused)
    shop.publish(postponed)

    wait_for(lambda: watched.value("forage_mails", status="failed") == failed + 1)
    wait_for(lambda: watched.value("forage_mails", status="pending") == pending + 1)
    assert watched.value("forage_mails_oldest_pending_age_seconds") > 0
