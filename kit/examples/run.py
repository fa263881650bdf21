"""Runs the bakery and the cafe until Ctrl-C.

If AMQP_URI, BAKERY_DB_URI and CAFE_DB_URI are set, it uses that broker and those databases. Without AMQP_URI it starts
its own PostgreSQL and RabbitMQ, and stops them at the end.
"""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

from amqp.exceptions import NotFound
from kombu import Connection
from sqlalchemy import create_engine

import bakery_models
import cafe_models
from nameko_reliable.testing.servers import CannotStart, Postgres, PostgresServer, RabbitMQ, RabbitMQServer, free_port
from nameko_reliable.testing.waiting import wait_for

FOLDER = Path(__file__).parent
NAMEKO = Path(sys.executable).with_name("nameko")


def main():
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack, suppress(KeyboardInterrupt):
        addresses = dict(os.environ) if "AMQP_URI" in os.environ else start_servers(stack)
        bakery_models.Base.metadata.create_all(create_engine(addresses["BAKERY_DB_URI"]))
        cafe_models.Base.metadata.create_all(create_engine(addresses["CAFE_DB_URI"]))
        command = [NAMEKO, "run", "--config", "config.yaml", "bakery", "cafe"]
        process = subprocess.Popen(command, cwd=FOLDER, env={**os.environ, **addresses}, start_new_session=True)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        wait_for(lambda: process.poll() is not None or are_open(addresses["AMQP_URI"]))
        print(f"\nThe bakery and the cafe are open. Order a cake:\n\n  nameko shell --broker {addresses['AMQP_URI']}\n")
        print('  >>> n.rpc.cafe.order("Torte")\n  >>> n.rpc.cafe.find_ticket(1)\n', flush=True)
        process.wait()


def start_servers(stack):
    """The addresses of new servers, which stop with the stack."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="examples-")))
    # PostgreSQL's own account must be able to pass through.
    folder.chmod(0o711)
    postgres = Postgres(folder / "postgres", free_port(), secrets.token_hex(16), is_throwaway=True)
    rabbitmq = RabbitMQ(folder / "rabbitmq", free_port(), secrets.token_hex(16))
    broker, database = RabbitMQServer(rabbitmq, folder), PostgresServer(postgres, folder)
    for server in (broker, database):
        server.start()
        stack.callback(server.stop)
    database.wait_until_ready()
    for name in ("bakery", "cafe"):
        database.execute(f"CREATE DATABASE {name}")
    broker.wait_until_ready()
    return {
        "AMQP_URI": rabbitmq.uri(),
        "BAKERY_DB_URI": postgres.uri("bakery"),
        "CAFE_DB_URI": postgres.uri("cafe"),
    }


def are_open(broker_uri):
    """Whether both services consume calls."""
    with Connection(broker_uri) as connection, suppress(NotFound):
        channel = connection.channel()
        queues = [channel.queue_declare(f"rpc-{service}", passive=True) for service in ("bakery", "cafe")]
        return all(queue.consumer_count for queue in queues)


try:
    main()
except CannotStart as reason:
    sys.exit(str(reason))
