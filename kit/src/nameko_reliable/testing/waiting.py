"""Waiting for a condition, with a deadline."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(condition: Callable[[], T], seconds: float = 30, pause_seconds: float = 0.05) -> T:
    """Return the first true value of `condition()`. Raises AssertionError if there is none in time.

    A condition that raises AssertionError is not met yet. At the deadline, its last message is raised.
    """
    deadline = time.monotonic() + seconds
    while True:
        value: T | None
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
