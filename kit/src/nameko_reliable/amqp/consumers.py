"""The consuming connection of a service. It reconnects by itself, and stops within seconds.

Nameko's QueueConsumer acknowledges messages that it can't decode, waits up to 30 seconds before it reconnects, and
can't be stopped while the broker is unreachable. This one passes raw messages to its providers, which start a worker
for each. With the providers' prefetches, all queues together hold no more messages than the service has workers, plus
the calls that may wait without a worker (`limit` of nameko_reliable.rpc.Rpc).

A queue that is deleted at the broker comes back. All queues are declared, bound and consumed again on every connect,
when the broker cancels a consumer, when `declare_again` is called, and every DECLARE_SECONDS. A queue that the broker
refuses does not affect the others. The service is not ready until the broker accepts it.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import eventlet
from amqp import spec
from amqp.basic_message import Message
from eventlet.event import Event
from eventlet.semaphore import Semaphore
from kombu import Queue
from nameko.exceptions import ContainerBeingKilled
from nameko.extensions import Entrypoint, SharedExtension
from prometheus_client import Gauge

from nameko_reliable.amqp.broker import (
    CONNECTION_ERRORS,
    SETUP_SECONDS,
    Entity,
    answer_timeout,
    connect,
    declare,
    drain,
    end,
)
from nameko_reliable.settings import amqp_address
from nameko_reliable.telemetry.registry import KIT

logger = logging.getLogger(__name__)

RECONNECT_SECONDS = (0.1, 0.5, 1, 2)
DECLARE_SECONDS = 10
# The shortest interval of `declare_again`: while a service is stopped, every call to it is returned.
DECLARE_AGAIN_SECONDS = 1
STOP_SECONDS = 2

CONNECTED = Gauge(
    "broker_connected", "1 while all queues of the service are consumed, else 0.", ["service"], registry=KIT
)


class Provider(Protocol):
    """An extension that consumes one queue."""

    @property
    def declare(self) -> Sequence[Entity]:
        """More exchanges and queues. The provider's queue is consumed only if the broker accepts all of them."""

    @property
    def prefetch(self) -> int | None:
        """How many unacknowledged messages it may hold. None: messages are acknowledged on delivery."""

    def queue(self) -> Queue:
        """The queue to declare and consume. Called once for each connection."""

    def handle(self, message: Message) -> None:
        """Called for each message, whose body is bytes. The message then needs an `ack`, unless prefetch is None.

        It is called in the connection's reader and must not block: see `start_worker` and `spawn`.
        """

    def disconnected(self) -> None:
        """Called when the connection is lost. The broker delivers again what was not acknowledged."""


class Consumers(SharedExtension):
    def __init__(self) -> None:
        self._providers: list[Provider] = []
        self._thread: Any = None
        self._channel: Any = None
        self._queues: dict[Provider, Queue] = {}
        self._tags: dict[Provider, str] = {}
        self._refused: dict[str, str] = {}
        self._declared_at = self._next_declare_at = 0.0
        # Held while a provider's queue is declared and consumed.
        self._declare_lock = Semaphore()
        self._ready = Event()
        self._stopping = Event()

    def setup(self) -> None:
        self._address = amqp_address(self.container.config)
        CONNECTED.labels(self.container.service_name).set_function(lambda: self.connected)

    def start(self) -> None:
        """Return when all queues that the broker accepts are consumed, or the service is being stopped."""
        if self._thread is None:
            self._thread = self.container.spawn_managed_thread(self._run)
        self._ready.wait()

    def register(self, provider: Provider) -> None:
        """Call it in an extension's `setup`."""
        self._providers.append(provider)

    def unregister(self, provider: Provider) -> None:
        """Stop consuming for this provider. It may still handle the messages that it has."""
        if provider in self._providers:
            self._providers.remove(provider)
        with eventlet.Timeout(STOP_SECONDS, False):
            # A queue that is declared after its last consumer ended would hold calls without an answer.
            with self._declare_lock:
                channel, tag = self._channel, self._tags.get(provider)
                if channel is None or tag not in channel.callbacks:
                    return
                try:
                    # The reader removes the callback when the broker's answer arrives.
                    channel.send_method(spec.Basic.Cancel, "sb", (tag, False))
                except CONNECTION_ERRORS:
                    return  # The broker has dropped this consumer with the connection.
            while tag in channel.callbacks and channel is self._channel:
                eventlet.sleep(0.01)

    def start_worker(self, entrypoint: Entrypoint, *args: Any, **options: Any) -> None:
        """Start a worker at once, or without blocking as soon as one is free. The arguments are `spawn_worker`'s.

        When the container is being killed, none starts: the broker takes the message back with the connection.
        """

        def spawn() -> None:
            with suppress(ContainerBeingKilled):
                self.container.spawn_worker(entrypoint, *args, **options)

        places = self.container._worker_pool.sem
        # Behind another that waits for a place, this would wait too, even if one is free.
        if 0 < places.counter == places.balance:
            spawn()
        else:
            self.container.spawn_managed_thread(spawn, identifier=repr(entrypoint))

    def spawn(self, message: Message, work: Callable[[], object]) -> None:
        """Run what may block outside of the connection's reader, and without a worker.

        When it raises, the connection ends, and the broker delivers the message again.
        """
        self.container.spawn_managed_thread(lambda: self._guarded(message, work))

    def declare_again(self) -> None:
        """Declare and bind everything within about a second. Call it when a message is returned unexpectedly."""
        earliest = max(time.monotonic(), self._declared_at + DECLARE_AGAIN_SECONDS)
        self._next_declare_at = min(self._next_declare_at, earliest)

    @property
    def connected(self) -> bool:
        """Whether all queues are declared and consumed at the moment."""
        return self._channel is not None and not self._refused and self._tags.keys() >= set(self._providers)

    @property
    def refused(self) -> dict[str, str]:
        """{name: the broker's reason} of the exchanges and queues that it refused to declare."""
        return dict(self._refused)

    def is_consuming(self, provider: Provider) -> bool:
        """Whether the provider gets the messages of its queue at the moment."""
        return provider in self._tags

    def stop(self) -> None:
        """Close the connection. Unacknowledged messages go back to their queues."""
        if not self._stopping.ready():
            self._stopping.send()
        if not self._ready.ready():
            self._ready.send()
        if self._thread is not None:
            with eventlet.Timeout(STOP_SECONDS, False):
                self._thread.wait()

    kill = stop

    def holds(self, message: Message) -> bool:
        """Whether the message still belongs to this consumer. When the connection is lost, the broker takes it back."""
        return message.channel is self._channel

    def ack(self, message: Message) -> None:
        """Acknowledge the message. If the connection is lost, the broker delivers it again."""
        if self.holds(message):
            try:
                message.channel.basic_ack(message.delivery_tag)
            except CONNECTION_ERRORS as error:
                logger.warning("could not acknowledge a message, the broker delivers it again: %s", error)
                self._give_up(message.channel)

    def _give_up(self, channel: Any) -> None:
        """Have the reader end this connection. The broker delivers its unacknowledged messages to the next one."""
        if channel is self._channel:
            self._channel = None

    def _run(self) -> None:
        failures = 0
        while not self._stopping.ready():
            connected_at = time.monotonic()
            try:
                self._consume()
            except Exception as error:
                # Any error, such as a message that py-amqp can't read: only `stop` ends consuming.
                unexpected = not isinstance(error, CONNECTION_ERRORS)
                logger.warning("no connection to the broker, trying again: %r", error, exc_info=unexpected)
                failures = 0 if time.monotonic() - connected_at > 10 else failures
                with eventlet.Timeout(RECONNECT_SECONDS[min(failures, len(RECONNECT_SECONDS) - 1)], False):
                    self._stopping.wait()
                failures += 1

    def _consume(self) -> None:
        connection = connect(self._address)
        try:
            with answer_timeout(SETUP_SECONDS):
                channel = self._channel = connection.channel()
                channel.auto_decode = False
                declare_channel = connection.channel()
            self._next_declare_at = 0.0
            while not self._stopping.ready():
                if self._channel is not channel:
                    raise OSError("the connection was given up")
                if time.monotonic() >= self._next_declare_at:
                    self._declared_at = time.monotonic()
                    self._next_declare_at = self._declared_at + DECLARE_SECONDS
                    self._declare_and_consume(channel, declare_channel)
                    if not self._ready.ready():
                        self._ready.send()
                drain(connection, idle_seconds=0.5)
            connection.close()
        finally:
            self._channel = None
            self._queues.clear()
            self._tags.clear()
            self._refused.clear()
            end(connection)
            for provider in self._providers:
                provider.disconnected()

    def _declare_and_consume(self, channel: Any, declare_channel: Any) -> None:
        """Call it only in the reader, which dispatches other frames while it waits for the broker's answers."""
        refusals: dict[Entity, str | None] = {}
        # The reply queue first: a handler that gets a message may make a call at once.
        for provider in sorted(self._providers, key=lambda provider: provider.prefetch is not None):
            with self._declare_lock:
                # It may have been unregistered in the meantime.
                if provider in self._providers:
                    if provider not in self._queues:
                        self._queues[provider] = provider.queue()
                    entities = (*provider.declare, self._queues[provider])
                    # Handlers share their delay queues.
                    for entity in entities:
                        if entity not in refusals:
                            refusals[entity] = declare(declare_channel, entity)
                    if provider not in self._tags and not any(refusals[entity] for entity in entities):
                        self._tags[provider] = self._start_consuming(channel, provider)
        refused = {entity.name: refusal for entity, refusal in refusals.items() if refusal}
        for name in refused.keys() - self._refused.keys():
            logger.critical("the broker refuses %s: %s", name, refused[name])
        self._refused = refused

    def _start_consuming(self, channel: Any, provider: Provider) -> str:
        with answer_timeout(SETUP_SECONDS):
            if provider.prefetch is not None:
                channel.basic_qos(0, provider.prefetch, False)
            tag: str = channel.basic_consume(
                self._queues[provider].name,
                no_ack=provider.prefetch is None,
                callback=lambda message: self._guarded(message, lambda: provider.handle(message)),
                on_cancel=lambda tag: self._cancelled(provider),
            )
        return tag

    def _cancelled(self, provider: Provider) -> None:
        """The broker has deleted the queue."""
        logger.warning("%s was deleted", self._queues[provider].name)
        del self._tags[provider]
        self._next_declare_at = 0.0

    def _guarded(self, message: Message, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception:
            # Otherwise the message would count against the provider's prefetch for ever.
            logger.exception("a message could not be handled, the broker delivers it again")
            self._give_up(message.channel)
