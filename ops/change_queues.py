"""Gives the event queues the type that EVENT_QUEUE_TYPE names, with what lies in them: while all services are stopped.

    EVENT_QUEUE_TYPE=quorum python -m ops.change_queues

A message is taken away once the broker has confirmed its copy. So a run that was broken off loses nothing and is
finished by the next; what is there twice then is known to the handlers' inboxes.
"""

import os
import sys
from contextlib import suppress

from amqp.basic_message import Message
from amqp.exceptions import NotFound, PreconditionFailed
from kombu import Queue

from contracts import every_event
from contracts.settings import ShopSettings
from contracts.types import SERVICES, SUBSCRIBERS
from nameko_reliable.amqp.broker import CONNECTION_ERRORS, PERSISTENT, connect
from nameko_reliable.amqp.queues import delay_queue, handler_queue, own_headers, parking_queue
from nameko_reliable.events import PAUSES_SECONDS
from nameko_reliable.parking import parked_headers
from nameko_reliable.settings import amqp_address, checked


class Broker:
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
        with suppress(NotFound):
            if self.channel.queue_declare(name, passive=True).consumer_count:
                sys.exit(f"{name} is in use: stop all services first.")

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


def main(environment):
    needed = ShopSettings(only=["AMQP_URI", "AMQP_SSL_CA", "EVENT_QUEUE_TYPE", "rpc_exchange"])
    config = checked(needed, environment)
    parking = [parking_queue(service, config) for service in SUBSCRIBERS]
    handlers = [handler_queue(each, *subscriber, config) for each in every_event() for subscriber in each.subscribers]
    try:
        broker = Broker(config)
        for name in (*(f"rpc-{service}" for service in SERVICES), *(queue.name for queue in (*parking, *handlers))):
            broker.refuse_while_in_use(name)
        for queue in handlers:
            broker.is_other(queue)
        # Before the handlers', into which what they hold would come at any time.
        for pause in PAUSES_SECONDS:
            broker.cut_short(delay_queue(pause, config))
        for queue in parking:
            broker.change(queue, headers_of=parked_headers)
        for queue in handlers:
            broker.change(queue)
    except CONNECTION_ERRORS as error:
        sys.exit(f"Not finished, and nothing is lost: mend this, and run it again. {error}")


if __name__ == "__main__":
    main(os.environ)
