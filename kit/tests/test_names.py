"""nameko_reliable.names: connections to hosts by name, in processes of their own, with eventlet's resolver and without.

eventlet reads the variable when it is imported.
"""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.server

BEGIN = """
import eventlet
eventlet.monkey_patch()
import _socket
import socket
from eventlet import patcher
import nameko_reliable.settings

threading = patcher.original("threading")
listener = eventlet.listen(("127.0.0.1", 0))
port = listener.getsockname()[1]
"""


def run(script, **environment):
    command = [sys.executable, "-c", BEGIN + script]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60)


def test_a_slow_look_up_blocks_no_other_greenlet():
    script = """
look_up = _socket.getaddrinfo
begun, may_end = threading.Event(), threading.Event()

def look_up_slowly(host, *arguments):
    if host == "bakery.example":
        begun.set()
        assert may_end.wait(10), "the other greenlet is blocked"
        host = "127.0.0.1"
    return look_up(host, *arguments)

_socket.getaddrinfo = look_up_slowly
connecting = eventlet.spawn(socket.create_connection, ("bakery.example", port))
while not begun.is_set():
    eventlet.sleep(0.01)
may_end.set()
connecting.wait()
"""

    done = run(script, EVENTLET_NO_GREENDNS="yes")

    assert done.returncode == 0, done.stderr


def test_a_connection_to_an_address_needs_no_thread():
    done = run(
        'socket.create_connection(("127.0.0.1", port))\nassert threading.active_count() == 1',
        EVENTLET_NO_GREENDNS="yes",
    )

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("no_greendns", ["yes", ""])
def test_a_name_is_looked_up_with_and_without_eventlets_resolver(no_greendns):
    done = run('socket.create_connection(("localhost", port))', EVENTLET_NO_GREENDNS=no_greendns)

    assert done.returncode == 0, done.stderr
