"""Replaces the queues of services that have other arguments than the kit declares, and keeps their messages.

    python -m nameko_reliable queues move --config config.yaml cafe bakery:Bakery

Use it for services that ran on stock Nameko until now, and after a change of EVENT_QUEUE_TYPE. The entrypoints of the
services determine which queues they have. A queue with the right arguments stays as it is.

A message is acknowledged once the broker has confirmed its copy. So an interrupted run loses nothing, and the next run
continues. One message may then be there twice: the one that was being copied.
"""

import inspect
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from amqp.basic_message import Message
from amqp.exceptions import NotFound, PreconditionFailed
from amqp.protocol import queue_declare_ok_t
from kombu import Exchange, Queue
from nameko.cli.run import is_entrypoint
from nameko.containers import get_service_name
from nameko.extensions import ENTRYPOINT_EXTENSIONS_ATTR

from nameko_reliable.amqp.broker import CONNECTION_ERRORS, PERSISTENT, connect
from nameko_reliable.amqp.consumers import DECLARE_SECONDS
from nameko_reliable.amqp.queues import delay_queue, own_headers, parking_queue
from nameko_reliable.events import EventHandler
from nameko_reliable.parking import parked_headers
from nameko_reliable.rpc import Rpc
from nameko_reliable.settings import amqp_address

HeadersOf: TypeAlias = Callable[[Message], dict[str, Any]]

# A service whose queue was refused declares it again every DECLARE_SECONDS.
SERVICE_SECONDS = DECLARE_SECONDS + 5
CHECK_SECONDS = 0.2
NO_QUEUE = queue_declare_ok_t(None, message_count=0, consumer_count=0)


def move_queues(service_classes: Iterable[type], config: Mapping[str, Any]) -> None:
    """Replace each queue of these services that has other arguments.

    To replace event queues, stop the services and the sources of their events. To replace a queue of calls, stop the
    replicas that consume it; replicas of the kit that wait for it may run.

    config: AMQP_URI, EVENT_QUEUE_TYPE and rpc_exchange, as the services have them. Raises SystemExit with sentences
    about the steps that are left.
    """
    services = [DeclaredService(each, config) for each in service_classes]
    for service in services:
        if not service.handlers and not service.calls:
            sys.exit(f"{service.service_name} has no @rpc and no @event_handler of nameko_reliable: nothing to move.")
    try:
        mover = QueueMover(config)
        move_events(mover, services, config)
        move_calls(mover, services)
    except CONNECTION_ERRORS as error:
        sys.exit(f"Not finished, and nothing is lost: fix this, and run the command again. {error}")


def move_events(mover: "QueueMover", services: Sequence["DeclaredService"], config: Mapping[str, Any]) -> None:
    handlers = [handler for service in services for handler in service.handlers]
    queues = [handler.queue() for handler in handlers]
    parking = [parking_queue(service.service_name, config) for service in services if service.handlers]
    pauses = sorted({pause for handler in handlers for pause in handler.pauses_seconds})
    delays = [delay_queue(pause, config) for pause in pauses]
    if any(mover.has_other_arguments(queue) for queue in (*queues, *parking, *delays)):
        names = {*(service.service_name for service in services), *(each.event.source for each in handlers)}
        for name in (*(queue.name for queue in (*queues, *parking)), *(f"rpc-{name}" for name in sorted(names))):
            mover.refuse_while_in_use(name)
        # These first: their messages may go to a handler's queue at any time, even while that one is replaced.
        for queue in delays:
            mover.flush_delay_queue(queue)
    for queue in parking:
        mover.ensure(queue, headers_of=parked_headers)
    for queue in queues:
        mover.ensure(queue)


def move_calls(mover: "QueueMover", services: Sequence["DeclaredService"]) -> None:
    queues = [service.calls for service in services if service.calls]
    for queue in queues:
        mover.set_calls_aside(queue)
    deadline = time.monotonic() + SERVICE_SECONDS
    left = [sentence for queue in queues if (sentence := mover.return_calls(queue, deadline))]
    if left:
        sys.exit("\n".join(left))


class DeclaredService:
    """The entrypoints of a service class. It acts as their container, which never starts."""

    def __init__(self, service_class: type, config: Mapping[str, Any]) -> None:
        self.service_name, self.config = get_service_name(service_class), config
        # Nameko's `bind` uses it.
        self.shared_extensions: dict[Any, Any] = {}
        methods = inspect.getmembers(service_class, is_entrypoint)
        entrypoints = [(each, name) for name, method in methods for each in getattr(method, ENTRYPOINT_EXTENSIONS_ATTR)]
        self.handlers = [each.bind(self, name) for each, name in entrypoints if isinstance(each, EventHandler)]
        methods_called = [each.bind(self, name) for each, name in entrypoints if isinstance(each, Rpc)]
        self.calls: Queue | None = methods_called[0].consumer.queue() if methods_called else None


class QueueMover:
    def __init__(self, config: Mapping[str, Any]) -> None:
        connection = connect(amqp_address(config))
        # A refused declaration closes its channel. It is opened again, but without confirms.
        self.channel, self.confirming = connection.channel(), connection.channel()
        self.channel.auto_decode = False
        self.confirming.confirm_select()

    def ensure(self, queue: Queue, headers_of: HeadersOf = own_headers) -> None:
        """Declare the queue with these arguments. While it is replaced, another queue holds its messages."""
        aside = Queue(f"{queue.name}.aside", durable=True)
        aside(self.channel).declare()
        if self.has_other_arguments(queue):
            self.move_messages(queue.name, routing_key=aside.name, headers_of=headers_of)
            self.replace(queue)
        else:
            queue(self.channel).declare()
        self.move_messages(aside.name, routing_key=queue.name)
        self.channel.queue_delete(aside.name, if_unused=True, if_empty=True)

    def flush_delay_queue(self, queue: Queue) -> None:
        """Declare the delay queue with these arguments, and send its messages to their handlers' queues at once."""
        if self.has_other_arguments(queue):
            self.move_messages(queue.name)
            self.replace(queue)
        else:
            queue(self.channel).declare()
            self.move_messages(queue.name)

    def set_calls_aside(self, queue: Queue) -> None:
        """Delete the queue of calls if it has other arguments, and keep its calls in another queue.

        They can't go to the right queue yet, since that one exists only while the service consumes it.
        """
        if not self.has_other_arguments(queue):
            return
        self.refuse_while_in_use(queue.name)
        # Through a fanout exchange a call keeps its routing key, which names its method.
        exchange = Exchange(f"{queue.name}.aside", type="fanout", durable=True, auto_delete=True)
        aside = Queue(exchange.name, exchange=exchange, durable=True)
        aside(self.channel).declare()
        # From now on the broker returns new calls to their callers.
        queue(self.channel).unbind_from(queue.exchange, queue.routing_key)
        self.move_messages(queue.name, exchange=exchange.name)
        self.channel.queue_delete(queue.name, if_unused=True, if_empty=True)
        print(f"{queue.name} is deleted: the service declares a new one", flush=True)

    def return_calls(self, queue: Queue, deadline: float) -> str | None:
        """Give the service the calls that were set aside. Return a sentence if it does not run by the deadline."""
        aside = f"{queue.name}.aside"
        number = self.state_of(aside).message_count
        while number and not self.state_of(queue.name).consumer_count:
            if time.monotonic() > deadline:
                return f"Calls wait in {aside} ({number}): start its service, and run this again."
            time.sleep(CHECK_SECONDS)
        if number:
            self.move_messages(aside, exchange=queue.exchange.name)
            print(f"{queue.name} has the calls of the old queue ({number})", flush=True)
        self.channel.queue_delete(aside, if_unused=True, if_empty=True)
        return None

    def refuse_while_in_use(self, name: str) -> None:
        if self.state_of(name).consumer_count:
            sys.exit(f"{name} is in use: stop its service first.")

    def has_other_arguments(self, queue: Queue) -> bool:
        """Whether the broker has a queue of this name with other arguments."""
        if self.state_of(queue.name) is NO_QUEUE:
            return False
        try:
            # Without the binding: a queue of calls must not get calls here.
            queue(self.channel).queue_declare()
        except PreconditionFailed:
            return True
        return False

    def state_of(self, name: str) -> Any:
        """The queue's `message_count` and `consumer_count`; NO_QUEUE if there is none of this name."""
        try:
            return self.channel.queue_declare(name, passive=True)
        except NotFound:
            return NO_QUEUE

    def replace(self, queue: Queue) -> None:
        self.channel.queue_delete(queue.name)
        queue(self.channel).declare()
        print(f"{queue.name} is replaced", flush=True)

    def move_messages(
        self, source: str, exchange: str = "", routing_key: str | None = None, headers_of: HeadersOf = own_headers
    ) -> None:
        """routing_key: None keeps that of each message."""
        while message := self.channel.basic_get(source):
            properties = {**message.properties, "application_headers": headers_of(message), "delivery_mode": PERSISTENT}
            copy = Message(message.body, **properties)
            to = routing_key or message.delivery_info["routing_key"]
            self.confirming.basic_publish_confirm(copy, exchange=exchange, routing_key=to, mandatory=True)
            self.channel.basic_ack(message.delivery_tag)
