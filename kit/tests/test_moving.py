"""nameko_reliable.moving: queues get other arguments and keep their messages."""

import re
from pathlib import Path
from uuid import uuid4

import pytest
import yaml
from amqp.exceptions import PreconditionFailed
from nameko.events import event_handler as stock_event_handler
from nameko.exceptions import UnknownService
from nameko.rpc import rpc as stock_rpc
from nameko.standalone.events import event_dispatcher
from sqlalchemy import create_engine, inspect

from bakery import Base, CakeBaked
from nameko_reliable import moving
from nameko_reliable.__main__ import main
from nameko_reliable.amqp import consumers
from nameko_reliable.amqp.queues import delay_queue, handler_queue, parking_queue
from nameko_reliable.events import PAUSES_SECONDS, event_handler
from nameko_reliable.moving import QueueMover, move_queues
from nameko_reliable.rpc import rpc
from nameko_reliable.testing.waiting import wait_for

DISPLAY = "evt-bakery-cake.baked--cafe.display"
CLEAR = "evt-bakery-cake.eaten--cafe.clear"
PARKED = "parked.cafe"
SHORTEST, LONGEST = PAUSES_SECONDS[0], PAUSES_SECONDS[-1]


class StockCafe:
    name = "cafe"

    cleared = []

    @stock_event_handler("bakery", "cake.eaten")
    def clear(self, event):
        self.cleared.append(event["cake"])

    @stock_rpc
    def order(self, cake):
        return f"stock {cake}"


class Cafe:
    name = "cafe"

    cleared = []

    @event_handler(CakeBaked)
    def display(self, event):
        pass

    @event_handler("bakery", "cake.eaten")
    def clear(self, event):
        self.cleared.append(event["cake"])

    @rpc
    def order(self, cake):
        return f"kit {cake}"


@pytest.fixture(autouse=True)
def nothing_cleared(monkeypatch):
    monkeypatch.setattr(StockCafe, "cleared", [])
    monkeypatch.setattr(Cafe, "cleared", [])


@pytest.fixture
def config_file(config, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({name: config[name] for name in ("AMQP_URI", "rpc_exchange")}))
    return str(file)


@pytest.fixture
def move(config_file, monkeypatch):
    monkeypatch.setattr(consumers, "DECLARE_SECONDS", 0.5)
    return lambda: main(["queues", "move", "--config", config_file, "test_moving:Cafe"])


@pytest.fixture
def eat(config):
    """`eat("Torte")` dispatches an event with stock Nameko."""
    dispatch = event_dispatcher(config)
    return lambda cake: dispatch("bakery", "cake.eaten", {"cake": cake})


def asides(broker):
    """The queues that hold messages while another queue is replaced."""
    return [name for name in broker.queues() if name.endswith(".aside")]


# From stock Nameko to the kit


def test_moving_a_stock_service_loses_no_call_and_no_event(run_service, broker, rpc, eat, move, caplog):
    run_service(StockCafe).stop()
    eat("Torte")
    eat("Strudel")
    calls = [rpc.cafe.order.call_async(drink) for drink in ("tea", "milk")]

    run_service(Cafe)
    wait_for(lambda: Cafe.cleared == ["Torte", "Strudel"])
    advice = [record.getMessage() for record in caplog.records if record.levelname == "CRITICAL"]
    move()

    [line] = advice
    assert line.startswith("the broker refuses rpc-cafe: PRECONDITION_FAILED")
    assert "`python -m nameko_reliable queues move`" in line
    assert [call.result() for call in calls] == ["kit tea", "kit milk"]
    assert rpc.cafe.order("more") == "kit more"
    assert asides(broker) == []


def test_calls_wait_for_a_service_that_does_not_run_yet(run_service, broker, rpc, move, monkeypatch):
    monkeypatch.setattr(moving, "SERVICE_SECONDS", 0)
    run_service(StockCafe).stop()
    call = rpc.cafe.order.call_async("tea")
    move_messages = QueueMover.move_messages

    def move_and_call(self, source, **options):
        move_messages(self, source, **options)
        if source == "rpc-cafe":
            # Refused: it would wait in a queue that is about to be deleted.
            with pytest.raises(UnknownService):
                rpc.cafe.order("milk")

    with monkeypatch.context() as patch:
        patch.setattr(QueueMover, "move_messages", move_and_call)
        with pytest.raises(SystemExit, match=r"Calls wait in rpc-cafe.aside \(1\): start its service"):
            move()
    run_service(Cafe)
    move()

    assert call.result() == "kit tea"
    assert asides(broker) == []


def test_beside_a_stock_replica_the_kits_replica_gets_events_and_no_calls(run_service, broker, rpc, eat, move):
    stock, cakes = run_service(StockCafe), [str(number) for number in range(20)]
    run_service(Cafe)

    for cake in cakes:
        eat(cake)
    with pytest.raises(SystemExit, match="rpc-cafe is in use: stop its service first"):
        move()

    wait_for(lambda: sorted(StockCafe.cleared + Cafe.cleared, key=int) == cakes)
    assert StockCafe.cleared and Cafe.cleared
    assert rpc.cafe.order("tea") == "stock tea"
    stock.stop()
    move()
    wait_for(lambda: broker.consumers("rpc-cafe"))
    assert rpc.cafe.order("tea") == "kit tea"


REFUSED = "Not finished, and nothing is lost: fix this, and run the command again."


@pytest.mark.parametrize(
    "settings, service, sentence",
    [
        ({}, "test_moving:Cafe", "AMQP_URI must be the broker's address, like amqp://"),
        ({"AMQP_URI": "amqp://cafe:qx/zw@broker"}, "test_moving:Cafe", "AMQP_URI must be the broker's address"),
        ({"AMQP_URI": "amqp://cafe:qxzw@127.0.0.1:1"}, "test_moving:Cafe", REFUSED),
        ({"AMQP_URI": "amqp://h", "EVENT_QUEUE_TYPE": "qorum"}, "bakery", "EVENT_QUEUE_TYPE must be classic or quorum"),
        ({"AMQP_URI": "amqp://h"}, "nowhere", "nowhere: No module named 'nowhere'"),
        ({"AMQP_URI": "amqp://h"}, "test_moving:Pub", "test_moving:Pub: Failed to find service class 'Pub'"),
        ({"AMQP_URI": "amqp://h"}, "test_moving:StockCafe", "cafe has no @rpc and no @event_handler of"),
        ("[]", "test_moving:Cafe", "config.yaml has no settings"),
        ("AMQP_URI: qx: zw", "test_moving:Cafe", "config.yaml is not YAML"),
    ],
)
def test_a_command_that_cannot_run_ends_with_a_sentence(tmp_path, settings, service, sentence):
    file = tmp_path / "config.yaml"
    file.write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings))

    with pytest.raises(SystemExit, match=sentence) as ended:
        main(["queues", "move", "--config", str(file), service])

    assert not [part for part in ("qx", "zw") if part in str(ended.value)]


# From one queue type to the other


def declare(broker, queue_type):
    config = {"EVENT_QUEUE_TYPE": queue_type}
    with broker.channel() as channel:
        handler = handler_queue(CakeBaked, "cafe", "display", config)
        for queue in (parking_queue("cafe", config), handler, delay_queue(LONGEST, config)):
            queue(channel).declare()


@pytest.fixture
def change(broker):
    return lambda queue_type: move_queues([Cafe], {"AMQP_URI": broker.uri, "EVENT_QUEUE_TYPE": queue_type})


def test_moving_from_classic_to_quorum_and_back_loses_nothing(broker, change):
    declare(broker, "classic")
    event_id = uuid4().hex
    broker.publish({"number": 1}, queue=DISPLAY, message_id=event_id, headers={"nameko.request_id": "r-1"})
    broker.publish({"number": 2}, exchange=f"delay.{LONGEST}s", routing_key=DISPLAY, headers={"x-attempt": 4})
    broker.publish({"number": 3}, queue=PARKED, message_id="m-3", headers={"x-parked-reason": "no plate"})

    for queue_type, other in (("quorum", "classic"), ("classic", "quorum")):
        change(queue_type)

        declare(broker, queue_type)
        with pytest.raises(PreconditionFailed):
            declare(broker, other)
        wait_for(lambda: (broker.depth(DISPLAY), broker.depth(PARKED)) == (2, 1))
        [first, second], [parked] = broker.peek(DISPLAY), broker.peek(PARKED)
        assert (first.payload, first.properties["message_id"]) == ({"number": 1}, event_id)
        assert (first.headers["nameko.request_id"], first.properties["delivery_mode"]) == ("r-1", 2)
        # The delayed event comes sooner, and its next attempt is still the fifth.
        assert (second.payload, second.headers["x-attempt"]) == ({"number": 2}, 4)
        assert (parked.properties["message_id"], parked.headers["x-parked-reason"]) == ("m-3", "no plate")
        assert CLEAR in broker.bindings("bakery.events")
    assert asides(broker) == []


def test_the_next_run_finishes_an_interrupted_one(broker, change):
    broker.declare(f"{PARKED}.aside", durable=True)
    broker.publish(b"x", queue=f"{PARKED}.aside", message_id="m-1")

    change("quorum")

    wait_for(lambda: broker.depth(PARKED) == 1)


@pytest.mark.parametrize("used", [DISPLAY, "rpc-cafe", "rpc-bakery"])
def test_event_queues_are_not_replaced_while_the_service_or_a_source_of_its_events_runs(broker, change, used):
    declare(broker, "classic")
    if used != DISPLAY:
        broker.declare(used)
    with broker.channel() as channel:
        channel.basic_consume(used)

        with pytest.raises(SystemExit, match=f"{used} is in use: stop its service first."):
            change("quorum")

    declare(broker, "classic")
    assert asides(broker) == []


def test_a_pause_that_ends_while_the_handlers_queue_is_replaced_loses_nothing(broker, change, monkeypatch):
    declare(broker, "classic")
    with broker.channel() as channel:
        delay_queue(SHORTEST, {"EVENT_QUEUE_TYPE": "classic"})(channel).declare()
    broker.publish({"number": 1}, exchange=f"delay.{SHORTEST}s", routing_key=DISPLAY)
    replace = QueueMover.replace

    def replace_late(self, queue):
        if queue.name == DISPLAY:
            wait_for(lambda: broker.depth(f"delay.{SHORTEST}s") == 0)
        replace(self, queue)

    monkeypatch.setattr(QueueMover, "replace", replace_late)

    change("quorum")

    wait_for(lambda: broker.depth(DISPLAY) == 1)


PAGE = Path(__file__).parents[1] / "docs" / "moving.md"


def test_the_tables_of_the_page_are_those_of_the_mixins(database, tables):
    [statements] = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)
    engine = create_engine(database("cafe"))
    Base.metadata.drop_all(engine)

    with engine.begin() as connection:
        connection.exec_driver_sql(statements)

    of_page, of_mixins = inspect(engine), inspect(tables("bakery").engine)
    for table in ("outbox", "inbox", "answers"):
        for part in ("columns", "pk_constraint", "indexes"):
            ask = f"get_{part}"
            assert repr(getattr(of_page, ask)(table)) == repr(getattr(of_mixins, ask)(table))
    engine.dispose()
