"""Quorum queues: the broker parks a message that no handler acknowledges, and a crash of the broker loses nothing."""

from eventlet.event import Event
from nameko.standalone.rpc import ClusterRpcProxy
from nameko.testing.services import entrypoint_hook

from bakery import Base, CakeBaked, OutboxEntry
from nameko_reliable.amqp import queues
from nameko_reliable.database import Database
from nameko_reliable.errors import DatabaseUnavailable
from nameko_reliable.events import event_handler
from nameko_reliable.outbox import Outbox
from nameko_reliable.parking import ParkingLot
from nameko_reliable.rpc import rpc
from nameko_reliable.testing.waiting import wait_for

QUEUE = "evt-bakery-cake.baked--cafe.display"
QUORUM = {"EVENT_QUEUE_TYPE": "quorum"}


def cafe_of(handler, **options):
    class Cafe:
        name = "cafe"

        parking = ParkingLot()

        @event_handler(CakeBaked, **options)
        def display(self, event):
            handler(event)

        @rpc
        def list(self):
            return self.parking.list(50)

        @rpc
        def replay(self, message_id):
            return self.parking.replay(message_id)

    return Cafe


class Bakery:
    name = "bakery"

    db = Database(Base)
    outbox = Outbox(OutboxEntry, events=[CakeBaked])

    @rpc
    def bake(self, *cakes):
        with self.db.transaction() as session:
            for cake in cakes:
                self.outbox.add(session, CakeBaked(cake=cake), key="oven")


def test_a_message_over_the_delivery_limit_is_parked_with_its_reason_and_can_be_replayed(
    run_service, cluster, broker, proxy, monkeypatch
):
    monkeypatch.setattr(queues, "DELIVERY_LIMIT", 1)
    tries, leave = [], Event()

    def display(event):
        tries.append(event.cake)
        leave.wait()
        if len(tries) == 3:
            raise ZeroDivisionError

    run_service(cafe_of(display, pauses_seconds=(1,)), AMQP_URI=proxy.uri, **QUORUM)
    event = CakeBaked(cake="Torte")
    broker.publish_event(event, headers={"nameko.request_id": "r-1", "x-attempt": 1})
    for number in (1, 2):
        wait_for(lambda number=number: len(tries) == number)
        proxy.cut()

    wait_for(lambda: broker.depth("parked.cafe") == 1 and broker.consumers("rpc-cafe"))
    [message] = cluster.cafe.list()["messages"]
    leave.send()

    assert (message["queue"], message["attempts"]) == (QUEUE, None)
    assert message["reason"] == "came back unanswered too often: its handlers died, or lost the broker"
    assert message["parked_at"].endswith("Z")
    assert cluster.cafe.replay(message["message_id"])
    # It fails once more and comes back from the delay queue. The broker must not take that for a dead-letter cycle.
    wait_for(lambda: tries == ["Torte"] * 4)
    wait_for(lambda: broker.depth(QUEUE) == broker.depth("delay.1s") == broker.depth("parked.cafe") == 0)


def test_reading_a_parked_message_does_not_count_against_the_delivery_limit(run_service, cluster, broker, monkeypatch):
    monkeypatch.setattr(queues, "DELIVERY_LIMIT", 1)

    def display(event):
        raise ZeroDivisionError

    run_service(cafe_of(display, pauses_seconds=()), **QUORUM)
    for cake in "ab":
        broker.publish_event(CakeBaked(cake=cake))
    wait_for(lambda: broker.depth("parked.cafe") == 2)

    lists = [cluster.cafe.list() for _ in range(25)]

    assert all(parked == lists[0] for parked in lists)
    assert lists[0]["total"] == 2


def test_events_survive_a_broker_crash_in_every_queue(run_service, own_broker):
    """Events that are unsent, with a handler, in a delay queue, or parked; in queues that the relay declared."""
    settings = {"AMQP_URI": own_broker.rabbitmq.uri(), **QUORUM}
    seen, broken = [], {"parked", "delayed", "held"}

    def display(event):
        seen.append(event.cake)
        if event.cake in broken:
            raise DatabaseUnavailable("cafe") if event.cake == "held" else ZeroDivisionError

    bakery = run_service(Bakery, **settings)
    cafe = run_service(cafe_of(display, pauses_seconds=(3,)), **settings)
    with ClusterRpcProxy(settings, timeout=20) as rpc:
        rpc.bakery.bake("parked")
        wait_for(lambda: rpc.cafe.list()["total"] == 1)
        rpc.bakery.bake("delayed", "held")
        wait_for(lambda: {"delayed", "held"} <= set(seen))
        # It may come back before the broker is killed.
        broken.discard("delayed")

        own_broker.kill()
        broken.clear()
        with entrypoint_hook(bakery, "bake") as bake:
            bake("new")
        own_broker.start()
        own_broker.wait_until_ready()

        wait_for(lambda: {*seen[3:]} == {"delayed", "held", "new"})
    [lot] = [provider for provider in cafe.dependencies if isinstance(provider, ParkingLot)]
    assert lot.list(9)["total"] == 1
