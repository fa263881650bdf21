"""The parking queue of a service: messages that no handler could take, kept for an operator.

    @parked_messages
    class Bakery:
        name = "bakery"

Operators then call `list_parked`, `replay_parked` and the others of PARKED_MESSAGE_RPCS. Without the decorator, a
service's methods have the queue as `self.parking`, by `parking = ParkingLot()`.

AMQP has no way to look into a queue but to take messages and give them back. So each call looks at the oldest
messages alone, WINDOW_MESSAGES or WINDOW_BYTES of them, and takes no longer for 40,000 than for 1,000.
"""

import hashlib
import logging
import re
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

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
    connect,
    no_answer_within,
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
# Bodies have 1 MiB at most: so much is asked for at a time, as it can't be known before how large they are.
CHUNK_MESSAGES = 50
# What one call of `replay_all` or `discard_all` works off.
BATCH_MESSAGES = 500
# Together less than a call's 5 s.
TURN_SECONDS = 1.5
READ_SECONDS = 1.5
ANSWER_SECONDS = 3
BODY_CHARACTERS = 2000
REASON_CHARACTERS = 500
QUEUE_NAME_BYTES = 255
MAX_ATTEMPTS = 2**31 - 1
END_OF_TIME = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
STATE_HEADER = re.compile("x-parked-|x-attempt$")
BROKERS_REASONS = {"delivery_limit": "came back unanswered too often: its handlers died, or lost the broker"}

PARKED_MESSAGES = Gauge(
    "parked_messages", "Messages that no handler of the service could take.", ["service"], registry=KIT
)


class ParkingLot(DependencyProvider):
    """All but `count` raise ParkingLotBusy when others look into the queue for longer than TURN_SECONDS."""

    publisher = Publisher()

    def setup(self):
        self._address = amqp_address(self.container.config)
        self._queue = parking_queue(self.container.service_name, self.container.config)
        self.publisher.declare(self._queue)
        self._look = None

    def get_dependency(self, worker_ctx):
        return self

    def list(self, limit):
        """{"messages": [{message_id, queue, reason, attempts, parked_at, body}, …], "total"}, newest first.

        Of more messages than the window takes the oldest are listed; total counts all. A body of more than
        BODY_CHARACTERS is cut.
        """
        newest, total = self._looked_at()
        return {"messages": newest[:limit], "total": total}

    def _looked_at(self):
        """(views of the messages, how many there are in all). Who asks while another reads gets what that one reads."""
        if self._look is not None:
            return self._look.wait()
        look = self._look = Event()
        try:
            with self._turn() as turn:
                messages = list(turn.oldest(WINDOW_MESSAGES))
            newest = sorted(map(_view, reversed(messages)), key=lambda view: view["parked_at"] or "", reverse=True)
            look.send((newest, turn.total))
        except BaseException as error:
            look.send_exception(error if isinstance(error, Exception) else ParkingLotBusy(self.container.service_name))
            raise
        finally:
            self._look = None
        return look.wait()

    def count(self):
        """How many are parked. While others look into the queue for long, those that they look at may be missing."""
        with suppress(ParkingLotBusy), self._turn() as turn:
            return turn.total
        with self._channel() as channel:
            return self._depth(channel)

    def replay(self, message_id):
        """Give the message to its handler once more, with all attempts; false if it isn't here.

        Raises NotReplayable; TooManyParked when it may be here, but not among the oldest.
        """
        return self._settle(message_id, self._replayed)

    def discard(self, message_id):
        """Drop the message for good; false if it isn't here. Raises TooManyParked as `replay` does."""
        return self._settle(message_id, list)

    def replay_all(self, queue=None, reason=None, left=None):
        """Give the oldest messages to their handlers once more, those that came from this queue and whose reason
        has this in it; None: any.

        Returns {"done", "kept", "left"}: how many were replayed, how many were looked at and stay, and how many
        are still to be looked at: the `left` of the next call, until it is 0. So what fails again, and comes back
        meanwhile, is not replayed without end.

        To be called again after any failure: the messages whose replay is not certain are still here.
        """
        return self._settle_all(self._replayed, queue, reason, left)

    def discard_all(self, queue=None, reason=None, left=None):
        """Drop messages for good; arguments and answer are those of `replay_all`."""
        return self._settle_all(list, queue, reason, left)

    def _settle(self, message_id, action):
        with self._turn() as turn:
            looked_at = 0
            for message in turn.oldest(WINDOW_MESSAGES):
                looked_at += 1
                if _id_of(message) == message_id:
                    if not action([message]):
                        raise NotReplayable
                    turn.remove(message)
                    return True
            if looked_at < turn.total:
                raise TooManyParked(looked_at, turn.total)
        return False

    def _settle_all(self, action, queue, reason, left):
        with self._turn() as turn:
            left = turn.total if left is None else min(left, turn.total)
            is_whole = left == turn.total
            messages = list(turn.oldest(min(left, BATCH_MESSAGES)))
            left -= len(messages)
            settled = action([message for message in messages if _is_chosen(message, queue, reason)])
            for message in settled:
                turn.remove(message)
            settled_tags = {message.delivery_tag for message in settled}
            kept = [message for message in messages if message.delivery_tag not in settled_tags]
            # What stays goes to the end, out of the next call's way, unless there is none.
            if left or not is_whole:
                for message in self._moved_to_the_end(kept):
                    turn.remove(message)
        return {"done": len(settled), "kept": len(kept), "left": left}

    def _replayed(self, messages):
        """Those of the messages that lie in their handlers' queues now."""

        def send(message):
            headers = {key: value for key, value in parked_headers(message).items() if not STATE_HEADER.match(str(key))}
            return self._send(message.body, _circumstances(message)["queue"] or "", headers)

        return self._sent(messages, send)

    def _moved_to_the_end(self, messages):
        def send(message):
            return self._send(message.body, self._queue.name, parked_headers(message), message_id=_id_of(message))

        return self._sent(messages, send)

    def _send(self, body, queue, headers, **properties):
        return self.publisher.core.send(
            body, exchange="", routing_key=queue, headers=headers, mandatory=True, persistent=True, **properties
        )

    def _sent(self, messages, send):
        """Those of the messages whose copies the broker has; not those that no queue took."""
        confirms = [(message, send(message)) for message in messages]
        taken = []
        for message, confirm in confirms:
            with suppress(Unroutable, Refused):
                self.publisher.core.wait(confirm, ANSWER_SECONDS)
                taken.append(message)
        return taken

    @contextmanager
    def _turn(self):
        """The queue as this caller's alone. What is not removed goes back to its place in the end."""
        with self._channel() as channel:
            # Quorum queues have no exclusive consumers. This one goes with its connection.
            reader = Queue(f"{self._queue.name}.reader", channel=channel, exclusive=True, durable=False)
            until = time.monotonic() + TURN_SECONDS
            while True:
                with no_answer_within(ANSWER_SECONDS), suppress(ResourceLocked):
                    reader.declare()
                    turn = _Turn(channel, self._queue.name, self._depth(channel))
                    break
                if time.monotonic() > until:
                    raise ParkingLotBusy(self.container.service_name)
                eventlet.sleep(0.05)
            try:
                yield turn
            finally:
                with no_answer_within(ANSWER_SECONDS):
                    turn.end(self._depth)

    @contextmanager
    def _channel(self):
        connection = None
        try:
            connection = connect(self._address)
            with no_answer_within(ANSWER_SECONDS):
                channel = connection.channel()
                channel.auto_decode = False
                self._queue(channel).declare()
            yield channel
            with no_answer_within(ANSWER_SECONDS):
                connection.close()
        except (*CONNECTION_ERRORS, BrokerUnavailable) as error:
            raise ServiceUnavailable(self.container.service_name) from error
        finally:
            if connection is not None:
                connection.collect()

    def _depth(self, channel):
        return channel.queue_declare(self._queue.name, passive=True).message_count


class _Turn:
    """One caller's time with the queue. total: how many messages lay in it at the beginning."""

    def __init__(self, channel, queue_name, total):
        self.total = total
        self._channel, self._queue_name = channel, queue_name
        self._read, self._removed = 0, set()

    def oldest(self, most):
        """The oldest messages, as many as the window takes and come in time."""
        until, size, most = time.monotonic() + READ_SECONDS, 0, min(most, self.total)
        while self._read < most and size < WINDOW_BYTES and time.monotonic() < until:
            messages = self._next(min(CHUNK_MESSAGES, most - self._read), until)
            size += sum(len(message.body) for message in messages)
            yield from messages

    def _next(self, number, until):
        """So many messages more, by a consumer that gets no more than these."""
        messages: list[Message] = []
        with no_answer_within(ANSWER_SECONDS):
            self._channel.basic_qos(0, number, False)
            tag = self._channel.basic_consume(self._queue_name, callback=messages.append)
            while len(messages) < number and (seconds := until - time.monotonic()) > 0:
                with suppress(TimeoutError):
                    self._channel.connection.drain_events(timeout=seconds)
            # Whatever it got beyond goes back.
            self._channel.basic_cancel(tag, nowait=True)
        self._read += len(messages)
        return messages

    def remove(self, message):
        self._removed.add(message.delivery_tag)

    def end(self, depth):
        """Acknowledge what is removed, give back the rest, and wait until it is back: the next reader would miss it."""
        if len(self._removed) == self._read:
            # All at once: of many, a quorum queue may lose the last ones when the connection closes.
            if self._removed:
                self._channel.basic_ack(max(self._removed), multiple=True)
            return
        for tag in self._removed:
            self._channel.basic_ack(tag)
        self._channel.basic_recover(requeue=True)
        while depth(self._channel) < self.total - len(self._removed):
            eventlet.sleep(0.01)


def _is_chosen(message, queue, reason):
    given = _circumstances(message)
    return queue in (None, given["queue"]) and (reason is None or reason in (given["reason"] or ""))


def _id_of(message):
    """Its own, unless it has none that fits into an address; then one made of the body."""
    message_id = message.properties.get("message_id")
    is_sound = isinstance(message_id, str) and re.fullmatch("[A-Za-z0-9-]{1,64}", message_id)
    return message_id if is_sound else hashlib.sha256(message.body).hexdigest()


def _view(message):
    body = bytes(message.body).decode(errors="replace")
    return {
        "message_id": _id_of(message),
        **_circumstances(message),
        "body": body if len(body) <= BODY_CHARACTERS else f"{body[:BODY_CHARACTERS]}…",
    }


def _circumstances(message):
    """{queue, reason, attempts, parked_at}, each None for what somebody else put there."""
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


def _text(headers, name):
    # What isn't UTF-8 comes as bytes.
    return headers[name] if isinstance(headers.get(name), str) else None


def _number(headers, name, largest):
    value = headers.get(name)
    return value if type(value) is int and 0 <= value <= largest else None


def parked_headers(message):
    """A parked message's own headers. They tell, too, what the broker tells by others when it parked it itself."""
    headers = own_headers(message)
    # Of another shape, somebody made it up.
    match (message.headers or {}).get("x-death"):
        case [{"reason": str(reason), "queue": str(queue), "time": datetime() as died_at}, *_]:
            headers["x-parked-from"] = queue
            headers["x-parked-reason"] = BROKERS_REASONS.get(reason, reason)
            headers["x-parked-at"] = int(died_at.replace(tzinfo=UTC).timestamp())
    return headers


@rpc
def list_parked(self, limit=50):
    """{messages: [{message_id, queue, reason, attempts, parked_at, body}], total}, newest first.

    Of more than 1,000 the oldest 1,000 are listed. Raises ParkingLotBusy, as all but `count_parked`.
    """
    return self.parking.list(limit)


@rpc
def count_parked(self):
    return self.parking.count()


@rpc
def replay_parked(self, message_id):
    """Hand the message to its handler once more. Raises ParkedMessageNotFound, NotReplayable, TooManyParked."""
    if not self.parking.replay(message_id):
        raise ParkedMessageNotFound(message_id)


@rpc
def discard_parked(self, message_id):
    """Drop the message for good. Raises ParkedMessageNotFound, TooManyParked."""
    if not self.parking.discard(message_id):
        raise ParkedMessageNotFound(message_id)


@rpc
def replay_all_parked(self, queue=None, reason=None, left=None):
    """Hand up to 500 messages to their handlers once more, of this queue, with this in their reason.

    Returns {done, kept, left}: call again with its `left` until that is 0.
    """
    return self.parking.replay_all(queue, reason, left)


@rpc
def discard_all_parked(self, queue=None, reason=None, left=None):
    """Drop up to 500 messages for good; as replay_all_parked."""
    return self.parking.discard_all(queue, reason, left)


PARKED_MESSAGE_RPCS = (list_parked, count_parked, replay_parked, discard_parked, replay_all_parked, discard_all_parked)


def parked_messages(service_class):
    """Give the service class PARKED_MESSAGE_RPCS, and `parking = ParkingLot()` unless it has a `parking` of its own."""
    for method in PARKED_MESSAGE_RPCS:
        setattr(service_class, method.__name__, method)
    if not hasattr(service_class, "parking"):
        service_class.parking = ParkingLot()
    return service_class
