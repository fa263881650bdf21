"""A TCP port whose connections are served in greenlets, at most so many at once.

    listener = Listener("127.0.0.1", 8080, max_connections=100, timeout_seconds=30)
    listener.listen(serve, backlog=64)
    acceptor = container.spawn_managed_thread(listener.accept)
    …
    acceptor.kill()
    listener.accept_waiting()
    listener.close()
    listener.finish(seconds=8)

`serve(connection)` gets [address, socket, state]. What it raises costs this connection alone. When it returns, the
connection is closed.

At `max_connections` no further connection is accepted until one ends: clients wait in the backlog. An address that has
`max_per_address` connections gets no further one.

Not guaranteed: that a connection ends. `timeout_seconds` is for each single send or receive. A client that sends byte
by byte needs a deadline of `serve`'s own, as nameko_reliable.web.protocol has them.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import eventlet
from eventlet import greenio, wsgi
from eventlet.green import socket

logger = logging.getLogger(__name__)


class Listener:
    """connections: those that are open."""

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
        """Bind. Raises OSError when the address can't be had.

        port: 0 takes a free one, which `listener.port` then names. is_exempt: whether an address has no
        `max_per_address`. shares_port: other processes may listen there, too.
        """
        self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
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
        """Clients may connect from now on. Raises OSError when another listens there."""
        self._serve = serve
        self.socket.listen(backlog)

    def accept(self) -> None:
        """Serve each client that connects, until this greenlet is killed."""
        while True:
            try:
                client, address = self.socket.accept()
            except OSError as error:
                # No file descriptor left, or the client left before its turn.
                logger.warning("a connection was not accepted: %s", error)
                eventlet.sleep(0.1)
            else:
                self._start(client, address)

    def accept_waiting(self) -> None:
        """Serve the clients that are connected already, and return."""
        self.socket.setblocking(False)
        while True:
            try:
                client, address = self.socket.accept()
            except ConnectionAbortedError:
                pass  # The client left before its turn.
            except OSError:
                return  # No client waits, or no more can be served, as when another stop has closed the listener.
            else:
                self._start(client, address)

    def close(self) -> None:
        """Stop listening. Connections stay."""
        self.socket.close()

    def finish(self, seconds: float) -> None:
        """Wait until all connections have ended, at most so long, then cut off the rest."""
        with eventlet.Timeout(seconds, False):
            self._pool.waitall()
        if self._pool.running():
            logger.warning("%d requests were cut off by the stop", self._pool.running())
            for greenlet in list(self._pool.coroutines_running):
                eventlet.kill(greenlet)

    def _start(self, client: Any, address: tuple[Any, ...]) -> None:
        host = address[0]
        if self._count_by_address[host] >= self._max_per_address and not self._is_exempt(host):
            # Before anything is read: an address that holds that many open would else keep all others out.
            client.close()
            return
        self._count_by_address[host] += 1
        client.settimeout(self.timeout_seconds)
        # An answer of more than one segment must not wait for the acknowledgement of the first.
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
