"""nameko_reliable.parking: parked messages are listed, replayed once, or discarded."""

import pydoc
import struct
from datetime import datetime
from types import SimpleNamespace

import eventlet
import pytest
from amqp.channel import Channel
from amqp.exceptions import ResourceLocked
from amqp.method_framing import frame_writer
from eventlet.event import Event
from kombu import Queue

from bakery import CakeBaked
from nameko_reliable import parking
from nameko_reliable.errors import (
    NotReplayable,
    ParkedMessageNotFound,
    ParkingLotBusy,
    ServiceUnavailable,
    TooManyParked,
)
from nameko_reliable.events import event_handler
from nameko_reliable.messages import to_payload
from nameko_reliable.parking import ParkingLot, parked_messages
from nameko_reliable.rpc import rpc
from nameko_reliable.testing.waiting import wait_for

QUEUE = "evt-bakery-cake.baked--cafe.display"


class Cafe:
    name = "cafe"

    parking = ParkingLot()
    displayed = []
    broken = False

    @event_handler(CakeBaked, pauses_seconds=())
    def display(self, event):
        if type(self).broken:
            raise ZeroDivisionError("no plate")
        self.displayed.append(event.cake)

    @rpc
    def list(self, limit=50):
        return self.parking.list(limit)

    @rpc
    def count(self):
        return self.parking.count()

    @rpc
    def replay(self, message_id):
        return self.parking.replay(message_id)

    @rpc
    def discard(self, message_id):
        return self.parking.discard(message_id)

    @rpc
    def replay_all(self, **selection):
        return self.parking.replay_all(**selection)

    @rpc
    def discard_all(self, **selection):
        return self.parking.discard_all(**selection)


@parked_messages
class Bar:
    name = "bar"

    displayed = []

    @event_handler(CakeBaked)
    def display(self, event):
        self.displayed.append(event.cake)


@parked_messages
class Kiosk:
    name = "kiosk"


@pytest.fixture(autouse=True)
def generous_limits(monkeypatch):
    """A busy machine must not reach the limits in seconds. The tests of a limit set it themselves."""
    for limit in ("LOCK_SECONDS", "READ_SECONDS", "ANSWER_SECONDS"):
        monkeypatch.setattr(parking, limit, 60)
    monkeypatch.setattr("nameko_reliable.rpc.CALL_SECONDS", 120)


def refusal_of(call, *args):
    try:
        call(*args)
    except Exception as error:
        return type(error)


def send_copies(broker, number, headers, body=b"{}"):
    """Park many copies of a message that has no id. Its frames are encoded once."""
    frames, unconfirmed = [], set(range(1, number + 1))

    def confirm(tag, multiple):
        unconfirmed.difference_update(range(1, tag + 1) if multiple else [tag])

    with broker.channel() as channel:
        # A quorum queue without a leader loses what a channel sent that closes before the confirms.
        channel.confirm_select()
        channel.events["basic_ack"].add(confirm)
        connection = channel.connection
        writer = connection._frame_writer
        connection._frame_writer = frame_writer(
            connection, SimpleNamespace(write=lambda frame: frames.append(bytes(frame)))
        )
        channel.basic_publish(channel.prepare_message(body, headers=headers), exchange="", routing_key="parked.cafe")
        connection._frame_writer = writer
        for _ in range(0, number, 500):
            connection.transport.write(b"".join(frames) * min(500, number))
        while unconfirmed:
            connection.drain_events(timeout=60)


def call_until_none_is_left(call, **selection):
    """The answers of all calls."""
    answers = [call(**selection)]
    while answers[-1]["left"]:
        answers.append(call(**selection, left=answers[-1]["left"]))
    return answers


def sums(answers):
    return [sum(answer[name] for answer in answers) for name in ("done", "kept")]


@pytest.fixture
def cafe():
    """A cafe without plates."""

    class Fresh(Cafe):
        displayed = []
        broken = True

    return Fresh


@pytest.fixture
def park(broker, run_service, cafe):
    """Runs the cafe, and publishes cakes that it fails to handle."""
    container = run_service(cafe)

    def park(*cakes):
        for cake in cakes:
            broker.publish_event(CakeBaked(cake=cake), headers={"nameko.request_id": "r-1"})
        wait_for(lambda: broker.queue_exists("parked.cafe") and broker.depth("parked.cafe") == len(cakes))
        return container

    return park


def test_the_list_shows_the_queue_and_the_reason_of_a_message(park, cluster):
    park("Torte")

    parked = cluster.cafe.list()

    [message] = parked["messages"]
    assert parked["total"] == 1
    assert message["queue"] == QUEUE
    assert message["reason"] == "gave up after attempt 1: ZeroDivisionError: no plate"
    assert message["attempts"] == 1
    assert message["parked_at"].endswith("Z")
    assert '"cake": "Torte"' in message["body"]


def test_the_list_is_newest_first_and_removes_nothing(park, cluster, broker):
    park(*"abcde")

    lists = [cluster.cafe.list(limit=3) for _ in range(3)]

    assert all(parked == lists[0] for parked in lists)
    assert ['"cake": "e"' in lists[0]["messages"][0]["body"], len(lists[0]["messages"])] == [True, 3]
    assert lists[0]["total"] == 5
    assert broker.depth("parked.cafe") == 5


def test_a_thousand_messages_are_listed(park, cluster, broker):
    with_one = park("Torte")
    assert with_one
    with broker.channel() as channel:
        [sample] = broker.peek("parked.cafe")
        for number in range(999):
            message = channel.prepare_message(
                b"x" * 1000, headers=sample.headers, properties={"message_id": str(number)}
            )
            channel.basic_publish(message, exchange="", routing_key="parked.cafe")
    wait_for(lambda: broker.depth("parked.cafe") == 1000)

    parked = cluster.cafe.list(limit=1000)

    assert parked["total"] == len(parked["messages"]) == 1000


def test_an_empty_queue_has_an_empty_list(run_service, cluster):
    run_service(Cafe)

    assert cluster.cafe.list() == {"messages": [], "total": 0}
    assert cluster.cafe.count() == 0


def test_counting_removes_nothing(park, cluster, broker):
    park("a", "b", "c")

    assert [cluster.cafe.count() for _ in range(3)] == [3, 3, 3]

    wait_for(lambda: broker.depth("parked.cafe") == 3)


def test_a_long_body_is_cut(park, cluster):
    park("T" * 3000)

    [message] = cluster.cafe.list()["messages"]

    assert (len(message["body"]), message["body"][-2:]) == (2001, "T…")


def test_a_replayed_message_is_handled(park, cluster, cafe, broker):
    park("a", "b")
    message_id = cluster.cafe.list()["messages"][0]["message_id"]
    cafe.broken = False

    assert cluster.cafe.replay(message_id)

    wait_for(lambda: cafe.displayed == ["b"])
    assert cluster.cafe.list()["total"] == 1


def test_a_replayed_message_that_fails_again_is_parked_again(park, cluster, broker):
    park("Torte")
    [first] = cluster.cafe.list()["messages"]

    assert cluster.cafe.replay(first["message_id"])

    wait_for(lambda: broker.depth("parked.cafe") == 1)
    [again] = cluster.cafe.list()["messages"]
    assert again["body"] == first["body"]
    assert again["message_id"] != first["message_id"]
    assert broker.peek("parked.cafe")[0].headers["nameko.request_id"] == "r-1"


def test_a_discarded_message_is_gone(park, cluster, broker):
    park("a", "b", "c")
    message_id = cluster.cafe.list()["messages"][1]["message_id"]

    assert cluster.cafe.discard(message_id)

    wait_for(lambda: broker.depth("parked.cafe") == 2)
    assert ['"a"' in broker.peek("parked.cafe")[0].body, '"c"' in broker.peek("parked.cafe")[1].body] == [True, True]


def test_an_unknown_message_can_be_neither_replayed_nor_discarded(park, cluster, broker):
    park("Torte")

    assert [cluster.cafe.replay("other"), cluster.cafe.discard("other")] == [False, False]

    wait_for(lambda: broker.depth("parked.cafe") == 1)


def test_of_concurrent_replays_one_succeeds_and_every_list_shows_the_others(park, cluster, cafe, broker):
    park("a", "b")
    message_id = cluster.cafe.list()["messages"][1]["message_id"]
    cafe.broken = False

    replays = [eventlet.spawn(cluster.cafe.replay, message_id) for _ in range(3)]
    lists = [eventlet.spawn(cluster.cafe.list) for _ in range(3)]

    assert sorted(replay.wait() for replay in replays) == [False, False, True]
    assert all("b" in str(parked.wait()["messages"]) for parked in lists)
    wait_for(lambda: cafe.displayed == ["a"])


def test_a_call_waits_while_another_reads_the_queue(park, cluster, broker, monkeypatch):
    """The messages belong to the reader until then, and the broker does not count them."""
    container = park("Torte")
    [lot] = [provider for provider in container.dependencies if isinstance(provider, ParkingLot)]
    reading, leave = Event(), Event()
    declare, locked = Queue.declare, []

    def read():
        with lot._exclusive_reader() as reader:
            assert len([*reader.oldest(9)]) == 1
            reading.send()
            leave.wait()

    def record_locks(queue, **options):
        try:
            return declare(queue, **options)
        except ResourceLocked:
            locked.append(queue)
            raise

    monkeypatch.setattr(Queue, "declare", record_locks)
    eventlet.spawn(read)
    reading.wait()
    asking = eventlet.spawn(cluster.cafe.list)
    counting = eventlet.spawn(cluster.cafe.count)
    wait_for(lambda: len(set(map(id, locked))) == 2)

    leave.send()

    assert asking.wait()["total"] == 1
    assert counting.wait() == 1


def test_a_foreign_message_is_listed_and_can_be_discarded(park, cluster, broker):
    park("Torte")
    broker.publish(b"\xff", queue="parked.cafe", message_id="foreign")

    [_, foreign] = cluster.cafe.list()["messages"]

    assert foreign["message_id"] == "foreign"
    assert cluster.cafe.discard("foreign")


@pytest.mark.parametrize("message_id", ["", "../x", "x" * 65])
def test_a_message_without_a_usable_id_gets_a_stable_one(run_service, cluster, broker, message_id):
    run_service(Cafe)
    wait_for(lambda: broker.queue_exists("parked.cafe"))
    broker.publish(b"x", queue="parked.cafe", message_id=message_id)

    [[first], [second]] = [cluster.cafe.list()["messages"] for _ in range(2)]

    assert first == second
    assert first["message_id"].isalnum() and len(first["message_id"]) <= 64
    assert cluster.cafe.discard(first["message_id"])
    wait_for(lambda: broker.depth("parked.cafe") == 0)


@pytest.mark.parametrize("headers", [{}, {"x-parked-from": "gone"}])
def test_a_message_without_an_existing_queue_cannot_be_replayed_and_stays(run_service, cluster, broker, headers):
    run_service(Cafe)
    wait_for(lambda: broker.queue_exists("parked.cafe"))
    broker.publish(b"x", queue="parked.cafe", message_id="foreign", headers=headers)

    with pytest.raises(NotReplayable):
        cluster.cafe.replay("foreign")

    assert cluster.cafe.count() == 1


def test_a_message_that_cannot_be_replayed_is_back_before_the_next_call_reads(run_service, cluster, broker):
    run_service(Cafe)
    wait_for(lambda: broker.queue_exists("parked.cafe"))
    broker.publish(b"x", queue="parked.cafe", message_id="foreign")

    replays = [eventlet.spawn(refusal_of, cluster.cafe.replay, "foreign") for _ in range(4)]

    assert [replay.wait() for replay in replays] == [NotReplayable] * 4


MALFORMED = ["yesterday", 10**17, -1, 1.5, True, None, [], {"a": 1}, b"\xff", "x" * 100_000, "ä" * 200]


@pytest.mark.parametrize("name", ["x-parked-at", "x-parked-from", "x-parked-reason", "x-parked-attempts"])
def test_a_malformed_header_is_none_and_the_rest_is_listed(park, cluster, broker, name):
    park("Torte")
    sound = {"x-parked-at": 7, "x-parked-from": QUEUE, "x-parked-reason": "no plate", "x-parked-attempts": 3}
    for value in MALFORMED:
        broker.publish(b"x", queue="parked.cafe", headers={**sound, name: value})

    parked = cluster.cafe.list()

    field = {"x-parked-at": "parked_at", "x-parked-from": "queue"}.get(name, name.removeprefix("x-parked-"))
    assert parked["total"] == len(parked["messages"]) == 1 + len(MALFORMED)
    given = [message[field] for message in parked["messages"] if message["body"] == "x"]
    texts = {"x-parked-from": {"yesterday"}, "x-parked-reason": {"yesterday", "x" * 500, "ä" * 200}}.get(name, set())
    assert set(given) == {None} | texts
    # A message whose queue does not exist, or could not, does not stop the replay of others.
    assert cluster.cafe.replay_all(reason="no plate")["left"] == 0


def test_undecodable_headers_do_not_break_the_list(park, cluster, broker):
    park("Torte")
    with broker.channel() as channel:
        for properties, headers in (({"message_id": b"\xff"}, {}), ({}, {"x-parked-at": datetime(9999, 1, 1)})):
            message = channel.prepare_message(b"x", properties=properties, headers=headers)
            # A year that Python has no date for.
            serialized = message._serialize_properties().replace(struct.pack(">q", 253370764800), b"\x7f" + b"\xff" * 7)
            message._serialize_properties = lambda serialized=serialized: serialized
            channel.basic_publish(message, exchange="", routing_key="parked.cafe")
    wait_for(lambda: broker.depth("parked.cafe") == 3)

    parked = cluster.cafe.list()

    assert [message["body"] for message in parked["messages"] if message["parked_at"] is None] == ["x", "x"]
    assert cluster.cafe.discard(parked["messages"][1]["message_id"])
    assert sums(call_until_none_is_left(cluster.cafe.discard_all)) == [2, 0]


# The methods that the decorator adds


def test_a_decorated_service_lists_and_settles_its_own_parked_messages(run_service, cluster, broker, monkeypatch):
    monkeypatch.setattr(Bar, "displayed", [])
    run_service(Bar)
    run_service(Kiosk)
    wait_for(lambda: broker.queue_exists("parked.bar"))
    headers = {"x-parked-from": "evt-bakery-cake.baked--bar.display", "x-parked-reason": "no plate"}
    for cake in "abcd":
        broker.publish(to_payload(CakeBaked(cake=cake)), queue="parked.bar", message_id=cake, headers=headers)
    wait_for(lambda: cluster.bar.count_parked() == 4)

    listed = [cluster.bar.list_parked(limit=1), cluster.kiosk.list_parked()]
    settled = [cluster.bar.replay_parked("a"), cluster.bar.discard_parked(message_id="b")]
    refused = [refusal_of(call, "b") for call in (cluster.bar.replay_parked, cluster.bar.discard_parked)]
    others = [cluster.bar.discard_all_parked(reason="not JSON"), cluster.bar.replay_all_parked(reason="no plate")]

    assert [(len(page["messages"]), page["total"]) for page in listed] == [(1, 4), (0, 0)]
    assert settled == [None, None]
    assert refused == [ParkedMessageNotFound] * 2
    assert others == [{"done": 0, "kept": 2, "left": 0}, {"done": 2, "kept": 0, "left": 0}]
    wait_for(lambda: sorted(Bar.displayed) == ["a", "c", "d"])


def test_the_added_methods_are_documented_like_the_class_s_own():
    text = pydoc.plain(pydoc.render_doc(Bar))

    assert "replay_all_parked(self: " in text and "|      Send up to 500 messages" in text
    assert isinstance(Bar.parking, ParkingLot)


# Long queues


def test_of_a_long_queue_only_the_oldest_messages_are_listed_and_settled(park, cluster, cafe, broker):
    container = park("first", "second")
    assert container
    [first, second] = [message["message_id"] for message in reversed(cluster.cafe.list()["messages"])]
    headers = {"x-parked-from": QUEUE, "x-parked-reason": "not JSON", "x-parked-at": 2_000_000_000}
    send_copies(broker, 4000, headers)
    broker.publish(b"last", queue="parked.cafe", message_id="last", headers=headers)
    wait_for(lambda: broker.depth("parked.cafe") == 4003)
    cafe.broken = False

    lists = [eventlet.spawn(cluster.cafe.list) for _ in range(3)]
    counts = [eventlet.spawn(cluster.cafe.count) for _ in range(3)]

    assert [(page.wait()["total"], len(page.wait()["messages"])) for page in lists] == [(4003, 50)] * 3
    assert [count.wait() for count in counts] == [4003] * 3
    assert [message["message_id"] for message in cluster.cafe.list(limit=1000)["messages"][-2:]] == [second, first]
    assert cluster.cafe.replay(first)
    wait_for(lambda: cafe.displayed == ["first"])
    assert cluster.cafe.discard(second)
    with pytest.raises(TooManyParked) as refusal:
        cluster.cafe.discard("last")
    assert (refusal.value.looked_at, refusal.value.total) == (1000, 4001)
    assert cluster.cafe.discard_all(reason="not JSON") == {"done": 500, "kept": 0, "left": 3501}


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_a_queue_that_reports_no_messages_is_checked(run_service, cluster, broker, monkeypatch, queue_type):
    """A quorum queue reports 0 if its leader takes more than 250 ms to answer."""
    run_service(Cafe, EVENT_QUEUE_TYPE=queue_type)
    wait_for(lambda: broker.queue_exists("parked.cafe"))
    send_copies(broker, 5, {"x-parked-from": QUEUE, "x-parked-reason": "not JSON"})
    wait_for(lambda: broker.depth("parked.cafe") == 5)
    queue_declare = Channel.queue_declare

    def with_first_report_wrong(call, **arguments):
        wrong_reports = iter([0])

        def report(channel, queue="", passive=False, **options):
            answer = queue_declare(channel, queue, passive=passive, **options)
            return answer._replace(message_count=next(wrong_reports, answer.message_count)) if passive else answer

        monkeypatch.setattr(Channel, "queue_declare", report)
        return call(**arguments)

    assert with_first_report_wrong(cluster.cafe.count) == 5
    parked = with_first_report_wrong(cluster.cafe.list)
    assert (parked["total"], len(parked["messages"])) == (5, 5)
    assert with_first_report_wrong(cluster.cafe.discard_all, reason="not JSON") == {"done": 5, "kept": 0, "left": 0}
    assert cluster.cafe.count() == 0


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_discard_all_finds_a_reason_anywhere_in_the_queue(run_service, cluster, broker, monkeypatch, queue_type):
    monkeypatch.setattr(parking, "BATCH_MESSAGES", 40)
    run_service(Cafe, EVENT_QUEUE_TYPE=queue_type)
    wait_for(lambda: broker.queue_exists("parked.cafe"))
    for number, reason in ((100, "no plate"), (30, "not JSON: line 1"), (5, "no plate")):
        send_copies(broker, number, {"x-parked-from": QUEUE, "x-parked-reason": reason})
    wait_for(lambda: broker.depth("parked.cafe") == 135)

    answers = call_until_none_is_left(cluster.cafe.discard_all, reason="not JSON")

    assert (sums(answers), len(answers)) == ([30, 105], 4)
    assert {message["reason"] for message in cluster.cafe.list(limit=1000)["messages"]} == {"no plate"}
    assert sums(call_until_none_is_left(cluster.cafe.discard_all, queue="other")) == [0, 105]
    assert sums(call_until_none_is_left(cluster.cafe.discard_all, queue=QUEUE)) == [105, 0]
    assert cluster.cafe.count() == 0


def test_replay_all_replays_each_message_once_even_if_it_fails_again(park, cluster, broker, monkeypatch):
    monkeypatch.setattr(parking, "BATCH_MESSAGES", 3)
    park(*"abcdefgh")

    answers = call_until_none_is_left(cluster.cafe.replay_all)

    assert sums(answers) == [8, 0]
    wait_for(lambda: broker.depth("parked.cafe") == 8 and broker.depth(QUEUE) == 0)


def test_messages_that_cannot_be_replayed_do_not_block_others(park, cluster, cafe, broker, monkeypatch):
    monkeypatch.setattr(parking, "BATCH_MESSAGES", 3)
    park("Torte")
    for _ in range(7):
        broker.publish(b"x", queue="parked.cafe", headers={"x-parked-from": "gone"})
    send_copies(broker, 1, {"x-parked-from": QUEUE}, body=broker.peek("parked.cafe")[0].body.encode())
    wait_for(lambda: broker.depth("parked.cafe") == 9)
    cafe.broken = False

    answers = call_until_none_is_left(cluster.cafe.replay_all)

    assert sums(answers) == [2, 7]
    wait_for(lambda: cafe.displayed == ["Torte", "Torte"])
    assert cluster.cafe.list()["total"] == 7


def test_of_large_messages_only_a_few_are_read(run_service, cluster, broker, monkeypatch):
    monkeypatch.setattr(parking, "WINDOW_BYTES", 200_000)
    monkeypatch.setattr(parking, "CHUNK_MESSAGES", 2)
    run_service(Cafe)
    wait_for(lambda: broker.queue_exists("parked.cafe"))
    send_copies(broker, 10, {}, body=b"x" * 100_000)
    wait_for(lambda: broker.depth("parked.cafe") == 10)

    parked = cluster.cafe.list()

    assert (len(parked["messages"]), parked["total"]) == (2, 10)
    wait_for(lambda: broker.depth("parked.cafe") == 10)


def test_a_slow_broker_shortens_the_list_and_not_the_total(park, cluster, monkeypatch):
    monkeypatch.setattr(parking, "READ_SECONDS", 0)
    park("a", "b")

    assert cluster.cafe.list() == {"messages": [], "total": 2}
    with pytest.raises(TooManyParked) as refusal:
        cluster.cafe.replay("any")
    assert (refusal.value.looked_at, refusal.value.total) == (0, 2)


def test_a_call_that_waits_too_long_gets_parking_lot_busy(park, cluster, monkeypatch):
    monkeypatch.setattr(parking, "LOCK_SECONDS", 0.3)
    container = park("Torte")
    [lot] = [provider for provider in container.dependencies if isinstance(provider, ParkingLot)]
    refusals = []

    with lot._exclusive_reader():
        refusals += [refusal_of(call) for call in (cluster.cafe.list, cluster.cafe.replay_all)]
        counted = cluster.cafe.count()

    assert refusals == [ParkingLotBusy] * 2
    assert counted == 1


@pytest.mark.parametrize("deaths", ["gone", 7, ["gone"], [{}], [{"queue": "q", "reason": 7, "time": "noon"}]])
def test_a_malformed_death_header_is_ignored(run_service, cluster, broker, deaths):
    run_service(Cafe)
    wait_for(lambda: broker.queue_exists("parked.cafe"))
    broker.publish(b"x", queue="parked.cafe", message_id="foreign", headers={"x-death": deaths})

    [message] = cluster.cafe.list()["messages"]

    assert (message["queue"], message["reason"], message["parked_at"]) == (None, None, None)


def test_the_list_fails_while_the_broker_is_unreachable(run_service, cafe, proxy):
    container = run_service(cafe, AMQP_URI=proxy.uri)
    [lot] = [provider for provider in container.dependencies if isinstance(provider, ParkingLot)]
    proxy.go_away()

    with pytest.raises(ServiceUnavailable):
        lot.list(50)


def test_the_list_fails_when_the_broker_hangs(run_service, cafe, proxy, monkeypatch):
    monkeypatch.setattr(parking, "ANSWER_SECONDS", 0.5)
    container = run_service(cafe, AMQP_URI=proxy.uri)
    [lot] = [provider for provider in container.dependencies if isinstance(provider, ParkingLot)]
    proxy.hold_at(b"parked.cafe")

    with eventlet.Timeout(30, AssertionError("the list hangs")), pytest.raises(ServiceUnavailable):
        lot.list(50)
