"""nameko_reliable.outbox: an event is published if and only if its transaction has committed, in order of its key."""

import re

import eventlet
import pytest
from eventlet.event import Event
from nameko.standalone.events import get_event_exchange
from sqlalchemy import NullPool, create_engine, func, select, text
from sqlalchemy.orm import Session

from bakery import Base, Cake, CakeBaked, CakeEaten, CakeSold, InboxEntry, OutboxEntry
from nameko_reliable import outbox as kit
from nameko_reliable.database import Database
from nameko_reliable.events import event_handler
from nameko_reliable.messages import to_payload
from nameko_reliable.outbox import Outbox
from nameko_reliable.rpc import rpc
from nameko_reliable.statements import Statement
from nameko_reliable.testing.waiting import wait_for

STORE_EVENT = Statement("""
INSERT INTO outbox (event_id, event_name, key, payload, request_id, traceparent)
VALUES (%(event_id)s::uuid, %(event_name)s::text, %(key)s::text, %(payload)s::jsonb, %(request_id)s::text,
        %(traceparent)s::text)
""")
CAFE, PRESS = "evt-bakery-cake.baked--cafe.display", "evt-bakery-cake.baked--press.report"


class Bakery:
    name = "bakery"

    db = Database(Base)
    outbox = Outbox(OutboxEntry, events=[CakeBaked, CakeSold])

    @rpc
    def bake(self, *cakes, oven=None, fail=False):
        with self.db.transaction() as session:
            for cake in cakes:
                session.add(Cake(name=cake))
                self.outbox.add(session, CakeBaked(cake=cake), key=oven)
            if fail:
                session.flush()
                raise ZeroDivisionError

    @rpc
    def bake_by_statement(self, cake, oven):
        self.db.execute(STORE_EVENT, key=str(oven), **self.outbox.columns(CakeBaked(cake=cake, oven=oven)))
        self.outbox.wake()

    @rpc
    def sell(self, cake):
        with self.db.transaction() as session:
            self.outbox.add(session, CakeSold(cake=cake))

    @rpc
    def eat(self, cake):
        with self.db.transaction() as session:
            session.add(Cake(name=cake))
            self.outbox.add(session, CakeEaten(cake=cake))


class Cafe:
    name = "cafe"

    db = Database(Base)

    @event_handler(CakeBaked)
    def display(self, event):
        with self.db.transaction() as session:
            if InboxEntry.take(session, event.event_id):
                session.add(Cake(name=event.cake))


@pytest.fixture
def bakery(tables):
    """The bakery's database."""
    return tables("bakery")


def cakes(broker, queue=CAFE, most=1000):
    return [message.payload["cake"] for message in broker.peek(queue, most)]


def relay_of(container):
    [outbox] = [provider for provider in container.dependencies if isinstance(provider, Outbox)]
    return outbox


def add_without_relay(bakery, *events, key):
    with Session(bakery.engine) as session:
        outbox = Outbox(OutboxEntry, events=[CakeBaked])
        outbox._relay, outbox._exchange = kit.Loop(None, 1), get_event_exchange("bakery", {})
        for event in events:
            outbox.store(session, event, key, "r-1")
            session.flush()
        session.commit()


def test_an_event_waits_in_the_queues_of_subscribers_that_never_ran(run_service, bakery, broker, cluster):
    run_service(Bakery)

    cluster.within(5, request_id="r-1").bakery.bake("Éclair")

    wait_for(lambda: broker.queue_exists(PRESS) and cakes(broker) == cakes(broker, PRESS) == ["Éclair"])
    [message] = broker.peek(CAFE)
    assert message.properties["delivery_mode"] == 2
    assert message.properties["message_id"] == message.payload["event_id"]
    assert message.headers == {"nameko.request_id": "r-1"}
    wait_for(lambda: not bakery.all(OutboxEntry.id))


def test_a_subscriber_that_starts_later_gets_the_waiting_events(run_service, bakery, tables, broker, cluster):
    run_service(Bakery)
    cluster.bakery.bake("Torte")
    wait_for(lambda: broker.queue_exists(CAFE) and broker.depth(CAFE))
    cafe = tables("cafe")

    run_service(Cafe)

    wait_for(lambda: cafe.all(Cake.name) == ["Torte"])


def test_a_transaction_that_rolls_back_sends_nothing(run_service, bakery, broker, rpc):
    run_service(Bakery)

    with pytest.raises(Exception, match="ZeroDivisionError"):
        rpc.bakery.bake("burnt", fail=True)

    rpc.bakery.bake("sound")
    wait_for(lambda: broker.queue_exists(CAFE) and cakes(broker) == ["sound"])
    assert bakery.all(Cake.name) == ["sound"]


def test_an_event_is_published_at_once_after_its_commit(run_service, bakery, broker, rpc, monkeypatch):
    monkeypatch.setattr(kit, "IDLE_SECONDS", 600)
    run_service(Bakery)
    rpc.bakery.bake("first")
    wait_for(lambda: broker.queue_exists(CAFE) and cakes(broker) == ["first"])

    rpc.bakery.bake("second")

    wait_for(lambda: cakes(broker) == ["first", "second"])


def test_a_row_that_a_statement_inserts_is_the_same_and_is_published_at_once(
    run_service, bakery, broker, rpc, monkeypatch
):
    monkeypatch.setattr(kit, "IDLE_SECONDS", 600)
    run_service(Bakery)

    rpc.bakery.bake("first", oven=1)
    wait_for(lambda: broker.queue_exists(CAFE) and cakes(broker) == ["first"])
    rpc.bakery.bake_by_statement("second", oven=1)
    wait_for(lambda: cakes(broker) == ["first", "second"])

    first, second = broker.peek(CAFE)
    assert (first.payload.keys(), first.headers.keys()) == (second.payload.keys(), second.headers.keys())
    assert second.properties["message_id"] == second.payload["event_id"]


def test_an_event_of_a_dead_process_is_published(run_service, bakery, broker):
    add_without_relay(bakery, CakeBaked(cake="left behind"), key=1)

    run_service(Bakery)

    wait_for(lambda: broker.queue_exists(CAFE) and cakes(broker) == ["left behind"])


def test_an_event_class_that_the_outbox_does_not_name_is_refused(run_service, bakery, rpc):
    run_service(Bakery)

    with pytest.raises(Exception, match="CakeEaten is not among the outbox's events"):
        rpc.bakery.eat("Torte")

    assert bakery.all(Cake.name) == []


def test_the_events_of_a_key_leave_in_their_order(run_service, bakery, broker, cluster):
    run_service(Bakery)

    threads = [
        eventlet.spawn(cluster.bakery.bake, *(f"{oven}-{number}" for number in range(10)), oven=oven)
        for oven in range(10)
    ]
    for thread in threads:
        thread.wait()

    wait_for(lambda: broker.queue_exists(CAFE) and broker.depth(CAFE) == 100)
    for oven in range(10):
        assert [cake for cake in cakes(broker) if cake.startswith(f"{oven}-")] == [f"{oven}-{n}" for n in range(10)]


def test_an_event_that_must_wait_delays_only_its_own_key(run_service, bakery, broker, rpc):
    add_without_relay(bakery, CakeBaked(cake="waits"), CakeBaked(cake="behind it"), key=1)
    bakery.execute(text("UPDATE outbox SET not_before = now() + interval '1 hour' WHERE id = 1"))
    run_service(Bakery)

    rpc.bakery.bake("other", oven=2)

    wait_for(lambda: broker.queue_exists(CAFE) and cakes(broker) == ["other"])
    bakery.execute(text("UPDATE outbox SET not_before = now()"))
    wait_for(lambda: cakes(broker) == ["other", "waits", "behind it"])


@pytest.mark.parametrize("deleted", [(CAFE,), (CAFE, PRESS)], ids=["one", "all"])
def test_an_event_whose_queue_was_deleted_goes_to_a_new_one(run_service, bakery, broker, rpc, deleted):
    run_service(Bakery)
    rpc.bakery.bake("first", oven=1)
    wait_for(lambda: broker.queue_exists(CAFE) and cakes(broker) == ["first"])
    wait_for(lambda: not bakery.all(OutboxEntry.id))
    with broker.channel() as channel:
        for queue in deleted:
            channel.queue_delete(queue)

    rpc.bakery.bake("second", "third", oven=1)

    wait_for(lambda: broker.queue_exists(CAFE) and cakes(broker) == ["second", "third"])
    wait_for(lambda: not bakery.all(OutboxEntry.id))
    assert cakes(broker, PRESS) == ["second", "third"] if PRESS in deleted else ["first", "second", "third"]


def test_events_are_published_after_their_exchange_was_deleted(run_service, bakery, broker, rpc):
    run_service(Bakery)
    rpc.bakery.bake("first")
    wait_for(lambda: not bakery.all(OutboxEntry.id))
    with broker.channel() as channel:
        channel.exchange_delete("bakery.events")

    rpc.bakery.bake("second")

    wait_for(lambda: not bakery.all(OutboxEntry.id))
    assert {*cakes(broker)} == {*cakes(broker, PRESS)} == {"first", "second"}


@pytest.mark.parametrize("is_prepared", [0, 1])
def test_a_full_queue_delays_only_its_own_events(run_service, bakery, broker, proxy, rpc, monkeypatch, is_prepared):
    monkeypatch.setattr(kit, "LONGEST_WAIT_SECONDS", 1)
    run_service(Bakery, AMQP_URI=proxy.uri, PREPARED_STATEMENTS=is_prepared)
    rpc.bakery.bake("first")
    wait_for(lambda: not bakery.all(OutboxEntry.id))
    connections = proxy.accepted
    with broker.full(CAFE):
        rpc.bakery.bake("second", "third", oven=2)
        rpc.bakery.bake("fourth", oven=4)
        # The relay tries the first event of each key several times while the queue is full.
        wait_for(lambda: sorted(bakery.all(OutboxEntry.attempts))[:2] >= [0, 3])
        reached = cakes(broker, PRESS)

    wait_for(lambda: not bakery.all(OutboxEntry.id))

    assert reached == ["first", "second", "third", "fourth"]
    assert [cake for cake in cakes(broker) if cake != "fourth"] == ["first", "second", "third"]
    assert proxy.accepted == connections


def test_a_queue_with_other_arguments_gets_nothing_and_blocks_no_other(run_service, bakery, broker, rpc, caplog):
    broker.declare(CAFE, durable=False)
    run_service(Bakery)

    rpc.bakery.bake("Torte")

    wait_for(lambda: broker.queue_exists(PRESS) and cakes(broker, PRESS) == ["Torte"])
    wait_for(lambda: bakery.all(OutboxEntry.attempts) == [1])
    assert broker.depth(CAFE) == 0
    assert f"inequivalent arg 'durable' for queue '{CAFE}'" in caplog.text
    assert "`python -m nameko_reliable queues move` replaces it and keeps its messages" in caplog.text
    with broker.channel() as channel:
        channel.queue_delete(CAFE)
    wait_for(lambda: broker.queue_exists(CAFE) and cakes(broker) == ["Torte"])


def test_a_queue_that_the_class_does_not_name_gets_each_event_once_by_the_exchange(run_service, bakery, broker, rpc):
    exchange = get_event_exchange("bakery", {})
    broker.declare("museum", exchange=exchange, routing_key="cake.baked", durable=True)
    run_service(Bakery)

    rpc.bakery.bake("Torte")

    wait_for(lambda: not bakery.all(OutboxEntry.id))
    assert [cakes(broker, queue) for queue in ("museum", CAFE, PRESS)] == [["Torte"]] * 3
    assert broker.bindings("bakery.events") == ["museum"]


def test_a_full_queue_that_the_class_does_not_name_blocks_nothing(run_service, bakery, broker, rpc):
    exchange = get_event_exchange("bakery", {})
    broker.declare("museum", exchange=exchange, routing_key="cake.baked", durable=True, max_length=1)
    run_service(Bakery)
    rpc.bakery.bake("first")
    wait_for(lambda: not bakery.all(OutboxEntry.id))

    with broker.full("museum"):
        rpc.bakery.bake("second")

        wait_for(lambda: not bakery.all(OutboxEntry.id))
    assert cakes(broker) == cakes(broker, PRESS) == ["first", "second"]


def test_a_retired_subscriber_gets_only_what_an_older_release_sends(run_service, bakery, tables, broker, rpc):
    counted = []

    class Cafe:
        name = "cafe"

        @event_handler(CakeSold)
        def count(self, event):
            counted.append(event.cake)

    run_service(Cafe)
    run_service(Bakery)

    rpc.bakery.sell("Torte")
    wait_for(lambda: not bakery.all(OutboxEntry.id))
    # An older bakery sends directly to the queue.
    broker.publish(to_payload(CakeSold(cake="Strudel")), queue="evt-bakery-cake.sold--cafe.count")

    wait_for(lambda: counted)
    assert counted == ["Strudel"]


def test_an_event_of_another_release_is_published_by_that_release(run_service, bakery, broker, rpc):
    """The relay of that release knows the subscribers. Later events of the same key wait too."""

    class Later(Bakery):
        outbox = Outbox(OutboxEntry, events=[CakeBaked, CakeEaten])

    add_without_relay(bakery, CakeBaked(cake="known"), CakeBaked(cake="unknown"), CakeBaked(cake="behind it"), key=1)
    bakery.execute(text("UPDATE outbox SET event_name = 'cake.eaten' WHERE payload->>'cake' = 'unknown'"))
    run_service(Bakery)
    rpc.bakery.bake("other", oven=2)
    wait_for(lambda: broker.queue_exists(CAFE) and cakes(broker) == ["known", "other"])
    # The relay deletes a row after the confirm, so after the event is in the queue.
    wait_for(lambda: bakery.all(func.count(OutboxEntry.id)) == [2])

    run_service(Later)

    wait_for(lambda: cakes(broker) == ["known", "other", "behind it"])
    wait_for(lambda: not bakery.all(OutboxEntry.id))


def test_bindings_of_an_older_release_are_removed(run_service, bakery, broker, rpc):
    exchange = get_event_exchange("bakery", {})
    for queue in (CAFE, PRESS):
        broker.declare(queue, exchange=exchange, routing_key="cake.baked", durable=True)
    run_service(Bakery)

    rpc.bakery.bake("Torte")

    wait_for(lambda: cakes(broker) == cakes(broker, PRESS) == ["Torte"])
    assert broker.bindings("bakery.events") == []


def test_two_relays_never_publish_at_the_same_time(run_service, bakery, broker, cluster, monkeypatch):
    at_work, most = [], []
    send = Outbox._send

    def watched(self, rows):
        at_work.append(self)
        most.append(len(at_work))
        eventlet.sleep(0.02)
        try:
            return send(self, rows)
        finally:
            at_work.remove(self)

    monkeypatch.setattr(Outbox, "_send", watched)
    run_service(Bakery)
    run_service(Bakery)

    for number in range(60):
        cluster.bakery.bake(str(number))

    wait_for(lambda: broker.queue_exists(CAFE) and broker.depth(CAFE) >= 60)
    assert cakes(broker) == [str(number) for number in range(60)]
    assert max(most) == 1


def test_more_events_than_fit_in_a_round_are_all_published(run_service, bakery, broker, rpc, monkeypatch):
    monkeypatch.setattr(kit, "ROUND_ROWS", 7)
    monkeypatch.setattr(kit, "IDLE_SECONDS", 600)
    run_service(Bakery)

    rpc.bakery.bake(*(str(number) for number in range(100)))

    wait_for(lambda: broker.queue_exists(CAFE) and broker.depth(CAFE) == 100)


def test_the_plan_that_is_made_for_an_empty_outbox_suits_a_long_one(bakery):
    bakery.execute(text("VACUUM ANALYZE outbox"))
    find_due, names = kit._find_due_in("outbox"), {"event_names": ["cake.baked"]}
    with create_engine(bakery.engine.url, poolclass=NullPool).connect() as connection:
        connection.exec_driver_sql("SET plan_cache_mode = force_generic_plan")
        connection.exec_driver_sql(find_due.prepare)
        connection.exec_driver_sql(find_due.execute, names)

        explain = "EXPLAIN " + find_due.execute.partition("; ")[2]
        plan = "\n".join(connection.exec_driver_sql(explain, names).scalars())

    assert re.findall(r"(?:Seq|Index|Bitmap).* Scan.* on (?:outbox|ix_)\S*", plan) == [
        "Index Scan using outbox_pkey on outbox",
        "Index Scan using ix_outbox_key_id on outbox",
    ]
    assert "Index Cond: ((ROW(key, id) < ROW(this.key, this.id)) AND (key = this.key))" in plan


def test_the_relay_survives_the_loss_of_its_connection(run_service, bakery, broker, proxy, cluster):
    run_service(Bakery)
    run_service(Bakery, AMQP_URI=proxy.uri)
    for number in range(30):
        if number % 10 == 5:
            proxy.cut()
        cluster.bakery.bake(str(number))

    wait_for(lambda: {*cakes(broker)} == {str(number) for number in range(30)})

    wait_for(lambda: not bakery.all(OutboxEntry.id))


def test_events_committed_while_the_broker_is_unreachable_are_published_when_it_is_back(
    run_service, bakery, broker, proxy, caplog
):
    container = run_service(Bakery, AMQP_URI=proxy.uri)
    proxy.go_away()
    add_without_relay(bakery, CakeBaked(cake="first"), CakeBaked(cake="second"), key=1)
    relay_of(container)._relay.wake()
    wait_for(lambda: "the outbox waits" in caplog.text)
    kept = bakery.all(func.count(OutboxEntry.id))

    proxy.come_back()

    wait_for(lambda: broker.queue_exists(CAFE) and cakes(broker) == ["first", "second"])
    assert kept == [2]


def test_a_relay_killed_between_publish_and_delete_sends_again_and_the_inbox_drops_it(
    run_service, bakery, tables, broker, rpc, monkeypatch
):
    published, cafe = Event(), tables("cafe")
    wait = kit.ReconnectingPublisher.wait

    def wait_for_ever(self, confirm, timeout_seconds):
        wait(self, confirm, timeout_seconds)
        published.send()
        eventlet.sleep(600)

    first = run_service(Bakery)
    with monkeypatch.context() as patch:
        patch.setattr(
            relay_of(first)._publisher, "wait", lambda *args: wait_for_ever(relay_of(first)._publisher, *args)
        )
        rpc.bakery.bake("Torte")
        published.wait()
        first.kill()
    assert cakes(broker) == ["Torte"]
    assert bakery.all(func.count(OutboxEntry.id)) == [1]

    run_service(Bakery)

    wait_for(lambda: cakes(broker) == ["Torte", "Torte"])
    wait_for(lambda: not bakery.all(OutboxEntry.id))
    run_service(Cafe)
    wait_for(lambda: broker.depth(CAFE) == 0)
    wait_for(lambda: cafe.all(Cake.name) == ["Torte"])
    assert cafe.all(func.count(InboxEntry.event_id)) == [1]


def test_the_relay_continues_after_a_failed_round(run_service, bakery, broker, rpc, monkeypatch):
    failures = []
    publish = Outbox._publish

    def fail_once(self, session, rows):
        if not failures:
            failures.append(1)
            raise KeyError("a bug")
        publish(self, session, rows)

    monkeypatch.setattr(Outbox, "_publish", fail_once)
    run_service(Bakery)

    rpc.bakery.bake("Torte")

    wait_for(lambda: broker.queue_exists(CAFE) and cakes(broker) == ["Torte"])
    assert failures


def test_the_relay_continues_after_the_loss_of_its_database(run_service, bakery, broker, cluster):
    run_service(Bakery)
    cluster.bakery.bake("first")
    wait_for(lambda: broker.queue_exists(CAFE) and cakes(broker) == ["first"])
    # If it lost the database before it deleted the row, it would rightly publish the event again.
    wait_for(lambda: bakery.all(func.count(OutboxEntry.id)) == [0])
    bakery.execute(
        select(func.pg_terminate_backend(text("pid")).label("gone"))
        .select_from(text("pg_stat_activity"))
        .where(text("datname = current_database() AND pid <> pg_backend_pid()"))
    )

    add_without_relay(bakery, CakeBaked(cake="second"), key=1)

    wait_for(lambda: cakes(broker) == ["first", "second"])


RELAY_LOCKS = text(
    "count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database "
    "WHERE locktype = 'advisory' AND datname = current_database()"
)


def test_a_service_whose_relay_hangs_on_the_broker_can_be_stopped(run_service, bakery, cluster, proxy, monkeypatch):
    monkeypatch.setattr(kit, "CONFIRM_SECONDS", 60)
    container = run_service(Bakery, AMQP_URI=proxy.uri)
    cluster.bakery.bake("first")
    wait_for(lambda: not bakery.all(OutboxEntry.id))
    proxy.hold()
    add_without_relay(bakery, CakeBaked(cake="second"), key=1)
    relay_of(container)._relay.wake()
    # Each round holds the lock until its end, and this one hangs.
    wait_for(lambda: bakery.all(RELAY_LOCKS) == [1])

    with eventlet.Timeout(10, AssertionError("the stop hangs")):
        container.stop()

    wait_for(lambda: not proxy.open)
    assert bakery.all(func.count(OutboxEntry.id)) == [1]
