"""nameko_reliable.rpc: every call ends by its deadline with a result or an error, and no call ends the service."""

import time
from contextlib import contextmanager, suppress
from uuid import uuid4

import eventlet
import pytest
from eventlet import patcher
from eventlet.event import Event
from nameko.exceptions import (
    IncorrectSignature,
    MalformedRequest,
    MethodNotFound,
    RemoteError,
    deserialize_to_instance,
)

from bakery import Base, Cake, Context
from nameko_reliable.amqp import broker as amqp_broker
from nameko_reliable.amqp import deadlines, frames
from nameko_reliable.database import Database
from nameko_reliable.errors import RpcTimeout, ServiceUnavailable
from nameko_reliable.rpc import ClusterClient, rpc
from nameko_reliable.telemetry.metrics import Metrics
from nameko_reliable.testing.metrics import Watched
from nameko_reliable.testing.waiting import wait_for

BASIC_QOS = b"\x00\x3c\x00\x0a"


@deserialize_to_instance
class TooFewEggs(Exception):
    def __init__(self, wanted, left):
        super().__init__(wanted, left)
        self.wanted, self.left = int(wanted), int(left)


class Bakery:
    name = "bakery"

    context = Context()

    @rpc
    def bake(self, cake, ovens=1):
        return {"cake": cake, "ovens": ovens}

    @rpc
    def get_context(self):
        return self.context

    @rpc
    def break_eggs(self, wanted):
        raise TooFewEggs(wanted, 2)

    @rpc
    def burn(self):
        raise ZeroDivisionError("burnt")


class Cafe:
    name = "cafe"

    cluster = ClusterClient()
    context = Context()

    @rpc
    def order(self):
        return {"own": self.context["deadline"], "nested": self.cluster.bakery.get_context()}

    @rpc
    def break_eggs(self):
        return self.cluster.bakery.break_eggs(7)


def pending(cluster):
    return list(cluster._client.listener.pending._calls)


def outcome(call, *args):
    try:
        return call(*args)
    except Exception as error:
        return type(error)


@contextmanager
def ends_within(seconds):
    with eventlet.Timeout(seconds, AssertionError(f"not ended within {seconds} s")):
        yield


# Calls and replies


def test_a_call_is_answered(run_service, cluster):
    run_service(Bakery)

    assert cluster.bakery.bake("Torte", ovens=2) == {"cake": "Torte", "ovens": 2}


def test_namekos_own_client_can_call(run_service, rpc):
    run_service(Bakery)

    assert rpc.bakery.bake(cake="🍄") == {"cake": "🍄", "ovens": 1}
    with pytest.raises(TooFewEggs) as refusal:
        rpc.bakery.break_eggs(7)
    assert (refusal.value.wanted, refusal.value.left) == (7, 2)


def test_a_registered_error_keeps_its_class_through_nested_calls(run_service, cluster):
    run_service(Bakery)
    run_service(Cafe)

    with pytest.raises(TooFewEggs) as refusal:
        cluster.cafe.break_eggs()

    assert (refusal.value.wanted, refusal.value.left) == (7, 2)


def test_an_unregistered_error_arrives_as_remote_error(run_service, cluster):
    run_service(Bakery)

    with pytest.raises(RemoteError, match="ZeroDivisionError burnt"):
        cluster.bakery.burn()


def test_nested_calls_carry_the_request_id(run_service, cluster):
    run_service(Bakery)
    run_service(Cafe)

    answer = cluster.within(5, request_id="r-1").cafe.order()

    assert answer["nested"]["request_id"] == "r-1"


def test_concurrent_calls_share_one_reply_queue_and_get_their_own_results(run_service, cluster, broker):
    run_service(Bakery)

    threads = [eventlet.spawn(cluster.bakery.bake, number) for number in range(200)]

    assert [thread.wait()["cake"] for thread in threads] == list(range(200))
    assert len([name for name in broker.queues() if name.startswith("rpc.reply-caller-")]) == 1
    assert not pending(cluster)


def test_replicas_share_the_calls(run_service, cluster):
    met = {"one": Event(), "two": Event()}

    def replica(own, other):
        class Bakery:
            name = "bakery"

            @rpc
            def meet(self):
                met[own].send()
                met[other].wait()
                return own

        return Bakery

    run_service(replica("one", "two"), max_workers=1)
    run_service(replica("two", "one"), max_workers=1)

    calls = [eventlet.spawn(cluster.bakery.meet) for _ in range(2)]

    assert {call.wait() for call in calls} == {"one", "two"}


# Deadlines


def test_a_nested_call_inherits_the_deadline_less_half_a_second(run_service, cluster):
    run_service(Bakery)
    run_service(Cafe)
    called_at = time.monotonic()

    answer = cluster.within(3).cafe.order()

    seconds = time.monotonic() - called_at
    assert called_at + 3 <= answer["own"] <= called_at + 3 + seconds
    # The time in transit may count as no waiting, in each of the two calls.
    assert answer["own"] - 0.5 <= answer["nested"]["deadline"] <= answer["own"] - 0.5 + seconds


def test_a_call_has_five_seconds_by_default(run_service, cluster):
    run_service(Bakery)
    earliest = time.monotonic() + 5

    answer = cluster.bakery.get_context()

    assert earliest <= answer["deadline"] <= time.monotonic() + 5


def test_no_call_gets_more_than_five_seconds(run_service, cluster):
    run_service(Bakery)

    answer = cluster.within(60).bakery.get_context()

    assert answer["deadline"] <= time.monotonic() + 5


def test_a_nested_call_gets_no_more_time_than_its_caller_has(run_service, cluster):
    class Hurried:
        name = "hurried"

        cluster = ClusterClient()

        @rpc
        def order(self):
            return self.cluster.within(60).bakery.get_context()["deadline"]

    run_service(Bakery)
    run_service(Hurried)

    answer = cluster.within(3).hurried.order()

    assert answer <= time.monotonic() + 2.5


def test_a_call_past_its_deadline_is_not_sent(run_service, cluster):
    run_service(Bakery)

    with pytest.raises(RpcTimeout):
        cluster.within(0).bakery.bake("Torte")


def test_a_worker_does_not_start_past_the_deadline(run_service, calls):
    baked = []

    class Bakery:
        name = "bakery"

        @rpc
        def bake(self):
            baked.append(1)

    run_service(Bakery)

    calls.send("bakery.bake", headers={"nameko.time_left": 0})

    [answer] = wait_for(calls.answers)
    assert answer["error"]["exc_type"] == "RpcTimeout"
    assert not baked


class Sender:
    """A process whose monotonic clock has another origin than ours. It sets the send times of its calls."""

    def __init__(self, calls, clock=1_000_000, name="a process"):
        self.calls, self.clock, self.name = calls, clock, name

    def send(self, cake, seconds_ago=0.0, time_left=5, **headers):
        """The call's result, a cake, or the name of its error."""
        sent_at = self.clock + time.monotonic() - seconds_ago
        headers = {"time_left": time_left, "sender": self.name, "sent_at": sent_at, **headers}
        headers = {f"nameko.{name}": value for name, value in headers.items()}
        correlation_id = uuid4().hex
        self.calls.send("bakery.bake", cake, headers=headers, correlation_id=correlation_id)
        [answer] = wait_for(lambda: self.calls.answers(correlation_id))
        return answer["result"]["cake"] if answer["error"] is None else answer["error"]["exc_type"]


def test_waiting_time_is_measured_by_the_sender_s_other_calls(run_service, calls):
    run_service(Bakery)
    sender, other = Sender(calls), Sender(calls, clock=0, name="another process")

    answers = [
        # The first call of a process counts as one that did not wait.
        sender.send("late", seconds_ago=60),
        # All that is known is that it waited for less time than the first.
        sender.send("less late", seconds_ago=30),
        sender.send("punctual"),
        sender.send("in time", seconds_ago=3),
        sender.send("too late", seconds_ago=7),
        other.send("of another clock", seconds_ago=7),
    ]

    assert answers == ["late", "less late", "punctual", "in time", "RpcTimeout", "of another clock"]


def test_measurements_of_a_sender_s_clock_expire_after_a_minute(run_service, calls, monkeypatch):
    """Otherwise drift between the clocks, or a suspended machine, would count as waiting time."""
    run_service(Bakery)
    sender = Sender(calls)
    sender.send("punctual")
    assert sender.send("too late", seconds_ago=7) == "RpcTimeout"

    monkeypatch.setattr(deadlines, "WINDOW_SECONDS", 1)

    wait_for(lambda: sender.send("after a minute", seconds_ago=7) == "after a minute")


def test_above_the_limit_the_sender_with_the_oldest_call_is_dropped(run_service, calls, monkeypatch):
    monkeypatch.setattr(deadlines, "MAX_SENDERS", 2)
    run_service(Bakery)
    senders = [Sender(calls, name=f"process {number}") for number in range(3)]

    for sender in senders:
        sender.send("punctual")

    answers = [sender.send("late", seconds_ago=7) for sender in (senders[2], senders[0])]
    assert answers == ["RpcTimeout", "late"]


def test_a_deadline_of_another_process_is_ignored(bakery, calls):
    """Nameko's own client passes on its worker's deadline, which is a time of that process's clock."""
    calls.send("bakery.get_context", headers={"nameko.deadline": time.monotonic() - 3600})

    [answer] = wait_for(calls.answers)
    assert answer["result"]["deadline"] is None


def test_the_skew_of_wall_clocks_is_a_metric(run_service, calls):
    class Measured(Bakery):
        metrics = Metrics()

    watched = Watched(run_service(Measured))
    sender = Sender(calls)
    sender.send("first", wall_time=time.time())

    sender.send("ahead", wall_time=time.time() + 30)

    assert watched.value("nameko_clock_skew_seconds") == pytest.approx(-30, abs=2)
    Sender(calls, name="another").send("behind by less", wall_time=time.time() - 10)
    assert watched.value("nameko_clock_skew_seconds") == pytest.approx(-30, abs=2)


def test_a_call_that_expires_in_the_queue_never_runs(run_service, cluster, broker):
    baked, leave = [], Event()

    class Bakery:
        name = "bakery"

        @rpc
        def bake(self, cake):
            baked.append(cake)
            leave.wait()

    run_service(Bakery, max_workers=1)
    eventlet.spawn(outcome, cluster.bakery.bake, "first")
    wait_for(lambda: baked == ["first"])
    assert outcome(cluster.within(0.5).bakery.bake, "second") is RpcTimeout
    wait_for(lambda: broker.depth("rpc-bakery") == 0)  # It expires while the only worker is busy.

    leave.send()

    assert cluster.bakery.bake("third") is None
    assert baked == ["first", "third"]


def test_nothing_is_committed_past_the_deadline(run_service, cluster, tables):
    class Bakery:
        name = "bakery"

        db = Database(Base)

        @rpc
        def bake(self, past_deadline):
            with self.db.transaction(past_deadline=past_deadline) as session:
                session.add(Cake(name=f"past_deadline={past_deadline}"))
                eventlet.sleep(0.6)

    cakes = tables("bakery")
    run_service(Bakery)

    outcomes = [outcome(cluster.within(0.5).bakery.bake, past_deadline) for past_deadline in (False, True)]

    assert outcomes == [RpcTimeout, RpcTimeout]
    wait_for(lambda: cakes.all(Cake.name) == ["past_deadline=True"])


def test_a_late_reply_is_ignored(run_service, cluster):
    leave = Event()

    class Bakery:
        name = "bakery"

        @rpc
        def bake(self, cake):
            if cake == "slow":
                leave.wait()
            return cake

    run_service(Bakery)
    with pytest.raises(RpcTimeout):
        cluster.within(0.3).bakery.bake("slow")
    assert not pending(cluster)

    leave.send()

    assert [cluster.bakery.bake(number) for number in range(20)] == list(range(20))


# Unavailable services and brokers


def test_a_service_that_never_ran_is_unavailable_at_once(cluster):
    with ends_within(4), pytest.raises(ServiceUnavailable) as refusal:
        cluster.bakery.bake("Torte")

    assert refusal.value.service == "bakery"
    assert not pending(cluster)


def test_a_stopped_service_is_unavailable_at_once(run_service, cluster):
    container = run_service(Bakery)
    cluster.bakery.bake("Torte")

    container.stop()

    with ends_within(4), pytest.raises(ServiceUnavailable):
        cluster.bakery.bake("Torte")


def test_a_service_that_died_is_unavailable_within_seconds(run_service, cluster, proxy):
    run_service(Bakery, AMQP_URI=proxy.uri)
    cluster.bakery.bake("Torte")

    proxy.go_away()

    wait_for(lambda: outcome(cluster.within(0.5).bakery.bake, "Torte") is ServiceUnavailable)


def test_a_stopping_service_finishes_calls_in_progress(run_service, cluster):
    entered, leave = Event(), Event()

    class Bakery:
        name = "bakery"

        @rpc
        def bake(self):
            entered.send()
            leave.wait()
            return "done"

    container = run_service(Bakery)
    call = eventlet.spawn(cluster.bakery.bake)
    entered.wait()
    stopping = eventlet.spawn(container.stop)
    eventlet.sleep(0.2)

    leave.send()

    assert call.wait() == "done"
    stopping.wait()


def test_calls_fail_at_once_while_the_broker_is_unreachable_and_work_afterwards(run_service, cluster_of, proxy):
    run_service(Bakery)
    cluster = cluster_of(Cafe, AMQP_URI=proxy.uri)
    cluster.bakery.bake("Torte")
    proxy.go_away()

    with ends_within(4):
        outcomes = [outcome(cluster.bakery.bake, "Torte") for _ in range(20)]

    assert outcomes == [ServiceUnavailable] * 20
    proxy.come_back()
    wait_for(lambda: outcome(cluster.bakery.bake, "Torte") == {"cake": "Torte", "ovens": 1})


@pytest.mark.parametrize("deleted", ["exchange", "queue"])
def test_calls_work_again_after_the_exchange_or_queue_was_deleted(run_service, cluster, broker, monkeypatch, deleted):
    monkeypatch.setattr("nameko_reliable.amqp.consumers.DECLARE_SECONDS", 0.5)
    run_service(Bakery)
    with broker.channel() as channel:
        if deleted == "exchange":
            channel.exchange_delete("nameko-rpc")
        else:
            channel.queue_delete("rpc-bakery")

    def answer():
        with suppress(RpcTimeout, ServiceUnavailable):
            return cluster.within(1).bakery.bake("Torte")

    wait_for(answer)
    assert [cluster.bakery.bake("Torte")["cake"] for _ in range(10)] == ["Torte"] * 10


def test_pending_calls_fail_at_once_when_the_connection_is_lost(run_service, cluster_of, proxy):
    begun, leave = [], Event()

    class Bakery:
        name = "bakery"

        @rpc
        def bake(self):
            begun.append(1)
            leave.wait()

    run_service(Bakery)
    cluster = cluster_of(Cafe, AMQP_URI=proxy.uri)
    calls = [eventlet.spawn(outcome, cluster.bakery.bake) for _ in range(5)]
    wait_for(lambda: len(begun) == 5)

    proxy.cut()

    with ends_within(4):
        assert [call.wait() for call in calls] == [ServiceUnavailable] * 5
    leave.send()


def test_calls_fail_within_seconds_when_the_broker_hangs_and_work_afterwards(run_service, cluster_of, proxy):
    run_service(Bakery)
    cluster = cluster_of(Cafe, AMQP_URI=proxy.uri)
    cluster.bakery.bake("Torte")
    proxy.hold()

    with ends_within(4):
        calls = [eventlet.spawn(outcome, cluster.bakery.bake, "Torte") for _ in range(5)]
        assert [call.wait() for call in calls] == [ServiceUnavailable] * 5

    proxy.release()
    wait_for(lambda: outcome(cluster.bakery.bake, "Torte") == {"cake": "Torte", "ovens": 1})


def test_a_slow_call_is_answered_while_the_broker_answers_questions(run_service, cluster_of, proxy, monkeypatch):
    monkeypatch.setattr(amqp_broker, "SILENCE_SECONDS", 1)
    leave = Event()

    class Bakery:
        name = "bakery"

        @rpc
        def bake(self):
            return leave.wait()

    run_service(Bakery)
    cluster = cluster_of(Cafe, AMQP_URI=proxy.uri)
    call = eventlet.spawn(outcome, cluster.bakery.bake)
    wait_for(lambda: pending(cluster))

    for _ in range(2):
        proxy.hold_at(BASIC_QOS)
        wait_for(lambda: proxy.holds)
        proxy.release()
    leave.send("done")

    assert call.wait() == "done"


def test_a_caller_that_was_held_up_itself_does_not_take_the_broker_for_hanging(run_service, cluster, monkeypatch):
    monkeypatch.setattr(amqp_broker, "SILENCE_SECONDS", 0.2)
    leave, asked = Event(), Event()
    send_some = frames.SendBuffer._send_some

    def send_and_hold_up(buffer, unsent):
        sent = send_some(buffer, unsent)
        if BASIC_QOS in bytes(unsent) and not asked.ready():
            # The answer arrives in this time, and the time for it ends.
            patcher.original("time").sleep(0.5)
            asked.send()
        return sent

    class Bakery:
        name = "bakery"

        @rpc
        def bake(self):
            return leave.wait()

    run_service(Bakery)
    call = eventlet.spawn(outcome, cluster.bakery.bake)
    wait_for(lambda: pending(cluster))
    monkeypatch.setattr(frames.SendBuffer, "_send_some", send_and_hold_up)

    asked.wait()
    leave.send("done")

    assert call.wait() == "done"


def test_a_call_without_a_reply_queue_fails_at_once(run_service, cluster_of, proxy):
    """After a reconnect, while the reply queue is not declared yet."""
    run_service(Bakery)
    cluster = cluster_of(Cafe, AMQP_URI=proxy.uri)
    cluster.bakery.bake("Torte")
    proxy.hold_at(b"rpc.reply-cafe-")
    proxy.cut()
    wait_for(lambda: cluster._client.listener.consumers._channel is None)
    wait_for(lambda: proxy.holds)

    with ends_within(4), pytest.raises(ServiceUnavailable):
        cluster.bakery.bake("Torte")


# Malformed calls and replies


@pytest.fixture
def bakery(run_service, cluster, deaths):
    """A bakery that must still answer after the test."""
    container = run_service(Bakery)
    yield container
    assert cluster.bakery.bake("Torte") == {"cake": "Torte", "ovens": 1}
    assert not deaths(container)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"{",
        b"null",
        b"[]",
        b'"args"',
        b"{}",
        b'{"args": {}, "kwargs": []}',
        b'{"args": 1, "kwargs": {}}',
        b"[" * 100_000,
        b'{"args": [' + b"9" * 5000 + b'], "kwargs": {}}',
    ],
    ids=lambda body: body[:20],
)
def test_a_malformed_body_is_refused(bakery, calls, body):
    calls.send("bakery.bake", body=body)

    [answer] = wait_for(calls.answers)
    assert answer["error"]["exc_type"] == MalformedRequest.__name__


@pytest.mark.parametrize("method", ["bakery.fry", "bakery.name", "bakery.", "bakery.__init__"])
def test_an_unknown_method_is_refused(bakery, calls, method):
    calls.send(method)

    [answer] = wait_for(calls.answers)
    assert answer["error"]["exc_type"] == MethodNotFound.__name__


@pytest.mark.parametrize("kwargs", [{"cakes": 1}, {"self": 1}, {"\ud800": 1}, {}], ids=ascii)
def test_wrong_arguments_are_refused(bakery, calls, kwargs):
    calls.send("bakery.bake", kwargs=kwargs)

    [answer] = wait_for(calls.answers)
    assert answer["error"]["exc_type"] == IncorrectSignature.__name__


@pytest.mark.parametrize("field", ["time_left", "sent_at", "wall_time"])
def test_impossible_times_are_refused(bakery, calls, field):
    sender = Sender(calls)

    for value in ("soon", [], {}, True, -1, 1e300, 10**17, b"\xff"):
        assert sender.send("Torte", **{field: value}) == MalformedRequest.__name__, value


def test_a_missing_send_time_or_a_malformed_sender_is_refused(bakery, calls):
    for fields in ({"sent_at": None}, {"sender": 7}, {"sender": "p" * 65}):
        assert Sender(calls).send("Torte", **fields) == MalformedRequest.__name__, fields


def test_a_call_without_a_time_left_has_no_deadline(bakery, calls):
    assert Sender(calls).send("Torte", time_left=None, seconds_ago=60) == "Torte"


@pytest.mark.parametrize("stack", [7, "bakery", [1, None], None], ids=str)
def test_a_malformed_call_stack_is_ignored(bakery, calls, stack):
    calls.send("bakery.bake", "Torte", headers={"nameko.call_id_stack": stack, "nameko.request_id": 7})

    [answer] = wait_for(calls.answers)
    assert answer["result"] == {"cake": "Torte", "ovens": 1}


def test_a_call_without_a_reply_address_runs(run_service, calls):
    baked = []

    class Bakery:
        name = "bakery"

        @rpc
        def bake(self, cake):
            baked.append(cake)

    run_service(Bakery)

    calls.send("bakery.bake", "first", reply_to=None)
    calls.send("bakery.bake", "second", reply_to="")
    calls.send("bakery.bake", "third", reply_to="no-such-queue")

    wait_for(lambda: sorted(baked) == ["first", "second", "third"])


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "result", [object(), {1, 2}, {(1, 2): 3}, nested(100_000)], ids=["object", "set", "key", "deep"]
)
def test_a_result_that_is_not_json_is_an_error(run_service, cluster, deaths, result):
    class Oddities:
        name = "oddities"

        @rpc
        def give(self, odd):
            return result if odd else "sound"

    container = run_service(Oddities)

    with pytest.raises(RemoteError, match="UnserializableValueError"):
        cluster.oddities.give(odd=True)

    assert cluster.oddities.give(odd=False) == "sound"
    assert not deaths(container)


def test_a_lone_surrogate_survives_a_call(bakery, cluster):
    assert cluster.bakery.bake("\ud800")["cake"] == "\ud800"


def test_a_reply_that_cannot_be_sent_is_dropped(run_service, cluster, proxy, deaths, caplog):
    entered, leave = Event(), Event()

    class Bakery:
        name = "bakery"

        @rpc
        def bake(self, cake):
            if not entered.ready():
                entered.send()
                leave.wait()
            return cake

    container = run_service(Bakery, AMQP_URI=proxy.uri)
    lost = eventlet.spawn(outcome, cluster.within(1).bakery.bake, "lost")
    entered.wait()
    proxy.go_away()

    leave.send()

    wait_for(lambda: "a reply of bakery.bake was lost" in caplog.text)
    assert lost.wait() is RpcTimeout
    proxy.come_back()
    wait_for(lambda: outcome(cluster.bakery.bake, "next") == "next")
    assert not deaths(container)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"{}",
        b"[" * 100_000,
        b'{"result": 1, "error": 7}',
        b'{"result": 1, "error": {"exc_path": []}}',
        b'{"result": 1, "error": {"exc_path": "%s.TooFewEggs", "exc_args": ["x"]}}' % __name__.encode(),
        b'{"result": 1, "error": {"exc_path": "%s.TooFewEggs", "exc_args": []}}' % __name__.encode(),
    ],
    ids=lambda body: body[:40],
)
def test_a_malformed_reply_fails_only_its_call(run_service, cluster, broker, body):
    leave = Event()

    class Bakery:
        name = "bakery"

        @rpc
        def bake(self, cake):
            if cake == "slow":
                leave.wait()
            return cake

    run_service(Bakery)
    call = eventlet.spawn(outcome, cluster.bakery.bake, "slow")
    [correlation_id] = wait_for(lambda: pending(cluster))

    broker.publish(
        body,
        exchange="nameko-rpc",
        routing_key=cluster._client.listener.routing_key,
        correlation_id=correlation_id,
    )

    assert call.wait() is RemoteError
    leave.send()
    assert cluster.bakery.bake("next") == "next"
