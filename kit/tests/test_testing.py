"""nameko_reliable.testing: the fixtures for tests of services."""

import pytest
from nameko.events import EventDispatcher
from nameko.testing.services import once

from bakery import Base, Cake, CakeBaked, InboxEntry, OutboxEntry
from nameko_reliable.database import Database
from nameko_reliable.events import broadcast_handler, event_handler
from nameko_reliable.outbox import Outbox
from nameko_reliable.rpc import rpc
from nameko_reliable.testing.databases import Databases, Tables
from nameko_reliable.testing.waiting import wait_for


class Bakery:
    name = "bakery"

    db = Database(Base)
    outbox = Outbox(OutboxEntry, events=[CakeBaked])

    @rpc
    def bake(self, *cakes, oven=0):
        with self.db.transaction() as session:
            for cake in cakes:
                session.add(Cake(name=cake))
                self.outbox.add(session, CakeBaked(cake=cake, oven=oven), key=oven)


def test_wait_for_event_returns_an_instance_of_the_events_class(run_service, rpc, published_events, wait_for_event):
    run_service(Bakery)

    rpc.bakery.bake("Torte", "Strudel", oven=2)

    strudel = wait_for_event(CakeBaked, where=lambda event: event.cake == "Strudel")
    assert (strudel.cake, strudel.oven, type(strudel)) == ("Strudel", 2, CakeBaked)
    assert [event.cake for event in published_events.all(CakeBaked)] == ["Torte", "Strudel"]


def test_wait_for_event_returns_the_payload_of_an_event_without_a_class(run_service, wait_for_event):
    class Press:
        name = "press"

        dispatch = EventDispatcher()

        @once
        def review(self):
            self.dispatch("review.written", {"stars": 3})

    run_service(Press)

    assert wait_for_event("press", "review.written", where=lambda payload: payload["stars"] > 2) == {"stars": 3}


def test_a_missing_event_is_reported_with_the_published_ones(broker, wait_for_event):
    broker.publish_event(CakeBaked(cake="Torte"))

    with pytest.raises(AssertionError, match=r"cake.baked is not among those published: .*cake='Torte'"):
        wait_for_event(CakeBaked, where=lambda event: event.cake == "Strudel", seconds=0)


def test_a_held_outbox_shows_the_committed_events(run_service, rpc, outbox, published_events, wait_for_event):
    run_service(Bakery)

    with outbox(Bakery).held() as pending:
        rpc.bakery.bake("Torte", "Strudel", oven=1)
        rpc.bakery.bake("Pie", oven=2)

        assert [event.cake for event in pending()] == ["Torte", "Strudel", "Pie"]
        assert [event.cake for event in pending(key=2)] == ["Pie"]
        assert published_events.all(CakeBaked) == []
    wait_for_event(CakeBaked, where=lambda event: event.cake == "Pie")
    wait_for(lambda: outbox(Bakery).pending() == [])


def test_publish_event_reaches_subscribers_and_broadcast_handlers(run_service, broker, tables):
    heard = []

    class Cafe:
        name = "cafe"

        db = Database(Base)

        @event_handler(CakeBaked)
        def display(self, event):
            with self.db.transaction() as session:
                if InboxEntry.take(session, event.event_id):
                    session.add(Cake(name=event.cake))

        @broadcast_handler(CakeBaked)
        def hear(self, event):
            heard.append(event)

    run_service(Cafe)
    event = CakeBaked(cake="Torte")

    broker.publish_event(event)

    wait_for(lambda: heard == [event])
    wait_for(lambda: tables("cafe").all(Cake.name) == ["Torte"])


def test_databases_of_one_service_are_separate_copies(servers):
    filled = []

    def make_tables(service, engine):
        filled.append(service)
        Base.metadata.create_all(engine)

    databases = Databases(servers[0], make_tables)
    uris = [databases.new(service) for service in ("bakery", "cafe", "bakery")]
    first, _, second = map(Tables, uris)

    first.execute(Cake.__table__.insert().values(name="Torte"))

    assert (first.all(Cake.name), second.all(Cake.name), filled) == (["Torte"], [], ["bakery", "cafe"])
    for each in (first, second):
        each.engine.dispose()
    for uri in uris:
        databases.drop(uri)


def test_a_test_that_starts_a_server_is_marked(request, broker):
    assert request.node.get_closest_marker("server")
