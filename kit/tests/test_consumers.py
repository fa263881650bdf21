"""nameko_reliable.amqp.consumers: only `stop` ends consuming, and it does so within seconds."""

from contextlib import contextmanager

import eventlet
import pytest
from eventlet.event import Event
from kombu import Queue
from nameko.extensions import Entrypoint
from nameko.timer import timer

from bakery import CakeBaked, CakeEaten, OvenWarmed
from nameko_reliable.amqp import broker as amqp_broker
from nameko_reliable.amqp import consumers as kit
from nameko_reliable.amqp.consumers import Consumers
from nameko_reliable.events import broadcast_handler, event_handler
from nameko_reliable.polling import poll
from nameko_reliable.rpc import rpc
from nameko_reliable.testing.waiting import wait_for

CHANNEL_OPEN = b"\x00\x14\x00\x0a"


class RawHandler(Entrypoint):
    """Passes each raw message to the method, in the connection's reader."""

    consumers = Consumers()
    declare = ()

    def __init__(self, prefetch=1, **kwargs):
        super().__init__(**kwargs)
        self.prefetch = prefetch

    def setup(self):
        self.consumers.register(self)

    def stop(self):
        self.consumers.unregister(self)

    def queue(self):
        return Queue("orders", durable=True)

    def disconnected(self):
        pass

    def handle(self, message):
        getattr(self.container.service_cls, self.method_name)(self, message)


raw_handler = RawHandler.decorator


def service_of(handler, prefetch=1):
    class Bakery:
        name = "bakery"

        @raw_handler(prefetch=prefetch)
        def take(self, message):
            handler(self, message)

    return Bakery


@pytest.fixture
def collect():
    """A service that acknowledges every message, and the bodies that it got."""
    bodies = []

    def take(entrypoint, message):
        bodies.append(message.body)
        entrypoint.consumers.ack(message)

    return service_of(take), bodies


@contextmanager
def ends_within(seconds):
    with eventlet.Timeout(seconds, AssertionError(f"not ended within {seconds} s")):
        yield


def test_a_body_is_bytes_and_an_acknowledged_message_is_gone(run_service, broker, collect):
    service, bodies = collect
    run_service(service)

    broker.publish("Käse", queue="orders", content_encoding="utf-8")

    wait_for(lambda: bodies == ["Käse".encode()])
    wait_for(lambda: broker.depth("orders") == 0)


def test_consuming_resumes_after_a_lost_connection(run_service, broker, proxy, collect):
    service, bodies = collect
    run_service(service, AMQP_URI=proxy.uri)

    proxy.cut()

    broker.publish(b"after", queue="orders")
    wait_for(lambda: bodies == [b"after"])


def test_a_service_that_starts_before_the_broker_waits_for_it(run_service, broker, proxy, collect, caplog):
    service, bodies = collect
    proxy.go_away()
    starting = eventlet.spawn(run_service, service, AMQP_URI=proxy.uri)
    wait_for(lambda: "no connection to the broker" in caplog.text)

    proxy.come_back()

    starting.wait()
    broker.publish(b"early", queue="orders")
    wait_for(lambda: bodies == [b"early"])


def test_a_service_that_waits_for_the_broker_can_be_stopped(config, container_factory, proxy, collect, caplog):
    container = container_factory(collect[0], {**config, "AMQP_URI": proxy.uri})
    proxy.go_away()
    starting = eventlet.spawn(container.start)
    wait_for(lambda: "no connection to the broker" in caplog.text)

    with ends_within(5):
        container.stop()

    with ends_within(1):
        starting.wait()


def test_a_service_whose_broker_is_unreachable_can_be_stopped(run_service, proxy, collect):
    container = run_service(collect[0], AMQP_URI=proxy.uri)
    proxy.go_away()

    with ends_within(5):
        container.stop()


def test_a_service_whose_broker_hangs_can_be_stopped(run_service, proxy, collect):
    container = run_service(collect[0], AMQP_URI=proxy.uri)
    proxy.hold()

    with ends_within(8):
        container.stop()


def test_a_broker_that_hangs_during_declarations_gets_a_new_connection(
    run_service, broker, proxy, collect, monkeypatch
):
    service, bodies = collect
    monkeypatch.setattr(kit, "SETUP_SECONDS", 0.5)
    proxy.hold_at(CHANNEL_OPEN)
    starting = eventlet.spawn(run_service, service, AMQP_URI=proxy.uri)
    wait_for(lambda: proxy.accepted >= 2)

    proxy.release()

    starting.wait()
    broker.publish(b"late", queue="orders")
    wait_for(lambda: bodies == [b"late"])


def test_a_slow_broker_is_not_given_up(run_service, proxy, monkeypatch):
    """Each answer comes in time, but not all of them together."""
    monkeypatch.setattr(amqp_broker, "SETUP_SECONDS", 1)
    monkeypatch.setattr(kit, "SETUP_SECONDS", 1)
    declare = kit.declare

    def declare_slowly(channel, entity):
        eventlet.sleep(0.3)
        return declare(channel, entity)

    monkeypatch.setattr(kit, "declare", declare_slowly)

    class Bakery:
        name = "bakery"

        @event_handler(CakeBaked)
        def display(self, event):
            pass

    with ends_within(20):
        run_service(Bakery, AMQP_URI=proxy.uri)

    assert proxy.accepted == 1


def test_a_message_is_delivered_again_when_its_provider_raises(run_service, broker, deaths):
    came = []

    def take(entrypoint, message):
        came.append(message.body)
        if len(came) == 1:
            raise KeyError("a bug")
        entrypoint.consumers.ack(message)

    container = run_service(service_of(take))

    broker.publish(b"one", queue="orders")
    broker.publish(b"two", queue="orders")

    wait_for(lambda: sorted(came) == [b"one", b"one", b"two"])
    wait_for(lambda: broker.depth("orders") == 0)
    assert not deaths(container)


def test_consuming_resumes_after_the_broker_closed_the_channel(run_service, broker, collect, deaths):
    """As for a message that is unacknowledged for half an hour, with 406, the code for wrong arguments of a queue."""
    service, bodies = collect
    container = run_service(service)
    [entrypoint] = container.entrypoints

    entrypoint.consumers._channel.basic_ack(999)

    wait_for(lambda: broker.publish(b"x", queue="orders") or bodies)
    assert not deaths(container)


def test_two_missed_heartbeats_end_the_connection(run_service, broker, proxy, collect, monkeypatch):
    service, bodies = collect
    monkeypatch.setattr("nameko_reliable.amqp.broker.HEARTBEAT_SECONDS", 1)
    run_service(service, AMQP_URI=proxy.uri)

    proxy.hold()

    wait_for(lambda: proxy.accepted >= 2)
    proxy.release()
    broker.publish(b"after", queue="orders")
    wait_for(lambda: bodies == [b"after"])


def test_a_refused_queue_does_not_affect_others_and_is_consumed_once_accepted(
    run_service, broker, cluster, monkeypatch, caplog
):
    monkeypatch.setattr(kit, "DECLARE_SECONDS", 0.2)
    bodies = []

    class Bakery:
        name = "bakery"

        @raw_handler
        def take(self, message):
            bodies.append(message.body)
            self.consumers.ack(message)

        @rpc
        def bake(self, cake):
            return cake

    broker.declare("orders", durable=False)
    container = run_service(Bakery)
    consumers = container.shared_extensions[Consumers]
    answer, was_connected = cluster.bakery.bake("Torte"), consumers.connected

    with broker.channel() as channel:
        channel.queue_delete("orders")

    wait_for(lambda: consumers.connected)
    assert (answer, was_connected) == ("Torte", False)
    # Logged once, not at each declaration.
    assert caplog.text.count("inequivalent arg 'durable' for queue 'orders'") == 1
    assert "`python -m nameko_reliable queues move` replaces it and keeps its messages" in caplog.text
    broker.publish(b"accepted", queue="orders")
    wait_for(lambda: bodies == [b"accepted"])


def test_a_deleted_queue_is_consumed_again_at_once_on_the_same_connection(run_service, broker, proxy):
    held, bodies = [], []

    class OtherHandler(RawHandler):
        def queue(self):
            return Queue("returns", durable=True)

    class Bakery:
        name = "bakery"

        @raw_handler
        def take(self, message):
            bodies.append(message.body)
            self.consumers.ack(message)

        @OtherHandler.decorator
        def hold(self, message):
            held.append(message)

    container = run_service(Bakery, AMQP_URI=proxy.uri)
    broker.publish(b"held", queue="returns")
    wait_for(lambda: held)

    with broker.channel() as channel:
        channel.queue_delete("orders")

    wait_for(lambda: broker.consumers("orders"))
    broker.publish(b"again", queue="orders")
    wait_for(lambda: bodies == [b"again"])
    container.shared_extensions[Consumers].ack(held[0])
    wait_for(lambda: container.shared_extensions[Consumers].connected)
    assert (len(held), proxy.accepted) == (1, 1)


def test_an_acknowledgement_to_a_deleted_queue_does_no_harm(run_service, broker, proxy):
    came = []

    def take(entrypoint, message):
        came.append(message)
        if len(came) > 1:
            entrypoint.consumers.ack(message)

    [entrypoint] = run_service(service_of(take), AMQP_URI=proxy.uri).entrypoints
    broker.publish(b"one", queue="orders")
    wait_for(lambda: came)
    with broker.channel() as channel:
        channel.queue_delete("orders")
    wait_for(lambda: broker.consumers("orders"))

    entrypoint.consumers.ack(came[0])

    broker.publish(b"two", queue="orders")
    wait_for(lambda: [message.body for message in came] == [b"one", b"two"])
    assert proxy.accepted == 1


def test_unacknowledged_messages_of_a_stopped_service_go_back_to_the_queue(run_service, broker):
    held = []
    container = run_service(service_of(lambda entrypoint, message: held.append(message), prefetch=2))
    for body in (b"one", b"two", b"three"):
        broker.publish(body, queue="orders")
    wait_for(lambda: len(held) == 2)

    container.stop()

    assert [message.body for message in broker.peek("orders")] == ["one", "two", "three"]


def test_an_acknowledgement_for_a_lost_connection_is_ignored(run_service, broker, proxy):
    came = []

    def take(entrypoint, message):
        came.append(message)
        if len(came) > 1:
            entrypoint.consumers.ack(message)

    [entrypoint] = run_service(service_of(take), AMQP_URI=proxy.uri).entrypoints
    broker.publish(b"one", queue="orders")
    wait_for(lambda: came)
    proxy.cut()
    wait_for(lambda: len(came) == 2)

    entrypoint.consumers.ack(came[0])

    broker.publish(b"two", queue="orders")
    wait_for(lambda: [message.body for message in came] == [b"one", b"one", b"two"])


def test_a_queue_is_not_declared_after_its_last_consumer_has_gone(run_service, broker, proxy, monkeypatch):
    """The service is stopped after the declaration of its exchange and before that of its queue."""
    monkeypatch.setattr(kit, "DECLARE_SECONDS", 0.1)

    class Greeter:
        name = "greeter"

        @rpc
        def greet(self):
            pass

    container = run_service(Greeter, AMQP_URI=proxy.uri)
    proxy.hold_at(b"nameko-rpc")
    wait_for(lambda: proxy.holds)

    [consumers] = (extension for extension in container.extensions if isinstance(extension, kit.Consumers))
    stopping = eventlet.spawn(container.stop)
    wait_for(lambda: not consumers._providers)
    proxy.release()
    stopping.wait()

    assert not broker.queue_exists("rpc-greeter")


def test_many_entrypoints_of_one_queue_stop_together(run_service, broker):
    class Greeter:
        name = "greeter"

        @rpc
        def one(self):
            pass

        @rpc
        def two(self):
            pass

        @rpc
        def three(self):
            pass

    container = run_service(Greeter)
    assert broker.consumers("rpc-greeter") == 1

    with ends_within(5):
        container.stop()

    assert not broker.queue_exists("rpc-greeter")


def test_starting_a_worker_does_not_wait_behind_others_when_a_place_becomes_free(run_service):
    """The connection's reader starts workers. It must not wait for those that wait already."""
    leave, switched = Event(), []

    class Bakery:
        name = "bakery"

        @rpc
        def bake(self):
            leave.wait()

    container = run_service(Bakery, max_workers=1)
    [entrypoint] = container.entrypoints
    places, start_worker = container._worker_pool.sem, entrypoint.consumer.consumers.start_worker
    start_worker(entrypoint, (), {})
    start_worker(entrypoint, (), {})
    wait_for(lambda: places.balance < 0)
    eventlet.spawn_n(switched.append, True)

    # As a worker that ends. The one that waits gets the place in the next turn of the event loop.
    places.release()
    start_worker(entrypoint, (), {})

    assert not switched
    leave.send()


def test_a_failure_outside_of_the_reader_gives_the_message_back(run_service, broker, deaths):
    attempts = []

    def work(entrypoint, message):
        attempts.append(message.body)
        if len(attempts) == 1:
            raise RuntimeError("a defect")
        entrypoint.consumers.ack(message)

    def take(entrypoint, message):
        entrypoint.consumers.spawn(message, lambda: work(entrypoint, message))

    container = run_service(service_of(take))

    broker.publish(b"cake", queue="orders")

    wait_for(lambda: attempts == [b"cake"] * 2)
    wait_for(lambda: broker.depth("orders") == 0)
    assert not deaths(container)


def test_all_queues_together_hold_no_more_than_the_workers(run_service, broker):
    class Bakery:
        name = "bakery"

        @rpc
        def bake(self):
            pass

        @event_handler(CakeBaked, workers=2)
        def display(self, event):
            pass

        @event_handler(CakeEaten)
        def mourn(self, event):
            pass

        @broadcast_handler(OvenWarmed)
        def warm(self, event):
            pass

        @poll(interval_seconds=60, workers=2)
        def clean(self):
            pass

        @timer(interval=60)
        def rest(self):
            pass

    run_service(Bakery, max_workers=10)

    polls_and_timers = 3
    queues = {"rpc-bakery": 3, "evt-bakery-cake.baked": 2, "evt-bakery-cake.eaten": 1, "evt-bakery-oven.warmed": 1}
    assert sum(queues.values()) + polls_and_timers == 10
    wait_for(lambda: prefetch_counts(broker) == queues)


def prefetch_counts(broker):
    consumers = broker._get(f"consumers/{broker.vhost}")
    return {consumer["queue"]["name"].partition("--")[0]: consumer["prefetch_count"] for consumer in consumers}


def test_a_message_that_py_amqp_cannot_read_does_not_end_the_service(run_service, broker, deaths, caplog):
    bodies = []

    def take(entrypoint, message):
        bodies.append(message.body)
        entrypoint.consumers.ack(message)

    container = run_service(service_of(take, prefetch=10))

    publish_with_raw_correlation_id(broker, "orders", b"\xff" * 20)

    wait_for(lambda: "UnicodeDecodeError" in caplog.text)
    broker.publish(b"readable", queue="orders")
    assert not deaths(container)


def publish_with_raw_correlation_id(broker, queue, correlation_id):
    """Sends a property that isn't UTF-8. py-amqp itself would refuse to."""
    placeholder = "-" * len(correlation_id)
    with broker.channel() as channel:
        transport = channel.connection.transport
        send = transport._write
        transport._write = lambda data: send(bytes(data).replace(placeholder.encode(), correlation_id))
        message = channel.prepare_message(b"{}", properties={"correlation_id": placeholder})
        channel.confirm_select()
        channel.basic_publish_confirm(message, exchange="", routing_key=queue)
