"""When a mail is tried again, and when it is given up, without a database."""

from datetime import timedelta

import pytest

from services.notifications_models import GIVE_UP_AFTER, UNCERTAIN_PAUSES, Notification

MOMENT = timedelta(seconds=1)
ANY_AGE = timedelta(0)


def a_mail(**columns):
    return Notification(**{"attempts": 0, "tries": 0, "doubts": 0, "by_hand": False, "waited": timedelta(0)} | columns)


def pause_seconds(changes):
    assert "status" not in changes
    # The column becomes `now() + pause`.
    return changes["next_try_at"].right.value.total_seconds()


def test_a_temporarily_refused_mail_is_retried_after_one_minute_to_one_hour():
    pauses = [pause_seconds(a_mail(attempts=attempts).postponed("451 Later", ANY_AGE)) for attempts in range(8)]

    assert pauses == [60, 120, 240, 480, 960, 1920, 3600, 3600]


def test_an_unreachable_server_is_tried_again_within_30_seconds():
    pauses = [pause_seconds(a_mail(tries=tries).unreachable("No route", ANY_AGE)) for tries in range(6)]

    assert pauses == [2, 4, 8, 16, 30, 30]


def test_an_unreachable_server_costs_a_mail_no_attempt():
    assert "attempts" not in a_mail().unreachable("No route", ANY_AGE)


@pytest.mark.parametrize("outcome", (Notification.postponed, Notification.unreachable))
def test_a_mail_is_given_up_a_day_after_its_first_try(outcome):
    waited = timedelta(hours=5)
    mail = a_mail(tries=9, waited=waited)

    assert "status" not in outcome(mail, "Later", GIVE_UP_AFTER + waited)
    assert outcome(mail, "Later", GIVE_UP_AFTER + waited + MOMENT)["status"] == "failed"


@pytest.mark.parametrize("outcome", (Notification.postponed, Notification.unreachable))
def test_a_mail_that_was_never_tried_is_not_given_up_however_old_it_is(outcome):
    assert "status" not in outcome(a_mail(), "Later", timedelta(days=365))


@pytest.mark.parametrize("outcome", (Notification.postponed, Notification.unreachable))
def test_a_retry_by_hand_is_tried_once(outcome):
    assert outcome(a_mail(by_hand=True), "Later", ANY_AGE)["status"] == "failed"


def test_a_mail_that_may_have_been_sent_waits_longer_and_fails_the_third_time():
    outcomes = [a_mail(doubts=doubts).uncertain("Timed out after the dot") for doubts in range(3)]

    assert [changes["status"] for changes in outcomes] == ["uncertain", "uncertain", "failed"]
    assert [changes["next_try_at"].right.value for changes in outcomes[:2]] == list(UNCERTAIN_PAUSES)


def test_a_permanently_refused_mail_fails_at_once():
    assert a_mail().refused("550 No such user")["status"] == "failed"
