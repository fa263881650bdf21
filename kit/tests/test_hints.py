"""nameko_reliable.hints: at most one hint for each key in an interval, and always the last one."""

import time

import eventlet
import pytest
from eventlet.event import Event
from kombu import Exchange
from sqlalchemy import text

from bakery import Base, OvenWarmed
from nameko_reliable.database import Database
from nameko_reliable.events import broadcast_handler
from nameko_reliable.hints import Hints
from nameko_reliable.rpc import ClusterClient, rpc
from nameko_reliable.testing.waiting import wait_for


@pytest.fixture
def received(published_events):
    """The published hints: [(oven, degrees), …]"""
    return lambda: [(hint.oven, hint.degrees) for hint in published_events.all(OvenWarmed)]


@pytest.fixture
def listener(broker):
    """The queue of a listener that consumes nothing."""
    exchange = Exchange("bakery.events", type="topic", durable=True)
    broker.declare("listener", exchange=exchange, routing_key="oven.warmed", durable=True)
    return "listener"


def bakery_of(interval_seconds):
    class Bakery:
        name = "bakery"

        db = Database(Base)
        hints = Hints(interval_seconds=interval_seconds)

        @rpc
        def warm(self, oven, degrees, rank=0, fail=False):
            with self.db.transaction() as session:
                self.hints.after_commit(session, OvenWarmed(oven=oven, degrees=degrees), key=oven, rank=rank)
                if fail:
                    raise ZeroDivisionError

        @rpc
        def warm_all(self, degrees):
            for oven in (1, 2):
                self.hints.send(OvenWarmed(oven=oven, degrees=degrees), key=oven, rank=degrees)

        @rpc
        def warm_after_a_rollback(self):
            with self.db.transaction() as session:
                self.hints.after_commit(session, OvenWarmed(oven=1, degrees=1))
                session.execute(text("SELECT 1"))
                session.rollback()
                self.hints.after_commit(session, OvenWarmed(oven=1, degrees=2))

        @rpc
        def warm_before_a_savepoint(self):
            with self.db.transaction() as session:
                self.hints.after_commit(session, OvenWarmed(oven=1, degrees=1))
                with session.begin_nested():
                    pass
                raise ZeroDivisionError

        @rpc
        def warm_to(self, degrees):
            with self.db.transaction() as session:
                self.hints.after_commit(session, OvenWarmed(oven=1, degrees={degrees}))

    return Bakery


def test_a_hint_is_sent_after_the_commit(run_service, rpc, broker, listener):
    run_service(bakery_of(0))

    rpc.bakery.warm(1, 180)

    [message] = wait_for(lambda: broker.peek(listener))
    assert (message.payload["oven"], message.payload["degrees"]) == (1, 180)
    assert message.properties["delivery_mode"] == 1
    assert message.headers["nameko.request_id"]


def test_hints_arrive_again_after_their_exchange_was_deleted(run_service, rpc, broker, monkeypatch):
    monkeypatch.setattr("nameko_reliable.amqp.consumers.DECLARE_SECONDS", 0.2)
    received = []

    class Baker:
        name = "baker"

        @broadcast_handler(OvenWarmed)
        def look(self, event):
            received.append(event.degrees)

    run_service(bakery_of(0))
    run_service(Baker)
    rpc.bakery.warm(1, 180)
    wait_for(lambda: received == [180])

    with broker.channel() as channel:
        channel.exchange_delete("bakery.events")

    wait_for(lambda: broker.bindings("bakery.events"))
    # The first hint may be lost with the exchange.
    wait_for(lambda: rpc.bakery.warm(1, 200) or received[1:])


def test_a_hint_to_a_deleted_exchange_fails_no_call(run_service, cluster, broker, received, caplog):
    asked, leave = Event(), Event()

    class Bakery(bakery_of(0)):
        cluster = ClusterClient()

        @rpc
        def ask(self):
            return self.cluster.kitchen.look()

    class Kitchen:
        name = "kitchen"

        @rpc
        def look(self):
            asked.send()
            leave.wait()
            return "tidy"

    run_service(Bakery)
    run_service(Kitchen)
    asking = eventlet.spawn(cluster.bakery.ask)
    asked.wait()
    with broker.channel() as channel:
        channel.exchange_delete("bakery.events")

    cluster.bakery.warm(1, 180)

    wait_for(lambda: "messages were lost" in caplog.text)
    leave.send()
    assert asking.wait() == "tidy"
    wait_for(lambda: cluster.bakery.warm(1, 200) or (1, 200) in received())


def test_a_full_queue_does_not_delay_calls(run_service, cluster, broker, listener):
    class Bakery(bakery_of(0)):
        cluster = ClusterClient()

        @rpc
        def warm_and_look(self, oven):
            self.warm(oven, 180)
            return self.cluster.kitchen.look(oven)

    class Kitchen:
        name = "kitchen"

        @rpc
        def look(self, oven):
            return oven

    run_service(Bakery)
    run_service(Kitchen)
    cluster.bakery.warm(0, 180)
    wait_for(lambda: broker.depth(listener) == 1)
    with broker.full(listener):
        threads = [eventlet.spawn(cluster.bakery.warm_and_look, oven) for oven in range(1, 101)]

        answers = [thread.wait() for thread in threads]

    assert answers == list(range(1, 101))
    assert broker.depth(listener) == 1


def test_a_rollback_drops_the_hint(run_service, rpc, received):
    run_service(bakery_of(0))

    with pytest.raises(Exception, match="ZeroDivisionError"):
        rpc.bakery.warm(1, 180, fail=True)

    rpc.bakery.warm(1, 200)
    wait_for(lambda: received() == [(1, 200)])


def test_a_rollback_within_the_block_drops_earlier_hints(run_service, rpc, received):
    run_service(bakery_of(0))

    rpc.bakery.warm_after_a_rollback()

    wait_for(lambda: received() == [(1, 2)])


def test_releasing_a_savepoint_sends_nothing(run_service, rpc, received):
    run_service(bakery_of(0))

    with pytest.raises(Exception, match="ZeroDivisionError"):
        rpc.bakery.warm_before_a_savepoint()

    rpc.bakery.warm(1, 200)
    wait_for(lambda: received() == [(1, 200)])


def test_within_an_interval_the_first_and_the_last_hint_are_sent(run_service, cluster, received):
    run_service(bakery_of(0.5))
    cluster.bakery.warm(2, 0)
    began = time.monotonic()

    threads = [eventlet.spawn(cluster.bakery.warm, 1, degrees) for degrees in range(20)]
    for thread in threads:
        thread.wait()
    cluster.bakery.warm(1, 999)

    wait_for(lambda: received()[-1:] == [(1, 999)])
    assert (2, 0) in received()
    assert len(received()) <= 2 + (time.monotonic() - began) / 0.5


def test_the_waiting_hint_with_the_highest_rank_is_sent(run_service, cluster, received):
    run_service(bakery_of(2))
    cluster.bakery.warm(1, 0)

    cluster.bakery.warm(1, 200, rank=2)
    cluster.bakery.warm(1, 100, rank=1)

    wait_for(lambda: received() == [(1, 0), (1, 200)])


def test_hints_of_several_keys_are_sent_at_once_and_each_ends_with_its_last(run_service, cluster, received):
    run_service(bakery_of(0.5))

    for degrees in (50, 100, 150):
        cluster.bakery.warm_all(degrees)

    wait_for(lambda: {(1, 50), (2, 50), (1, 150), (2, 150)} <= set(received()))


def test_a_stopping_service_sends_the_last_hint(run_service, rpc, received):
    container = run_service(bakery_of(0.5))
    rpc.bakery.warm(1, 180)
    rpc.bakery.warm(1, 200)

    container.stop()

    assert received() == [(1, 180), (1, 200)]


def test_an_idle_key_uses_no_memory(run_service, rpc):
    container = run_service(bakery_of(0.1))
    [hints] = [provider for provider in container.dependencies if isinstance(provider, Hints)]

    for oven in range(10):
        rpc.bakery.warm(oven, 180)

    wait_for(lambda: not hints._waiting)


def test_a_hint_that_is_not_json_fails_only_its_transaction(run_service, rpc, received, deaths):
    container = run_service(bakery_of(0))

    with pytest.raises(Exception, match="TypeError"):
        rpc.bakery.warm_to(180)

    assert not deaths(container)


def test_a_hint_is_lost_while_the_broker_is_unreachable(run_service, cluster, proxy, received, deaths, caplog):
    container = run_service(bakery_of(0), AMQP_URI=proxy.uri)
    cluster.bakery.warm(1, 1)
    wait_for(lambda: received() == [(1, 1)])
    [hints] = [provider for provider in container.dependencies if isinstance(provider, Hints)]
    proxy.go_away()

    hints.send({"body": b"{}", "routing_key": "oven.warmed", "headers": {}}, key=1, rank=0)

    wait_for(lambda: "a hint of oven.warmed was lost" in caplog.text)
    assert not deaths(container)
