"""Nameko's `timer` by the monotonic clock.

    @timer(interval=60)
    def warm_oven(self):
        …

Nameko's own goes by the wall clock: one that is set back an hour keeps it from running for an hour.
"""

import time

import eventlet
from nameko.timer import Timer


class MonotonicTimer(Timer):
    def _run(self):
        due_at = time.monotonic() + (0 if self.eager else self.interval)
        while not self._stopped_by(due_at):
            self.handle_timer_tick()
            self.worker_complete.wait()
            self.worker_complete.reset()
            due_at += self.interval

    def _stopped_by(self, due_at):
        with eventlet.Timeout(max(0, due_at - time.monotonic()), False):
            self.should_stop.wait()
        return self.should_stop.ready()


timer = MonotonicTimer.decorator
