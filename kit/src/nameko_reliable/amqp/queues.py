"""The durable queues that events pass through, `classic` or, with EVENT_QUEUE_TYPE, `quorum`.

A handler's queue gets the event. A delay queue holds it until the next attempt. The service's parking queue keeps the
messages that no attempt could handle. The arguments of these queues are final: the broker refuses a declaration with
other ones.

A quorum queue counts how often a message came back unacknowledged because its consumer lost the connection or died. At
the limit the broker moves it to the parking queue. When the broker itself moves a message between quorum queues, the
first queue keeps it until the second has confirmed it.
"""

import re
from collections.abc import Mapping
from typing import Any

from amqp.basic_message import Message
from kombu import Exchange, Queue
from nameko.standalone.events import get_event_exchange

from nameko_reliable.messages import EventType

QUORUM = "quorum"
# RabbitMQ 4's own default. A deployment while the database is down may use up one delivery of a message.
DELIVERY_LIMIT = 20
# Reading a parking queue takes its messages and gives them back. RabbitMQ 3 has no value for "no limit".
NO_DELIVERY_LIMIT = 2**31 - 1
BROKER_HEADER = re.compile("x-(first-|last-)?death|x-(delivery|acquired)-count$")
SAFE_DEAD_LETTERING = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}


def handler_queue(event: EventType, service: str, method: str, config: Mapping[str, Any]) -> Queue:
    """The queue of one handler.

    The relay (nameko_reliable.outbox) sends an event directly to the queues of its subscribers. These are not bound,
    nor are those of retired subscribers. The queue of any other handler is bound to the exchange of the event's source.
    """
    is_named = (service, method) in (*event.subscribers, *event.retired_subscribers)
    binding = {} if is_named else {"exchange": get_event_exchange(event.source, config)}
    return _queue(
        f"evt-{event.source}-{event.name}--{service}.{method}",
        config,
        routing_key=event.name,
        **binding,
        quorum_arguments={
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": parking_queue(service, config).name,
            **SAFE_DEAD_LETTERING,
        },
    )


class Unbinding(Queue):
    """A queue whose declaration removes its binding from the exchange."""

    def declare(self, nowait: bool = False, channel: Any = None) -> None:
        Queue.unbind_from(self, self.exchange, self.routing_key, nowait=nowait, channel=channel)


def delay_queue(pause_seconds: int, config: Mapping[str, Any]) -> Queue:
    """Holds a message for the pause. The broker then moves it to the queue that its routing key names.

    The queue's exchange is a fanout, so the routing key is free for that name. One queue for each pause serves all
    handlers, and its messages expire in the order in which they came.
    """
    name = f"delay.{pause_seconds}s"
    return _queue(
        name,
        config,
        exchange=Exchange(name, type="fanout", durable=True),
        arguments={"x-message-ttl": pause_seconds * 1000, "x-dead-letter-exchange": ""},
        quorum_arguments=SAFE_DEAD_LETTERING,
    )


def parking_queue(service: str, config: Mapping[str, Any]) -> Queue:
    return _queue(f"parked.{service}", config, quorum_arguments={"x-delivery-limit": NO_DELIVERY_LIMIT})


def own_headers(message: Message) -> dict[str, Any]:
    """The headers that a message was published with, without those that the broker added.

    With them, the broker would take a copy for a message in a dead-letter cycle, and drop it.
    """
    return {key: value for key, value in (message.headers or {}).items() if not BROKER_HEADER.match(str(key))}


def _queue(
    name: str,
    config: Mapping[str, Any],
    quorum_arguments: Mapping[str, Any],
    arguments: Mapping[str, Any] | None = None,
    **options: Any,
) -> Queue:
    if config.get("EVENT_QUEUE_TYPE") == QUORUM:
        arguments = {"x-queue-type": QUORUM, **(arguments or {}), **quorum_arguments}
    return Queue(name, durable=True, queue_arguments=arguments, **options)
