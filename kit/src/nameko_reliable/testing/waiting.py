"""Waiting for what is to become true."""

import time


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
