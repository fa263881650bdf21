"""The WebSocket feed: its connected clients, their users, and the messages that each client gets.

Each socket has a greenlet that reads it and one that writes to it, from a bounded queue. A push fills queues and
never waits. A client whose queue is full is dropped. It can then read over HTTP what it missed.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import eventlet
from eventlet.green import socket
from eventlet.queue import Empty, Full, LightQueue
from eventlet.semaphore import Semaphore
from nameko.extensions import DependencyProvider
from prometheus_client import Gauge
from simple_websocket import ConnectionClosed, Server
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import ProtocolError

from contracts.notifications import NotificationCreated
from contracts.products import ProductChanged
from contracts.types import MAX_BIGINT
from gateway.auth import AccessTokens, Caller
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
# 1 KiB holds at most 170 frames: about 3.4 ms of work, and a pause of 1.7 s at FRAMES_PER_SECOND.
RECEIVE_BYTES = 1024
SOCKET_OPTIONS = {
    "ping_interval": PING_SECONDS,
    "max_message_size": MAX_MESSAGE_BYTES,
    "receive_bytes": RECEIVE_BYTES,
}

MAX_SOCKETS = 4096
MAX_USER_SOCKETS = 20
# RATE_LIMIT_SCALE multiplies this limit.
MAX_ADDRESS_SOCKETS = 200
MESSAGES_PER_SECOND = 20
MAX_BURST = 60
# Pings, pongs and the parts of a fragmented message are frames too.
FRAMES_PER_SECOND = 100
MAX_FRAME_BURST = 300

SOCKETS = Gauge("forage_websockets", "Open WebSockets. state: anonymous, authenticated.", ["service", "state"])
PUSH = Operation("WebSocket push", "producer")


class LiveFeed(DependencyProvider):
    """The feed of this process. Its config: RATE_LIMIT_SCALE."""

    tracer = Tracer()

    def __init__(self) -> None:
        self._clients: set[_Client] = set()
        self._of_user: dict[int, set[_Client]] = {}
        self._of_address: Counter[str] = Counter()

    def setup(self) -> None:
        self.max_address_sockets = max(1, round(MAX_ADDRESS_SOCKETS * self.container.config["RATE_LIMIT_SCALE"]))

    def get_dependency(self, worker_ctx: Any) -> "LiveFeed":
        return self

    def push_product(self, event: ProductChanged) -> None:
        """Send the change to the clients that watch the product, and to those that watch all products."""
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

    def push_notification(self, event: NotificationCreated) -> None:
        """Send the notification to the sockets of its user, and to no others."""
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

    def refuse_when_full(self, address: str) -> None:
        """Raise Overloaded when the sockets, of all clients or of that address, are at their limit."""
        if len(self._clients) >= MAX_SOCKETS or self._of_address[address] >= self.max_address_sockets:
            raise Overloaded

    def serve(self, ws: Server, access_tokens: AccessTokens, authorization: str | None, address: str) -> None:
        """Serve one client until its connection ends. Raises ConnectionClosed, as simple_websocket does."""
        client = _Client(ws, on_expiry=self._set_caller)
        self._clients.add(client)
        _gauge_of(client).inc()
        self._of_address[address] += 1
        client.start()
        try:
            client.send(type="connected", message="Welcome to Forage.")
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

    def close_all(self) -> None:
        """Close every socket with 1001 once its queue is sent."""
        for client in list(self._clients):
            client.enqueue(CloseReason.GOING_AWAY)

    def _handle(self, client: "_Client", text: str | bytes, access_tokens: AccessTokens) -> None:
        try:
            message = json.loads(text) if isinstance(text, str) else None
        except (ValueError, RecursionError):
            message = None
        message = message if isinstance(message, dict) else {}
        kind = message.get("type")
        if kind == "ping":
            client.send(type="pong")
        elif kind == "authenticate":
            self._authenticate(client, lambda: access_tokens.read(message.get("token")))
        elif kind == "watch":
            self._watch(client, message.get("product_ids"))
        else:
            client.send(type="error", detail='Send JSON with a "type" of ping, authenticate or watch.')

    def _authenticate(self, client: "_Client", read_caller: Callable[[], Caller | None]) -> None:
        try:
            caller = read_caller()
        except Unauthenticated as error:
            client.send(type="error", detail=error.reason)
            return
        if caller is None:
            return
        if len(self._of_user.get(caller.user_id, set()) - {client}) >= MAX_USER_SOCKETS:
            client.send(type="error", detail=f"A user may have {MAX_USER_SOCKETS} sockets at most.")
            return
        self._set_caller(client, caller)
        # Also wakes the writer, which must now wait for the end of the token.
        client.send(type="authenticated", user_id=caller.user_id)

    def _watch(self, client: "_Client", product_ids: Any) -> None:
        is_valid = isinstance(product_ids, list) and len(product_ids) <= MAX_WATCHED
        if is_valid and all(type(id) is int and 0 < id <= MAX_BIGINT for id in product_ids):
            client.watched_ids = frozenset(product_ids)
        else:
            client.send(type="error", detail=f"product_ids must be a list of {MAX_WATCHED} product ids at most.")

    def _set_caller(self, client: "_Client", caller: Caller | None) -> None:
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
    """caller: None while anonymous. watched_ids: the products whose changes it gets; None for all."""

    def __init__(self, ws: Server, on_expiry: Callable[["_Client", None], None]) -> None:
        self.ws = ws
        self.caller: Caller | None = None
        self.watched_ids: frozenset[int] | None = None
        self._on_expiry = on_expiry
        self._queue = LightQueue(MAX_QUEUED)
        self._message_rate = _TokenBucket(MAX_BURST, MESSAGES_PER_SECOND)

    def start(self) -> None:
        self._writer = eventlet.spawn(self._write)

    def stop(self) -> None:
        """Disconnect. The client gets CLOSE_SECONDS to close first, so that it reads our reason."""
        self._writer.kill()
        while not self._queue.empty():
            self._queue.get()[1].end(ConnectionClosed())
        self.ws.thread.join(CLOSE_SECONDS)
        self._disconnect()
        # The reader closes the socket. The server must not close it while the reader runs.
        self.ws.thread.join(CLOSE_SECONDS)

    def close(self, reason: CloseReason) -> None:
        """Close once the queue is sent, after CLOSE_SECONDS at most."""
        self.enqueue(reason)
        with eventlet.Timeout(CLOSE_SECONDS, False):
            self._writer.wait()

    def is_over_message_rate(self) -> bool:
        """Count one message of the client. Allowed: MAX_BURST at once, and MESSAGES_PER_SECOND."""
        return self._message_rate.spend(1) < 0

    def send(self, **message: Any) -> None:
        self.enqueue(_dump(**message))

    def enqueue(self, message: str | CloseReason, span: Any = NO_SPAN) -> None:
        """message: a text to send, or a CloseReason, which ends the socket. span: ends when the text is sent."""
        try:
            self._queue.put_nowait((message, span))
        except Full as error:
            span.end(error)
            logger.info("dropped a WebSocket that reads too slowly")
            self._disconnect()

    def seconds_left(self) -> float:
        """Until the caller's token expires; negative afterwards, 0 when anonymous."""
        return 0.0 if self.caller is None else self.caller.expires_at - time.time()

    def _write(self) -> None:
        try:
            while True:
                message, span = self._next()
                if isinstance(message, CloseReason):
                    self.ws.close(message)
                    # close() alone does not wake the reader.
                    self.ws.event.set()
                    return
                with span:
                    self.ws.send(message)
        except (OSError, ConnectionClosed, ProtocolError):
            self._disconnect()

    def _next(self) -> tuple[str | CloseReason, Any]:
        """(message, span): the next in the queue, or the message that the token has expired."""
        if self.caller is None:
            return self._queue.get()
        try:
            if self.seconds_left() <= 0:
                raise Empty
            return self._queue.get(timeout=self.seconds_left())
        except Empty:
            self._on_expiry(self, None)
            return _dump(type="expired"), NO_SPAN

    def _disconnect(self) -> None:
        """Shut the socket down, so that the reader sees its end in any state of the protocol."""
        with suppress(OSError):
            self.ws.sock.shutdown(socket.SHUT_RDWR)


class _TokenBucket:
    """`capacity` at once, refilled by `per_second`."""

    def __init__(self, capacity: float, per_second: float) -> None:
        self._capacity, self._per_second = capacity, per_second
        self._left, self._counted_at = capacity, time.monotonic()

    def spend(self, count: int) -> float:
        """Take `count` and return the rest. A negative rest is a debt."""
        now = time.monotonic()
        self._left = min(self._capacity, self._left + (now - self._counted_at) * self._per_second) - count
        self._counted_at = now
        return self._left


class FrameCounter:
    """Counts the frames of a WebSocket by their headers, before anything else parses them."""

    def __init__(self) -> None:
        # The beginning of a header, or the bytes of a payload that are still to come.
        self._partial_header, self._payload_left = b"", 0

    def count_in(self, data: bytes) -> int:
        """The number of frames whose length field ends in `data`, the next piece of the stream."""
        data, start, count = self._partial_header + data, self._payload_left, 0
        while len(data) >= start + 2:
            length = data[start + 1] & 127
            mask_start = start + 2 + {126: 2, 127: 8}.get(length, 0)
            if len(data) < mask_start:
                break
            if length > 125:
                length = int.from_bytes(data[start + 2 : mask_start])
            # A client's frame has a mask of four bytes.
            start = mask_start + 4 + length
            count += 1
        self._partial_header, self._payload_left = data[start:], max(0, start - len(data))
        return count


class ClientSocket:
    """A WebSocket client's socket.

    `send` sends everything in order, within SEND_SECONDS. simple_websocket relies on that: its reader (pings, pongs)
    and our writer both send, and a frame must not end up inside another.
    `recv` throttles a client that sends many small frames or single bytes. Other clients are not slowed down.

    answer_headers: {name: value}, added to the answer to the handshake, which is sent first.
    """

    def __init__(self, sock: Any, answer_headers: Mapping[str, str]) -> None:
        self._sock = sock
        self._answer_headers = "".join(f"{name}: {value}\r\n" for name, value in answer_headers.items()).encode()
        self._sending = Semaphore()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self.fileno, self.shutdown = sock.fileno, sock.shutdown
        self._frames, self._frame_rate = FrameCounter(), _TokenBucket(MAX_FRAME_BURST, FRAMES_PER_SECOND)

    def recv(self, size: int) -> bytes:
        data = self._sock.recv(size)
        left = self._frame_rate.spend(max(1, self._frames.count_in(data)))
        if left < 0:
            eventlet.sleep(-left / FRAMES_PER_SECOND)
        return data

    def send(self, data: bytes) -> None:
        if self._answer_headers:
            status, _, rest = data.partition(b"\r\n")
            data, self._answer_headers = status + b"\r\n" + self._answer_headers + rest, b""
        with eventlet.Timeout(SEND_SECONDS, TimeoutError("slow reader")), self._sending:
            self._sock.sendall(data)

    def close(self) -> None:
        """Close once the client has stopped sending. Unread data would make it lose our last message."""
        with suppress(OSError), eventlet.Timeout(CLOSE_SECONDS, False):
            self._sock.shutdown(socket.SHUT_WR)
            while self._sock.recv(MAX_MESSAGE_BYTES):
                pass
        self._sock.close()

    def get_socket(self) -> "ClientSocket":
        """Lets it replace eventlet's input in the WSGI environ."""
        return self


def _gauge_of(client: _Client) -> Gauge:
    """The gauge that the client counts in."""
    return SOCKETS.labels("gateway", "anonymous" if client.caller is None else "authenticated")


def _dump(**message: Any) -> str:
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"))
