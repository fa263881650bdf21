"""Work off a table: at once when there is something to do, else every so often.

    class Bakery:
        bell = Bell()

        @poll(interval_seconds=1, workers=2)
        def bake_next(self):
            '''Returns true while there may be more.'''

        @event_handler(OrderPlaced)
        def store(self, event):
            with self.db.transaction() as session:
                …
                self.bell.ring_after_commit(session)

        @crew(interval_seconds=1, most=20)
        def call_customers(self, member):
            '''Beside the workers, for what waits minutes for others. More begin while all say that they are slow.'''
            found = True
            while member.goes_on(found):
                found = self._call_some(member)

What there is to do is in the table, so nothing is lost with a process.
"""

import logging
import time
from contextlib import contextmanager
from typing import Any

import eventlet
from eventlet.event import Event
from nameko.containers import WorkerContext
from nameko.exceptions import ContainerBeingKilled
from nameko.extensions import DependencyProvider, Entrypoint, SharedExtension

from nameko_reliable.sessions import after_commit

logger = logging.getLogger(__name__)

CREW_STOP_SECONDS = 5
# Between two looks of `wait_until`.
LOOK_SECONDS = 0.05


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


class Interrupted(Exception):
    """The service stops, and the block that it leaves was one that may be cut off."""


class Crew(Entrypoint):
    """Runs the method in greenlets beside the workers: one at first, and up to `most` while all of them are slow.

    The method gets its Member, and goes on for as long as that says. After an exception, which is logged, it begins
    again after the interval. A stop waits CREW_STOP_SECONDS for members that can't be interrupted.
    """

    rope = _Rope()

    def __init__(self, interval_seconds, most, **kwargs):
        super().__init__(**kwargs)
        self.interval_seconds, self.most = interval_seconds, most
        self.is_stopping = False
        self._members = []

    def setup(self):
        self.rope.loops.append(self)

    def start(self):
        self._begin()

    def stop(self):
        self.is_stopping = True
        members = list(self._members)
        for member in members:
            member.stop()
        with eventlet.Timeout(CREW_STOP_SECONDS, False):
            for member in members:
                member.wait()

    def ring(self):
        for member in self._members:
            member.ring()

    def grow(self):
        """As many again, once none of the members can be expected soon."""
        if not self.is_stopping and not any(member.is_available for member in self._members):
            for _ in range(min(len(self._members), self.most - len(self._members))):
                self._begin()

    def has_others_than(self, member):
        return any(other.is_available for other in self._members if other is not member)

    @property
    def size(self):
        return len(self._members)

    def _begin(self):
        member = Member(self)
        self._members.append(member)
        member.start(self._run)

    def _run(self, member):
        try:
            while not self.is_stopping and not self._run_method(member):
                member.pause(self.interval_seconds)
        finally:
            self._members.remove(member)

    def _run_method(self, member):
        """True if it returned, false after an exception."""
        failures = []

        def finish(worker_ctx, result, exc_info):
            # Nameko has logged the exception.
            failures.extend([exc_info] if exc_info else [])
            return result, exc_info

        # What Nameko does in a greenlet of its workers' pool, of which members take none.
        service = self.container.service_cls()
        self.container._run_worker(WorkerContext(self.container, service, self, (member,)), finish)
        return not failures


crew = Crew.decorator


class Member:
    """One of a crew: `goes_on` between two rounds, `slow` and `interruptible` within one."""

    def __init__(self, crew):
        self._crew = crew
        self._rung = Event()
        self._thread: Any = None
        self._is_interruptible = False
        self.is_available = True

    def start(self, run):
        self._thread = self._crew.container.spawn_managed_thread(lambda: run(self), identifier=repr(self._crew))

    def goes_on(self, found):
        """Whether there is to be another round: after a bell or the interval if the last one found nothing.

        No more once the service stops, or for one of several that found nothing.
        """
        self.is_available = True
        if not found and not self.is_stopping:
            if self._crew.has_others_than(self):
                # While its method ends, it is none of the others that the last one may leave the work to.
                self.is_available = False
                return False
            self.pause(self._crew.interval_seconds)
        return not self.is_stopping

    @property
    def is_stopping(self):
        return self._crew.is_stopping

    @property
    def share(self):
        """Of one: what this member may take at once, as the others have a part in it, too."""
        return 1 / self._crew.size

    def slow(self):
        """Others are not to wait for this member's round: more begin, should there be none."""
        self.is_available = False
        self._crew.grow()

    @contextmanager
    def interruptible(self):
        """A block that raises Interrupted when the service stops."""
        if self.is_stopping:
            raise Interrupted
        self._is_interruptible = True
        try:
            yield
        finally:
            self._is_interruptible = False

    def ring(self):
        if not self._rung.ready():
            self._rung.send()

    def pause(self, seconds):
        """Until the bell, the service's stop, or so many seconds."""
        with eventlet.Timeout(seconds, False):
            self._rung.wait()
        if self._rung.ready():
            self._rung.reset()

    def stop(self):
        self.ring()
        if self._is_interruptible:
            eventlet.kill(self._thread, Interrupted)

    def wait(self):
        self._thread.wait()


def wait_until(condition, seconds):
    """Look until the condition is true, for so many seconds. Returns whether it is."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        eventlet.sleep(LOOK_SECONDS)
    return True


@contextmanager
def beside(work):
    """Run `work(pause)` in a greenlet beside the block.

    `pause(seconds)` returns true once the block is left, for the work to end; the block doesn't wait for it.
    """
    is_over = Event()

    def pause(seconds):
        with eventlet.Timeout(seconds, False):
            is_over.wait()
        return is_over.ready()

    eventlet.spawn(work, pause)
    try:
        yield
    finally:
        is_over.send()
