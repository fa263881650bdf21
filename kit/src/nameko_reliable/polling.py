"""Work through the rows of a table: at once when there is something to do, else at an interval.

    class Bakery:
        wakeup = Wakeup()

        @poll(interval_seconds=1, workers=2)
        def bake_next(self):
            '''Returns true while there may be more.'''

        @event_handler(OrderPlaced)
        def store(self, event):
            with self.db.transaction() as session:
                …
                self.wakeup.send_after_commit(session)

        @elastic_poll(interval_seconds=1, max_pollers=20)
        def call_customers(self, poller):
            '''For work that waits minutes for others. It takes no worker; more pollers start while all are slow.'''
            found = True
            while poller.next_round(found):
                found = self._call_some(poller)

The work is in the table, so nothing is lost with a process.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import eventlet
from eventlet.event import Event
from eventlet.hubs import get_hub
from nameko.containers import WorkerContext
from nameko.exceptions import ContainerBeingKilled
from nameko.extensions import DependencyProvider, Entrypoint, SharedExtension
from sqlalchemy.orm import Session

from nameko_reliable.sessions import after_commit

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger(__name__)

POLLERS_STOP_SECONDS = 5
# Between two checks of `wait_until`.
CHECK_SECONDS = 0.05


class Loop:
    """Calls `work` in a greenlet: again at once if it returned true or `wake` was called, else after the interval.

    An exception of `work` is logged and counts as false. Only `stop` ends the loop.
    """

    def __init__(self, work: Callable[[], object], interval_seconds: float) -> None:
        self._work, self._interval_seconds = work, interval_seconds
        self._woken = Event()
        self._stopped = False
        self._thread: Any = None

    def start(self, container: Any) -> None:
        self._thread = container.spawn_managed_thread(self._run, identifier=repr(self._work))

    def wake(self) -> None:
        if not self._woken.ready():
            self._woken.send()

    def stop(self) -> None:
        """Return when the current call of `work` has ended."""
        self._stopped = True
        self.wake()
        if self._thread is not None:
            self._thread.wait()

    def _run(self) -> None:
        while not self._stopped:
            if self._woken.ready():
                self._woken.reset()
            try:
                more = self._work()
            except Exception:
                logger.exception("a round failed; the next one starts in %s s", self._interval_seconds)
                more = False
            if not more and not self._stopped:
                self._pause()

    def _pause(self) -> None:
        with eventlet.Timeout(self._interval_seconds, False):
            self._woken.wait()


class _WakeupTargets(SharedExtension):
    """The polls of a service by the names of their methods, for its Wakeups."""

    def __init__(self) -> None:
        self.by_method: dict[str, list[Loop | ElasticPoll]] = {}

    def add(self, method: str, *targets: "Loop | ElasticPoll") -> None:
        self.by_method[method] = list(targets)

    def wake(self, methods: Iterable[str]) -> None:
        for method in methods or self.by_method:
            for target in self.by_method[method]:
                target.wake()


class Wakeup(DependencyProvider):
    """Wakes the polls of these methods in this process, or all polls. Those of other replicas run at their interval."""

    targets = _WakeupTargets()

    def __init__(self, *methods: str) -> None:
        self._methods = methods

    def start(self) -> None:
        if unknown := [method for method in self._methods if method not in self.targets.by_method]:
            raise TypeError(f"Wakeup({unknown[0]!r}): {self.container.service_name} has no poll of that name.")

    def get_dependency(self, worker_ctx: Any) -> "Wakeup":
        return self

    def send(self) -> None:
        self.targets.wake(self._methods)

    def send_after_commit(self, session: Session) -> None:
        after_commit(session, self.send)


class Poll(Entrypoint):
    """workers: how many greenlets of each replica run the method at the same time."""

    wakeup_targets = _WakeupTargets()

    def __init__(self, interval_seconds: float, workers: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.interval_seconds, self.workers = interval_seconds, workers

    def setup(self) -> None:
        self._loops = [Loop(self._run_worker, self.interval_seconds) for _ in range(self.workers)]
        self.wakeup_targets.add(self.method_name, *self._loops)

    def start(self) -> None:
        for loop in self._loops:
            loop.start(self.container)

    def stop(self) -> None:
        for loop in self._loops:
            loop.stop()

    def _run_worker(self) -> object:
        finished = Event()

        def finish(worker_ctx: Any, result: object, exc_info: Any) -> tuple[object, Any]:
            # Nameko has logged the exception. The next round starts after the interval.
            finished.send(result if exc_info is None else False)
            return result, exc_info

        try:
            self.container.spawn_worker(self, (), {}, handle_result=finish)
        except ContainerBeingKilled:
            return False
        return finished.wait()


poll: Callable[..., Callable[[Callable[P, R]], Callable[P, R]]] = Poll.decorator


class Interrupted(Exception):
    """The service is stopping, and has ended a block that was marked `interruptible`."""


class ElasticPoll(Entrypoint):
    """Runs the method in pollers, greenlets beside the workers: one at first, up to `max_pollers` while all are slow.

    The method gets its Poller and must return when `Poller.next_round` returns false. After an exception, which is
    logged, it is called again after the interval. A stop waits POLLERS_STOP_SECONDS for pollers that can't be
    interrupted.
    """

    wakeup_targets = _WakeupTargets()

    def __init__(self, interval_seconds: float, max_pollers: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.interval_seconds, self.max_pollers = interval_seconds, max_pollers
        self.is_stopping = False
        self._pollers: list[Poller] = []

    def setup(self) -> None:
        self.wakeup_targets.add(self.method_name, self)

    def start(self) -> None:
        self._start_poller()

    def stop(self) -> None:
        self.is_stopping = True
        pollers = list(self._pollers)
        for poller in pollers:
            poller.stop()
        with eventlet.Timeout(POLLERS_STOP_SECONDS, False):
            for poller in pollers:
                poller.wait()

    def wake(self) -> None:
        for poller in self._pollers:
            poller.wake()

    def grow(self, max_pollers: int) -> None:
        """Double the number of pollers, to at most this number, if none of them is available."""
        if not self.is_stopping and not any(poller.is_available for poller in self._pollers):
            for _ in range(min(len(self._pollers), max_pollers - len(self._pollers))):
                self._start_poller()

    def has_available_besides(self, poller: "Poller") -> bool:
        return any(other.is_available for other in self._pollers if other is not poller)

    @property
    def size(self) -> int:
        return len(self._pollers)

    def _start_poller(self) -> None:
        poller = Poller(self)
        self._pollers.append(poller)
        poller.start(self._run)

    def _run(self, poller: "Poller") -> None:
        try:
            while not self.is_stopping and not self._run_method(poller):
                poller.pause(self.interval_seconds)
        finally:
            self._pollers.remove(poller)

    def _run_method(self, poller: "Poller") -> bool:
        """True if it returned, false after an exception."""
        failures: list[Any] = []

        def finish(worker_ctx: Any, result: object, exc_info: Any) -> tuple[object, Any]:
            # Nameko has logged the exception.
            failures.extend([exc_info] if exc_info else [])
            return result, exc_info

        # Runs the method as Nameko's worker pool would, but takes no place in that pool.
        service = self.container.service_cls()
        self.container._run_worker(WorkerContext(self.container, service, self, (poller,)), finish)
        return not failures


elastic_poll: Callable[..., Callable[[Callable[P, R]], Callable[P, R]]] = ElasticPoll.decorator


class Poller:
    """One greenlet of an ElasticPoll. Call `next_round` between two rounds, `mark_slow` and `interruptible` in one."""

    def __init__(self, elastic_poll: ElasticPoll) -> None:
        self._elastic_poll = elastic_poll
        self._woken = Event()
        self._thread: Any = None
        self._is_interruptible = False
        self.is_available = True

    def start(self, run: "Callable[[Poller], None]") -> None:
        container, identifier = self._elastic_poll.container, repr(self._elastic_poll)
        self._thread = container.spawn_managed_thread(lambda: run(self), identifier=identifier)

    def next_round(self, found: object) -> bool:
        """Whether to run another round. Unless the last one found something, wait first: for a wakeup, or the interval.

        found: whether there may be more. Pass false after a batch that was not full: another round would find nothing.
        Returns false when the service stops, and when this poller found nothing and another one is available.
        """
        self.is_available = True
        if not found and not self.is_stopping:
            if self._elastic_poll.has_available_besides(self):
                # This poller ends. If it counted as available, the last other one could end too and leave none.
                self.is_available = False
                return False
            self.pause(self._elastic_poll.interval_seconds)
        if self._woken.ready() and not self.is_stopping:
            # What the wakeup was about is committed, so the next round finds it.
            self._woken.reset()
        return not self.is_stopping

    @property
    def is_stopping(self) -> bool:
        return self._elastic_poll.is_stopping

    @property
    def share(self) -> float:
        """The fraction of a batch that this poller should take, to leave some to the others."""
        return 1 / self._elastic_poll.size

    def mark_slow(self, max_pollers: int | None = None) -> None:
        """Report that this round takes long. If no poller is available, more are started for the other work.

        max_pollers: a lower maximum than the poll's, for rounds that are less slow.
        """
        self.is_available = False
        self._elastic_poll.grow(max_pollers or self._elastic_poll.max_pollers)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A block that raises Interrupted when the service stops."""
        if self.is_stopping:
            raise Interrupted
        self._is_interruptible = True
        try:
            yield
        finally:
            self._is_interruptible = False

    def wake(self) -> None:
        if not self._woken.ready():
            self._woken.send()

    def pause(self, seconds: float) -> None:
        """Wait for a wakeup, for the service's stop, or at most this many seconds."""
        with eventlet.Timeout(seconds, False):
            self._woken.wait()
        if self._woken.ready():
            self._woken.reset()

    def stop(self) -> None:
        self.wake()
        if self._is_interruptible:
            eventlet.kill(self._thread, Interrupted)

    def wait(self) -> None:
        self._thread.wait()


def wait_until(condition: Callable[[], object], seconds: float) -> bool:
    """Wait until the condition is true, for at most this many seconds. Returns whether it became true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        eventlet.sleep(CHECK_SECONDS)
    return True


@contextmanager
def in_background(work: Callable[[Callable[[float], bool]], object], after_seconds: float = 0) -> Iterator[None]:
    """If the block still runs after this time, run `work(pause)` in a greenlet of its own beside it.

    `pause(seconds)` returns true once the block has ended; then the work must return. The block doesn't wait for that.
    """
    is_over = Event()

    def pause(seconds: float) -> bool:
        with eventlet.Timeout(seconds, False):
            is_over.wait()
        return bool(is_over.ready())

    # Most blocks end before that time, and a timer costs less than a greenlet.
    start = get_hub().schedule_call_global(after_seconds, eventlet.spawn, work, pause)
    try:
        yield
    finally:
        start.cancel()
        is_over.send()
