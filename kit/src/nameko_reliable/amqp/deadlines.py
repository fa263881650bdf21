"""The time that a call has left, by monotonic clocks. A wall clock that is wrong or is set does not matter.

A call carries the seconds it has left, the reading of its sender's monotonic clock, and an id of the sender's process.
Monotonic clocks of two machines run at the same pace from unrelated origins. The receiver subtracts the sender's
reading from its own. The smallest such difference of the last minute belongs to the message that waited least. How far
a message's difference exceeds it is the time that the message waited.

The first message of a process, or of a minute, counts as one that did not wait. The broker drops a call that waits in
the queue for longer than it has left, so such a call runs for at most twice its deadline. When a sender's machine was
suspended, and its monotonic clock with it, its calls are refused for at most a minute.

The reading of the sender's wall clock is used only for the gauge of clock skew.
"""

import time
from collections import deque
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from nameko.exceptions import MalformedRequest
from prometheus_client import Gauge

from nameko_reliable.telemetry.registry import KIT

WINDOW_SECONDS = 60
SKEW_SECONDS = 300
# Beyond it, the sender with the oldest call is dropped.
MAX_SENDERS = 1000
MAX_TIME_LEFT_SECONDS = 3600
MAX_CLOCK_SECONDS = 10**11
# `deadline` is in a worker's context data, which stock Nameko clients and dispatchers pass on. A monotonic time has no
# meaning in another process.
FIELDS = ("time_left", "sent_at", "sender", "wall_time", "deadline")
# Monotonic clocks of two processes cannot be compared.
PROCESS_ID = uuid4().hex

CLOCK_SKEW = Gauge(
    "clock_skew_seconds",
    "How far this process's wall clock is ahead of a caller's, negative if behind: the largest of the last 5 minutes.",
    ["service"],
    registry=KIT,
)


def time_fields(deadline: float) -> dict[str, float | str]:
    """The fields that a call carries. deadline: by this process's monotonic clock."""
    now = time.monotonic()
    return {"time_left": max(0, deadline - now), "sent_at": now, "sender": PROCESS_ID, "wall_time": time.time()}


class SenderClocks:
    """The clocks of the processes that call one receiver."""

    def __init__(self) -> None:
        self._senders: dict[str, _Sender] = {}

    def deadline(self, fields: Mapping[str, Any]) -> float | None:
        """The deadline of a call that has just arrived, by this process's monotonic clock. None if it has none.

        fields: from `time_fields`, or only the time left. Raises MalformedRequest.
        """
        if fields.get("time_left") is None:
            return None
        now = time.monotonic()
        time_left = _number(fields, "time_left", MAX_TIME_LEFT_SECONDS)
        if fields.get("sender") is None:
            return now + time_left
        sender = self._sender(fields["sender"])
        difference = now - _number(fields, "sent_at")
        waited = difference - sender.smallest_difference(difference, int(now))
        sender.last_call_at = now
        if fields.get("wall_time") is not None:
            sender.skew = time.time() - _number(fields, "wall_time") - waited
        return now + time_left - waited

    def skew(self) -> float:
        """The largest difference of wall clocks, positive or negative; 0 when no process has called lately."""
        since = time.monotonic() - SKEW_SECONDS
        skews = (sender.skew for sender in self._senders.values() if sender.last_call_at >= since)
        return max(skews, key=abs, default=0)

    def _sender(self, process: object) -> "_Sender":
        if not isinstance(process, str) or len(process) > 64:
            raise MalformedRequest("`sender` must be the id of a process, of up to 64 characters.")
        sender = self._senders.pop(process, None) or _Sender()
        self._senders[process] = sender
        if len(self._senders) > MAX_SENDERS:
            del self._senders[next(iter(self._senders))]
        return sender


class _Sender:
    def __init__(self) -> None:
        self.last_call_at, self.skew = 0.0, 0.0
        # (second, smallest difference in it), both ascending: a difference above a later one is never the minimum.
        self._minima: deque[tuple[int, float]] = deque()

    def smallest_difference(self, difference: float, second: int) -> float:
        """The smallest difference of the last minute, including this one."""
        while self._minima and self._minima[-1][1] >= difference:
            self._minima.pop()
        if not self._minima or self._minima[-1][0] != second:
            self._minima.append((second, difference))
        while self._minima[0][0] <= second - WINDOW_SECONDS:
            self._minima.popleft()
        return self._minima[0][1]


def _number(fields: Mapping[str, Any], name: str, largest: float = MAX_CLOCK_SECONDS) -> float:
    value: object = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= largest:
        raise MalformedRequest(f"`{name}` must be a number of seconds from 0 to {largest}.")
    return value
