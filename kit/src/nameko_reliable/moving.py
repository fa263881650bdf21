"""Gives the queues of services the arguments that the kit declares them with, and keeps the messages in them.

    python -m nameko_reliable queues move --config config.yaml cafe bakery:Bakery

It is for services that ran on stock Nameko until now, and for a change of EVENT_QUEUE_TYPE. The services' own
entrypoints say which queues they have; a queue that is as it must be stays as it is.

A message is acknowledged once the broker has confirmed its copy. So a run that was broken off loses nothing, and the
next one finishes it. A message whose copy was confirmed right before the end is then there twice.
"""

import inspect
import sys
import time

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

# A service that was refused its queue asks for it every DECLARE_SECONDS.
SERVICE_SECONDS = DECLARE_SECONDS + 5
LOOK_SECONDS = 0.2
NO_QUEUE = queue_declare_ok_t(None, message_count=0, consumer_count=0)


def move_queues(service_classes, config):
    """Replace each queue of these services that has other arguments.

    Event queues are replaced while neither the services nor those whose events they handle run. A queue of calls is
    replaced while no replica consumes it; one of the kit that waits for it may run.

    config: with AMQP_URI, EVENT_QUEUE_TYPE and rpc_exchange as the services have them. Raises SystemExit with sentences
    that say what is left to do.
    """
    services = [DeclaredService(each, config) for each in service_classes]
    for service in services:
        if not service.handlers and not service.calls:
            sys.exit(f"{service.service_name} has no @rpc and no @event_handler of nameko_reliable: nothing to move.")
    try:
        mover = Mover(config)
        move_events(mover, services, config)
        move_calls(mover, services)
    except CONNECTION_ERRORS as error:
        sys.exit(f"Not finished, and nothing is lost: mend this, and run it again. {error}")


def move_events(mover, services, config):
    handlers = [handler for service in services for handler in service.handlers]
    queues = [handler.queue() for handler in handlers]
    parking = [parking_queue(service.service_name, config) for service in services if service.handlers]
    pauses = sorted({pause for handler in handlers for pause in handler.pauses_seconds})
    delays = [delay_queue(pause, config) for pause in pauses]
    if any(mover.is_other(queue) for queue in (*queues, *parking, *delays)):
        names = {*(service.service_name for service in services), *(each.event.source for each in handlers)}
        for name in (*(queue.name for queue in (*queues, *parking)), *(f"rpc-{name}" for name in sorted(names))):
            mover.refuse_while_in_use(name)
        # First, as their messages may go to a handler's queue at any time, also while that is replaced.
        for queue in delays:
            mover.cut_short(queue)
    for queue in parking:
        mover.change(queue, headers_of=parked_headers)
    for queue in queues:
        mover.change(queue)


def move_calls(mover, services):
    queues = [service.calls for service in services if service.calls]
    for queue in queues:
        mover.lay_aside(queue)
    deadline = time.monotonic() + SERVICE_SECONDS
    left = [sentence for queue in queues if (sentence := mover.hand_over(queue, deadline))]
    if left:
        sys.exit("\n".join(left))


class DeclaredService:
    """The entrypoints of a service class, bound to it as to a container that never starts."""

    def __init__(self, service_class, config):
        self.service_name, self.config, self.shared_extensions = get_service_name(service_class), config, {}
        methods = inspect.getmembers(service_class, is_entrypoint)
        entrypoints = [(each, name) for name, method in methods for each in getattr(method, ENTRYPOINT_EXTENSIONS_ATTR)]
        self.handlers = [each.bind(self, name) for each, name in entrypoints if isinstance(each, EventHandler)]
        methods_called = [each.bind(self, name) for each, name in entrypoints if isinstance(each, Rpc)]
        self.calls = methods_called[0].consumer.queue() if methods_called else None


class Mover:
    def __init__(self, config):
        connection = connect(amqp_address(config))
        # A refused declaration closes a channel, and opens it anew, without confirms.
        self.channel, self.confirming = connection.channel(), connection.channel()
        self.channel.auto_decode = False
        self.confirming.confirm_select()

    def change(self, queue, headers_of=own_headers):
        """Have the queue with these arguments. If it must be replaced, its messages wait in another one meanwhile."""
        aside = Queue(f"{queue.name}.aside", durable=True)
        aside(self.channel).declare()
        if self.is_other(queue):
            self.move(queue.name, routing_key=aside.name, headers_of=headers_of)
            self.replace(queue)
        else:
            queue(self.channel).declare()
        self.move(aside.name, routing_key=queue.name)
        self.channel.queue_delete(aside.name, if_unused=True, if_empty=True)

    def cut_short(self, queue):
        """Have the delay queue with these arguments, and send its messages to their handlers' queues at once."""
        if self.is_other(queue):
            self.move(queue.name)
            self.replace(queue)
        else:
            queue(self.channel).declare()
            self.move(queue.name)

    def lay_aside(self, queue):
        """Delete a queue of calls that is another than the service's own, and keep the calls.

        They can't be given to the service's own queue here, since that one lasts only while the service consumes it.
        """
        if not self.is_other(queue):
            return
        self.refuse_while_in_use(queue.name)
        # By way of a fanout exchange a call keeps its routing key, which names its method.
        exchange = Exchange(f"{queue.name}.aside", type="fanout", durable=True, auto_delete=True)
        aside = Queue(exchange.name, exchange=exchange, durable=True)
        aside(self.channel).declare()
        # From here on the broker returns new calls to their callers.
        queue(self.channel).unbind_from(queue.exchange, queue.routing_key)
        self.move(queue.name, exchange=exchange.name)
        self.channel.queue_delete(queue.name, if_unused=True, if_empty=True)
        print(f"{queue.name} is deleted: the service makes its own", flush=True)

    def hand_over(self, queue, deadline):
        """Give the service its calls that were laid aside, or return a sentence when it isn't there by the deadline."""
        aside = f"{queue.name}.aside"
        number = self.look_at(aside).message_count
        while number and not self.look_at(queue.name).consumer_count:
            if time.monotonic() > deadline:
                return f"Calls wait in {aside} ({number}): start its service, and run this again."
            time.sleep(LOOK_SECONDS)
        if number:
            self.move(aside, exchange=queue.exchange.name)
            print(f"{queue.name} has the calls of the old queue ({number})", flush=True)
        self.channel.queue_delete(aside, if_unused=True, if_empty=True)
        return None

    def refuse_while_in_use(self, name):
        if self.look_at(name).consumer_count:
            sys.exit(f"{name} is in use: stop its service first.")

    def is_other(self, queue):
        """Whether there is a queue of this name that has other arguments."""
        if self.look_at(queue.name) is NO_QUEUE:
            return False
        try:
            # Without its binding: a queue of calls must get none here.
            queue(self.channel).queue_declare()
        except PreconditionFailed:
            return True
        return False

    def look_at(self, name):
        try:
            return self.channel.queue_declare(name, passive=True)
        except NotFound:
            return NO_QUEUE

    def replace(self, queue):
        self.channel.queue_delete(queue.name)
        queue(self.channel).declare()
        print(f"{queue.name} is a new queue", flush=True)

    def move(self, source, exchange="", routing_key=None, headers_of=own_headers):
        """routing_key: None for each message's own."""
        while message := self.channel.basic_get(source):
            properties = {**message.properties, "application_headers": headers_of(message), "delivery_mode": PERSISTENT}
            copy = Message(message.body, **properties)
            to = routing_key or message.delivery_info["routing_key"]
            self.confirming.basic_publish_confirm(copy, exchange=exchange, routing_key=to, mandatory=True)
            self.channel.basic_ack(message.delivery_tag)
