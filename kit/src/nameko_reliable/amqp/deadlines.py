"""The time that a call has left, by monotonic clocks alone: a wall clock that is wrong, or is set, refuses no call.

A call carries the seconds it has left, its sender's monotonic clock, and an id of the sender's process. Two
machines' monotonic clocks run at the same pace and have nothing else in common. So the receiver takes its own clock
less the sender's, less the smallest such difference that it saw from that process within the last minute, as the
time for which the message waited.

The first message of a process, or of a minute, counts as not having waited. The broker drops a call that waits in
the queue for longer than it has left, so such a call may run up to twice its deadline, and no longer. A process
whose machine was suspended, and its monotonic clock with it, is refused for a minute at most.

The sender's wall clock comes along for a gauge of skew, and is used for nothing else.
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
# Those heard from longest ago are forgotten first.
MAX_SENDERS = 1000
MAX_TIME_LEFT_SECONDS = 3600
MAX_CLOCK_SECONDS = 10**11
# `deadline` is of a worker's context, which Nameko's own clients and dispatchers hand on: it means nothing elsewhere.
FIELDS = ("time_left", "sent_at", "sender", "wall_time", "deadline")
# Names this process: each process has a monotonic clock of its own.
PROCESS_ID = uuid4().hex

CLOCK_SKEW = Gauge(
    "clock_skew_seconds",
    "This process's wall clock less that of a process that called it within five minutes: the one that differs most.",
    ["service"],
    registry=KIT,
)


def time_fields(deadline: float) -> dict[str, float | str]:
    """What a call carries of its deadline, a time of this process's monotonic clock."""
    now = time.monotonic()
    return {"time_left": max(0, deadline - now), "sent_at": now, "sender": PROCESS_ID, "wall_time": time.time()}


class SenderClocks:
    """What one receiver knows of the clocks of the processes that call it."""

    def __init__(self) -> None:
        self._senders: dict[str, _Sender] = {}

    def deadline(self, fields: Mapping[str, Any]) -> float | None:
        """The deadline of a call that has just come, by this process's monotonic clock; None for a call without one.

        fields: what `time_fields` made, or the time left alone. Raises MalformedRequest.
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
        """The wall clocks' largest difference, of either sign; 0 when no process has called lately."""
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
        # (second, the smallest difference in it), both growing: what is larger than a later one is never asked for.
        self._minima: deque[tuple[int, float]] = deque()

    def smallest_difference(self, difference: float, second: int) -> float:
        """The smallest difference within the last minute, this one included."""
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
