"""A TCP port whose connections are served in greenlets, up to a maximum number at once.

    listener = Listener("127.0.0.1", 8080, max_connections=100, timeout_seconds=30)
    listener.listen(serve, backlog=64)
    acceptor = container.spawn_managed_thread(listener.accept)
    …
    acceptor.kill()
    listener.accept_waiting()
    listener.close()
    listener.finish(seconds=8)

`serve(connection)` gets [address, socket, state]. When it returns or raises, the connection is closed.

At `max_connections` the listener accepts no more until a connection ends: clients wait in the backlog. At
`max_per_address` it closes each further connection of that address.

Not guaranteed: that a connection ends. `timeout_seconds` limits each single send or receive. Against clients that send
byte by byte, `serve` needs deadlines of its own, like those of nameko_reliable.web.protocol: the connections' sockets
are DeadlineSockets.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import eventlet
from eventlet import greenio, wsgi
from eventlet.green import socket

logger = logging.getLogger(__name__)


class DeadlineSocket(greenio.GreenSocket):
    """A socket that waits for its client until `deadline`, of the monotonic clock, at the latest.

    Then it raises TimeoutError, as it does after its timeout. Unlike an eventlet.Timeout, a deadline costs nothing
    while the socket need not wait.
    """

    deadline: float | None = None

    def gettimeout(self) -> float | None:
        """The seconds that a single wait may take. eventlet asks for them only when it has to wait."""
        timeout: float | None = super().gettimeout()
        if self.deadline is None:
            return timeout
        left = max(0.0, self.deadline - time.monotonic())
        return left if timeout is None else min(timeout, left)


class Listener:
    """connections: the open ones."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        max_connections: int,
        timeout_seconds: float,
        max_per_address: float = math.inf,
        is_exempt: Callable[[str], bool] = lambda host: False,
        shares_port: bool = False,
    ) -> None:
        """Bind to the address. Raises OSError if that fails.

        port: 0 takes a free one, see `listener.port`. is_exempt: whether an address has no `max_per_address`.
        shares_port: other processes may listen on the port, too.
        """
        # The sockets that it accepts are of the same class.
        self.socket = DeadlineSocket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shares_port:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.socket.bind((host, port))
        self.port: int = self.socket.getsockname()[1]
        self.timeout_seconds = timeout_seconds
        self.connections: set[Connection] = set()
        self._max_per_address = max_per_address
        self._is_exempt = is_exempt
        self._count_by_address: Counter[str] = Counter()
        self._pool = eventlet.GreenPool(max_connections)

    def listen(self, serve: "Callable[[Connection], object]", backlog: int) -> None:
        """Let clients connect from now on. Raises OSError if another process listens on the port."""
        self._serve = serve
        self.socket.listen(backlog)

    def accept(self) -> None:
        """Serve each client that connects, until this greenlet is killed."""
        while True:
            try:
                client, address = self.socket.accept()
            except OSError as error:
                # No file descriptor is free, or the client has left.
                logger.warning("a connection was not accepted: %s", error)
                eventlet.sleep(0.1)
            else:
                self._start(client, address)

    def accept_waiting(self) -> None:
        """Serve the clients that wait in the backlog, and return."""
        self.socket.setblocking(False)
        while True:
            try:
                client, address = self.socket.accept()
            except ConnectionAbortedError:
                pass  # The client has left.
            except OSError:
                return  # No client waits, or the listener is closed already.
            else:
                self._start(client, address)

    def close(self) -> None:
        """Stop listening. Open connections stay."""
        self.socket.close()

    def finish(self, seconds: float) -> None:
        """Wait up to `seconds` until all connections have ended, then cut off the rest."""
        with eventlet.Timeout(seconds, False):
            self._pool.waitall()
        if self._pool.running():
            logger.warning("%d requests were cut off by the stop", self._pool.running())
            for greenlet in list(self._pool.coroutines_running):
                eventlet.kill(greenlet)

    def _start(self, client: Any, address: tuple[Any, ...]) -> None:
        host = address[0]
        if self._count_by_address[host] >= self._max_per_address and not self._is_exempt(host):
            # One address must not use up all connections.
            client.close()
            return
        self._count_by_address[host] += 1
        client.settimeout(self.timeout_seconds)
        # Otherwise the second segment of an answer waits for the acknowledgement of the first.
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection((address, client, wsgi.STATE_IDLE))
        self.connections.add(connection)
        self._pool.spawn_n(self._serve_and_close, connection)

    def _serve_and_close(self, connection: "Connection") -> None:
        try:
            self._serve(connection)
        except OSError as error:
            logger.debug("connection lost: %s", error)
        except Exception:
            logger.exception("a connection failed")
        finally:
            self.connections.discard(connection)
            host = connection[0][0]
            self._count_by_address[host] -= 1
            if not self._count_by_address[host]:
                del self._count_by_address[host]
            greenio.shutdown_safe(connection[1])
            connection[1].close()


class Connection(list[Any]):
    """[address, socket, state], as eventlet.wsgi wants it, but hashable."""

    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__
