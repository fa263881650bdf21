"""ops.change_queues: the event queues become those of the other type, with all that lies in them."""

from uuid import uuid4

import pytest
from amqp.exceptions import PreconditionFailed

from contracts.orders import OrderCreated
from nameko_reliable.amqp.queues import delay_queue, handler_queue, parking_queue
from nameko_reliable.events import PAUSES_SECONDS
from nameko_reliable.testing.waiting import wait_for
from ops.change_queues import Broker
from ops.change_queues import main as change_queues

HANDLER = "evt-orders-order.created--notifications.confirm_order"
PARKED = "parked.notifications"
SHORTEST, LONGEST = PAUSES_SECONDS[0], PAUSES_SECONDS[-1]


def declare(broker, queue_type):
    config = {"EVENT_QUEUE_TYPE": queue_type}
    with broker.channel() as channel:
        handler = handler_queue(OrderCreated, "notifications", "confirm_order", config)
        for queue in (parking_queue("notifications", config), handler, delay_queue(LONGEST, config)):
            queue(channel).declare()


@pytest.fixture
def change(broker):
    return lambda queue_type: change_queues({"AMQP_URI": broker.uri, "EVENT_QUEUE_TYPE": queue_type})


def test_from_classic_to_quorum_and_back_nothing_is_lost(broker, change):
    declare(broker, "classic")
    event_id = uuid4().hex
    broker.publish({"number": 1}, queue=HANDLER, message_id=event_id, headers={"nameko.request_id": "r-1"})
    broker.publish({"number": 2}, exchange=f"delay.{LONGEST}s", routing_key=HANDLER, headers={"x-attempt": 4})
    broker.publish({"number": 3}, queue=PARKED, message_id="m-3", headers={"x-parked-reason": "no plate"})

    for queue_type, other in (("quorum", "classic"), ("classic", "quorum")):
        change(queue_type)

        declare(broker, queue_type)
        with pytest.raises(PreconditionFailed):
            declare(broker, other)
        wait_for(lambda: (broker.depth(HANDLER), broker.depth(PARKED)) == (2, 1))
        [first, second], [parked] = broker.peek(HANDLER), broker.peek(PARKED)
        assert (first.payload, first.properties["message_id"]) == ({"number": 1}, event_id)
        assert (first.headers["nameko.request_id"], first.properties["delivery_mode"]) == ("r-1", 2)
        # What was delayed comes sooner, and is still at its fifth attempt.
        assert (second.payload, second.headers["x-attempt"]) == ({"number": 2}, 4)
        assert (parked.properties["message_id"], parked.headers["x-parked-reason"]) == ("m-3", "no plate")
    assert not [name for name in broker.queues() if name.endswith(".aside")]


def test_a_run_that_was_broken_off_is_finished_by_the_next(broker, change):
    broker.declare(f"{PARKED}.aside", durable=True)
    broker.publish(b"x", queue=f"{PARKED}.aside", message_id="m-1")

    change("quorum")

    wait_for(lambda: broker.depth(PARKED) == 1)


def test_queues_that_are_in_use_are_left_alone_with_a_sentence(broker, change):
    declare(broker, "classic")
    broker.publish(b"x", queue=HANDLER)
    with broker.channel() as channel:
        channel.basic_consume(HANDLER)

        with pytest.raises(SystemExit, match=f"{HANDLER} is in use: stop all services first."):
            change("quorum")

    wait_for(lambda: broker.depth(HANDLER) == 1)
    assert not [name for name in broker.queues() if name.endswith(".aside")]


def test_a_service_that_is_only_called_is_in_use_too(broker, change):
    declare(broker, "classic")
    broker.declare("rpc-orders")
    with broker.channel() as channel:
        channel.basic_consume("rpc-orders")

        with pytest.raises(SystemExit, match="rpc-orders is in use: stop all services first"):
            change("quorum")

    declare(broker, "classic")


def test_what_would_end_its_pause_while_its_handlers_queue_is_replaced_is_kept(broker, change, monkeypatch):
    declare(broker, "classic")
    with broker.channel() as channel:
        delay_queue(SHORTEST, {"EVENT_QUEUE_TYPE": "classic"})(channel).declare()
    broker.publish({"number": 1}, exchange=f"delay.{SHORTEST}s", routing_key=HANDLER)
    replace = Broker.replace

    def replace_late(self, queue):
        if queue.name == HANDLER:
            wait_for(lambda: broker.depth(f"delay.{SHORTEST}s") == 0)
        replace(self, queue)

    monkeypatch.setattr(Broker, "replace", replace_late)

    change("quorum")

    wait_for(lambda: broker.depth(HANDLER) == 1)


def test_without_the_broker_there_is_a_sentence():
    with pytest.raises(SystemExit, match="Not finished, and nothing is lost"):
        change_queues({"AMQP_URI": "amqp://guest:guest@127.0.0.1:1//"})
