"""Gives the event queues the type that EVENT_QUEUE_TYPE names, with what lies in them: while all services are stopped.

    EVENT_QUEUE_TYPE=quorum python -m ops.change_queues

It may be broken off and run again at any time: see nameko_reliable.moving.
"""

import os

from nameko.cli.run import import_service

from contracts.settings import ShopSettings
from contracts.types import SERVICES
from nameko_reliable.moving import move_queues
from nameko_reliable.settings import checked


def main(environment):
    needed = ShopSettings(only=["AMQP_URI", "AMQP_SSL_CA", "EVENT_QUEUE_TYPE", "rpc_exchange"])
    config = checked(needed, environment)
    move_queues([each for service in SERVICES for each in import_service(f"services.{service}")], config)


if __name__ == "__main__":
    main(os.environ)
