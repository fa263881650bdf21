from services.notifications import Notifications
from tests.factories import order_created
from tests.infrastructure.metrics import Watched
from tests.infrastructure.waiting import wait_for


def test_failed_and_pending_mails_are_told_with_the_oldest_one_s_age(own_shop, smtp):
    watched = Watched(own_shop.run(Notifications))
    refused, postponed = order_created(), order_created()
    smtp.reject(refused.user_email, "550 No such user")
    smtp.reject(postponed.user_email, "450 Later")

    own_shop.publish(refused)
    own_shop.publish(postponed)

    wait_for(lambda: watched.value("forage_mails", status="failed") == 1)
    wait_for(lambda: watched.value("forage_mails", status="pending") == 1)
    assert watched.value("forage_mails_oldest_pending_age_seconds") > 0
