"""ops.change_queues: it changes the type of all event queues, and keeps their messages."""

import pytest

from contracts import every_event, subscribing_services
from nameko_reliable.amqp.queues import delay_queue, handler_queue, parking_queue
from nameko_reliable.events import PAUSES_SECONDS
from nameko_reliable.testing.waiting import wait_for
from ops.change_queues import main as change_queues

PARKED = "parked.notifications"


def declare_all(broker, queue_type):
    """Every durable queue of the shop."""
    config = {"EVENT_QUEUE_TYPE": queue_type}
    queues = [
        *(
            handler_queue(event, *subscriber, config)
            for event in every_event()
            for subscriber in (*event.subscribers, *event.retired_subscribers)
        ),
        *(parking_queue(service, config) for service in subscribing_services()),
        *(delay_queue(pause, config) for pause in PAUSES_SECONDS),
    ]
    with broker.channel() as channel:
        for queue in queues:
            queue(channel).declare()


def test_all_queues_change_their_type(broker):
    declare_all(broker, "classic")
    broker.publish(b"x", queue=PARKED)

    change_queues({"AMQP_URI": broker.uri, "EVENT_QUEUE_TYPE": "quorum"})

    declare_all(broker, "quorum")
    wait_for(lambda: broker.depth(PARKED) == 1)


def test_without_the_broker_the_command_ends_with_a_sentence():
    with pytest.raises(SystemExit, match="Not finished, and nothing is lost"):
        change_queues({"AMQP_URI": "amqp://guest:guest@127.0.0.1:1//"})
