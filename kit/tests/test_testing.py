"""nameko_reliable.testing: what a project's own tests stand on."""

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


def test_a_published_event_is_waited_for_and_given_as_its_class(run_service, rpc, published_events, wait_for_event):
    run_service(Bakery)

    rpc.bakery.bake("Torte", "Strudel", oven=2)

    strudel = wait_for_event(CakeBaked, where=lambda event: event.cake == "Strudel")
    assert (strudel.cake, strudel.oven, type(strudel)) == ("Strudel", 2, CakeBaked)
    assert [event.cake for event in published_events.all(CakeBaked)] == ["Torte", "Strudel"]


def test_a_plain_event_is_waited_for_by_source_and_name(run_service, wait_for_event):
    class Press:
        name = "press"

        dispatch = EventDispatcher()

        @once
        def review(self):
            self.dispatch("review.written", {"stars": 3})

    run_service(Press)

    assert wait_for_event("press", "review.written", where=lambda payload: payload["stars"] > 2) == {"stars": 3}


def test_an_event_that_does_not_come_is_said_to_be_missing_among_those_that_came(broker, wait_for_event):
    broker.publish_event(CakeBaked(cake="Torte"))

    with pytest.raises(AssertionError, match=r"cake.baked is not among those published: .*cake='Torte'"):
        wait_for_event(CakeBaked, where=lambda event: event.cake == "Strudel", seconds=0)


def test_a_held_outbox_shows_the_events_that_were_committed(run_service, rpc, outbox, published_events, wait_for_event):
    run_service(Bakery)

    with outbox(Bakery).held() as pending:
        rpc.bakery.bake("Torte", "Strudel", oven=1)
        rpc.bakery.bake("Pie", oven=2)

        assert [event.cake for event in pending()] == ["Torte", "Strudel", "Pie"]
        assert [event.cake for event in pending(key=2)] == ["Pie"]
        assert published_events.all(CakeBaked) == []
    wait_for_event(CakeBaked, where=lambda event: event.cake == "Pie")
    wait_for(lambda: outbox(Bakery).pending() == [])


def test_an_event_that_a_test_publishes_comes_to_subscribers_and_listeners(run_service, broker, tables):
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


def test_the_databases_of_a_service_are_copies_that_share_nothing(servers):
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
