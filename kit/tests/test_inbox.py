"""nameko_reliable.inbox: repeated deliveries have one effect, and get the same answer."""

import eventlet
import pytest
from eventlet.event import Event
from nameko.exceptions import RemoteError
from sqlalchemy import func, text

from bakery import Answer, Base, Cake, CakeBaked, InboxEntry
from nameko_reliable.amqp.consumers import Consumers
from nameko_reliable.database import Database
from nameko_reliable.errors import DatabaseUnavailable
from nameko_reliable.events import event_handler
from nameko_reliable.inbox import once
from nameko_reliable.rpc import rpc
from nameko_reliable.testing.waiting import wait_for


class Bakery:
    name = "bakery"

    db = Database(Base, answers=Answer)
    failures = 0

    @rpc
    @once
    def bake(self, session, cake, pause_seconds=0):
        made = Cake(name=cake)
        session.add(made)
        session.flush()
        eventlet.sleep(pause_seconds)
        if type(self).failures:
            type(self).failures -= 1
            raise ZeroDivisionError
        return {"id": made.id, "cake": cake, "layers": [1.5, None]}

    @rpc
    @once
    def bake_silently(self, session, cake):
        session.add(Cake(name=cake))

    @rpc
    @once
    def bake_twice(self, session, cake):
        return [self.bake(cake), self.bake(cake)]


@pytest.fixture
def bakery(tables, run_service):
    class Fresh(Bakery):
        failures = 0

    cakes = tables("bakery")
    run_service(Fresh)
    run_service(Fresh)
    cakes.service = Fresh
    return cakes


def test_a_call_runs_and_is_answered(bakery, cluster):
    answer = cluster.bakery.bake("Torte")

    assert answer == {"id": 1, "cake": "Torte", "layers": [1.5, None]}
    assert bakery.all(Cake.name) == ["Torte"]


def test_two_equal_calls_both_run(bakery, cluster):
    answers = [cluster.bakery.bake("Torte") for _ in range(2)]

    assert [answer["id"] for answer in answers] == [1, 2]


def test_a_call_delivered_again_has_one_effect_and_the_first_answer(bakery, calls):
    calls.send("bakery.bake", "Torte", correlation_id="c-1")
    wait_for(lambda: len(calls.answers()) == 1)

    calls.send("bakery.bake", "Torte", correlation_id="c-1")

    first, second = wait_for(lambda: calls.answers() if len(calls.answers()) == 2 else None)
    assert first == second
    assert first["result"]["cake"] == "Torte"
    assert bakery.all(Cake.name) == ["Torte"]


def test_a_call_whose_replica_died_before_its_reply_gets_the_first_answer(
    tables, run_service, proxy, calls, monkeypatch
):
    entered, leave = Event(), Event()

    class Slow(Bakery):
        @rpc
        @once
        def bake_slowly(self, session, cake):
            if not entered.ready():
                entered.send()
                leave.wait()
            session.add(Cake(name=cake))
            return cake

    cakes = tables("bakery")
    replica = run_service(Slow, AMQP_URI=proxy.uri)
    # The reply has not left the process yet.
    monkeypatch.setattr(replica.shared_extensions[Consumers], "ack", lambda message: proxy.cut())
    calls.send("bakery.bake_slowly", "Torte", correlation_id="c-1")
    entered.wait()
    run_service(Slow)

    leave.send()

    [answer] = wait_for(calls.answers)
    assert answer == {"result": "Torte", "error": None}
    assert cakes.all(Cake.name) == ["Torte"]


def test_a_call_delivered_many_times_at_once_has_one_effect_and_one_answer(bakery, calls):
    sending = [
        eventlet.spawn(calls.send, "bakery.bake", "Torte", correlation_id="c-1", kwargs={"pause_seconds": 0.3})
        for _ in range(6)
    ]
    for thread in sending:
        thread.wait()

    answers = wait_for(lambda: calls.answers() if len(calls.answers()) == 6 else None)
    assert all(answer == answers[0] for answer in answers)
    assert answers[0]["error"] is None
    assert bakery.all(Cake.name) == ["Torte"]


def test_an_answer_of_none_is_kept_too(bakery, calls):
    for _ in range(2):
        calls.send("bakery.bake_silently", "Torte", correlation_id="c-1")

    answers = wait_for(lambda: calls.answers() if len(calls.answers()) == 2 else None)
    assert answers == [{"result": None, "error": None}] * 2
    assert bakery.all(Cake.name) == ["Torte"]


def test_a_call_that_failed_may_succeed_when_it_is_delivered_again(bakery, calls):
    bakery.service.failures = 1
    calls.send("bakery.bake", "Torte", correlation_id="c-1")
    wait_for(lambda: len(calls.answers()) == 1)

    calls.send("bakery.bake", "Torte", correlation_id="c-1")

    failed, succeeded = wait_for(lambda: calls.answers() if len(calls.answers()) == 2 else None)
    assert failed["error"]["exc_type"] == "ZeroDivisionError"
    assert succeeded["result"]["cake"] == "Torte"
    assert bakery.all(Cake.name) == ["Torte"]


def test_a_second_method_with_once_in_a_call_is_refused(bakery, cluster):
    with pytest.raises(RemoteError, match="A call has one answer"):
        cluster.bakery.bake_twice("Torte")

    assert bakery.all(Cake.name) == []


def test_the_caller_does_not_pass_the_session(bakery, cluster):
    with pytest.raises(Exception, match="missing a required argument: 'cake'"):
        cluster.bakery.bake()
    with pytest.raises(Exception, match="unexpected keyword argument 'session'"):
        cluster.bakery.bake("Torte", session=1)


def test_only_old_answers_are_deleted(tables, run_service, cluster):
    class Forgetful(Bakery):
        @rpc
        def forget(self):
            with self.db.transaction() as session:
                Answer.forget_old(session)

    bakery = tables("bakery")
    run_service(Forgetful)
    cluster.bakery.bake("old")
    bakery.execute(text("UPDATE answers SET answered_at = now() - interval '25 hours'"))
    cluster.bakery.bake("young")

    cluster.bakery.forget()

    assert [answer["cake"] for answer in bakery.all(Answer.answer)] == ["young"]


def test_an_event_delivered_many_times_to_two_replicas_has_one_effect(tables, run_service, broker):
    class Cafe:
        name = "cafe"

        db = Database(Base)

        @event_handler(CakeBaked, workers=3)
        def display(self, event):
            with self.db.transaction() as session:
                if InboxEntry.take(session, event.event_id):
                    session.add(Cake(name=event.cake))
                    eventlet.sleep(0.1)

    cafe = tables("cafe")
    run_service(Cafe)
    run_service(Cafe)
    event = CakeBaked(cake="Torte")

    for _ in range(12):
        broker.publish_event(event)

    wait_for(lambda: broker.depth("evt-bakery-cake.baked--cafe.display") == 0)
    wait_for(lambda: cafe.all(Cake.name) == ["Torte"])
    assert cafe.all(func.count(InboxEntry.event_id)) == [1]


def test_a_rollback_leaves_the_event_for_the_next_attempt(tables, run_service, broker):
    tries = []

    class Cafe:
        name = "cafe"

        db = Database(Base)

        @event_handler(CakeBaked, pauses_seconds=(1,))
        def display(self, event):
            with self.db.transaction() as session:
                assert InboxEntry.take(session, event.event_id)
                session.add(Cake(name=event.cake))
                session.flush()
                tries.append(event)
                if len(tries) == 1:
                    raise DatabaseUnavailable("cafe")
                if len(tries) == 2:
                    raise ZeroDivisionError

    cafe = tables("cafe")
    run_service(Cafe)

    broker.publish_event(CakeBaked(cake="Torte"))

    wait_for(lambda: cafe.all(Cake.name) == ["Torte"])
    assert len(tries) == 3
