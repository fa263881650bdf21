from datetime import UTC, datetime, timedelta

from nameko_reliable.testing.waiting import wait_for


def wait_for_a_day_with_time_left():
    """For tests that depend on the current day in UTC. In its last 30 seconds it waits for the next day."""
    day = (datetime.now(UTC) + timedelta(seconds=30)).date()
    wait_for(lambda: datetime.now(UTC).date() == day, seconds=40)
