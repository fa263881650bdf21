"""What a refresh token and a failed login allow, without a database."""

from datetime import UTC, datetime, timedelta

import pytest

from contracts.users import InvalidSession
from services.users_models import (
    ACCOUNT_FAILURES,
    ADDRESS_FAILURES,
    REUSE_GRACE,
    RefreshToken,
    TokenReused,
    seconds_to_wait,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
MOMENT = timedelta(microseconds=1)


def a_token(used_at=None, expires_at=NOW + MOMENT):
    return RefreshToken(replaced_at=used_at, expires_at=expires_at)


def test_an_unused_token_can_be_used_until_it_expires():
    assert a_token().was_used(NOW) is False

    with pytest.raises(InvalidSession):
        a_token(expires_at=NOW).was_used(NOW)


def test_a_token_can_be_used_again_within_the_grace_period():
    assert a_token(used_at=NOW - REUSE_GRACE).was_used(NOW) is True


def test_a_used_token_is_refused_after_the_grace_period():
    with pytest.raises(TokenReused):
        a_token(used_at=NOW - REUSE_GRACE - MOMENT).was_used(NOW)


def test_an_expired_token_is_no_sign_of_theft():
    with pytest.raises(InvalidSession):
        a_token(used_at=NOW - timedelta(days=1), expires_at=NOW).was_used(NOW)


@pytest.mark.parametrize("allowed", (ACCOUNT_FAILURES, ADDRESS_FAILURES))
def test_the_wait_after_failed_logins_doubles_up_to_a_minute(allowed):
    waits = [seconds_to_wait((failures, 0), allowed) for failures in range(allowed - 1, allowed + 9)]

    assert waits == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_time_that_has_passed_shortens_the_wait():
    assert seconds_to_wait((ACCOUNT_FAILURES + 3, 5.5), ACCOUNT_FAILURES) == 2.5
