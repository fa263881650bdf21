"""A broker's, a database's or any other server's address that can hang, break and be away, at the test's word."""

from contextlib import suppress
from urllib.parse import urlsplit

import eventlet
from eventlet.event import Event
from eventlet.green import socket


class Proxy:
    """accepted: how many connections came. open: those that stand."""

    def __init__(self, host, port):
        self._target = (host, port)
        self._listener = eventlet.listen(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.accepted = 0
        self.open = set()
        self._hold_at, self._cut_at, self._reads = None, None, True
        self._may_speak = Event()
        self._may_speak.send()
        self._serving = eventlet.spawn(self._serve, self._listener)

    def hold(self):
        """The server's answers are kept back until `release`."""
        if self._may_speak.ready():
            self._may_speak = Event()

    @property
    def holds(self):
        return not self._may_speak.ready()

    def hold_at(self, words):
        """Hold as soon as a client has said this, and before the server hears of it."""
        self._hold_at = words

    def cut_at(self, words):
        """End all connections when a client has said this, once, and before the server hears of it."""
        self._cut_at = words

    def stop_reading(self):
        """Connections on which clients say something until `release` are read no more: writing to them blocks."""
        self._reads = False

    def release(self):
        self._hold_at, self._reads = None, True
        if not self._may_speak.ready():
            self._may_speak.send()

    def cut(self):
        """End all connections."""
        for pair in list(self.open):
            for side in pair:
                _shut(side)

    def go_away(self):
        """Refuse connections, and end those that stand."""
        self._serving.kill()
        self._listener.close()
        self.cut()

    def come_back(self):
        self._listener = eventlet.listen(("127.0.0.1", self.port))
        self._serving = eventlet.spawn(self._serve, self._listener)

    def _serve(self, listener):
        while True:
            client, _ = listener.accept()
            self.accepted += 1
            server = socket.create_connection(self._target)
            pair = (client, server)
            self.open.add(pair)
            eventlet.spawn(self._pump, client, server, pair, self._listen)
            eventlet.spawn(self._pump, server, client, pair, self._speak)

    def _listen(self, data):
        if not self._reads:
            eventlet.sleep(600)
        if self._cut_at is not None and self._cut_at in data:
            self._cut_at = None
            self.cut()
        if self._hold_at is not None and self._hold_at in data:
            self.hold()

    def _speak(self, data):
        self._may_speak.wait()

    def _pump(self, source, sink, pair, before_sending):
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
    def __init__(self, uri):
        parts = urlsplit(uri)
        super().__init__(parts.hostname, parts.port)
        self.uri = parts._replace(netloc=parts.netloc.replace(f":{parts.port}", f":{self.port}")).geturl()


def _shut(side):
    with suppress(OSError):
        side.shutdown(socket.SHUT_RDWR)
