"""nameko_reliable.polling: polls run until their service stops, whatever their methods raise."""

import eventlet
import pytest
from eventlet.event import Event
from sqlalchemy import select

from bakery import Base
from nameko_reliable.database import Database
from nameko_reliable.polling import Interrupted, Loop, Wakeup, elastic_poll, in_background, poll
from nameko_reliable.rpc import rpc
from nameko_reliable.testing.waiting import wait_for

NEVER = 600


class Threads:
    """The part of a container that a Loop uses."""

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


def test_a_loop_runs_again_at_once_while_there_is_more(loop_of):
    rounds = []

    loop_of(lambda: rounds.append(1) or len(rounds) < 10)

    wait_for(lambda: len(rounds) == 10)


def test_a_loop_runs_again_after_its_interval(loop_of):
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


def test_wake_starts_a_round_at_once(loop_of):
    rounds = []
    loop = loop_of(lambda: rounds.append(1))
    wait_for(lambda: len(rounds) == 1)

    loop.wake()

    wait_for(lambda: len(rounds) == 2)


def test_a_wakeup_during_a_round_starts_one_more_round(loop_of):
    rounds, may_end = [], Event()

    def work():
        rounds.append(1)
        may_end.wait()

    loop = loop_of(work)
    wait_for(lambda: rounds)
    loop.wake()
    loop.wake()

    may_end.send()

    wait_for(lambda: len(rounds) == 2)


def test_stopping_a_loop_waits_for_its_round(loop_of):
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
    wakeup = Wakeup()

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
            self.wakeup.send_after_commit(session)
            if fail:
                raise ZeroDivisionError


@pytest.fixture
def bakery():
    class Fresh(Bakery):
        rounds = []

    return Fresh


def test_each_worker_of_a_poll_runs_at_the_start(run_service, bakery):
    run_service(bakery)

    wait_for(lambda: len(bakery.rounds) == 2)
    assert bakery.rounds[0] is not bakery.rounds[1]


def test_a_wakeup_reaches_the_polls_after_the_commit(run_service, bakery, rpc):
    run_service(bakery)
    wait_for(lambda: len(bakery.rounds) == 2)

    rpc.bakery.order()

    wait_for(lambda: len(bakery.rounds) == 4)


def test_a_rollback_drops_the_wakeup(run_service, bakery, rpc):
    run_service(bakery)
    wait_for(lambda: len(bakery.rounds) == 2)

    with pytest.raises(Exception, match="ZeroDivisionError"):
        rpc.bakery.order(fail=True)

    rpc.bakery.order()
    wait_for(lambda: len(bakery.rounds) >= 4)
    assert len(bakery.rounds) == 4


class Cafe:
    name = "cafe"

    wakeup = Wakeup("serve")

    rounds = []

    @poll(interval_seconds=NEVER)
    def serve(self):
        self.rounds.append("serve")

    @poll(interval_seconds=NEVER)
    def clean(self):
        self.rounds.append("clean")

    @rpc
    def order(self):
        self.wakeup.send()


def test_a_wakeup_of_an_unknown_poll_does_not_start(container_factory, config):
    class Closed:
        name = "cafe"

        wakeup = Wakeup("sreve")

        @poll(interval_seconds=NEVER)
        def serve(self):
            pass

    with pytest.raises(TypeError, match="cafe has no poll of that name"):
        container_factory(Closed, config).start()


def test_a_wakeup_of_one_poll_leaves_the_others_waiting(run_service, rpc):
    run_service(Cafe)
    wait_for(lambda: len(Cafe.rounds) == 2)

    for rounds in (3, 4):
        rpc.cafe.order()
        wait_for(lambda rounds=rounds: len(Cafe.rounds) == rounds)

    assert Cafe.rounds[2:] == ["serve", "serve"]


def test_an_exception_does_not_end_a_poll(run_service, bakery, rpc, deaths):
    bakery.failing = True
    container = run_service(bakery)
    wait_for(lambda: len(bakery.rounds) == 2)

    rpc.bakery.order()

    wait_for(lambda: len(bakery.rounds) == 4)
    assert not deaths(container)


def test_a_stopping_service_waits_for_its_polls(run_service):
    begun, may_end, finished = Event(), Event(), []

    class Slow:
        name = "slow"

        @poll(interval_seconds=NEVER)
        def bake_next(self):
            begun.send()
            may_end.wait()
            finished.append(1)

    container = run_service(Slow)
    begun.wait()
    stopping = eventlet.spawn(container.stop)
    eventlet.sleep(0.1)

    may_end.send()

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
    """An elastic poll of up to 4 pollers. Each round waits for `done`."""

    name = "office"

    begun, done, interrupted = [], Event(), []

    @elastic_poll(interval_seconds=NEVER, max_pollers=4)
    def call(self, poller):
        found = True
        while poller.next_round(found):
            self.begun.append(poller)
            try:
                with poller.interruptible():
                    poller.mark_slow()
                    self.done.wait()
            except Interrupted:
                self.interrupted.append(poller)
            found = False

    @rpc
    def greet(self):
        return "Hello"


@pytest.fixture
def office():
    class Fresh(Office):
        begun, done, interrupted = [], Event(), []

    return Fresh


def test_an_elastic_poll_grows_to_its_maximum_while_all_are_slow_and_takes_no_worker(run_service, office, rpc):
    run_service(office, max_workers=1)

    wait_for(lambda: len(office.begun) == 4)

    assert rpc.office.greet() == "Hello"
    assert len(set(office.begun)) == 4


def test_a_round_can_ask_for_fewer_pollers_than_the_maximum(run_service):
    begun, may_end = [], Event()

    class Busy:
        name = "busy"

        @elastic_poll(interval_seconds=NEVER, max_pollers=4)
        def call(self, poller):
            while poller.next_round(not may_end.ready()):
                begun.append(poller)
                poller.mark_slow(max_pollers=2)
                eventlet.sleep(0)

    run_service(Busy)

    wait_for(lambda: len(begun) > 20)
    may_end.send()
    assert len(set(begun)) == 2


def test_an_elastic_poll_without_work_shrinks_to_one_poller(run_service, office):
    container = run_service(office)
    wait_for(lambda: len(office.begun) == 4)

    office.done.send()

    [entrypoint] = [each for each in container.entrypoints if each.method_name == "call"]
    wait_for(lambda: entrypoint.size == 1)


def test_the_last_poller_stays_while_the_others_end_slowly(run_service):
    rounds, ending, done, may_end = [], [], Event(), Event()

    class Slow:
        name = "slow"

        @elastic_poll(interval_seconds=0.01, max_pollers=4)
        def call(self, poller):
            found = True
            while poller.next_round(found):
                found = False
                rounds.append(poller)
                if not done.ready():
                    poller.mark_slow()
                    done.wait()
            ending.append(poller)
            may_end.wait()

    container = run_service(Slow)
    wait_for(lambda: len(rounds) == 4)

    done.send()
    wait_for(lambda: len(rounds) > 20)
    may_end.send()

    [entrypoint] = container.entrypoints
    wait_for(lambda: entrypoint.size == 1)
    assert len(ending) == 3


def test_the_round_after_a_wakeup_is_the_last_one_that_it_causes(run_service):
    rounds = []

    class Hasty:
        name = "hasty"

        @elastic_poll(interval_seconds=NEVER, max_pollers=1)
        def call(self, poller):
            while poller.next_round(len(rounds) < 2):
                rounds.append(poller)
                if len(rounds) == 1:
                    poller.wake()

    container = run_service(Hasty)
    wait_for(lambda: len(rounds) == 2)

    [entrypoint] = container.entrypoints
    entrypoint.wake()

    wait_for(lambda: len(rounds) == 3)
    assert len(rounds) == 3


def test_a_stopping_service_interrupts_its_pollers(run_service, office):
    container = run_service(office)
    wait_for(lambda: len(office.begun) == 4)

    with eventlet.Timeout(5, AssertionError("the stop hangs")):
        container.stop()

    assert len(office.interrupted) == 4


def test_an_exception_does_not_end_an_elastic_poll(run_service, deaths):
    begun = []

    class Hasty:
        name = "hasty"

        @elastic_poll(interval_seconds=0.05, max_pollers=1)
        def call(self, poller):
            begun.append(poller)
            if len(begun) == 1:
                raise KeyError("a bug")

    container = run_service(Hasty)

    wait_for(lambda: len(begun) == 2)
    assert not deaths(container)


def test_work_in_the_background_starts_only_beside_a_block_that_lasts():
    started, may_end = [], Event()

    def work(pause):
        started.append(1)
        while not pause(0.01):
            pass
        may_end.send()

    with in_background(work, after_seconds=NEVER):
        eventlet.sleep(0)
    with in_background(work, after_seconds=0.01):
        wait_for(lambda: started)

    may_end.wait()
    assert started == [1]
