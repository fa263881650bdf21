"""The WebSocket feed: who is connected, who they are, and what each of them gets.

One greenlet reads a socket, one writes it, from a bounded queue; whoever pushes only puts into
queues and never waits. A client that doesn't empty its queue is dropped. What a client missed it
reads over HTTP.
"""

import json
import logging
import time
from collections import Counter
from contextlib import suppress

import eventlet
from eventlet.green import socket
from eventlet.queue import Empty, Full, LightQueue
from eventlet.semaphore import Semaphore
from nameko.extensions import DependencyProvider
from prometheus_client import Gauge
from simple_websocket import ConnectionClosed
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import ProtocolError

from contracts.types import MAX_BIGINT
from gateway.errors import Overloaded, Unauthenticated
from nameko_reliable.messages import timestamp
from nameko_reliable.telemetry.tracing import NO_SPAN, Operation, Tracer

logger = logging.getLogger(__name__)

PING_SECONDS = 25
MAX_MESSAGE_BYTES = 64 * 1024
MAX_WATCHED = 200
MAX_QUEUED = 200
SEND_SECONDS = 10
SEND_BUFFER_BYTES = 64 * 1024
CLOSE_SECONDS = 1
# A piece holds 170 frames at most, of 20 µs each and in debt for CLOSE_SECONDS or two.
RECEIVE_BYTES = 1024
SOCKET_OPTIONS = {
    "ping_interval": PING_SECONDS,
    "max_message_size": MAX_MESSAGE_BYTES,
    "receive_bytes": RECEIVE_BYTES,
}

MAX_SOCKETS = 4096
MAX_USER_SOCKETS = 20
# Before RATE_LIMIT_SCALE.
MAX_ADDRESS_SOCKETS = 200
MESSAGES_PER_SECOND = 20
MAX_BURST = 60
# Pings, pongs and parts of messages are frames, too.
FRAMES_PER_SECOND = 100
MAX_FRAME_BURST = 300

SOCKETS = Gauge("forage_websockets", "Open WebSockets. state: anonymous, authenticated.", ["service", "state"])
PUSH = Operation("WebSocket push", "producer")


class LiveFeed(DependencyProvider):
    """One for the process. Its config: RATE_LIMIT_SCALE."""

    tracer = Tracer()

    def __init__(self):
        self._clients = set()
        self._of_user = {}
        self._of_address = Counter()

    def setup(self):
        self.max_address_sockets = max(1, round(MAX_ADDRESS_SOCKETS * self.container.config["RATE_LIMIT_SCALE"]))

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
        text = _dump(type="product", data=data)
        for client in list(self._clients):
            if client.watched_ids is None or event.id in client.watched_ids:
                client.enqueue(text)

    def push_notification(self, event):
        """Tell the sockets of the notification's user, and no others."""
        data = {
            "id": event.id,
            "event_type": event.event_type,
            "subject": event.subject,
            "message": event.message,
            "order_id": event.order_id,
            "sequence": event.sequence,
            "timestamp": timestamp(event.timestamp),
        }
        text = _dump(type="notification", data=data)
        for client in list(self._of_user.get(event.user_id, ())):
            if client.seconds_left() > 0:
                client.enqueue(text, self.tracer.span(PUSH))

    def refuse_when_full(self, address):
        """Raises Overloaded when one more socket would be too many, in all or from that address."""
        if len(self._clients) >= MAX_SOCKETS or self._of_address[address] >= self.max_address_sockets:
            raise Overloaded

    def serve(self, ws, access_tokens, authorization, address):
        """Talk with one client until it is gone. Raises ConnectionClosed, as simple_websocket does."""
        client = _Client(ws, on_expiry=self._set_caller)
        self._clients.add(client)
        _gauge_of(client).inc()
        self._of_address[address] += 1
        client.start()
        try:
            client.send(type="connected", message="Welcome to Forage.")
            if authorization:
                self._authenticate(client, lambda: access_tokens.read_header(authorization))
            while True:
                text = ws.receive()
                if client.is_over_message_rate():
                    client.send(type="error", detail=f"More than {MESSAGES_PER_SECOND} messages a second.")
                    client.close(CloseReason.POLICY_VIOLATION)
                    return
                self._handle(client, text, access_tokens)
        finally:
            self._clients.discard(client)
            self._of_address[address] -= 1
            if not self._of_address[address]:
                del self._of_address[address]
            self._set_caller(client, None)
            _gauge_of(client).dec()
            client.stop()

    def close_all(self):
        """Close every socket with 1001, after what is queued for it."""
        for client in list(self._clients):
            client.enqueue(CloseReason.GOING_AWAY)

    def _handle(self, client, text, access_tokens):
        try:
            message = json.loads(text) if isinstance(text, str) else None
        except (ValueError, RecursionError):
            message = None
        kind = message.get("type") if isinstance(message, dict) else None
        if kind == "ping":
            client.send(type="pong")
        elif kind == "authenticate":
            self._authenticate(client, lambda: access_tokens.read(message.get("token")))
        elif kind == "watch":
            self._watch(client, message.get("product_ids"))
        else:
            client.send(type="error", detail='Send JSON with a "type" of ping, authenticate or watch.')

    def _authenticate(self, client, read_caller):
        try:
            caller = read_caller()
        except Unauthenticated as error:
            client.send(type="error", detail=error.reason)
        else:
            if len(self._of_user.get(caller.user_id, set()) - {client}) >= MAX_USER_SOCKETS:
                client.send(type="error", detail=f"A user may have {MAX_USER_SOCKETS} sockets at most.")
                return
            self._set_caller(client, caller)
            # Also wakes the writer, which has to wait for the token's end now.
            client.send(type="authenticated", user_id=caller.user_id)

    def _watch(self, client, product_ids):
        is_valid = isinstance(product_ids, list) and len(product_ids) <= MAX_WATCHED
        if is_valid and all(type(id) is int and 0 < id <= MAX_BIGINT for id in product_ids):
            client.watched_ids = frozenset(product_ids)
        else:
            client.send(type="error", detail=f"product_ids must be a list of {MAX_WATCHED} product ids at most.")

    def _set_caller(self, client, caller):
        if client.caller is not None:
            sockets = self._of_user[client.caller.user_id]
            sockets.discard(client)
            if not sockets:
                del self._of_user[client.caller.user_id]
        _gauge_of(client).dec()
        client.caller = caller
        _gauge_of(client).inc()
        if caller is not None:
            self._of_user.setdefault(caller.user_id, set()).add(client)


class _Client:
    """caller: None while anonymous. watched_ids: the product ids to hear of, None for all."""

    def __init__(self, ws, on_expiry):
        self.ws = ws
        self.caller = None
        self.watched_ids = None
        self._on_expiry = on_expiry
        self._queue = LightQueue(MAX_QUEUED)
        self._message_rate = _TokenBucket(MAX_BURST, MESSAGES_PER_SECOND)

    def start(self):
        self._writer = eventlet.spawn(self._write)

    def stop(self):
        """Wait for the client to close too, so that it reads why we did; but not long."""
        self._writer.kill()
        while not self._queue.empty():
            self._queue.get()[1].end(ConnectionClosed())
        self.ws.thread.join(CLOSE_SECONDS)
        self._disconnect()
        # The reader closes the socket. The server must not do so under its feet.
        self.ws.thread.join(CLOSE_SECONDS)

    def close(self, reason):
        """After what is queued for the client; but not long after."""
        self.enqueue(reason)
        with eventlet.Timeout(CLOSE_SECONDS, False):
            self._writer.wait()

    def is_over_message_rate(self):
        """Count one message of the client: MAX_BURST at once are fine, and MESSAGES_PER_SECOND."""
        return self._message_rate.spend(1) < 0

    def send(self, **message):
        self.enqueue(_dump(**message))

    def enqueue(self, text, span=NO_SPAN):
        """text: or a CloseReason, which ends the socket. span: of the text, until it is sent."""
        try:
            self._queue.put_nowait((text, span))
        except Full as error:
            span.end(error)
            logger.info("dropped a WebSocket that reads too slowly")
            self._disconnect()

    def seconds_left(self):
        """Until the caller's token expires; negative afterwards. Only for one who is authenticated."""
        return self.caller.expires_at - time.time()

    def _write(self):
        try:
            while True:
                text, span = self._next()
                if isinstance(text, CloseReason):
                    self.ws.close(text)
                    # close() alone doesn't wake the reader.
                    self.ws.event.set()
                    return
                with span:
                    self.ws.send(text)
        except (OSError, ConnectionClosed, ProtocolError):
            self._disconnect()

    def _next(self):
        """The next text to send with its span, or the news that the token has expired, whatever comes first."""
        if self.caller is None:
            return self._queue.get()
        try:
            if self.seconds_left() <= 0:
                raise Empty
            return self._queue.get(timeout=self.seconds_left())
        except Empty:
            self._on_expiry(self, None)
            return _dump(type="expired"), NO_SPAN

    def _disconnect(self):
        """Make the reader see the end of the connection, whatever state that is in."""
        with suppress(OSError):
            self.ws.sock.shutdown(socket.SHUT_RDWR)


class _TokenBucket:
    """So many at once, and so many more each second."""

    def __init__(self, capacity, per_second):
        self._capacity, self._per_second = capacity, per_second
        self._left, self._counted_at = capacity, time.monotonic()

    def spend(self, count):
        """What is left then; less than nothing is a debt."""
        now = time.monotonic()
        self._left = min(self._capacity, self._left + (now - self._counted_at) * self._per_second) - count
        self._counted_at = now
        return self._left


class FrameCounter:
    """Counts the frames of a WebSocket by their heads, before anything else is done about them."""

    def __init__(self):
        self._partial_head, self._payload_bytes = b"", 0

    def count_in(self, data):
        """How many frames have their head's end in the next piece of the stream."""
        data, at, count = self._partial_head + data, self._payload_bytes, 0
        while len(data) >= at + 2:
            length = data[at + 1] & 127
            rest = at + 2 + {126: 2, 127: 8}.get(length, 0)
            if len(data) < rest:
                break
            if length > 125:
                length = int.from_bytes(data[at + 2 : rest])
            # A client's frame has a mask of four bytes.
            at = rest + 4 + length
            count += 1
        self._partial_head, self._payload_bytes = data[at:], max(0, at - len(data))
        return count


class ClientSocket:
    """A WebSocket client's socket. `send` sends all, in order, in SEND_SECONDS; simple_websocket relies on that.

    `recv` slows down a client that sends many small frames, or single bytes; other clients do not notice.

    Its reader greenlet (pings, pongs) and our writer both send: a part of one frame must not end up
    in another. answer_headers: {name: value} that the answer to the handshake, the first thing sent, gets.
    """

    def __init__(self, sock, answer_headers):
        self._sock = sock
        self._answer_headers = "".join(f"{name}: {value}\r\n" for name, value in answer_headers.items()).encode()
        self._sending = Semaphore()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self.fileno, self.shutdown = sock.fileno, sock.shutdown
        self._frames, self._frame_rate = FrameCounter(), _TokenBucket(MAX_FRAME_BURST, FRAMES_PER_SECOND)

    def recv(self, size):
        data = self._sock.recv(size)
        left = self._frame_rate.spend(max(1, self._frames.count_in(data)))
        if left < 0:
            eventlet.sleep(-left / FRAMES_PER_SECOND)
        return data

    def send(self, data):
        if self._answer_headers:
            status, _, rest = data.partition(b"\r\n")
            data, self._answer_headers = status + b"\r\n" + self._answer_headers + rest, b""
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


def _gauge_of(client):
    """The gauge that the client counts in."""
    return SOCKETS.labels("gateway", "anonymous" if client.caller is None else "authenticated")


def _dump(**message):
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"))
