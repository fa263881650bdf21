"""Gives the event queues the type that EVENT_QUEUE_TYPE names, with what lies in them: while all services are stopped.

    EVENT_QUEUE_TYPE=quorum python -m scripts.change_queues

A message is taken away once the broker has confirmed its copy. So a run that was broken off loses nothing and is
finished by the next; what is there twice then is known to the handlers' inboxes.
"""

import os
import sys

from amqp.basic_message import Message
from amqp.exceptions import PreconditionFailed
from kombu import Queue

from contracts import events
from extensions.broker import CONNECTION_ERRORS, PERSISTENT, connect
from extensions.events import PAUSES_SECONDS
from extensions.parking import parked_headers
from extensions.queues import delay_queue, handler_queue, own_headers, parking_queue
from extensions.settings import amqp_address


class Broker:
    def __init__(self, config):
        connection = connect(amqp_address(config))
        # A refused declaration closes a channel, and opens it anew, without confirms.
        self.channel, self.confirming = connection.channel(), connection.channel()
        self.channel.auto_decode = False
        self.confirming.confirm_select()

    def change(self, queue, headers_of=own_headers):
        """Have the queue as it is described. Its messages wait aside while there are two of its name to choose from."""
        aside = Queue(f"{queue.name}.aside", durable=True)
        aside(self.channel).declare()
        if self.is_other(queue):
            self.move(queue.name, aside.name, headers_of)
            self.replace(queue)
        self.move(aside.name, queue.name)
        self.channel.queue_delete(aside.name)

    def cut_short(self, queue):
        """The same of a delay queue, whose messages go to the handlers that they wait for, at once."""
        if self.is_other(queue):
            self.move(queue.name)
            self.replace(queue)

    def is_other(self, queue):
        try:
            queue(self.channel).declare()
        except PreconditionFailed:
            if self.channel.queue_declare(queue.name, passive=True).consumer_count:
                sys.exit(f"{queue.name} is in use: stop all services first.")
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


def main(config):
    kept = [each for each in vars(events).values() if isinstance(each, type) and getattr(each, "subscribers", ())]
    try:
        broker = Broker(config)
        for service in events.SUBSCRIBERS:
            broker.change(parking_queue(service, config), headers_of=parked_headers)
        for event_class in kept:
            for service, method in event_class.subscribers:
                broker.change(handler_queue(event_class, service, method, config))
        for pause in PAUSES_SECONDS:
            broker.cut_short(delay_queue(pause, config))
    except CONNECTION_ERRORS as error:
        sys.exit(f"Not finished, and nothing is lost: mend this, and run it again. {error}")


if __name__ == "__main__":
    main(os.environ)
