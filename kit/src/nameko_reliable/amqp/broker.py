"""Publishing over one kept connection, with a confirm for each message.

    publisher = ConfirmingPublisher(amqp_address(config), declare=[exchange])
    publisher.publish(b"{}", exchange="bakery.events", routing_key="cake.baked", timeout_seconds=1)

Nameko's own publisher builds a connection object for each message, and py-amqp's confirms are
positional: the late ack of a message that timed out is taken for the next one's. Here a reader
greenlet matches each ack to its message by delivery tag, so that any number of greenlets publish
at once, each waits for its own confirm, and a late one finds nobody.

A refusal or a return is an answer about one message and costs the others nothing. Only a confirm that
doesn't come in time, or a write that was interrupted, ends the connection.
"""

import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias
from uuid import uuid4

import eventlet
from amqp import method_framing, spec
from amqp.basic_message import Message
from amqp.exceptions import AMQPError, ChannelError
from eventlet.event import Event
from eventlet.semaphore import Semaphore
from kombu import Connection, Exchange, Queue
from nameko.extensions import SharedExtension

from nameko_reliable.settings import amqp_address

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 10
CONNECT_TIMEOUT_SECONDS = 2
SETUP_SECONDS = 5
RETRY_SECONDS = 0.5
CONNECTION_ERRORS = (OSError, AMQPError)
# AMQP's classes `exchange` and `queue`.
DECLARING_METHODS = (40, 50)
OTHER_ARGUMENTS = "PRECONDITION_FAILED - inequivalent arg"
ADVICE = (
    "it was made without the kit, or with another EVENT_QUEUE_TYPE; "
    "`python -m nameko_reliable queues move` replaces it and keeps its messages"
)

TRANSIENT, PERSISTENT = 1, 2

Entity: TypeAlias = Exchange | Queue


class BrokerUnavailable(Exception):
    """The broker is down, out of reach or blocked. What was sent may or may not have arrived."""


class NotConfirmed(BrokerUnavailable):
    """The broker said nothing about the message in time."""


class Refused(BrokerUnavailable):
    """The broker does not take this message, as a queue is full, for example. It may take others."""


class Unroutable(Exception):
    """No queue took the message."""


class LenientMessage(Message):
    """A message that came. When its properties can't be decoded it has none.

    They may be anything: a text that isn't UTF-8, a time in the year 3 billion. py-amqp's own class raises in the
    connection's reader, which would meet the message again and again.
    """

    def _load_properties(self, class_id: int, buf: bytes, offset: int) -> None:
        try:
            super()._load_properties(class_id, buf, offset)
        except Exception as error:
            logger.warning("the properties of a message can't be read: %r", error)
            self.properties: dict[str, Any] = {}


method_framing.Message = LenientMessage


def connect(address: Mapping[str, Any], **transport_options: Any) -> Any:
    """Open a connection; raises one of CONNECTION_ERRORS within CONNECT_TIMEOUT_SECONDS a step.

    address: of nameko_reliable.settings.amqp_address.
    """
    parameters = Connection(
        **address,
        heartbeat=HEARTBEAT_SECONDS,
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        transport_options={"read_timeout": HEARTBEAT_SECONDS, "write_timeout": HEARTBEAT_SECONDS, **transport_options},
    )
    with no_answer_within(3 * CONNECT_TIMEOUT_SECONDS):
        return parameters.transport.establish_connection()


def drain(connection: Any, idle_seconds: float) -> None:
    """Read and dispatch one frame if any comes within `idle_seconds`, and keep the heartbeat."""
    with suppress(TimeoutError):
        connection.drain_events(timeout=idle_seconds)
    if time.monotonic() >= getattr(connection, "next_tick", 0):
        connection.heartbeat_tick()
        connection.next_tick = time.monotonic() + 1


def declare(channel: Any, entity: Entity) -> str | None:
    """Declare and bind a kombu exchange or queue; return None, or why the broker refuses it and what mends that.

    channel: one for declarations alone: the broker closes it when it refuses, and py-amqp opens it again.
    """
    try:
        entity(channel).declare()
    except ChannelError as refusal:
        # Another channel of the connection may have failed while this one waited for its answer.
        if refusal.method_sig is None or refusal.method_sig[0] not in DECLARING_METHODS:
            raise
        reason: str = refusal.reply_text
        if isinstance(entity, Queue) and reason.startswith(OTHER_ARGUMENTS):
            return f"{reason}: {ADVICE}"
        return reason
    return None


def encode(payload: object) -> bytes:
    # Escaped, since a string may hold half of a surrogate pair, which UTF-8 can't.
    return json.dumps(payload, separators=(",", ":")).encode()


def no_answer_within(seconds: float) -> Any:
    """A guard for the steps in which py-amqp itself would wait for a broker that hangs without end."""
    return eventlet.Timeout(seconds, OSError("no answer from the broker"))


class ConfirmingPublisher:
    """Not a Nameko extension.

    address: of nameko_reliable.settings.amqp_address. declare: kombu exchanges and queues to declare on every connect.
    One that the broker refuses is logged, and hinders nothing else.
    """

    def __init__(self, address: Mapping[str, Any], declare: Sequence[Entity] = ()) -> None:
        self.address = address
        self.declare = declare
        self._connection: _PublishingConnection | None = None
        self._connecting = Semaphore()
        self._closed = False
        self._failure, self._retry_at = "", 0.0

    def publish(self, body: bytes | str, *, timeout_seconds: float, **message: Any) -> None:
        """Send one message, see `send`, and return once the broker has it.

        timeout_seconds: for the confirm; a connection that has to be made first has its own limits.
        Raises Unroutable (mandatory alone), Refused, NotConfirmed, BrokerUnavailable.
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
        message = Message(
            body,
            content_type="application/json",
            content_encoding="utf-8",
            delivery_mode=PERSISTENT if persistent else TRANSIENT,
            application_headers=headers or {},
            message_id=properties.pop("message_id", None) or uuid4().hex,
            **properties,
        )
        return self._connected().send(message, exchange, routing_key, mandatory)

    def wait(self, confirm: "_Confirm", timeout_seconds: float) -> None:
        """Wait for the confirm of one sent message; raises as `publish` does."""
        try:
            with eventlet.Timeout(timeout_seconds, NotConfirmed("no confirm in time")):
                confirm.event.wait()
        except NotConfirmed as error:
            # A broker that is silent may be half dead: the next message gets a new connection.
            confirm.connection.close(error)
            raise
        finally:
            confirm.connection.pending.pop(confirm.tag, None)
        if confirm.returned:
            raise Unroutable

    def refused(self) -> dict[str, str]:
        """{name: the broker's sentence} of what it refused to declare on the connection, which is made if need be.

        Raises BrokerUnavailable.
        """
        return self._connected().refused

    def reconnect(self) -> None:
        """Give the next message a new connection, and with it all that is to be declared."""
        if self._connection is not None:
            self._connection.close("a new connection is wanted")

    def close(self) -> None:
        """For good."""
        self._closed = True
        self.reconnect()

    def _connected(self) -> "_PublishingConnection":
        with self._connecting:
            if self._closed:
                raise BrokerUnavailable("the publisher was closed")
            if self._connection is None or self._connection.closed:
                if time.monotonic() < self._retry_at:
                    # Callers that queued up behind a slow attempt fail with it, not after one of their own.
                    raise BrokerUnavailable(self._failure)
                try:
                    self._connection = _PublishingConnection(self.address, self.declare)
                except CONNECTION_ERRORS as error:
                    self._failure, self._retry_at = str(error), time.monotonic() + RETRY_SECONDS
                    raise BrokerUnavailable(self._failure) from error
            return self._connection


class _PublishingConnection:
    """One connection and the confirms that are pending on it. Once closed it is never used again."""

    def __init__(self, address: Mapping[str, Any], entities: Iterable[Entity]) -> None:
        self.pending: dict[int, _Confirm] = {}
        self.refused: dict[str, str] = {}
        self.closed = self._blocked = False
        self._tag = 0
        self._sending = Semaphore()
        self._amqp = connect(address, on_blocked=self._on_blocked, on_unblocked=self._on_unblocked)
        try:
            with no_answer_within(SETUP_SECONDS):
                declaring = self._amqp.channel()
                for entity in entities:
                    if refusal := declare(declaring, entity):
                        logger.error("%s could not be declared: %s", entity.name, refusal)
                        self.refused[entity.name] = refusal
                declaring.close()
                self._channel = self._amqp.channel()
                self._channel.confirm_select()
        except BaseException:
            # The caller's deadline among them.
            self._amqp.collect()
            raise
        self._channel.events["basic_ack"].add(self._on_ack)
        self._channel.events["basic_nack"].add(self._on_nack)
        self._channel.events["basic_return"].add(self._on_return)
        eventlet.spawn(self._read)

    def send(self, message: Message, exchange: str, routing_key: str, mandatory: bool) -> "_Confirm":
        with self._sending:
            if self.closed:
                raise BrokerUnavailable("the connection was lost")
            if self._blocked:
                raise BrokerUnavailable("the broker is blocked")
            self._tag += 1
            identity = exchange, routing_key, message.properties["message_id"]
            confirm = self.pending[self._tag] = _Confirm(self, self._tag, identity)
            try:
                # Not basic_publish: it reads from the socket, which is the reader's alone.
                self._channel.send_method(
                    spec.Basic.Publish, "Bssbb", (0, exchange, routing_key, mandatory, False), message
                )
            except CONNECTION_ERRORS as error:
                self.close(error)
                raise BrokerUnavailable(str(error)) from error
            except BaseException as error:
                # Killed or timed out, perhaps amid a frame.
                self.close(error)
                raise
        return confirm

    def close(self, reason: object) -> None:
        """Fail all that wait for a confirm; the reader closes the socket."""
        self.closed = True
        self._fail_pending(f"no confirm: {reason}")

    def _read(self) -> None:
        try:
            while not self.closed:
                drain(self._amqp, idle_seconds=1)
        except Exception as error:
            # Whatever it is: nobody else reads, so those who wait must hear of it.
            if not self.closed:
                logger.warning("lost the publishing connection: %r", error)
                self.close(error)
        finally:
            self._amqp.collect()

    def _fail_pending(self, reason: str) -> None:
        pending, self.pending = self.pending, {}
        for confirm in pending.values():
            confirm.fail(BrokerUnavailable(reason))

    def _pop_confirms(self, tag: int, multiple: bool) -> Iterator["_Confirm"]:
        for settled in [t for t in self.pending if t <= tag] if multiple else [tag]:
            confirm = self.pending.pop(settled, None)
            if confirm is not None:
                yield confirm

    def _on_ack(self, tag: int, multiple: bool) -> None:
        for confirm in self._pop_confirms(tag, multiple):
            confirm.event.send()

    def _on_nack(self, tag: int, multiple: bool) -> None:
        for confirm in self._pop_confirms(tag, multiple):
            confirm.fail(Refused("the broker refused the message"))

    def _on_return(self, exception: Exception, exchange: str, routing_key: str, message: Message) -> None:
        """Mark a message that no queue took; its ack follows."""
        # It bears no delivery tag. One message may be on its way to several queues.
        identity = exchange, routing_key, message.properties["message_id"]
        for confirm in self.pending.values():
            if confirm.identity == identity:
                confirm.returned = True

    def _on_blocked(self, reason: str) -> None:
        self._blocked = True
        self._fail_pending("the broker is blocked")

    def _on_unblocked(self) -> None:
        self._blocked = False


class _Confirm:
    """Of one message; `event` fires when the broker has answered for it."""

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
        self.core = ConfirmingPublisher(amqp_address(self.container.config), self._declare)
        self.publish = self.core.publish

    def declare(self, *entities: Entity) -> None:
        """Have exchanges and queues declared on every connect; to be called in an extension's `setup`."""
        self._declare.extend(entities)

    def stop(self) -> None:
        self.core.close()

    kill = stop
