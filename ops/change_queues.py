"""Changes the type of the event queues to EVENT_QUEUE_TYPE, and keeps their messages. All services must be stopped.

    EVENT_QUEUE_TYPE=quorum python -m ops.change_queues

It may be interrupted and run again at any time: see nameko_reliable.moving.
"""

import os
from collections.abc import Mapping

from contracts.settings import ShopSettings
from nameko_reliable.moving import move_queues
from nameko_reliable.settings import checked
from services import every_service


def main(environment: Mapping[str, str]) -> None:
    needed = ShopSettings(only=["AMQP_URI", "AMQP_SSL_CA", "EVENT_QUEUE_TYPE", "rpc_exchange"])
    config = checked(needed, environment)
    move_queues(every_service(), config)


if __name__ == "__main__":
    main(os.environ)
