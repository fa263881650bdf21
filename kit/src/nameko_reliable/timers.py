"""Nameko's `timer`, by the monotonic clock.

    @timer(interval=60)
    def warm_oven(self):
        …

Nameko's own uses the wall clock: when that is set back by an hour, the timer does not run for an hour.
"""

import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import eventlet
from nameko.timer import Timer

P = ParamSpec("P")
R = TypeVar("R")


class MonotonicTimer(Timer):
    def _run(self) -> None:
        due_at = time.monotonic() + (0 if self.eager else self.interval)
        while not self._stopped_by(due_at):
            self.handle_timer_tick()
            self.worker_complete.wait()
            self.worker_complete.reset()
            due_at += self.interval

    def _stopped_by(self, due_at: float) -> bool:
        with eventlet.Timeout(max(0, due_at - time.monotonic()), False):
            self.should_stop.wait()
        return bool(self.should_stop.ready())


timer: Callable[..., Callable[[Callable[P, R]], Callable[P, R]]] = MonotonicTimer.decorator
