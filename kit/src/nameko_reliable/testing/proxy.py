"""A TCP proxy to a broker, a database or another server. A test makes it hang, cut connections, or refuse them."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import eventlet
from eventlet.event import Event
from eventlet.green import socket

# The sockets of one connection: to the client and to the server.
Pair: TypeAlias = tuple[Any, Any]


class Proxy:
    """accepted: the number of connections so far. open: the connections that are open now."""

    def __init__(self, host: str | None, port: int | None) -> None:
        self._target = (host, port)
        self._listener = eventlet.listen(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.accepted = 0
        self.open: set[Pair] = set()
        self._hold_at: bytes | None = None
        self._reads, self._pause_seconds = True, 600.0
        self._may_answer = Event()
        self._may_answer.send()
        self._serving = eventlet.spawn(self._serve, self._listener)

    def hold(self) -> None:
        """Delay the server's answers until `release`."""
        if self._may_answer.ready():
            self._may_answer = Event()

    @property
    def holds(self) -> bool:
        return not self._may_answer.ready()

    def hold_at(self, data: bytes) -> None:
        """Hold when a client sends this data, before the server gets it."""
        self._hold_at = data

    def stop_reading(self, seconds: float = 600) -> None:
        """Stop reading each connection on which a client sends data before `release`, so that its writes block."""
        self._reads, self._pause_seconds = False, seconds

    def release(self) -> None:
        self._hold_at, self._reads = None, True
        if not self._may_answer.ready():
            self._may_answer.send()

    def cut(self) -> None:
        """End all connections."""
        for pair in list(self.open):
            for side in pair:
                _shut(side)

    def go_away(self) -> None:
        """Refuse new connections, and end the open ones."""
        self._serving.kill()
        self._listener.close()
        self.cut()

    def come_back(self) -> None:
        """Accept connections again."""
        self._listener = eventlet.listen(("127.0.0.1", self.port))
        self._serving = eventlet.spawn(self._serve, self._listener)

    def _serve(self, listener: Any) -> None:
        while True:
            client, _ = listener.accept()
            self.accepted += 1
            server = socket.create_connection(self._target)
            pair = (client, server)
            self.open.add(pair)
            eventlet.spawn(self._pump, client, server, pair, self._before_request)
            eventlet.spawn(self._pump, server, client, pair, self._before_answer)

    def _before_request(self, data: bytes) -> None:
        if not self._reads:
            eventlet.sleep(self._pause_seconds)
        if self._hold_at is not None and self._hold_at in data:
            self.hold()

    def _before_answer(self, data: bytes) -> None:
        self._may_answer.wait()

    def _pump(self, source: Any, sink: Any, pair: Pair, before_sending: Callable[[bytes], None]) -> None:
        try:
            while data := source.recv(65536):
                before_sending(data)
                sink.sendall(data)
        except OSError:
            pass
        finally:
            self.open.discard(pair)
            for side in pair:
                _shut(side)


class UriProxy(Proxy):
    """A proxy to the server of a URI. Its own `uri` is the same, but with the proxy's port."""

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        super().__init__(parts.hostname, parts.port)
        self.uri = parts._replace(netloc=parts.netloc.replace(f":{parts.port}", f":{self.port}")).geturl()


def _shut(side: Any) -> None:
    with suppress(OSError):
        side.shutdown(socket.SHUT_RDWR)
