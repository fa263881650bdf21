"""The durable queues that events pass through, `classic` or, with EVENT_QUEUE_TYPE, `quorum`.

A handler's queue gets the event, a delay queue holds it before another attempt, and the service's
parking queue keeps what no attempt could handle. Their arguments are final: the broker refuses others.

A quorum queue counts how often a message came back without an answer: its consumer lost the connection,
or died of it. What came back too often goes to the parking queue. Where the broker itself moves messages
from one quorum queue to the next, they stand in the first until the second has confirmed them.
"""

import re

from kombu import Exchange, Queue
from nameko.standalone.events import get_event_exchange

QUORUM = "quorum"
# What RabbitMQ 4 takes without an argument. A deployment with the database down may cost a message one.
DELIVERY_LIMIT = 20
# Who looks into a parking queue gives all back. RabbitMQ 3 knows no word for "without a limit".
NO_LIMIT = 2**31 - 1
BROKERS_HEADER = re.compile("x-(first-|last-)?death|x-(delivery|acquired)-count$")
SAFE_DEAD_LETTERING = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}


def handler_queue(event_class, service, method, config):
    """The queue of one handler.

    The relay sends to the queues of the event's subscribers itself (nameko_reliable.outbox). Another handler's is bound
    to the exchange, and gets what is published there.
    """
    is_subscriber = (service, method) in event_class.subscribers
    binding = {} if is_subscriber else {"exchange": get_event_exchange(event_class.source, config)}
    return _queue(
        f"evt-{event_class.source}-{event_class.name}--{service}.{method}",
        config,
        routing_key=event_class.name,
        **binding,
        quorum_arguments={
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": parking_queue(service, config).name,
            **SAFE_DEAD_LETTERING,
        },
    )


class Unbinding(Queue):
    """Declared like a queue, it takes that queue's binding away."""

    def declare(self, nowait=False, channel=None):
        self.unbind_from(self.exchange, self.routing_key, nowait=nowait, channel=channel)


def delay_queue(pause_seconds, config):
    """Holds a message for the pause, then leads it to the queue that its routing key names.

    The fanout keeps the routing key; on expiry the default exchange goes by it. So one queue for
    each pause serves all handlers, and its messages expire in the order they came.
    """
    name = f"delay.{pause_seconds}s"
    return _queue(
        name,
        config,
        exchange=Exchange(name, type="fanout", durable=True),
        arguments={"x-message-ttl": pause_seconds * 1000, "x-dead-letter-exchange": ""},
        quorum_arguments=SAFE_DEAD_LETTERING,
    )


def parking_queue(service, config):
    return _queue(f"parked.{service}", config, quorum_arguments={"x-delivery-limit": NO_LIMIT})


def own_headers(message):
    """The headers that a message was published with.

    A copy with the broker's notes of where it has been would pass for one that the broker leads in a circle,
    and be dropped.
    """
    return {key: value for key, value in (message.headers or {}).items() if not BROKERS_HEADER.match(str(key))}


def _queue(name, config, quorum_arguments, arguments=None, **options):
    if config.get("EVENT_QUEUE_TYPE") == QUORUM:
        arguments = {"x-queue-type": QUORUM, **(arguments or {}), **quorum_arguments}
    return Queue(name, durable=True, queue_arguments=arguments, **options)
