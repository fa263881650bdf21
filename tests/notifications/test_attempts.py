"""What the mail server's answers make of a notification, without a database."""

from datetime import UTC, datetime, timedelta

import pytest

from services.notifications_models import Notification

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture
def notification():
    return Notification(status="pending", attempts=0, tries=0, created_at=NOW)


def test_an_accepted_mail_is_sent_and_its_earlier_error_is_forgotten(notification):
    notification.postponed("450 Later")

    notification.accepted()

    assert (notification.status, notification.attempts, notification.error_message) == ("sent", 2, None)


def test_a_refused_mail_has_failed(notification):
    notification.refused("550 No such user")

    assert (notification.status, notification.attempts, notification.error_message) == ("failed", 1, "550 No such user")


def test_the_fifth_postponement_is_the_last(notification):
    statuses = []
    for _ in range(5):
        notification.postponed("450 Later")
        statuses.append(notification.status)

    assert statuses == ["pending"] * 4 + ["failed"]


def test_a_server_that_is_away_counts_no_attempt_for_a_day(notification):
    for hours in range(25):
        notification.unanswered("away", now=NOW + timedelta(hours=hours))

    assert (notification.status, notification.attempts, notification.tries) == ("pending", 0, 25)
    notification.unanswered("away", now=NOW + timedelta(hours=24, seconds=1))
    assert (notification.status, notification.attempts) == ("failed", 0)
