"""Publishes with py-amqp, one after another: `python publish.py HOST:PORT USER PASSWORD MODE SECONDS`.

Each publish waits for its confirm. MODE: transient or persistent. The queue is durable and is deleted at the end.
"""

import json
import sys

import amqp
from closed_loop import repeat

QUEUE = "peers.publish"
BODY = json.dumps(
    {"event_id": "0" * 36, "order_id": 1, "items": [{"product_id": 1, "quantity": 1}] * 2, "text": "x" * 200}
)


def main(address, user, password, mode, seconds):
    connection = amqp.Connection(address, userid=user, password=password, confirm_publish=True)
    connection.connect()
    channel = connection.channel()
    channel.queue_declare(QUEUE, durable=True, auto_delete=False)

    def publish():
        delivery_mode = 2 if mode == "persistent" else 1
        message = amqp.Message(BODY, content_type="application/json", delivery_mode=delivery_mode)
        channel.basic_publish_confirm(message, exchange="", routing_key=QUEUE)

    publish()
    print(json.dumps(repeat(publish, float(seconds))))
    channel.queue_delete(QUEUE)
    connection.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
