"""Publishing over one kept connection, with a confirm for each message, or without.

    publisher = ReconnectingPublisher(amqp_address(config), declare=[exchange])
    publisher.publish(b"{}", exchange="bakery.events", routing_key="cake.baked", timeout_seconds=1)
    publisher.send_unconfirmed(b"{}", exchange="nameko-rpc", routing_key="bakery.bake")

Nameko's own publisher builds a connection object for each message. py-amqp matches confirms by position: it takes the
late ack of a message that timed out for the ack of the next one. Here a reader greenlet matches each ack to its message
by delivery tag. Any number of greenlets publish at once, each waits for its own confirm, and a late confirm is ignored.

A refused or returned message fails alone. A confirm that does not come in time, or a broker that takes no bytes, ends
the connection. Then all messages that wait for their confirms on it fail, and so do the calls that wait for replies.
A message to an exchange that was deleted ends it too, unless it is a hint: hints have a channel of their own.

Calls and replies have no confirms, so the connection itself detects a broker that hangs. When a call has waited for
SILENCE_SECONDS, and nothing was read in that time, it sends the broker a small request. If nothing is read for another
SILENCE_SECONDS, the connection ends.
"""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any, TypeAlias
from uuid import uuid4

import eventlet
from amqp import Channel, method_framing, spec
from amqp.basic_message import Message
from amqp.exceptions import AMQPError, ChannelError
from eventlet.event import Event
from kombu import Connection, Exchange, Queue
from nameko.extensions import SharedExtension

from nameko_reliable.amqp.frames import frame_writer, receive_in_bulk
from nameko_reliable.settings import amqp_address

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 10
CONNECT_TIMEOUT_SECONDS = 2
SETUP_SECONDS = 5
RETRY_SECONDS = 0.5
SILENCE_SECONDS = 0.5
FLUSH_SECONDS = 1
# Long enough to read what has arrived, as py-amqp takes 0 for no limit.
ARRIVED_SECONDS = 0.001
CONNECTION_ERRORS = (OSError, AMQPError)
# The ids of AMQP's method classes `exchange` and `queue`.
DECLARING_CLASSES = (40, 50)
INEQUIVALENT_ARGUMENTS = "PRECONDITION_FAILED - inequivalent arg"
ADVICE = (
    "it was made without the kit, or with another EVENT_QUEUE_TYPE; "
    "`python -m nameko_reliable queues move` replaces it and keeps its messages"
)

TRANSIENT, PERSISTENT = 1, 2

Entity: TypeAlias = Exchange | Queue


class BrokerUnavailable(Exception):
    """The broker is down, unreachable or blocked. The message may or may not have arrived."""


class NotConfirmed(BrokerUnavailable):
    """The broker did not confirm the message in time."""


class Refused(BrokerUnavailable):
    """The broker refused this message, for example because a queue is full. It may take others."""


class Unroutable(Exception):
    """No queue took the message."""


class LenientMessage(Message):
    """A received message. If its properties can't be decoded, it has none.

    A sender can set any bytes: text that isn't UTF-8, a time in the year 3 billion. py-amqp's own class raises in the
    connection's reader. The broker would deliver the message again, and the reader would fail again, without end.
    """

    def _load_properties(self, class_id: int, buf: bytes, offset: int) -> None:
        try:
            super()._load_properties(class_id, buf, offset)
        except Exception as error:
            logger.warning("the properties of a message can't be read: %r", error)
            self.properties: dict[str, Any] = {}


method_framing.Message = LenientMessage


def connect(address: Mapping[str, Any], **transport_options: Any) -> Any:
    """Open a connection. Raises one of CONNECTION_ERRORS when a step takes more than CONNECT_TIMEOUT_SECONDS.

    address: from nameko_reliable.settings.amqp_address.
    """
    parameters = Connection(
        **address,
        heartbeat=HEARTBEAT_SECONDS,
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        transport_options={
            "read_timeout": HEARTBEAT_SECONDS,
            "write_timeout": HEARTBEAT_SECONDS,
            "frame_writer": frame_writer,
            **transport_options,
        },
    )
    with answer_timeout(3 * CONNECT_TIMEOUT_SECONDS):
        connection = parameters.transport.establish_connection()
    receive_in_bulk(connection.transport)
    return connection


def drain(connection: Any, idle_seconds: float) -> bool:
    """Read and dispatch one method if one comes within `idle_seconds`. Send heartbeats when they are due.

    Returns whether anything was read. Raises OSError if the broker did not take what was sent.
    """
    frames_before = connection.bytes_recv  # It counts frames.
    with suppress(TimeoutError):
        connection.drain_events(timeout=idle_seconds)
    connection.send_buffer.check()
    if time.monotonic() >= getattr(connection, "next_tick", 0):
        connection.heartbeat_tick()
        connection.next_tick = time.monotonic() + 1
    return bool(connection.bytes_recv != frames_before)


def end(connection: Any) -> None:
    """Close the connection's socket at once."""
    connection.send_buffer.stop()
    connection.collect()


def declare(channel: Any, entity: Entity) -> str | None:
    """Declare and bind a kombu exchange or queue. Return None, or why the broker refuses it and how to fix that.

    channel: used only for declarations, since the broker closes it when it refuses one. py-amqp opens it again.
    Raises OSError when the broker takes more than SETUP_SECONDS for this one: a busy broker is slow with many.
    """
    try:
        with answer_timeout(SETUP_SECONDS):
            entity(channel).declare()
    except ChannelError as refusal:
        # The error of another channel also arrives here, if that channel failed during the declaration.
        if refusal.method_sig is None or refusal.method_sig[0] not in DECLARING_CLASSES:
            raise
        reason: str = refusal.reply_text
        if isinstance(entity, Queue) and reason.startswith(INEQUIVALENT_ARGUMENTS):
            return f"{reason}: {ADVICE}"
        return reason
    return None


def encode(payload: object) -> bytes:
    # With escapes: a string may hold a lone surrogate, which UTF-8 cannot encode.
    return json.dumps(payload, separators=(",", ":")).encode()


def _message(body: bytes | str, mode: int, headers: Mapping[str, Any] | None, properties: dict[str, Any]) -> Message:
    return Message(
        body,
        content_type="application/json",
        content_encoding="utf-8",
        delivery_mode=mode,
        application_headers=headers or {},
        **properties,
    )


def answer_timeout(seconds: float) -> Any:
    """Raises OSError when the block takes longer. py-amqp itself waits for ever for a broker that hangs."""
    return eventlet.Timeout(seconds, OSError("no answer from the broker"))


class PendingCalls:
    """The calls that wait for their replies, the oldest first."""

    def __init__(self) -> None:
        self._calls: dict[str, tuple[float, Event]] = {}

    def add(self, correlation_id: str) -> Event:
        """The event that gets the reply, or its error."""
        reply = Event()
        self._calls[correlation_id] = time.monotonic(), reply
        return reply

    def pop(self, correlation_id: str | None) -> Event | None:
        """Forget the call, and return its event. None if no such call waits."""
        _, reply = self._calls.pop(correlation_id or "", (0, None))
        return reply

    def fail(self, error: Exception) -> None:
        """Fail all calls."""
        calls, self._calls = self._calls, {}
        for _, reply in calls.values():
            reply.send_exception(error)

    def waited_seconds(self) -> float:
        """How long the oldest call has waited, or 0."""
        return next((time.monotonic() - since for since, _ in self._calls.values()), 0.0)


class ReconnectingPublisher:
    """Publishes over one connection, and opens another when that is lost. `Publisher` is the extension that shares one.

    address: from nameko_reliable.settings.amqp_address. declare: kombu exchanges and queues to declare on every
    connect. When the broker refuses one, that is logged, and publishing goes on.
    """

    def __init__(self, address: Mapping[str, Any], declare: Sequence[Entity] = ()) -> None:
        self.address = address
        self.declare = declare
        # When the connection is lost, all of them fail. When no queue takes its message, a call fails alone.
        self.calls = PendingCalls()
        self._connection: _PublishingConnection | None = None
        # Gets the connection, or its error, while one is being opened.
        self._connecting: Event | None = None
        self._closed = False
        self._failure, self._retry_at = "", 0.0

    def publish(self, body: bytes | str, *, timeout_seconds: float, **message: Any) -> None:
        """Send one message, as `send` does, and return once the broker has confirmed it.

        timeout_seconds: the limit for the confirm. Opening a connection has limits of its own.
        Raises Unroutable (only if mandatory), Refused, NotConfirmed, BrokerUnavailable.
        """
        self.wait(self.send(body, **message), timeout_seconds)

    def send(
        self,
        body: bytes | str,
        *,
        exchange: str,
        routing_key: str,
        mandatory: bool = False,
        persistent: bool = False,
        headers: Mapping[str, Any] | None = None,
        **properties: Any,
    ) -> "_Confirm":
        """Send one message and return its pending confirm, for `wait`.

        properties: AMQP's own (`correlation_id`, `expiration` in milliseconds as a string, …).
        """
        properties["message_id"] = properties.get("message_id") or uuid4().hex
        message = _message(body, PERSISTENT if persistent else TRANSIENT, headers, properties)
        return self._connected().send(message, exchange, routing_key, mandatory)

    def send_unconfirmed(
        self,
        body: bytes | str,
        *,
        exchange: str,
        routing_key: str,
        mandatory: bool = False,
        headers: Mapping[str, Any] | None = None,
        **properties: Any,
    ) -> None:
        """Send one transient message, which may be lost without a sign. Raises BrokerUnavailable.

        If it is mandatory and no queue takes it, the call of `calls` with its `correlation_id` fails with Unroutable.
        """
        message = _message(body, TRANSIENT, headers, properties)
        self._connected().send_unconfirmed(message, exchange, routing_key, mandatory)

    def send_hint(
        self, body: bytes | str, *, exchange: str, routing_key: str, headers: Mapping[str, Any] | None = None
    ) -> None:
        """Send one transient message whose loss harms nothing else. Raises BrokerUnavailable."""
        self._connected().send_hint(_message(body, TRANSIENT, headers, {}), exchange, routing_key)

    def wait(self, confirm: "_Confirm", timeout_seconds: float) -> None:
        """Wait for the confirm of one sent message. Raises what `publish` raises."""
        # Of many confirms that are waited for one by one, most are there already.
        is_there = confirm.event.ready()
        try:
            with nullcontext() if is_there else eventlet.Timeout(timeout_seconds, NotConfirmed("no confirm in time")):
                confirm.event.wait()
        except NotConfirmed as error:
            # The connection may be dead: the next message gets a new one.
            confirm.connection.close(error)
            raise
        finally:
            confirm.connection.pending.pop(confirm.tag, None)
        if confirm.returned:
            raise Unroutable

    def refused(self) -> dict[str, str]:
        """{name: the broker's reason} of the exchanges and queues that it refused to declare.

        Connects first if there is no connection. Raises BrokerUnavailable.
        """
        return self._connected().refused

    def reconnect(self) -> None:
        """Close the connection. The next message opens a new one, which declares all exchanges and queues again."""
        if self._connection is not None:
            self._connection.close("the publisher closed the connection")

    def close(self) -> None:
        """Close the connection, after what was sent. Later messages raise BrokerUnavailable."""
        self._closed = True
        if self._connection is not None:
            self._connection.flush()
        self.reconnect()

    def _connected(self) -> "_PublishingConnection":
        """The connection. If there is none, all callers wait for one attempt to open it, and fail with it."""
        if self._closed:
            raise BrokerUnavailable("the publisher was closed")
        if self._connection is not None and not self._connection.closed:
            return self._connection
        if self._connecting is None:
            if time.monotonic() < self._retry_at:
                raise BrokerUnavailable(self._failure)
            self._connecting = Event()
            # In a greenlet of its own. If callers' deadlines ended it, a broker that takes longer to connect to than
            # they wait would never be reached.
            eventlet.spawn_n(self._connect, self._connecting)
        connection: _PublishingConnection = self._connecting.wait()
        return connection

    def _connect(self, connecting: Event) -> None:
        try:
            connection = _PublishingConnection(self.address, self.declare, self.calls)
        except CONNECTION_ERRORS as error:
            self._failure, self._retry_at = str(error), time.monotonic() + RETRY_SECONDS
            connecting.send_exception(BrokerUnavailable(self._failure))
        except Exception as error:
            connecting.send_exception(error)
        else:
            self._connection = connection
            if self._closed:
                connection.close("the publisher was closed")
            connecting.send(connection)
        finally:
            self._connecting = None


class _PublishingConnection:
    """One connection, its pending confirms, and the calls that wait for replies. Once closed, it is not used again."""

    def __init__(self, address: Mapping[str, Any], entities: Iterable[Entity], calls: PendingCalls) -> None:
        self.pending: dict[int, _Confirm] = {}
        self.refused: dict[str, str] = {}
        self.closed = self._blocked = False
        self._entities, self._calls = entities, calls
        self._tag = 0
        self._amqp = connect(address, on_blocked=self._on_blocked, on_unblocked=self._on_unblocked)
        try:
            self._declare()
            with answer_timeout(SETUP_SECONDS):
                self._confirming, self._unconfirmed = self._amqp.channel(), self._amqp.channel()
                self._hints = _LastingChannel(self._amqp, self._declare)
                self._hints.open()
                self._confirming.confirm_select()
        except BaseException:
            end(self._amqp)
            raise
        self._confirming.events["basic_ack"].add(self._on_ack)
        self._confirming.events["basic_nack"].add(self._on_nack)
        self._confirming.events["basic_return"].add(self._on_return)
        self._unconfirmed.events["basic_return"].add(self._on_returned_call)
        eventlet.spawn(self._read)

    def _declare(self) -> None:
        with answer_timeout(SETUP_SECONDS):
            channel = self._amqp.channel()
        for entity in self._entities:
            if refusal := declare(channel, entity):
                logger.error("%s could not be declared: %s", entity.name, refusal)
                self.refused[entity.name] = refusal
        with answer_timeout(SETUP_SECONDS):
            channel.close()

    def send(self, message: Message, exchange: str, routing_key: str, mandatory: bool) -> "_Confirm":
        self._publish(self._confirming, message, exchange, routing_key, mandatory)
        self._tag += 1
        identity = exchange, routing_key, message.properties["message_id"]
        confirm = self.pending[self._tag] = _Confirm(self, self._tag, identity)
        return confirm

    def send_unconfirmed(self, message: Message, exchange: str, routing_key: str, mandatory: bool) -> None:
        self._publish(self._unconfirmed, message, exchange, routing_key, mandatory)

    def send_hint(self, message: Message, exchange: str, routing_key: str) -> None:
        self._publish(self._hints, message, exchange, routing_key, mandatory=False)

    def _publish(self, channel: Any, message: Message, exchange: str, routing_key: str, mandatory: bool) -> None:
        self._amqp.send_buffer.make_room()
        if self.closed:
            raise BrokerUnavailable("the connection was lost")
        if self._blocked:
            raise BrokerUnavailable("the broker is blocked")
        try:
            # Not basic_publish, which reads from the socket: only the reader greenlet may read.
            channel.send_method(spec.Basic.Publish, "Bssbb", (0, exchange, routing_key, mandatory, False), message)
        except CONNECTION_ERRORS as error:
            self.close(error)
            raise BrokerUnavailable(str(error)) from error

    def flush(self) -> None:
        """Return when all messages are sent, or after FLUSH_SECONDS."""
        with eventlet.Timeout(FLUSH_SECONDS, False):
            self._amqp.send_buffer.flush()

    def close(self, reason: object) -> None:
        """Fail all pending confirms and calls. The reader closes the socket."""
        self.closed = True
        self._fail_pending(f"no answer: {reason}")

    def _read(self) -> None:
        asked = False
        try:
            while not self.closed:
                if drain(self._amqp, idle_seconds=SILENCE_SECONDS):
                    asked = False
                elif asked:
                    # What arrived while this process itself was held up counts.
                    if not drain(self._amqp, idle_seconds=ARRIVED_SECONDS):
                        raise OSError("the broker hangs")
                    asked = False
                elif self._calls.waited_seconds() >= SILENCE_SECONDS:
                    # The small request. Any with an answer would do; this one changes nothing.
                    self._unconfirmed.send_method(spec.Basic.Qos, "lBb", (0, 0, False))
                    asked = True
        except Exception as error:
            # Any error: without a reader no confirm would come.
            if not self.closed:
                logger.warning("lost the publishing connection: %r", error)
                self.close(error)
        finally:
            end(self._amqp)

    def _fail_pending(self, reason: str) -> None:
        pending, self.pending = self.pending, {}
        for confirm in pending.values():
            confirm.fail(BrokerUnavailable(reason))
        self._calls.fail(BrokerUnavailable(reason))

    def _pop_confirms(self, tag: int, multiple: bool) -> Iterator["_Confirm"]:
        tags = [pending for pending in self.pending if pending <= tag] if multiple else [tag]
        for each in tags:
            confirm = self.pending.pop(each, None)
            if confirm is not None:
                yield confirm

    def _on_ack(self, tag: int, multiple: bool) -> None:
        for confirm in self._pop_confirms(tag, multiple):
            confirm.event.send()

    def _on_nack(self, tag: int, multiple: bool) -> None:
        for confirm in self._pop_confirms(tag, multiple):
            confirm.fail(Refused("the broker refused the message"))

    def _on_return(self, exception: Exception, exchange: str, routing_key: str, message: Message) -> None:
        """Mark a message that no queue took. Its ack follows."""
        # A return has no delivery tag, and one message may be sent to several queues.
        identity = exchange, routing_key, message.properties["message_id"]
        for confirm in self.pending.values():
            if confirm.identity == identity:
                confirm.returned = True

    def _on_returned_call(self, exception: Exception, exchange: str, routing_key: str, message: Message) -> None:
        """Fail the call that no queue took."""
        if (reply := self._calls.pop(message.properties.get("correlation_id"))) is not None:
            reply.send_exception(Unroutable())

    def _on_blocked(self, reason: str) -> None:
        self._blocked = True
        self._fail_pending("the broker is blocked")

    def _on_unblocked(self) -> None:
        self._blocked = False


class _LastingChannel(Channel):
    """A channel that the broker may close, such as for a message to a deleted exchange. It is opened again.

    The failure of any other channel ends the connection. after_failure: called in the connection's reader.
    """

    def __init__(self, connection: Any, after_failure: Callable[[], None]) -> None:
        super().__init__(connection)
        self._after_failure = after_failure

    def _on_close(self, *reason: Any) -> None:
        try:
            # Opens it again, then raises.
            super()._on_close(*reason)
        except ChannelError as error:
            logger.warning("messages were lost: %s", error)
            self._after_failure()


class _Confirm:
    """The pending confirm of one message. `event` gets the broker's answer."""

    def __init__(self, connection: _PublishingConnection, tag: int, identity: tuple[str, str, str]) -> None:
        self.connection, self.tag, self.identity = connection, tag, identity
        self.event = Event()
        self.returned = False

    def fail(self, error: Exception) -> None:
        self.event.send_exception(error)


class Publisher(SharedExtension):
    """The publishing connection that all extensions of a service share."""

    def __init__(self) -> None:
        self._declare: list[Entity] = []

    def setup(self) -> None:
        self.core = ReconnectingPublisher(amqp_address(self.container.config), self._declare)
        self.publish = self.core.publish
        self.send_unconfirmed = self.core.send_unconfirmed
        self.send_hint = self.core.send_hint

    def declare(self, *entities: Entity) -> None:
        """Declare exchanges and queues on every connect. Call it in an extension's `setup`."""
        self._declare.extend(entities)

    def stop(self) -> None:
        self.core.close()

    kill = stop
