"""nameko_reliable.testing: what a project's own tests stand on."""

from bakery import Base, Cake, CakeBaked, InboxEntry
from nameko_reliable.database import Database
from nameko_reliable.events import broadcast_handler, event_handler
from nameko_reliable.testing.databases import Databases, Tables
from nameko_reliable.testing.waiting import wait_for


def test_an_event_that_a_test_publishes_comes_to_subscribers_and_listeners(run_service, broker, tables):
    heard = []

    class Cafe:
        name = "cafe"

        db = Database()

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
