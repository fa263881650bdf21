import time
from datetime import UTC, datetime, timedelta


def wait_for(condition, seconds=30, pause_seconds=0.05):
    """Returns the first true value of `condition()`. Raises AssertionError when there is none in time.

    A condition that raises AssertionError is not met yet; its message is told at the deadline.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            value = condition()
            reason = f"{condition} was {value!r}"
        except AssertionError as error:
            value, reason = None, str(error)
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"Waited {seconds} s in vain: {reason}")
        time.sleep(pause_seconds)


def wait_for_a_day_with_time_left():
    """For a test that speaks of today. In a day's last half minute, UTC, it returns when the next one has begun."""
    day = (datetime.now(UTC) + timedelta(seconds=30)).date()
    wait_for(lambda: datetime.now(UTC).date() == day, seconds=40)
