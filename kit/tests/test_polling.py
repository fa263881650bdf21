"""nameko_reliable.polling: a loop ends with its service and not before."""

import eventlet
import pytest
from eventlet.event import Event
from sqlalchemy import select

from bakery import Base
from nameko_reliable.database import Database
from nameko_reliable.polling import Bell, Interrupted, Loop, crew, poll
from nameko_reliable.rpc import rpc
from nameko_reliable.testing.waiting import wait_for

NEVER = 600


class Threads:
    """A container's, as far as a Loop needs one."""

    def spawn_managed_thread(self, function, identifier):
        return eventlet.spawn(function)


@pytest.fixture
def loop_of():
    loops = []

    def loop_of(work, interval_seconds=NEVER):
        loop = Loop(work, interval_seconds)
        loops.append(loop)
        loop.start(Threads())
        return loop

    yield loop_of
    for loop in loops:
        loop.stop()


def test_a_loop_goes_on_at_once_while_there_is_more(loop_of):
    rounds = []

    loop_of(lambda: rounds.append(1) or len(rounds) < 10)

    wait_for(lambda: len(rounds) == 10)


def test_a_loop_looks_again_after_its_interval(loop_of):
    rounds = []

    loop_of(lambda: rounds.append(1), interval_seconds=0.05)

    wait_for(lambda: len(rounds) > 5)


def test_an_exception_does_not_end_a_loop(loop_of, caplog):
    rounds = []

    def work():
        rounds.append(1)
        raise KeyError("a bug")

    loop_of(work, interval_seconds=0.05)

    wait_for(lambda: len(rounds) > 3)
    assert "KeyError: 'a bug'" in caplog.text


def test_a_ring_wakes_a_loop(loop_of):
    rounds = []
    loop = loop_of(lambda: rounds.append(1))
    wait_for(lambda: len(rounds) == 1)

    loop.ring()

    wait_for(lambda: len(rounds) == 2)


def test_a_ring_during_a_round_is_followed_by_another_round(loop_of):
    rounds, leave = [], Event()

    def work():
        rounds.append(1)
        leave.wait()

    loop = loop_of(work)
    wait_for(lambda: rounds)
    loop.ring()
    loop.ring()

    leave.send()

    wait_for(lambda: len(rounds) == 2)


def test_a_stopped_loop_has_finished_its_round(loop_of):
    begun, finished = Event(), []

    def work():
        begun.send()
        eventlet.sleep(0.2)
        finished.append(1)
        return True

    loop = loop_of(work)
    begun.wait()

    loop.stop()

    assert finished == [1]


class Bakery:
    name = "bakery"

    db = Database(Base)
    bell = Bell()

    rounds, failing, busy = [], False, 0

    @poll(interval_seconds=NEVER, workers=2)
    def bake_next(self):
        self.rounds.append(self)
        if type(self).failing:
            raise KeyError("a bug")

    @rpc
    def order(self, fail=False):
        with self.db.transaction() as session:
            session.execute(select(1))
            self.bell.ring_after_commit(session)
            if fail:
                raise ZeroDivisionError


@pytest.fixture
def bakery():
    class Fresh(Bakery):
        rounds = []

    return Fresh


def test_each_worker_of_a_poll_looks_at_the_start(run_service, bakery):
    run_service(bakery)

    wait_for(lambda: len(bakery.rounds) == 2)
    assert bakery.rounds[0] is not bakery.rounds[1]


def test_a_bell_wakes_the_polls_after_the_commit(run_service, bakery, rpc):
    run_service(bakery)
    wait_for(lambda: len(bakery.rounds) == 2)

    rpc.bakery.order()

    wait_for(lambda: len(bakery.rounds) == 4)


def test_a_bell_is_silent_after_a_rollback(run_service, bakery, rpc):
    run_service(bakery)
    wait_for(lambda: len(bakery.rounds) == 2)

    with pytest.raises(Exception, match="ZeroDivisionError"):
        rpc.bakery.order(fail=True)

    rpc.bakery.order()
    wait_for(lambda: len(bakery.rounds) >= 4)
    assert len(bakery.rounds) == 4


def test_an_exception_does_not_end_a_poll(run_service, bakery, rpc, deaths):
    bakery.failing = True
    container = run_service(bakery)
    wait_for(lambda: len(bakery.rounds) == 2)

    rpc.bakery.order()

    wait_for(lambda: len(bakery.rounds) == 4)
    assert not deaths(container)


def test_a_stopping_service_waits_for_its_polls(run_service):
    begun, leave, finished = Event(), Event(), []

    class Slow:
        name = "slow"

        @poll(interval_seconds=NEVER)
        def bake_next(self):
            begun.send()
            leave.wait()
            finished.append(1)

    container = run_service(Slow)
    begun.wait()
    stopping = eventlet.spawn(container.stop)
    eventlet.sleep(0.1)

    leave.send()

    stopping.wait()
    assert finished == [1]


def test_a_killed_service_ends_its_polls(run_service):
    begun = Event()

    class Slow:
        name = "slow"

        @poll(interval_seconds=NEVER)
        def bake_next(self):
            begun.send()
            Event().wait()

    container = run_service(Slow)
    begun.wait()

    with eventlet.Timeout(5, AssertionError("the kill hangs")):
        container.kill()

    assert not container._managed_threads


class Office:
    """A crew of up to 4; each member's round waits for `done`."""

    name = "office"

    begun, done, interrupted = [], Event(), []

    @crew(interval_seconds=NEVER, most=4)
    def call(self, member):
        found = True
        while member.goes_on(found):
            self.begun.append(member)
            try:
                with member.interruptible():
                    member.slow()
                    self.done.wait()
            except Interrupted:
                self.interrupted.append(member)
            found = False

    @rpc
    def greet(self):
        return "Hello"


@pytest.fixture
def office():
    class Fresh(Office):
        begun, done, interrupted = [], Event(), []

    return Fresh


def test_a_crew_grows_to_its_most_while_all_are_slow_and_takes_no_worker(run_service, office, rpc):
    run_service(office, max_workers=1)

    wait_for(lambda: len(office.begun) == 4)

    assert rpc.office.greet() == "Hello"
    assert len(set(office.begun)) == 4


def test_a_crew_with_nothing_to_do_shrinks_to_one(run_service, office):
    container = run_service(office)
    wait_for(lambda: len(office.begun) == 4)

    office.done.send()

    [entrypoint] = [each for each in container.entrypoints if each.method_name == "call"]
    wait_for(lambda: entrypoint.size == 1)


def test_the_last_of_a_crew_stays_while_the_others_take_long_to_leave(run_service):
    rounds, leaving, done, left = [], [], Event(), Event()

    class Slow:
        name = "slow"

        @crew(interval_seconds=0.01, most=4)
        def call(self, member):
            found = True
            while member.goes_on(found):
                found = False
                rounds.append(member)
                if not done.ready():
                    member.slow()
                    done.wait()
            leaving.append(member)
            left.wait()

    container = run_service(Slow)
    wait_for(lambda: len(rounds) == 4)

    done.send()
    wait_for(lambda: len(rounds) > 20)
    left.send()

    [entrypoint] = container.entrypoints
    wait_for(lambda: entrypoint.size == 1)
    assert len(leaving) == 3


def test_a_stopping_service_interrupts_its_crew(run_service, office):
    container = run_service(office)
    wait_for(lambda: len(office.begun) == 4)

    with eventlet.Timeout(5, AssertionError("the stop hangs")):
        container.stop()

    assert len(office.interrupted) == 4


def test_an_exception_does_not_end_a_crew(run_service, deaths):
    begun = []

    class Hasty:
        name = "hasty"

        @crew(interval_seconds=0.05, most=1)
        def call(self, member):
            begun.append(member)
            if len(begun) == 1:
                raise KeyError("a bug")

    container = run_service(Hasty)

    wait_for(lambda: len(begun) == 2)
    assert not deaths(container)
