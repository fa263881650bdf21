"""Gives the queues of services the arguments that the kit declares them with, and keeps the messages in them.

    move_queues([Cafe, Bakery], config)

It is for a change of EVENT_QUEUE_TYPE. The services' own entrypoints say which queues they have.

A message is acknowledged once the broker has confirmed its copy. So a run that was broken off loses nothing, and the
next one finishes it. A message whose copy was confirmed right before the end is then there twice.
"""

import inspect
import sys

from amqp.basic_message import Message
from amqp.exceptions import NotFound, PreconditionFailed
from kombu import Queue
from nameko.cli.run import is_entrypoint
from nameko.containers import get_service_name
from nameko.extensions import ENTRYPOINT_EXTENSIONS_ATTR

from nameko_reliable.amqp.broker import CONNECTION_ERRORS, PERSISTENT, connect
from nameko_reliable.amqp.queues import delay_queue, own_headers, parking_queue
from nameko_reliable.events import EventHandler
from nameko_reliable.parking import parked_headers
from nameko_reliable.settings import amqp_address


def move_queues(service_classes, config):
    """Change the event queues of these services, while none of them runs.

    config: with AMQP_URI and EVENT_QUEUE_TYPE. Raises SystemExit with a sentence when it could not do all.
    """
    services = [DeclaredService(each, config) for each in service_classes]
    handlers = [handler for service in services for handler in service.handlers]
    parking = [parking_queue(service.service_name, config) for service in services if service.handlers]
    queues = [handler.queue() for handler in handlers]
    pauses = sorted({pause for handler in handlers for pause in handler.pauses_seconds})
    calls = [f"rpc-{service.service_name}" for service in services]
    try:
        mover = Mover(config)
        for name in (*calls, *(queue.name for queue in (*parking, *queues))):
            mover.refuse_while_in_use(name)
        for queue in queues:
            mover.is_other(queue)
        # Before the handlers', into which what they hold would come at any time.
        for pause in pauses:
            mover.cut_short(delay_queue(pause, config))
        for queue in parking:
            mover.change(queue, headers_of=parked_headers)
        for queue in queues:
            mover.change(queue)
    except CONNECTION_ERRORS as error:
        sys.exit(f"Not finished, and nothing is lost: mend this, and run it again. {error}")


class DeclaredService:
    """The entrypoints of a service class, bound to it as to a container that never starts."""

    def __init__(self, service_class, config):
        self.service_name, self.config, self.shared_extensions = get_service_name(service_class), config, {}
        methods = inspect.getmembers(service_class, is_entrypoint)
        entrypoints = [(each, name) for name, method in methods for each in getattr(method, ENTRYPOINT_EXTENSIONS_ATTR)]
        self.handlers = [each.bind(self, name) for each, name in entrypoints if isinstance(each, EventHandler)]


class Mover:
    def __init__(self, config):
        connection = connect(amqp_address(config))
        # A refused declaration closes a channel, and opens it anew, without confirms.
        self.channel, self.confirming = connection.channel(), connection.channel()
        self.channel.auto_decode = False
        self.confirming.confirm_select()

    def change(self, queue, headers_of=own_headers):
        """Have the queue as it is described. Its messages wait aside while there are two of its name to choose from."""
        is_other = self.is_other(queue)
        aside = Queue(f"{queue.name}.aside", durable=True)
        aside(self.channel).declare()
        if is_other:
            self.move(queue.name, aside.name, headers_of)
            self.replace(queue)
        self.move(aside.name, queue.name)
        self.channel.queue_delete(aside.name, if_unused=True, if_empty=True)

    def cut_short(self, queue):
        """The same of a delay queue, whose messages go to the handlers that they wait for, at once."""
        is_other = self.is_other(queue)
        self.move(queue.name)
        if is_other:
            self.replace(queue)

    def refuse_while_in_use(self, name):
        try:
            consumers = self.channel.queue_declare(name, passive=True).consumer_count
        except NotFound:
            return
        if consumers:
            sys.exit(f"{name} is in use: stop its service first.")

    def is_other(self, queue):
        """Whether it must be replaced. One that isn't there is made."""
        try:
            queue(self.channel).declare()
        except PreconditionFailed:
            self.refuse_while_in_use(queue.name)
            return True
        return False

    def replace(self, queue):
        self.channel.queue_delete(queue.name)
        queue(self.channel).declare()
        print(f"{queue.name} is a new queue", flush=True)

    def move(self, source, target=None, headers_of=own_headers):
        """target: None for what each message's routing key names."""
        while message := self.channel.basic_get(source):
            properties = {**message.properties, "application_headers": headers_of(message), "delivery_mode": PERSISTENT}
            copy = Message(message.body, **properties)
            to = target or message.delivery_info["routing_key"]
            self.confirming.basic_publish_confirm(copy, exchange="", routing_key=to, mandatory=True)
            self.channel.basic_ack(message.delivery_tag)
