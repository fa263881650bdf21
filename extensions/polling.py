"""Work off a table: at once when there is something to do, else every so often.

class Notifications:
    bell = Bell()

    @poll(interval_seconds=1, workers=2)
    def deliver_next(self):
        '''Returns true while there may be more.'''

    @event_handler(OrderPlaced)
    def store(self, event):
        with self.db.transaction() as session:
            …
            self.bell.ring_after_commit(session)
"""

import logging

import eventlet
from eventlet.event import Event
from nameko.exceptions import ContainerBeingKilled
from nameko.extensions import DependencyProvider, Entrypoint, SharedExtension

from extensions.database import after_commit

logger = logging.getLogger(__name__)


class Loop:
    """Calls `work` in a greenlet: again at once while it returns true or was rung, else after the interval.

    An exception of `work` is logged and counts as false: nothing ends the loop but `stop`.
    """

    def __init__(self, work, interval_seconds):
        self._work, self._interval_seconds = work, interval_seconds
        self._rung = Event()
        self._stopped = False
        self._thread = None

    def start(self, container):
        self._thread = container.spawn_managed_thread(self._run, identifier=repr(self._work))

    def ring(self):
        if not self._rung.ready():
            self._rung.send()

    def stop(self):
        """Return when the call under way is over."""
        self._stopped = True
        self.ring()
        if self._thread is not None:
            self._thread.wait()

    def _run(self):
        while not self._stopped:
            if self._rung.ready():
                self._rung.reset()
            try:
                more = self._work()
            except Exception:
                logger.exception("a round failed, the next comes in %s s", self._interval_seconds)
                more = False
            if not more and not self._stopped:
                self._pause()

    def _pause(self):
        with eventlet.Timeout(self._interval_seconds, False):
            self._rung.wait()


class _Rope(SharedExtension):
    """What ties the bell to the polls of its service."""

    def __init__(self):
        self.loops = []

    def ring(self):
        for loop in self.loops:
            loop.ring()


class Bell(DependencyProvider):
    """Wakes the polls of this process; those of other replicas look for themselves at their interval."""

    rope = _Rope()

    def get_dependency(self, worker_ctx):
        return self

    def ring_after_commit(self, session):
        after_commit(session, self.rope.ring)


class Poll(Entrypoint):
    """workers: how many greenlets of each replica run the method at the same time."""

    rope = _Rope()

    def __init__(self, interval_seconds, workers=1, **kwargs):
        super().__init__(**kwargs)
        self.interval_seconds, self.workers = interval_seconds, workers

    def setup(self):
        self._loops = [Loop(self._run_worker, self.interval_seconds) for _ in range(self.workers)]
        self.rope.loops.extend(self._loops)

    def start(self):
        for loop in self._loops:
            loop.start(self.container)

    def stop(self):
        for loop in self._loops:
            loop.stop()

    def _run_worker(self):
        finished = Event()

        def finish(worker_ctx, result, exc_info):
            # Nameko has logged the exception; here it counts as nothing more to do.
            finished.send(result if exc_info is None else False)
            return result, exc_info

        try:
            self.container.spawn_worker(self, (), {}, handle_result=finish)
        except ContainerBeingKilled:
            return False
        return finished.wait()


poll = Poll.decorator
