"""Services and clients on Nameko's own extensions beside ours."""

import subprocess
import sys
from pathlib import Path

import pytest
from nameko.events import BROADCAST
from nameko.events import event_handler as nameko_event_handler
from nameko.exceptions import RemoteError
from nameko.rpc import RpcProxy
from nameko.rpc import rpc as nameko_rpc

from bakery import Answer, Cake, CakeBaked, CakeEaten, InboxEntry, OutboxEntry, OvenWarmed
from nameko_reliable.database import Database
from nameko_reliable.errors import DatabaseUnavailable
from nameko_reliable.events import event_handler
from nameko_reliable.hints import Hints
from nameko_reliable.inbox import once
from nameko_reliable.messages import to_payload
from nameko_reliable.outbox import Outbox
from nameko_reliable.rpc import ClusterClient, rpc
from nameko_reliable.telemetry.logs import LogContext
from nameko_reliable.telemetry.metrics import Metrics
from nameko_reliable.telemetry.tracing import Tracing
from nameko_reliable.testing.waiting import wait_for

NAMEKO = Path(sys.executable).with_name("nameko")


class Bakery:
    name = "bakery"

    db = Database(answers=Answer)
    outbox = Outbox(OutboxEntry, events=[CakeBaked, CakeEaten])
    hints = Hints()
    cluster = ClusterClient()
    log_context = LogContext()
    tracing = Tracing()
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
def bakery(tables, run_service):
    """A running Bakery's container."""
    tables("bakery")
    return run_service(Bakery)


class Counter:
    """Calls on by Nameko's proxy."""

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
