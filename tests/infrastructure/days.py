from datetime import UTC, datetime, timedelta

from nameko_reliable.testing.waiting import wait_for


def wait_for_a_day_with_time_left():
    """For a test that speaks of today. In a day's last half minute, UTC, it returns when the next one has begun."""
    day = (datetime.now(UTC) + timedelta(seconds=30)).date()
    wait_for(lambda: datetime.now(UTC).date() == day, seconds=40)
