"""Nameko's own extensions work with ours, and nameko.testing's helpers work with services on ours."""

import subprocess
import sys
from pathlib import Path

import pytest
from nameko.events import BROADCAST, EventDispatcher
from nameko.events import event_handler as nameko_event_handler
from nameko.exceptions import RemoteError
from nameko.rpc import RpcProxy
from nameko.rpc import rpc as nameko_rpc
from nameko.standalone.events import event_dispatcher
from nameko.testing.services import (
    entrypoint_hook,
    entrypoint_waiter,
    replace_dependencies,
    restrict_entrypoints,
    worker_factory,
)

from bakery import Answer, Base, Cake, CakeBaked, CakeEaten, Context, InboxEntry, OutboxEntry, OvenWarmed
from nameko_reliable.database import Database
from nameko_reliable.errors import DatabaseUnavailable
from nameko_reliable.events import broadcast_handler, event_handler
from nameko_reliable.hints import Hints
from nameko_reliable.inbox import once
from nameko_reliable.messages import to_payload
from nameko_reliable.outbox import Outbox
from nameko_reliable.rpc import ClusterClient, rpc
from nameko_reliable.telemetry.logs import LogContext
from nameko_reliable.telemetry.metrics import Metrics
from nameko_reliable.telemetry.tracing import WorkerSpans
from nameko_reliable.testing.metrics import Watched
from nameko_reliable.testing.waiting import wait_for

NAMEKO = Path(sys.executable).with_name("nameko")
QUEUE = "evt-oven-oven.heated--bakery.bake"


class Bakery:
    name = "bakery"

    db = Database(Base, answers=Answer)
    outbox = Outbox(OutboxEntry, events=[CakeBaked, CakeEaten])
    hints = Hints()
    cluster = ClusterClient()
    log_context = LogContext()
    tracing = WorkerSpans()
    metrics = Metrics()

    @rpc
    @once
    def bake(self, session, cake):
        if cake == "burnt":
            raise ZeroDivisionError(cake)
        if cake == "none":
            raise DatabaseUnavailable("bakery")
        event = CakeBaked(cake=cake)
        session.add(Cake(name=cake))
        self.outbox.add(session, event)
        self.hints.after_commit(session, OvenWarmed(oven=event.oven, degrees=180))
        return to_payload(event)

    @event_handler(CakeEaten, pauses_seconds=(1,))
    def bake_again(self, event):
        with self.db.transaction() as session:
            if InboxEntry.take(session, event.event_id):
                session.add(Cake(name=event.cake))

    @rpc
    def price(self, cake):
        return self.cluster.till.price(cake)


@pytest.fixture
def bakery(run_service):
    """A running Bakery's container."""
    return run_service(Bakery)


class Counter:
    """Passes calls on through Nameko's proxy."""

    name = "counter"

    bakery = RpcProxy("bakery")

    @nameko_rpc
    def bake(self, cake):
        return self.bakery.bake(cake)


# Nameko's clients


@pytest.mark.parametrize("service", ["bakery", "counter"], ids=["ClusterRpcProxy", "RpcProxy"])
def test_namekos_own_clients_get_results_and_errors(bakery, run_service, rpc, service):
    run_service(Counter)
    bake = getattr(rpc, service).bake

    result = bake("Torte")

    assert result["cake"] == "Torte"
    with pytest.raises(DatabaseUnavailable):
        bake("none")
    with pytest.raises(RemoteError, match="ZeroDivisionError burnt"):
        bake("burnt")


def test_nameko_shell_gets_results_and_errors(bakery, config, tmp_path):
    (tmp_path / "config.yaml").write_text(f"AMQP_URI: {config['AMQP_URI']}\n")

    shell = subprocess.run(
        [NAMEKO, "shell", "--config", "config.yaml"],
        input="print(n.rpc.bakery.bake('Torte')['cake'])\nn.rpc.bakery.bake('burnt')\n",
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=60,
    )

    assert "Torte" in shell.stdout
    assert "RemoteError: ZeroDivisionError burnt" in shell.stderr


# Nameko's handlers


def test_namekos_own_handlers_get_events_and_hints(bakery, run_service, rpc):
    kept, warmed = [], []

    class Museum:
        name = "museum"

        @nameko_event_handler("bakery", "cake.baked")
        def keep(self, data):
            kept.append(data)

        @nameko_event_handler("bakery", "oven.warmed", handler_type=BROADCAST, reliable_delivery=False)
        def warm_up(self, data):
            warmed.append((data["oven"], data["degrees"]))

    run_service(Museum)

    event = rpc.bakery.bake("Torte")

    wait_for(lambda: kept == [event])
    wait_for(lambda: warmed == [(0, 180)])


# Nameko's events


class Oven:
    name = "oven"

    dispatch = EventDispatcher()

    @nameko_rpc
    def heat(self, degrees):
        self.dispatch("oven.heated", {"degrees": degrees})


def test_a_plain_event_is_handled_from_the_queue_that_namekos_own_handler_had(run_service, broker):
    class Before:
        name = "bakery"

        @nameko_event_handler("oven", "oven.heated")
        def bake(self, data):
            pass

    handled = []

    class After:
        name = "bakery"

        context = Context()

        @event_handler("oven", "oven.heated")
        def bake(self, data):
            handled.append((data, self.context))

    run_service(Before).stop()
    with entrypoint_hook(run_service(Oven), "heat", context_data={"event_id": "of another event"}) as heat:
        heat(180)
    wait_for(lambda: broker.depth(QUEUE) == 1)

    bakery = run_service(After)

    [(data, context)] = wait_for(lambda: handled)
    assert data == {"degrees": 180}
    assert context.keys() == {"request_id"}
    assert context["request_id"].startswith("oven.heat.")
    bakery.stop()
    assert broker.depth(QUEUE) == 0


def test_a_plain_event_is_tried_again_and_parked(run_service, config, broker, monkeypatch):
    monkeypatch.setattr("nameko_reliable.events.UNAVAILABLE_PAUSE_SECONDS", 0.1)
    tries = []

    class Cafe:
        name = "cafe"

        @event_handler("oven", "oven.heated", pauses_seconds=(1,))
        def bake(self, data):
            tries.append(data.pop())
            raise DatabaseUnavailable("cafe") if len(tries) == 1 else ZeroDivisionError("burnt")

    run_service(Cafe)

    broker.publish(b"180 degrees", exchange="oven.events", routing_key="oven.heated")
    event_dispatcher(config)("oven", "oven.heated", [180])

    parked = wait_for(lambda: len(found := broker.peek("parked.cafe")) == 2 and found)
    assert [message.headers["x-parked-reason"] for message in parked] == [
        "not JSON",
        "gave up after attempt 2: ZeroDivisionError: burnt",
    ]
    assert tries == [180, 180, 180]


def test_every_replica_gets_a_plain_broadcast(run_service, config):
    received = []

    class Baker:
        name = "baker"

        metrics = Metrics()

        @broadcast_handler("oven", "oven.heated")
        def receive(self, data):
            received.append(data)

    run_service(Baker)
    baker = Watched(run_service(Baker))

    event_dispatcher(config)("oven", "oven.heated", {"degrees": 180})

    wait_for(lambda: received == [{"degrees": 180}] * 2)
    wait_for(lambda: baker.count("nameko_event_handler_duration_seconds_count", outcome="handled") == 2)
    # A plain event has no timestamp.
    assert baker.count("nameko_event_lag_seconds_count") == 0


@pytest.mark.parametrize("decorator", [event_handler, broadcast_handler])
@pytest.mark.parametrize(
    "arguments, given",
    [
        (("oven",), "('oven')"),
        ((CakeBaked, "cake.baked"), "(<class 'bakery.CakeBaked'>, 'cake.baked')"),
        (("oven", CakeBaked), "('oven', <class 'bakery.CakeBaked'>)"),
        ((dict,), "(<class 'dict'>)"),
    ],
    ids=["no name", "a class and a name", "a class for a name", "no event class"],
)
def test_wrong_arguments_are_refused_where_the_class_is_defined(decorator, arguments, given):
    with pytest.raises(TypeError) as refusal:

        class Baker:
            @decorator(*arguments)
            def bake(self, data):
                pass

    sentence = f"A handler takes an event class, or the source and the name of a plain event, not {given}."
    assert str(refusal.value) == sentence


# nameko.testing.services


def test_worker_factory_makes_a_worker_with_mocks():
    bakery = worker_factory(Bakery)
    bakery.cluster.till.price.return_value = 3

    event = bakery.bake("Torte")
    bakery.bake_again(CakeEaten(cake="Eclair"))
    price = bakery.price("Torte")

    assert price == 3
    [(session, published), _] = bakery.outbox.add.call_args
    assert to_payload(published) == event
    assert [added.name for [added], _ in session.add.call_args_list] == ["Torte", "Eclair"]


def test_entrypoint_hook_runs_methods_in_a_container(bakery, tables):
    with entrypoint_hook(bakery, "bake") as bake, entrypoint_hook(bakery, "bake_again") as bake_again:
        event = bake("Torte")
        bake_again(CakeEaten(cake="Eclair"))

        with pytest.raises(ZeroDivisionError, match="burnt"):
            bake("burnt")

    assert event["cake"] == "Torte"
    assert tables("bakery").all(Cake.name) == ["Torte", "Eclair"]


def test_dependencies_can_be_replaced_and_entrypoints_restricted(container_factory, config, broker):
    bakery = container_factory(Bakery, config)
    db, _ = replace_dependencies(bakery, "db", "outbox")
    restrict_entrypoints(bakery, "bake_again")
    bakery.start()

    with entrypoint_waiter(bakery, "bake_again", timeout=20) as result:
        event_dispatcher(config)("bakery", "cake.eaten", to_payload(CakeEaten(cake="Torte")))

    assert result.get() is None
    db.transaction.assert_called_once_with()
