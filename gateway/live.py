"""The WebSocket feed: who is connected, who they are, and what each of them gets.

One greenlet reads a socket, one writes it, from a bounded queue; whoever pushes only puts into
queues and never waits. A client that doesn't empty its queue is dropped. What a client missed it
reads over HTTP.
"""

import json
import logging
import time
from contextlib import suppress

import eventlet
from eventlet.green import socket
from eventlet.queue import Empty, Full, LightQueue
from eventlet.semaphore import Semaphore
from nameko.extensions import DependencyProvider
from simple_websocket import ConnectionClosed
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import ProtocolError

from contracts.schemas import MAX_BIGINT
from extensions.payloads import timestamp
from gateway.errors import Unauthenticated

logger = logging.getLogger(__name__)

PING_SECONDS = 25
MAX_MESSAGE_BYTES = 64 * 1024
MAX_WATCHED = 200
MAX_QUEUED = 200
SEND_SECONDS = 10
SEND_BUFFER_BYTES = 64 * 1024
CLOSE_SECONDS = 1
SOCKET_OPTIONS = {"ping_interval": PING_SECONDS, "max_message_size": MAX_MESSAGE_BYTES}

GOING_AWAY = object()


class Live(DependencyProvider):
    """One for the process."""

    def __init__(self):
        self._clients = set()
        self._of_user = {}

    def get_dependency(self, worker_ctx):
        return self

    def push_product(self, event):
        """Tell everyone who watches the product, or watches none in particular."""
        data = {
            "id": event.id,
            "price": str(event.price),
            "stock_quantity": event.stock_quantity,
            "is_active": event.is_active,
            "revision": event.revision,
        }
        text = _text(type="product", data=data)
        for client in list(self._clients):
            if client.watched is None or event.id in client.watched:
                client.put(text)

    def push_notification(self, event):
        """Tell the sockets of the notification's user, and no others."""
        data = {
            "id": event.id,
            "event_type": event.event_type,
            "subject": event.subject,
            "message": event.message,
            "order_id": event.order_id,
            "timestamp": timestamp(event.timestamp),
        }
        text = _text(type="notification", data=data)
        for client in list(self._of_user.get(event.user_id, ())):
            if client.seconds_left() > 0:
                client.put(text)

    def serve(self, ws, tokens, authorization):
        """Talk with one client until it is gone. Raises ConnectionClosed, as simple_websocket does."""
        client = _Client(ws, on_expiry=self._identify)
        self._clients.add(client)
        client.start()
        try:
            client.say(type="connected", message="Welcome to Forage.")
            if authorization:
                self._authenticate(client, lambda: tokens.caller(authorization))
            while True:
                self._handle(client, ws.receive(), tokens)
        finally:
            self._clients.discard(client)
            self._identify(client, None)
            client.stop()

    def going_away(self):
        """Close every socket with 1001, after what is queued for it."""
        for client in list(self._clients):
            client.put(GOING_AWAY)

    def _handle(self, client, text, tokens):
        try:
            message = json.loads(text) if isinstance(text, str) else None
        except (ValueError, RecursionError):
            message = None
        kind = message.get("type") if isinstance(message, dict) else None
        if kind == "ping":
            client.say(type="pong")
        elif kind == "authenticate":
            self._authenticate(client, lambda: tokens.read(message.get("token")))
        elif kind == "watch":
            self._watch(client, message.get("product_ids"))
        else:
            client.say(type="error", detail='Send JSON with a "type" of ping, authenticate or watch.')

    def _authenticate(self, client, read_caller):
        try:
            caller = read_caller()
        except Unauthenticated as error:
            client.say(type="error", detail=error.reason)
        else:
            self._identify(client, caller)
            # Also wakes the writer, which has to wait for the token's end now.
            client.say(type="authenticated", user_id=caller.user_id)

    def _watch(self, client, product_ids):
        sound = isinstance(product_ids, list) and len(product_ids) <= MAX_WATCHED
        if sound and all(type(id) is int and 0 < id <= MAX_BIGINT for id in product_ids):
            client.watched = frozenset(product_ids)
        else:
            client.say(type="error", detail=f"product_ids must be a list of {MAX_WATCHED} product ids at most.")

    def _identify(self, client, caller):
        if client.caller is not None:
            sockets = self._of_user[client.caller.user_id]
            sockets.discard(client)
            if not sockets:
                del self._of_user[client.caller.user_id]
        client.caller = caller
        if caller is not None:
            self._of_user.setdefault(caller.user_id, set()).add(client)


class _Client:
    """caller: None while anonymous. watched: the product ids to hear of, None for all."""

    def __init__(self, ws, on_expiry):
        self.ws = ws
        self.caller = None
        self.watched = None
        self._on_expiry = on_expiry
        self._queue = LightQueue(MAX_QUEUED)

    def start(self):
        self._writer = eventlet.spawn(self._write)

    def stop(self):
        """Wait for the client to close too, so that it reads why we did; but not long."""
        self._writer.kill()
        self.ws.thread.join(CLOSE_SECONDS)
        self._hang_up()
        # The reader closes the socket. The server must not do so under its feet.
        self.ws.thread.join(CLOSE_SECONDS)

    def say(self, **message):
        self.put(_text(**message))

    def put(self, text):
        try:
            self._queue.put_nowait(text)
        except Full:
            logger.info("dropped a WebSocket that reads too slowly")
            self._hang_up()

    def seconds_left(self):
        """Until the caller's token expires; negative afterwards. Only for one who is authenticated."""
        return self.caller.expires_at - time.time()

    def _write(self):
        try:
            while True:
                text = self._next()
                if text is GOING_AWAY:
                    self.ws.close(CloseReason.GOING_AWAY)
                    # close() alone doesn't wake the reader.
                    self.ws.event.set()
                    return
                self.ws.send(text)
        except (OSError, ConnectionClosed, ProtocolError):
            self._hang_up()

    def _next(self):
        """The next text to send, or the news that the token has expired, whatever comes first."""
        if self.caller is None:
            return self._queue.get()
        try:
            if self.seconds_left() <= 0:
                raise Empty
            return self._queue.get(timeout=self.seconds_left())
        except Empty:
            self._on_expiry(self, None)
            return _text(type="expired")

    def _hang_up(self):
        """Make the reader see the end of the connection, whatever state that is in."""
        with suppress(OSError):
            self.ws.sock.shutdown(socket.SHUT_RDWR)


class WholeSocket:
    """A client's socket whose `send` sends all, in order, in SEND_SECONDS; simple_websocket relies on that.

    Its reader greenlet (pings, pongs) and our writer both send: a part of one frame must not end up
    in another.
    """

    def __init__(self, sock):
        self._sock = sock
        self._sending = Semaphore()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self.fileno, self.recv, self.shutdown = sock.fileno, sock.recv, sock.shutdown

    def send(self, data):
        with eventlet.Timeout(SEND_SECONDS, TimeoutError("slow reader")), self._sending:
            self._sock.sendall(data)

    def close(self):
        """After the client has stopped sending: else what is unread would make it lose our last words."""
        with suppress(OSError), eventlet.Timeout(CLOSE_SECONDS, False):
            self._sock.shutdown(socket.SHUT_WR)
            while self._sock.recv(MAX_MESSAGE_BYTES):
                pass
        self._sock.close()

    def get_socket(self):
        """In the place of eventlet's input in the WSGI environment."""
        return self


def _text(**message):
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"))
