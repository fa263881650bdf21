"""nameko_reliable.moving: queues get other arguments, and keep what lies in them."""

from uuid import uuid4

import pytest
from amqp.exceptions import PreconditionFailed

from bakery import CakeBaked
from nameko_reliable.amqp.queues import delay_queue, handler_queue, parking_queue
from nameko_reliable.events import PAUSES_SECONDS, event_handler
from nameko_reliable.moving import Mover, move_queues
from nameko_reliable.rpc import rpc
from nameko_reliable.testing.waiting import wait_for

DISPLAY = "evt-bakery-cake.baked--cafe.display"
PARKED = "parked.cafe"
SHORTEST, LONGEST = PAUSES_SECONDS[0], PAUSES_SECONDS[-1]


class Cafe:
    name = "cafe"

    @event_handler(CakeBaked)
    def display(self, event):
        pass

    @rpc
    def order(self, cake):
        return f"one {cake}"


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


def test_from_classic_to_quorum_and_back_nothing_is_lost(broker, change):
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
        # What was delayed comes sooner, and is still at its fifth attempt.
        assert (second.payload, second.headers["x-attempt"]) == ({"number": 2}, 4)
        assert (parked.properties["message_id"], parked.headers["x-parked-reason"]) == ("m-3", "no plate")
    assert not [name for name in broker.queues() if name.endswith(".aside")]


def test_a_run_that_was_broken_off_is_finished_by_the_next(broker, change):
    broker.declare(f"{PARKED}.aside", durable=True)
    broker.publish(b"x", queue=f"{PARKED}.aside", message_id="m-1")

    change("quorum")

    wait_for(lambda: broker.depth(PARKED) == 1)


@pytest.mark.parametrize("used", [DISPLAY, "rpc-cafe"])
def test_event_queues_of_a_service_that_runs_are_left_alone_with_a_sentence(broker, change, used):
    declare(broker, "classic")
    broker.declare("rpc-cafe", durable=True)
    with broker.channel() as channel:
        channel.basic_consume(used)

        with pytest.raises(SystemExit, match=f"{used} is in use: stop its service first."):
            change("quorum")

    declare(broker, "classic")
    assert not [name for name in broker.queues() if name.endswith(".aside")]


def test_what_would_end_its_pause_while_its_handlers_queue_is_replaced_is_kept(broker, change, monkeypatch):
    declare(broker, "classic")
    with broker.channel() as channel:
        delay_queue(SHORTEST, {"EVENT_QUEUE_TYPE": "classic"})(channel).declare()
    broker.publish({"number": 1}, exchange=f"delay.{SHORTEST}s", routing_key=DISPLAY)
    replace = Mover.replace

    def replace_late(self, queue):
        if queue.name == DISPLAY:
            wait_for(lambda: broker.depth(f"delay.{SHORTEST}s") == 0)
        replace(self, queue)

    monkeypatch.setattr(Mover, "replace", replace_late)

    change("quorum")

    wait_for(lambda: broker.depth(DISPLAY) == 1)
