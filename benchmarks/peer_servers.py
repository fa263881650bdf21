"""Runs the peers of benchmarks/peers on the PostgreSQL, the RabbitMQ and the mail server that the shop uses."""

import json
import os
import socket
import subprocess
from contextlib import contextmanager

from amqp.exceptions import NotFound
from kombu import Connection

from benchmarks.load import BenchmarkFailed, LoadResult
from dev.settings import NO_EVENTLET_WARNING, ROOT
from nameko_reliable.testing.servers import Server
from nameko_reliable.testing.waiting import wait_for

PEERS = ROOT / "benchmarks/peers"
PYTHON = ROOT / ".venv/bin/python"
NAMEKO = ROOT / ".venv/bin/nameko"
PEERS_PYTHON = ROOT / ".venv-peers/bin/python"
UP_SECONDS = 60


def make_database(shop, name):
    """A new database on the shop's server. Returns its URI for SQLAlchemy."""
    postgres = shop.servers["postgres"]
    postgres.execute(f"CREATE DATABASE {name}")
    return postgres.postgres.uri(name)


def plain_uri(uri):
    return uri.replace("+psycopg2", "")


def environment(**settings):
    """Of a peer: nothing of the shop's."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {**kept, "PYTHONWARNINGS": NO_EVENTLET_WARNING, **settings}


def server(shop, name, command, is_ready, cwd=PEERS, **settings):
    return Server(name, shop.folder, command, environment(**settings), is_ready=is_ready, cwd=cwd)


@contextmanager
def running(shop, servers):
    """servers: {part of the report: a Server}. Their CPU is counted as that part's."""
    shop.peers = {part: [each] for part, each in servers.items()}
    try:
        for each in servers.values():
            each.start()
        for each in servers.values():
            wait_until_ready(each)
        yield
    finally:
        for each in servers.values():
            each.stop()
        shop.peers = {}


def wait_until_ready(started):
    def is_ready():
        if started.process.poll() is not None:
            raise BenchmarkFailed(f"{started.name} ended: {started.output().strip()}")
        return started.is_ready()

    wait_for(is_ready, UP_SECONDS)


def accepts_connections(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def has_consumer(uri, queue):
    with Connection(uri) as connection, connection.channel() as channel:
        try:
            return channel.queue_declare(queue, passive=True).consumer_count > 0
        except NotFound:
            return False


def run_loop(program, *arguments):
    """The LoadResult of a peer that times its own loop and prints it."""
    command = [PYTHON, PEERS / program, *map(str, arguments)]
    done = subprocess.run(command, cwd=PEERS, env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise BenchmarkFailed(f"{program} failed: {done.stderr.strip()}")
    return loaded(json.loads(done.stdout))


def loaded(timed):
    """timed: as benchmarks/peers/closed_loop.py returns it."""
    load = LoadResult()
    load.seconds, load.latencies_ms = timed["seconds"], timed["latencies_ms"]
    load.own_cpu_seconds = timed.get("cpu_seconds")
    return load
