"""nameko_reliable.events: a message leaves its queue only when it was handled, or its copy is in another queue."""

import json
from uuid import uuid4

import eventlet
import pytest
from eventlet.event import Event
from kombu import Exchange
from nameko.standalone.events import event_dispatcher
from sqlalchemy import text

from bakery import Base, Cake, CakeBaked, Context
from nameko_reliable import events as kit
from nameko_reliable.database import Database
from nameko_reliable.errors import DatabaseUnavailable
from nameko_reliable.events import EventHandler, broadcast_handler, event_handler
from nameko_reliable.messages import to_payload
from nameko_reliable.testing.waiting import wait_for

QUEUE = "evt-bakery-cake.baked--cafe.display"
SOON = (1, 1)


@pytest.fixture
def send(broker):
    """`send(event)` publishes to the cafe's queue, as the outbox does, or to an exchange. body: sent as it is."""

    def send(event=None, body=None, exchange=None, **properties):
        body = to_payload(event) if body is None else body
        address = {"exchange": exchange, "routing_key": "cake.baked"} if exchange else {"queue": QUEUE}
        broker.publish(body, **address, **properties)

    return send


def cafe_of(handler, **options):
    class Cafe:
        name = "cafe"

        context = Context()

        @event_handler(CakeBaked, **options)
        def display(self, event):
            return handler(self, event)

    return Cafe


def parked(broker):
    return broker.peek("parked.cafe") if broker.queue_exists("parked.cafe") else []


def test_an_event_is_handled_and_acknowledged(run_service, broker, send):
    handled = []
    run_service(cafe_of(lambda cafe, event: handled.append((event, cafe.context))))
    event = CakeBaked(cake="Torte", oven=2)

    send(event, headers={"nameko.request_id": "r-1"})

    [(seen, context)] = wait_for(lambda: handled)
    assert seen == event
    assert context == {"request_id": "r-1", "event_id": str(event.event_id)}
    wait_for(lambda: broker.depth(QUEUE) == 0)


def test_an_event_of_namekos_own_dispatcher_is_handled(run_service, config):
    """By a handler that is not among the subscribers of the event's class."""
    handled = []

    class Museum:
        name = "museum"

        @event_handler(CakeBaked)
        def keep(self, event):
            handled.append(event)

    run_service(Museum)
    event = CakeBaked(cake="Torte")

    event_dispatcher({"AMQP_URI": config["AMQP_URI"]})("bakery", "cake.baked", to_payload(event))

    wait_for(lambda: handled == [event])


def test_a_handler_inherits_no_deadline_and_no_call_id(run_service, send):
    contexts = []
    run_service(cafe_of(lambda cafe, event: contexts.append(cafe.context)))

    send(CakeBaked(cake="Torte"), headers={"nameko.deadline": 1.0, "nameko.call_id": "c", "nameko.call_id_stack": 7})

    [context] = wait_for(lambda: contexts)
    assert context.keys() == {"request_id", "event_id"}


def test_an_event_is_acknowledged_only_after_its_handler(run_service, broker, send):
    entered, leave = Event(), Event()

    def display(cafe, event):
        if not entered.ready():
            entered.send()
        leave.wait()

    container = run_service(cafe_of(display))
    send(CakeBaked(cake="Torte"))
    entered.wait()

    container.kill()

    wait_for(lambda: broker.depth(QUEUE) == 1)


def test_two_replicas_share_the_events(run_service, send):
    handled = {"one": [], "two": []}
    for replica in handled:
        run_service(cafe_of(lambda cafe, event, replica=replica: handled[replica].append(event.cake)))

    for number in range(40):
        send(CakeBaked(cake=str(number)))

    wait_for(lambda: len(handled["one"]) + len(handled["two"]) == 40)
    assert {*handled["one"], *handled["two"]} == {str(number) for number in range(40)}
    assert handled["one"] and handled["two"]


def test_workers_limits_how_many_events_are_handled_at_once(run_service, broker, send):
    busy, leave = [], Event()

    def display(cafe, event):
        busy.append(event)
        leave.wait()

    run_service(cafe_of(display, workers=3))
    for _ in range(5):
        send(CakeBaked(cake="Torte"))
    wait_for(lambda: len(busy) == 3)
    # The others are still in the queue.
    wait_for(lambda: broker.depth(QUEUE) == 2)
    busy_at_once = len(busy)

    leave.send()

    wait_for(lambda: len(busy) == 5)
    assert busy_at_once == 3


def test_the_pause_grows_with_each_attempt_until_the_last_has_none():
    handler = EventHandler(CakeBaked)

    assert [handler.pause_after(attempt) for attempt in range(1, 8)] == [1, 5, 30, 120, 600, None, None]


def test_a_handler_without_pauses_has_one_attempt():
    assert EventHandler(CakeBaked, pauses_seconds=()).pause_after(1) is None


def test_a_failed_event_waits_in_a_delay_queue_and_is_tried_again(run_service, broker, send):
    tries = []

    def display(cafe, event):
        tries.append(event.cake)
        if len(tries) == 1:
            raise ZeroDivisionError

    run_service(cafe_of(display, pauses_seconds=SOON))
    # Copies of the messages in the delay queue, which keeps them for only a second.
    broker.declare("copies", exchange=Exchange("delay.1s", type="fanout", durable=True))

    send(CakeBaked(cake="Torte"))

    [waiting] = wait_for(lambda: broker.peek("copies"))
    assert waiting.headers["x-attempt"] == 1
    wait_for(lambda: tries == ["Torte", "Torte"])
    wait_for(lambda: broker.depth(QUEUE) == broker.depth("delay.1s") == 0)
    assert not parked(broker)


def test_each_pause_has_its_own_delay_queue(run_service, broker):
    run_service(cafe_of(lambda cafe, event: None))

    assert {name for name in broker.queues() if name.startswith("delay.")} == {
        "delay.1s",
        "delay.5s",
        "delay.30s",
        "delay.120s",
        "delay.600s",
    }


def test_the_attempt_header_selects_the_pause(run_service, broker, send):
    def display(cafe, event):
        raise ZeroDivisionError

    run_service(cafe_of(display))

    send(CakeBaked(cake="Torte"), headers={"x-attempt": 2})

    [waiting] = wait_for(lambda: broker.peek("delay.30s"))
    assert waiting.headers["x-attempt"] == 3


@pytest.mark.parametrize("attempt", [-100, "many", 1.5, None, True], ids=str)
def test_a_malformed_attempt_header_does_not_stop_the_retry(run_service, broker, send, deaths, attempt):
    def display(cafe, event):
        raise ZeroDivisionError

    container = run_service(cafe_of(display, pauses_seconds=(60, 60)))

    send(CakeBaked(cake="Torte"), headers={"x-attempt": attempt})

    wait_for(lambda: broker.depth("delay.60s") == 1)
    assert not deaths(container)


def test_an_event_is_parked_with_its_reason_after_the_last_attempt(run_service, broker, send):
    tries = []

    def display(cafe, event):
        tries.append(event.cake)
        raise ZeroDivisionError("no plate")

    run_service(cafe_of(display, pauses_seconds=SOON))
    event = CakeBaked(cake="Torte")

    send(event, headers={"nameko.request_id": "r-1"})

    [message] = wait_for(lambda: parked(broker))
    assert len(tries) == 3
    assert message.payload == to_payload(event)
    assert message.headers["x-parked-from"] == QUEUE
    assert message.headers["x-parked-reason"] == "gave up after attempt 3: ZeroDivisionError: no plate"
    assert message.headers["x-parked-attempts"] == 3
    assert message.headers["nameko.request_id"] == "r-1"
    assert broker.depth(QUEUE) == 0


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe\xfd", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "wrong shape: CakeBaked is not a JSON object"),
        (b"{}", "wrong shape: CakeBaked.cake is missing"),
        (json.dumps({"event_id": str(uuid4()), "cake": 7}).encode(), "wrong shape: CakeBaked.cake: 7 is no str"),
        (json.dumps({"event_id": "7", "cake": "Torte"}).encode(), "wrong shape: CakeBaked.event_id"),
        (json.dumps({"event_id": str(uuid4()), "cake": "Torte", "version": 2}).encode(), "unknown version 2"),
        (json.dumps({"version": ["x" * 1000]}).encode(), "unknown version ['xxx"),
    ],
    ids=lambda value: value[:30],
)
def test_an_unreadable_message_is_parked_at_once(run_service, broker, send, body, reason):
    handled = []
    run_service(cafe_of(lambda cafe, event: handled.append(event.cake)))

    send(body=body)
    send(CakeBaked(cake="sound"))

    [message] = wait_for(lambda: parked(broker))
    assert message.headers["x-parked-reason"].startswith(reason)
    assert message.headers["x-parked-attempts"] == 1
    assert (message.body.encode() if isinstance(message.body, str) else message.body) == body
    wait_for(lambda: handled == ["sound"])


def test_a_reason_may_contain_any_text(run_service, broker, send, deaths):
    def display(cafe, event):
        raise ValueError("\ud800" + "🍄" * 1000)

    container = run_service(cafe_of(display, pauses_seconds=()))

    send(CakeBaked(cake="Torte"))

    wait_for(lambda: parked(broker))
    assert not deaths(container)


def test_a_reason_contains_neither_the_row_nor_the_statement_that_failed(run_service, broker, send, tables):
    class Cafe:
        name = "cafe"

        db = Database(Base)

        @event_handler(CakeBaked, pauses_seconds=())
        def display(self, event):
            with self.db.transaction() as session:
                session.add_all([Cake(id=7, name=event.cake), Cake(id=7, name=event.cake)])

    run_service(Cafe)

    send(CakeBaked(cake="a secret"))

    [message] = wait_for(lambda: parked(broker))
    reason = message.headers["x-parked-reason"]
    assert reason.startswith("gave up after attempt 1: IntegrityError: ")
    assert "duplicate key" in reason
    assert "(id)=(7)" not in reason and "a secret" not in reason and "INSERT" not in reason


def test_no_attempt_is_counted_while_the_database_is_unavailable(run_service, broker, send, monkeypatch):
    monkeypatch.setattr(kit, "UNAVAILABLE_PAUSE_SECONDS", 0.1)
    tries = []

    def display(cafe, event):
        tries.append(event.cake)
        if len(tries) < 10:
            raise DatabaseUnavailable("cafe")

    run_service(cafe_of(display, pauses_seconds=SOON))

    send(CakeBaked(cake="first"))
    send(CakeBaked(cake="second"))

    wait_for(lambda: tries == ["first"] * 10 + ["second"])
    wait_for(lambda: broker.depth(QUEUE) == 0)
    assert broker.depth("delay.1s") == 0
    assert not parked(broker)


def test_an_event_received_while_the_database_is_unreachable_is_handled_later(
    run_service, broker, send, tables, database_proxy
):
    class Cafe:
        name = "cafe"

        db = Database(Base)

        @event_handler(CakeBaked, pauses_seconds=())
        def display(self, event):
            with self.db.transaction() as session:
                session.add(Cake(name=event.cake))

    cakes, proxy = tables("cafe"), database_proxy("cafe")
    run_service(Cafe, DB_URIS={"cafe": proxy.uri})
    proxy.go_away()
    send(CakeBaked(cake="first"))
    send(CakeBaked(cake="second"))
    wait_for(lambda: broker.depth(QUEUE) == 1)

    proxy.come_back()

    wait_for(lambda: cakes.all(Cake.name) == ["first", "second"])
    assert not parked(broker)


def test_a_lock_timeout_counts_as_an_attempt(run_service, broker, send, tables):
    class Cafe:
        name = "cafe"

        db = Database(Base)

        @event_handler(CakeBaked, pauses_seconds=())
        def display(self, event):
            with self.db.transaction() as session:
                session.execute(text("SET LOCAL lock_timeout = '50ms'"))
                session.add(Cake(name=event.cake))

    cakes = tables("cafe")
    run_service(Cafe)
    with cakes.engine.connect().execution_options(isolation_level="READ COMMITTED") as other, other.begin():
        other.execute(text("LOCK TABLE cakes"))

        send(CakeBaked(cake="Torte"))

        [message] = wait_for(lambda: parked(broker))
    reason = message.headers["x-parked-reason"]
    assert reason.endswith("from LockNotAvailable: canceling statement due to lock timeout")


def test_a_kept_event_goes_back_to_its_queue_when_the_service_stops(run_service, broker, send):
    tries = []

    def display(cafe, event):
        tries.append(event)
        raise DatabaseUnavailable("cafe")

    container = run_service(cafe_of(display))
    send(CakeBaked(cake="Torte"))
    wait_for(lambda: tries)

    container.stop()

    wait_for(lambda: broker.depth(QUEUE) == 1)


def test_a_kept_event_is_given_up_when_its_connection_is_lost(run_service, send, proxy, monkeypatch):
    monkeypatch.setattr(kit, "UNAVAILABLE_PAUSE_SECONDS", 0.1)
    tries = []

    def display(cafe, event):
        tries.append(event)
        raise DatabaseUnavailable("cafe")

    container = run_service(cafe_of(display), AMQP_URI=proxy.uri)
    send(CakeBaked(cake="Torte"))
    wait_for(lambda: tries)
    connections = proxy.accepted

    for _ in range(3):
        proxy.cut()
        wait_for(lambda seen=connections: proxy.accepted > seen)
        connections, count = proxy.accepted, len(tries)
        wait_for(lambda count=count: len(tries) > count + 3)

    waiting = list(container._managed_threads.values()).count("<lambda>")
    assert waiting <= 1


def test_an_event_that_cannot_be_moved_is_kept_and_moved_later(
    run_service, broker, send, proxy, deaths, monkeypatch, caplog
):
    monkeypatch.setattr(kit, "UNAVAILABLE_PAUSE_SECONDS", 0.1)
    tries, leave = [], Event()

    def display(cafe, event):
        tries.append(event)
        leave.wait()
        raise ZeroDivisionError

    container = run_service(cafe_of(display, pauses_seconds=(60,)), AMQP_URI=proxy.uri)
    send(CakeBaked(cake="Torte"))
    wait_for(lambda: tries)
    proxy.go_away()
    leave.send()
    wait_for(lambda: "could not be moved" in caplog.text)

    proxy.come_back()

    wait_for(lambda: broker.depth("delay.60s") >= 1)
    wait_for(lambda: broker.depth(QUEUE) == 0)
    assert not deaths(container)


@pytest.mark.parametrize("deleted", ["queue", "exchange"])
def test_a_deleted_delay_queue_or_exchange_is_declared_again(run_service, broker, send, monkeypatch, deleted):
    monkeypatch.setattr(kit, "UNAVAILABLE_PAUSE_SECONDS", 0.1)

    def display(cafe, event):
        raise ZeroDivisionError

    run_service(cafe_of(display, pauses_seconds=(60,)))
    send(CakeBaked(cake="first"))
    wait_for(lambda: broker.depth("delay.60s") == 1)
    with broker.channel() as channel:
        delete = channel.queue_delete if deleted == "queue" else channel.exchange_delete
        delete("delay.60s")

    send(CakeBaked(cake="second"))

    left = 0 if deleted == "queue" else 1
    wait_for(lambda: broker.queue_exists("delay.60s") and broker.depth("delay.60s") == left + 1)
    wait_for(lambda: broker.depth(QUEUE) == 0)


def test_a_container_can_be_stopped_while_an_event_cannot_be_moved(run_service, send, proxy):
    tries, leave = [], Event()

    def display(cafe, event):
        tries.append(event)
        leave.wait()
        raise ZeroDivisionError

    container = run_service(cafe_of(display), AMQP_URI=proxy.uri)
    send(CakeBaked(cake="Torte"))
    wait_for(lambda: tries)
    proxy.go_away()
    leave.send()

    with eventlet.Timeout(8, AssertionError("the stop hangs")):
        container.stop()


def test_a_second_stop_does_no_harm(run_service):
    container = run_service(cafe_of(lambda cafe, event: None))
    first = eventlet.spawn(container.stop)
    eventlet.sleep(0)

    container.stop()

    first.wait()


# Broadcasts


def test_every_replica_gets_a_broadcast(run_service, send):
    received = []

    class Radio:
        name = "radio"

        @broadcast_handler(CakeBaked)
        def announce(self, event):
            received.append(event.cake)

    run_service(Radio)
    run_service(Radio)

    send(CakeBaked(cake="Torte"), exchange="bakery.events")

    wait_for(lambda: received == ["Torte", "Torte"])


def test_a_failed_or_unreadable_broadcast_is_dropped(run_service, broker, send, deaths):
    received = []

    class Radio:
        name = "radio"

        @broadcast_handler(CakeBaked)
        def announce(self, event):
            received.append(event.cake)
            if event.cake == "burnt":
                raise ZeroDivisionError

    container = run_service(Radio)

    send(body=b"not JSON", exchange="bakery.events")
    send(CakeBaked(cake="burnt"), exchange="bakery.events")
    send(CakeBaked(cake="sound"), exchange="bakery.events")

    wait_for(lambda: received == ["burnt", "sound"])
    assert not deaths(container)


def test_a_stopped_listener_leaves_no_queue(run_service, broker):
    class Radio:
        name = "radio"

        @broadcast_handler(CakeBaked)
        def announce(self, event):
            pass

    container = run_service(Radio)
    assert len(broker.queues()) == 1

    container.stop()

    wait_for(lambda: not broker.queues())
