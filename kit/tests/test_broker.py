"""nameko_reliable.amqp.broker: each message gets its own confirm, and publishing recovers from every failure."""

import eventlet
import pytest
from kombu import Connection, Exchange, Queue

from nameko_reliable.amqp import broker as kit
from nameko_reliable.amqp import frames
from nameko_reliable.amqp.broker import BrokerUnavailable, NotConfirmed, ReconnectingPublisher, Refused, Unroutable
from nameko_reliable.testing.waiting import wait_for

CAKES = Queue("cakes", durable=True)
CHANNEL_OPEN = b"\x00\x14\x00\x0a"


@pytest.fixture
def make_publisher():
    made = []

    def make_publisher(uri, declare=(CAKES,)):
        made.append(ReconnectingPublisher({"hostname": uri}, declare))
        return made[-1]

    yield make_publisher
    for publisher in made:
        publisher.close()


def publish(publisher, body=b"{}", queue="cakes", timeout_seconds=5, **options):
    options = {"mandatory": True, **options}
    publisher.publish(body, exchange="", routing_key=queue, timeout_seconds=timeout_seconds, **options)


def outcome(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return type(error)


def concurrently(*functions):
    return [thread.wait() for thread in [eventlet.spawn(outcome, function) for function in functions]]


def test_a_published_message_reaches_the_broker(make_publisher, broker):
    publisher = make_publisher(broker.uri)

    publish(publisher, b'{"cake": 1}', persistent=True, headers={"oven": 2}, correlation_id="c", expiration="60000")

    [message] = broker.peek("cakes")
    assert message.payload == {"cake": 1}
    assert message.headers == {"oven": 2}
    assert message.properties["delivery_mode"] == 2
    assert message.properties["correlation_id"] == "c"
    assert message.properties["expiration"] == "60000"


def test_a_lone_surrogate_can_be_encoded():
    assert kit.encode({"name": "\ud800"}) == b'{"name":"\\ud800"}'


def test_a_message_without_a_queue_is_unroutable(make_publisher, broker):
    publisher = make_publisher(broker.uri)

    with pytest.raises(Unroutable):
        publish(publisher, queue="nowhere")

    publish(publisher)
    assert broker.depth("cakes") == 1


def test_concurrent_messages_share_a_connection_and_have_their_own_confirms(make_publisher, proxy):
    publisher = make_publisher(proxy.uri)
    queues = ["cakes", "nowhere"] * 100

    outcomes = concurrently(*(lambda queue=queue: publish(publisher, queue=queue) for queue in queues))

    assert outcomes == [None, Unroutable] * 100
    assert proxy.accepted == 1


def test_a_late_confirm_is_not_matched_to_the_next_message(make_publisher, proxy):
    publisher = make_publisher(proxy.uri)
    publish(publisher)
    proxy.hold()
    with eventlet.Timeout(0.2, False):
        publish(publisher)
    other = eventlet.spawn(outcome, publish, publisher, queue="nowhere")
    wait_for(lambda: publisher._connection.pending)

    proxy.release()

    assert other.wait() is Unroutable
    assert proxy.accepted == 1


def test_after_a_missing_confirm_the_next_message_gets_a_new_connection(make_publisher, proxy):
    publisher = make_publisher(proxy.uri)
    publish(publisher)
    proxy.hold()

    with pytest.raises(NotConfirmed):
        publish(publisher, timeout_seconds=0.2)

    proxy.release()
    publish(publisher)
    assert proxy.accepted == 2


def test_a_refused_message_does_not_affect_others(make_publisher, proxy, broker):
    full = Queue("full", queue_arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    publisher = make_publisher(proxy.uri, [CAKES, full])
    publish(publisher, queue="full")
    queues = ["cakes", "full", "nowhere"] * 50

    outcomes = concurrently(*(lambda queue=queue: publish(publisher, queue=queue) for queue in queues))

    assert outcomes == [None, Refused, Unroutable] * 50
    assert (broker.depth("cakes"), proxy.accepted) == (50, 1)


def test_a_message_sent_to_two_queues_is_returned_only_for_the_missing_one(make_publisher, broker):
    publisher = make_publisher(broker.uri)

    outcomes = concurrently(
        lambda: publish(publisher, message_id="m-1"),
        lambda: publish(publisher, message_id="m-1", queue="nowhere"),
    )

    assert outcomes == [None, Unroutable]


def test_a_lost_connection_fails_all_pending_confirms(make_publisher, proxy):
    publisher = make_publisher(proxy.uri)
    publish(publisher)
    proxy.hold()
    waiting = [eventlet.spawn(outcome, publish, publisher, timeout_seconds=60) for _ in range(10)]
    wait_for(lambda: len(publisher._connection.pending) == 10)

    proxy.cut()

    assert [thread.wait() for thread in waiting] == [BrokerUnavailable] * 10


def test_messages_fail_while_the_broker_is_unreachable_and_succeed_afterwards(make_publisher, proxy, broker):
    publisher = make_publisher(proxy.uri)
    publish(publisher)
    proxy.go_away()

    outcomes = concurrently(*[lambda: publish(publisher)] * 50)

    assert outcomes == [BrokerUnavailable] * 50
    proxy.come_back()
    wait_for(lambda: outcome(publish, publisher) is None)


def test_concurrent_messages_share_one_attempt_to_connect(make_publisher, proxy):
    publisher = make_publisher(proxy.uri)
    proxy.hold()

    outcomes = concurrently(*[lambda: publish(publisher)] * 20)

    assert outcomes == [BrokerUnavailable] * 20
    assert proxy.accepted == 1


def test_connecting_to_a_broker_that_hangs_after_the_handshake_times_out(make_publisher, proxy, monkeypatch):
    monkeypatch.setattr(kit, "SETUP_SECONDS", 0.3)
    publisher = make_publisher(proxy.uri)
    proxy.hold_at(CHANNEL_OPEN)

    with pytest.raises(BrokerUnavailable):
        publish(publisher)

    wait_for(lambda: not proxy.open)


def test_a_deadline_does_not_interrupt_the_connect(make_publisher, proxy):
    """Otherwise a broker that takes longer to connect to than its callers wait would never be reached."""
    publisher = make_publisher(proxy.uri)
    proxy.hold_at(CHANNEL_OPEN)

    with pytest.raises(KeyError), eventlet.Timeout(0.3, KeyError("the caller's")):
        publish(publisher)

    proxy.release()
    publish(publisher)
    assert proxy.accepted == 1


def test_a_publisher_that_is_closed_during_the_connect_keeps_no_connection(make_publisher, proxy):
    publisher = make_publisher(proxy.uri)
    proxy.hold_at(CHANNEL_OPEN)
    publishing = eventlet.spawn(outcome, publish, publisher)
    wait_for(lambda: proxy.holds)

    publisher.close()

    proxy.release()
    assert publishing.wait() is BrokerUnavailable
    wait_for(lambda: not proxy.open)


def test_a_refused_declaration_does_not_stop_publishing(make_publisher, broker):
    broker.declare("cakes", durable=False)
    publisher = make_publisher(broker.uri, [CAKES, Queue("pies")])

    publish(publisher, queue="pies")

    assert broker.depth("pies") == 1
    [(name, refusal)] = publisher.refused().items()
    assert (name, "inequivalent arg 'durable'" in refusal) == ("cakes", True)


def test_a_broker_that_takes_no_bytes_gets_a_new_connection(make_publisher, proxy):
    publisher = make_publisher(proxy.uri)
    publish(publisher)
    proxy.stop_reading()

    with pytest.raises(BrokerUnavailable):
        for _ in range(100):
            publisher.send(b"x" * 10_000_000, exchange="", routing_key="cakes")

    proxy.release()
    publish(publisher)
    assert proxy.accepted == 2


def test_a_connection_that_cannot_send_ends_whatever_the_cause(make_publisher, proxy, monkeypatch):
    publisher = make_publisher(proxy.uri)
    publish(publisher)

    with monkeypatch.context() as patch, eventlet.Timeout(20):
        patch.setattr(frames.SendBuffer, "_send_some", lambda *args: 1 / 0)
        assert outcome(publish, publisher, timeout_seconds=60) is BrokerUnavailable

    publish(publisher)
    assert proxy.accepted == 2


def test_a_deadline_while_the_broker_takes_no_bytes_harms_no_other_message(make_publisher, proxy, monkeypatch):
    monkeypatch.setattr(frames, "SEND_SECONDS", 600)
    publisher = make_publisher(proxy.uri)
    publish(publisher)
    proxy.stop_reading(seconds=1)

    with pytest.raises(KeyError), eventlet.Timeout(0.2, KeyError("the caller's")):
        for _ in range(100):
            publisher.send(b"x" * 10_000_000, exchange="", routing_key="cakes")

    proxy.release()
    publish(publisher, timeout_seconds=60)
    assert proxy.accepted == 1


def test_the_messages_of_one_turn_are_sent_together(make_publisher, broker, monkeypatch):
    publisher = make_publisher(broker.uri)
    publish(publisher)
    sent = []
    send_some = frames.SendBuffer._send_some
    monkeypatch.setattr(frames.SendBuffer, "_send_some", lambda *args: sent.append(1) or send_some(*args))

    concurrently(*[lambda: publish(publisher)] * 50)

    assert sent == [1]


def test_a_missing_exchange_fails_only_its_own_message(make_publisher, broker):
    publisher = make_publisher(broker.uri)

    with pytest.raises(BrokerUnavailable):
        publisher.publish(b"{}", exchange="nowhere", routing_key="", timeout_seconds=5)

    publish(publisher)


def test_a_new_connection_declares_again(make_publisher, broker):
    publisher = make_publisher(broker.uri, [Queue("cakes", exchange=Exchange("bakery", type="topic"), routing_key="#")])
    publish(publisher)
    with broker.channel() as channel:
        channel.queue_delete("cakes")

    publisher.reconnect()

    publisher.publish(b"{}", exchange="bakery", routing_key="any", mandatory=True, timeout_seconds=5)


def test_a_closed_publisher_does_not_connect_again(make_publisher, proxy):
    publisher = make_publisher(proxy.uri)
    publish(publisher)

    publisher.close()

    with pytest.raises(BrokerUnavailable):
        publish(publisher)
    wait_for(lambda: not proxy.open)


@pytest.fixture
def watermark(servers):
    """`watermark("0.5")`, a share of the machine's memory: above it the broker blocks publishers."""

    def watermark(share):
        servers[1].control("set_vm_memory_high_watermark", share)

    yield watermark
    watermark("0.9")


def test_a_blocked_broker_is_unavailable_until_it_is_unblocked(make_publisher, broker, watermark):
    publisher = make_publisher(broker.uri)
    publish(publisher)
    watermark("0.0000001")

    outcomes = concurrently(*[lambda: publish(publisher, timeout_seconds=60)] * 5)

    assert outcomes == [BrokerUnavailable] * 5
    watermark("0.9")
    wait_for(lambda: outcome(publish, publisher) is None)


def test_confirmed_messages_survive_a_broker_crash_and_the_publisher_reconnects(make_publisher, own_broker):
    publisher = make_publisher(own_broker.rabbitmq.uri())
    publish(publisher, persistent=True)
    # The confirm says that the message is on disk. The broker writes the queue's own record a little later.
    own_broker.control("eval", "mnesia:sync_log().")
    own_broker.kill()
    down = outcome(publish, publisher)

    own_broker.start()
    own_broker.wait_until_ready()

    assert down is BrokerUnavailable
    wait_for(lambda: outcome(publish, publisher) is None)
    with Connection(own_broker.rabbitmq.uri()) as connection, connection.channel() as channel:
        assert CAKES(channel).queue_declare(passive=True).message_count == 2
