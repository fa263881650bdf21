"""The bytes of an AMQP connection: many frames are sent in one system call, and received in one.

py-amqp writes each frame by itself, and reads each one in three parts. Here, all frames of one turn of the event loop
leave together. A writer waits for nothing, so a deadline cannot interrupt it in the middle of a frame.
"""

from collections.abc import Callable
from typing import Any

import eventlet
from amqp import method_framing
from eventlet import patcher
from eventlet.event import Event

# If the broker takes no bytes for this long, the connection ends.
SEND_SECONDS = 1
# While more bytes than this are unsent, `make_room` waits.
MANY_BYTES = 2**20
RECEIVED_BYTES = 2**14


def frame_writer(connection: Any, transport: Any) -> Callable[..., None]:
    """py-amqp's frame writer, with a SendBuffer before the socket. It is the argument `frame_writer` of Connection.

    In a process without eventlet's monkey patch there is no event loop, and each frame is sent by itself.
    """
    if patcher.is_monkey_patched("socket"):
        transport = connection.send_buffer = SendBuffer(transport.sock)
    write: Callable[..., None] = method_framing.frame_writer(connection, transport)
    return write


def receive_in_bulk(transport: Any) -> None:
    """Let py-amqp's transport take what has arrived, rather than the few bytes that it needs next."""
    # It keeps what it does not need yet. This is not part of its API: without this attribute, it only reads slowly.
    receive = transport._quick_recv
    transport._quick_recv = lambda size: receive(max(size, RECEIVED_BYTES))


class SendBuffer:
    """Collects frames, and sends them in the next turn of the event loop. To py-amqp it is a transport."""

    def __init__(self, sock: Any) -> None:
        self._socket = sock
        self._frames: list[bytes] = []
        self._size = 0
        # While a greenlet sends: that greenlet, and the event that it triggers when it ends.
        self._sender: Any = None
        self._sent: Event | None = None
        self.failure: Exception | None = None

    def write(self, frame: bytes | memoryview) -> None:
        self.check()
        # A copy, as py-amqp uses the memory again.
        self._frames.append(bytes(frame))
        self._size += len(frame)
        if self._sent is None:
            self._sent = Event()
            self._sender = eventlet.spawn_n(self._send)

    def check(self) -> None:
        """Raise OSError if sending has failed: the connection can't be used any more."""
        if self.failure is not None:
            raise OSError(str(self.failure)) from self.failure

    def stop(self) -> None:
        """Send nothing more. Call it before the socket is closed, as another one may get its number."""
        if self.failure is None:
            self.failure = OSError("the connection was closed")
        if self._sent is not None:
            eventlet.kill(self._sender)
            self._end()

    def make_room(self) -> None:
        """Wait until at most MANY_BYTES are unsent, or sending has failed. Any time limit is the caller's."""
        while self._size > MANY_BYTES and self.failure is None:
            self.flush()

    def flush(self) -> None:
        """Wait until all frames are sent, or sending has failed. Any time limit is the caller's."""
        while self._sent is not None:
            self._sent.wait()

    def _send(self) -> None:
        try:
            while self._frames:
                frames, self._frames = b"".join(self._frames), []
                unsent = memoryview(frames)
                while unsent:
                    unsent = unsent[self._send_some(unsent) :]
                self._size -= len(frames)
        except Exception as error:
            # A part of a frame may have been sent. Nothing can follow it.
            self.failure = error
        finally:
            self._end()

    def _end(self) -> None:
        sent, self._sent = self._sent, None
        if sent is not None:
            sent.send()

    def _send_some(self, unsent: memoryview) -> int:
        """Send what the broker takes. Returns the number of bytes."""
        with eventlet.Timeout(SEND_SECONDS, OSError("the broker takes no bytes")):
            while True:
                try:
                    return int(self._socket.send(unsent))
                except OSError as error:
                    # The timeout of the connection's reader, which waits on the same socket: with TLS an SSLError.
                    if "timed out" not in str(error):
                        raise
