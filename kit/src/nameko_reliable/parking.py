"""The parking queue of a service keeps the messages that no handler could take, for an operator.

    @parked_messages
    class Bakery:
        name = "bakery"

The decorator adds the RPC methods PARKED_MESSAGE_RPCS: `list_parked`, `replay_parked`, … Without it, `parking =
ParkingLot()` gives a service's own methods the queue as `self.parking`.

AMQP can show the content of a queue only by delivering messages and taking them back. So each call reads only the
oldest messages, up to WINDOW_MESSAGES or WINDOW_BYTES. It takes no longer for 40,000 messages than for 1,000.
"""

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Protocol, TypeAlias, TypedDict, TypeVar

import eventlet
from amqp.basic_message import Message
from amqp.exceptions import ResourceLocked
from eventlet.event import Event
from kombu import Queue
from nameko.extensions import DependencyProvider
from prometheus_client import Gauge

from nameko_reliable.amqp.broker import (
    CONNECTION_ERRORS,
    BrokerUnavailable,
    Publisher,
    Refused,
    Unroutable,
    answer_timeout,
    connect,
    end,
)
from nameko_reliable.amqp.queues import own_headers, parking_queue
from nameko_reliable.errors import (
    NotReplayable,
    ParkedMessageNotFound,
    ParkingLotBusy,
    ServiceUnavailable,
    TooManyParked,
)
from nameko_reliable.messages import timestamp
from nameko_reliable.rpc import rpc
from nameko_reliable.settings import amqp_address
from nameko_reliable.telemetry.registry import KIT

logger = logging.getLogger(__name__)

WINDOW_MESSAGES = 1000
WINDOW_BYTES = 16 * 1024**2
# The size of a message is known only once it has arrived. With bodies of at most 1 MiB, a chunk has at most 50 MiB.
CHUNK_MESSAGES = 50
# How many messages one call of `replay_all` or `discard_all` reads.
BATCH_MESSAGES = 500
# The waits for other calls and for messages. Together they leave time for the broker's answers within a call's 5 s.
LOCK_SECONDS = 1.5
READ_SECONDS = 1.5
# For each answer of the broker.
ANSWER_SECONDS = 3
BODY_CHARACTERS = 2000
REASON_CHARACTERS = 500
QUEUE_NAME_BYTES = 255
MAX_ATTEMPTS = 2**31 - 1
END_OF_TIME = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
STATE_HEADER = re.compile("x-parked-|x-attempt$")
BROKER_REASONS = {"delivery_limit": "came back unanswered too often: its handlers died, or lost the broker"}

PARKED_MESSAGES = Gauge(
    "parked_messages", "Messages that no handler of the service could take.", ["service"], registry=KIT
)

C = TypeVar("C", bound=type[Any])
# Replays or discards messages. Returns those to remove from the parking queue.
Settle: TypeAlias = Callable[[Sequence[Message]], Sequence[Message]]


class Origin(TypedDict):
    """Where a parked message comes from. A value that its sender malformed is None."""

    queue: str | None
    reason: str | None
    attempts: int | None
    parked_at: str | None


class ParkedMessage(Origin):
    message_id: str
    body: str


class ParkedMessages(TypedDict):
    messages: list[ParkedMessage]
    total: int


class Progress(TypedDict):
    """done: messages that were replayed or discarded. kept: others that were read. left: still to be read."""

    done: int
    kept: int
    left: int


class ParkingLot(DependencyProvider):
    """All methods but `count` raise ParkingLotBusy when other calls read the queue for LOCK_SECONDS or longer."""

    publisher = Publisher()

    def setup(self) -> None:
        self._address = amqp_address(self.container.config)
        self._queue = parking_queue(self.container.service_name, self.container.config)
        self.publisher.declare(self._queue)
        self._listing: Event | None = None

    def get_dependency(self, worker_ctx: Any) -> "ParkingLot":
        return self

    def list(self, limit: int) -> ParkedMessages:
        """The messages, newest first. If there are more than one call reads, only the oldest of them.

        total: the number of all. A body is cut at BODY_CHARACTERS.
        """
        listed = self._shared_listing()
        return {"messages": listed["messages"][:limit], "total": listed["total"]}

    def _shared_listing(self) -> ParkedMessages:
        """The messages that one call reads, newest first. Concurrent callers share one read."""
        if self._listing is not None:
            shared: ParkedMessages = self._listing.wait()
            return shared
        listing = self._listing = Event()
        try:
            with self._exclusive_reader() as reader:
                messages = list(reader.oldest(WINDOW_MESSAGES))
            newest = sorted(map(_view, reversed(messages)), key=lambda view: view["parked_at"] or "", reverse=True)
            listed: ParkedMessages = {"messages": newest, "total": reader.total}
            listing.send(listed)
        except BaseException as error:
            shared_error = error if isinstance(error, Exception) else ParkingLotBusy(self.container.service_name)
            listing.send_exception(shared_error)
            raise
        finally:
            self._listing = None
        return listed

    def count(self) -> int:
        """How many messages are parked. If other calls read for long, the messages they read may be missing."""
        with suppress(ParkingLotBusy), self._exclusive_reader() as reader:
            return reader.total
        with self._channel() as channel:
            return self._reported_depth(channel)

    def replay(self, message_id: str) -> bool:
        """Send the message to its handler's queue, with its attempts reset. False if it is not parked.

        Raises NotReplayable, and TooManyParked if it was not found among the oldest messages and there are more.
        """
        return self._settle(message_id, self._replay)

    def discard(self, message_id: str) -> bool:
        """Delete the message. False if it is not parked. Raises TooManyParked as `replay` does."""
        return self._settle(message_id, _discard)

    def replay_all(self, queue: str | None = None, reason: str | None = None, left: int | None = None) -> Progress:
        """Send the oldest messages to their handlers' queues.

        queue, reason: only messages from this queue, or with this text in their reason. left: None in the first call.
        Call it again with the `left` of its answer until that is 0. It counts the messages that were parked before the
        first call, so a message that fails again is not replayed again.

        Call it again after any failure: a message whose replay is not confirmed is still parked.
        """
        return self._settle_all(self._replay, queue, reason, left)

    def discard_all(self, queue: str | None = None, reason: str | None = None, left: int | None = None) -> Progress:
        """Delete messages. Arguments and answer are those of `replay_all`."""
        return self._settle_all(_discard, queue, reason, left)

    def _settle(self, message_id: str, settle: Settle) -> bool:
        with self._exclusive_reader() as reader:
            looked_at = 0
            for message in reader.oldest(WINDOW_MESSAGES):
                looked_at += 1
                if _id_of(message) == message_id:
                    if not settle([message]):
                        raise NotReplayable
                    reader.remove(message)
                    return True
            if looked_at < reader.total:
                raise TooManyParked(looked_at, reader.total)
        return False

    def _settle_all(self, settle: Settle, queue: str | None, reason: str | None, left: int | None) -> Progress:
        with self._exclusive_reader() as reader:
            left = reader.total if left is None else min(left, reader.total)
            is_whole_queue = left == reader.total
            messages = list(reader.oldest(min(left, BATCH_MESSAGES)))
            left -= len(messages)
            settled = settle([message for message in messages if _matches(message, queue, reason)])
            for message in settled:
                reader.remove(message)
            settled_tags = {message.delivery_tag for message in settled}
            kept = [message for message in messages if message.delivery_tag not in settled_tags]
            # Kept messages move to the end of the queue, so that the next call reads others. After a call that has read
            # the whole queue there is no next one.
            if left or not is_whole_queue:
                for message in self._move_to_end(kept):
                    reader.remove(message)
        return {"done": len(settled), "kept": len(kept), "left": left}

    def _replay(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Send the messages to their handlers' queues. Returns those that arrived."""

        def send(message: Message) -> Any:
            headers = {key: value for key, value in parked_headers(message).items() if not STATE_HEADER.match(str(key))}
            return self._send(message.body, _origin(message)["queue"] or "", headers)

        return self._send_all(messages, send)

    def _move_to_end(self, messages: Sequence[Message]) -> Sequence[Message]:
        def send(message: Message) -> Any:
            return self._send(message.body, self._queue.name, parked_headers(message), message_id=_id_of(message))

        return self._send_all(messages, send)

    def _send(self, body: bytes, queue: str, headers: Mapping[str, Any], **properties: Any) -> Any:
        return self.publisher.core.send(
            body, exchange="", routing_key=queue, headers=headers, mandatory=True, persistent=True, **properties
        )

    def _send_all(self, messages: Sequence[Message], send: Callable[[Message], Any]) -> Sequence[Message]:
        """Send all, then wait for the confirms. Returns the confirmed messages, without those that no queue took."""
        confirms = [(message, send(message)) for message in messages]
        confirmed = []
        for message, confirm in confirms:
            with suppress(Unroutable, Refused):
                self.publisher.core.wait(confirm, ANSWER_SECONDS)
                confirmed.append(message)
        return confirmed

    @contextmanager
    def _exclusive_reader(self) -> "Iterator[_Reader]":
        """The queue's only reader. At the end of the block, messages that it did not remove are back in place."""
        with self._channel() as channel:
            # An exclusive queue is the lock, since a quorum queue can't have an exclusive consumer. The broker deletes
            # it with its connection.
            lock = Queue(f"{self._queue.name}.reader", channel=channel, exclusive=True, durable=False)
            until = time.monotonic() + LOCK_SECONDS
            while True:
                with answer_timeout(ANSWER_SECONDS), suppress(ResourceLocked):
                    lock.declare()
                    reader = _Reader(channel, self._queue.name, self._depth(channel))
                    break
                if time.monotonic() > until:
                    raise ParkingLotBusy(self.container.service_name)
                eventlet.sleep(0.05)
            try:
                yield reader
            finally:
                with answer_timeout(ANSWER_SECONDS):
                    reader.release(self._reported_depth)

    @contextmanager
    def _channel(self) -> Iterator[Any]:
        connection = None
        try:
            connection = connect(self._address)
            with answer_timeout(ANSWER_SECONDS):
                channel = connection.channel()
                channel.auto_decode = False
                self._queue(channel).declare()
            yield channel
            with answer_timeout(ANSWER_SECONDS):
                connection.close()
        except (*CONNECTION_ERRORS, BrokerUnavailable) as error:
            raise ServiceUnavailable(self.container.service_name) from error
        finally:
            if connection is not None:
                end(connection)

    def _depth(self, channel: Any) -> int:
        depth = self._reported_depth(channel)
        # A quorum queue also reports 0 if its leader does not answer within 250 ms. A get waits for the leader.
        if depth == 0 and (message := channel.basic_get(self._queue.name)) is not None:
            depth = message.delivery_info["message_count"] + 1
            channel.basic_reject(message.delivery_tag, requeue=True)
        return depth

    def _reported_depth(self, channel: Any) -> int:
        depth: int = channel.queue_declare(self._queue.name, passive=True).message_count
        return depth


def _discard(messages: Sequence[Message]) -> Sequence[Message]:
    return messages


class _Reader:
    """One call's exclusive access to the queue. total: how many messages were in it at the beginning."""

    def __init__(self, channel: Any, queue_name: str, total: int) -> None:
        self.total = total
        self._channel, self._queue_name = channel, queue_name
        self._read = 0
        self._removed: set[int] = set()

    def oldest(self, limit: int) -> Iterator[Message]:
        """The oldest messages, until `limit`, WINDOW_BYTES or READ_SECONDS is reached."""
        until, size, limit = time.monotonic() + READ_SECONDS, 0, min(limit, self.total)
        while self._read < limit and size < WINDOW_BYTES and time.monotonic() < until:
            messages = self._next(min(CHUNK_MESSAGES, limit - self._read), until)
            size += sum(len(message.body) for message in messages)
            yield from messages

    def _next(self, number: int, until: float) -> list[Message]:
        """Up to `number` messages, from a consumer with that prefetch."""
        messages: list[Message] = []
        with answer_timeout(ANSWER_SECONDS):
            self._channel.basic_qos(0, number, False)
            tag = self._channel.basic_consume(self._queue_name, callback=messages.append)
            while len(messages) < number and (seconds := until - time.monotonic()) > 0:
                with suppress(TimeoutError):
                    self._channel.connection.drain_events(timeout=seconds)
            # A message that arrives after this goes back to the queue.
            self._channel.basic_cancel(tag, nowait=True)
        self._read += len(messages)
        return messages

    def remove(self, message: Message) -> None:
        self._removed.add(message.delivery_tag)

    def release(self, depth: Callable[[Any], int]) -> None:
        """Acknowledge the removed messages and requeue the others. Returns when the next reader will see those."""
        if len(self._removed) == self._read:
            # One acknowledgement for all: of many, a quorum queue may lose the last ones when the connection closes.
            if self._removed:
                self._channel.basic_ack(max(self._removed), multiple=True)
            return
        for tag in self._removed:
            self._channel.basic_ack(tag)
        self._channel.basic_recover(requeue=True)
        while depth(self._channel) < self.total - len(self._removed):
            eventlet.sleep(0.01)


def _matches(message: Message, queue: str | None, reason: str | None) -> bool:
    origin = _origin(message)
    return queue in (None, origin["queue"]) and (reason is None or reason in (origin["reason"] or ""))


def _id_of(message: Message) -> str:
    """The message's own id if it can be part of a URL, else the hash of the body."""
    message_id = message.properties.get("message_id")
    if isinstance(message_id, str) and re.fullmatch("[A-Za-z0-9-]{1,64}", message_id):
        return message_id
    return hashlib.sha256(message.body).hexdigest()


def _view(message: Message) -> ParkedMessage:
    body = bytes(message.body).decode(errors="replace")
    return {
        "message_id": _id_of(message),
        **_origin(message),
        "body": body if len(body) <= BODY_CHARACTERS else f"{body[:BODY_CHARACTERS]}…",
    }


def _origin(message: Message) -> Origin:
    headers = parked_headers(message)
    parked_at = _number(headers, "x-parked-at", END_OF_TIME)
    reason = _text(headers, "x-parked-reason")
    queue = _text(headers, "x-parked-from")
    return {
        "queue": queue if queue and len(queue.encode()) <= QUEUE_NAME_BYTES else None,
        "reason": reason and reason[:REASON_CHARACTERS],
        "attempts": _number(headers, "x-parked-attempts", MAX_ATTEMPTS),
        "parked_at": None if parked_at is None else timestamp(datetime.fromtimestamp(parked_at, UTC)),
    }


def _text(headers: Mapping[str, Any], name: str) -> str | None:
    # A header that isn't UTF-8 is bytes.
    value = headers.get(name)
    return value if isinstance(value, str) else None


def _number(headers: Mapping[str, Any], name: str, largest: float) -> int | None:
    value = headers.get(name)
    return value if type(value) is int and 0 <= value <= largest else None


def parked_headers(message: Message) -> dict[str, Any]:
    """The headers that a parked message was published with. If the broker parked it, also its reason in our headers."""
    headers = own_headers(message)
    # A malformed one was not written by the broker.
    match (message.headers or {}).get("x-death"):
        case [{"reason": str(reason), "queue": str(queue), "time": datetime() as died_at}, *_]:
            headers["x-parked-from"] = queue
            headers["x-parked-reason"] = BROKER_REASONS.get(reason, reason)
            headers["x-parked-at"] = int(died_at.replace(tzinfo=UTC).timestamp())
    return headers


class ParkingService(Protocol):
    parking: ParkingLot


@rpc
def list_parked(self: ParkingService, limit: int = 50) -> ParkedMessages:
    """{messages: [{message_id, queue, reason, attempts, parked_at, body}], total}, newest first.

    If more than 1,000 are parked, only the oldest 1,000. Raises ParkingLotBusy, as do the others but `count_parked`.
    """
    return self.parking.list(limit)


@rpc
def count_parked(self: ParkingService) -> int:
    return self.parking.count()


@rpc
def replay_parked(self: ParkingService, message_id: str) -> None:
    """Send the message to its handler again. Raises ParkedMessageNotFound, NotReplayable, TooManyParked."""
    if not self.parking.replay(message_id):
        raise ParkedMessageNotFound(message_id)


@rpc
def discard_parked(self: ParkingService, message_id: str) -> None:
    """Delete the message. Raises ParkedMessageNotFound, TooManyParked."""
    if not self.parking.discard(message_id):
        raise ParkedMessageNotFound(message_id)


@rpc
def replay_all_parked(
    self: ParkingService, queue: str | None = None, reason: str | None = None, left: int | None = None
) -> Progress:
    """Send up to 500 messages to their handlers again: those from this queue, or with this text in their reason.

    Returns {done, kept, left}. Call it again with its `left` until that is 0.
    """
    return self.parking.replay_all(queue, reason, left)


@rpc
def discard_all_parked(
    self: ParkingService, queue: str | None = None, reason: str | None = None, left: int | None = None
) -> Progress:
    """Delete up to 500 messages. Arguments and answer are those of replay_all_parked."""
    return self.parking.discard_all(queue, reason, left)


PARKED_MESSAGE_RPCS = (list_parked, count_parked, replay_parked, discard_parked, replay_all_parked, discard_all_parked)


def parked_messages(service_class: C) -> C:
    """Add PARKED_MESSAGE_RPCS to the service class, and `parking = ParkingLot()` if it has no `parking`."""
    for method in PARKED_MESSAGE_RPCS:
        setattr(service_class, method.__name__, method)
    if not hasattr(service_class, "parking"):
        service_class.parking = ParkingLot()
    return service_class
