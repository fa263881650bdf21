"""When a mail is tried again, and when it is given up, without a database."""

from datetime import timedelta
from uuid import UUID

import pytest

from services.notifications_models import GIVE_UP_AFTER, UNCERTAIN_PAUSES, ClaimedMail

MOMENT = timedelta(seconds=1)
ANY_AGE = timedelta(0)


def a_mail(**columns):
    mail = {
        "id": 1,
        "event_id": UUID(int=1),
        "event_name": "order.created",
        "payload": {},
        "order_id": 1,
        "sequence": 1,
        "recipient_email": "ada@forage.example",
        "request_id": None,
        "traceparent": None,
        "status": "pending",
        "attempts": 0,
        "tries": 0,
        "doubts": 0,
        "waited": timedelta(0),
        "by_hand": False,
        "lease": UUID(int=2),
        "age": ANY_AGE,
    }
    return ClaimedMail(**mail | columns)


def pause_seconds(outcome):
    assert not outcome.is_over
    return outcome.pause.total_seconds()


def test_a_temporarily_refused_mail_is_retried_after_one_minute_to_one_hour():
    pauses = [pause_seconds(a_mail(attempts=attempts).postponed("451 Later", ANY_AGE)) for attempts in range(8)]

    assert pauses == [60, 120, 240, 480, 960, 1920, 3600, 3600]


def test_an_unreachable_server_is_tried_again_within_30_seconds():
    pauses = [pause_seconds(a_mail(tries=tries).unreachable("No route", ANY_AGE)) for tries in range(6)]

    assert pauses == [2, 4, 8, 16, 30, 30]


def test_an_unreachable_server_costs_a_mail_no_attempt():
    assert a_mail().unreachable("No route", ANY_AGE).attempts is None


@pytest.mark.parametrize("outcome", (ClaimedMail.postponed, ClaimedMail.unreachable))
def test_a_mail_is_given_up_a_day_after_its_first_try(outcome):
    waited = timedelta(hours=5)
    mail = a_mail(tries=9, waited=waited)

    assert not outcome(mail, "Later", GIVE_UP_AFTER + waited).is_over
    assert outcome(mail, "Later", GIVE_UP_AFTER + waited + MOMENT).status == "failed"


@pytest.mark.parametrize("outcome", (ClaimedMail.postponed, ClaimedMail.unreachable))
def test_a_mail_that_was_never_tried_is_not_given_up_however_old_it_is(outcome):
    assert not outcome(a_mail(), "Later", timedelta(days=365)).is_over


@pytest.mark.parametrize("outcome", (ClaimedMail.postponed, ClaimedMail.unreachable))
def test_a_retry_by_hand_is_tried_once(outcome):
    assert outcome(a_mail(by_hand=True), "Later", ANY_AGE).status == "failed"


def test_a_mail_that_may_have_been_sent_waits_longer_and_fails_the_third_time():
    outcomes = [a_mail(doubts=doubts).uncertain("Timed out after the dot") for doubts in range(3)]

    assert [outcome.status for outcome in outcomes] == ["uncertain", "uncertain", "failed"]
    assert [outcome.pause for outcome in outcomes] == [*UNCERTAIN_PAUSES, None]


def test_a_permanently_refused_mail_fails_at_once():
    assert a_mail().refused("550 No such user").status == "failed"
