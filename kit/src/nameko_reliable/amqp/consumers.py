"""The consuming connection of a service: it reconnects by itself and is ended within seconds.

Nameko's QueueConsumer acknowledges what it can't decode, waits up to 30 seconds to reconnect and
can't be stopped while the broker is away. This one hands raw messages to its providers, each in a
greenlet of its own, and takes its prefetch from them, such that all queues together hold no more
messages than the service has workers, and calls that may wait without one (`limit` of nameko_reliable.rpc.Rpc).

What is deleted at the broker comes back: on every connect, when the broker cancels a consumer, when a
message was returned, and every DECLARE_SECONDS all queues are declared and bound again, and consumed if
they are not. A queue that the broker refuses hinders no other; until it is granted the service isn't ready.
"""

import logging
import time
from typing import Any

import eventlet
from amqp import spec
from eventlet.event import Event
from eventlet.semaphore import Semaphore
from nameko.extensions import SharedExtension
from prometheus_client import Gauge

from nameko_reliable.amqp.broker import CONNECTION_ERRORS, SETUP_SECONDS, connect, declare, drain, no_answer_within
from nameko_reliable.settings import amqp_address
from nameko_reliable.telemetry.registry import KIT

logger = logging.getLogger(__name__)

RECONNECT_SECONDS = (0.1, 0.5, 1, 2)
DECLARE_SECONDS = 10
# Between two that were asked for: a stopped service returns every call.
ASKED_SECONDS = 1
STOP_SECONDS = 2

CONNECTED = Gauge(
    "broker_connected", "1 while all queues of the service are consumed, else 0.", ["service"], registry=KIT
)


class Consumers(SharedExtension):
    """A provider offers:

    queue()               the kombu Queue to declare and consume; called once for every connection
    declare               more kombu entities, without which it is not to consume
    prefetch              how many messages it holds unacknowledged; None: acknowledged on delivery
    handle(message)       called in a greenlet of its own with each amqp Message (its body is bytes), which
                          is then due an `ack`;
                          with prefetch None called in the reader itself, and must not block
    disconnected()        the connection is lost, and with it what was not acknowledged
    """

    def __init__(self):
        self._providers = []
        self._thread = None
        self._channel: Any = None
        self._queues = {}
        self._tags = {}
        self._refused = {}
        self._declared_at = self._declare_at = 0.0
        # Held while a provider's queue is declared and consumed.
        self._declaring = Semaphore()
        self._ready = Event()
        self._stopping = Event()

    def setup(self):
        self._address = amqp_address(self.container.config)
        CONNECTED.labels(self.container.service_name).set_function(lambda: self.connected)

    def start(self):
        """Return when all queues that the broker grants are consumed, or the service is being stopped."""
        if self._thread is None:
            self._thread = self.container.spawn_managed_thread(self._run)
        self._ready.wait()

    def register(self, provider):
        """To be called in an extension's `setup`."""
        self._providers.append(provider)

    def unregister(self, provider):
        """Consume no more for this provider; what it was given already may still be handled."""
        if provider in self._providers:
            self._providers.remove(provider)
        with eventlet.Timeout(STOP_SECONDS, False):
            # A queue that is declared after its last consumer has gone would keep calls without an answer.
            with self._declaring:
                channel, tag = self._channel, self._tags.get(provider)
                if channel is None or tag not in channel.callbacks:
                    return
                try:
                    # The reader sees the broker's answer and then drops the callback.
                    channel.send_method(spec.Basic.Cancel, "sb", (tag, False))
                except CONNECTION_ERRORS:
                    return  # The broker has dropped this consumer with the connection.
            while tag in channel.callbacks and channel is self._channel:
                eventlet.sleep(0.01)

    def declare_again(self):
        """Have everything declared and bound within a second or so: a message came back that a queue should take."""
        self._declare_at = min(self._declare_at, max(time.monotonic(), self._declared_at + ASKED_SECONDS))

    @property
    def connected(self):
        """Whether all queues are declared and consumed at the moment."""
        return self._channel is not None and not self._refused and self._tags.keys() >= set(self._providers)

    @property
    def refused(self):
        """{name: the broker's sentence} of what it refuses to declare."""
        return dict(self._refused)

    def consumes(self, provider):
        """Whether what comes to the provider's queue reaches it at the moment."""
        return provider in self._tags

    def stop(self):
        """Close the connection: what is not acknowledged goes back to its queue."""
        if not self._stopping.ready():
            self._stopping.send()
        if not self._ready.ready():
            self._ready.send()
        if self._thread is not None:
            with eventlet.Timeout(STOP_SECONDS, False):
                self._thread.wait()

    kill = stop

    def holds(self, message):
        """Whether the message is still this consumer's; the broker has taken it back with a lost connection."""
        return message.channel is self._channel

    def ack(self, message):
        """Acknowledge; when the connection is lost the broker delivers the message again."""
        if self.holds(message):
            try:
                message.channel.basic_ack(message.delivery_tag)
            except CONNECTION_ERRORS as error:
                logger.warning("could not acknowledge a message, it will come again: %s", error)
                # Perhaps amid a frame: nothing may follow it.
                self._give_up(message.channel)

    def _give_up(self, channel):
        """Have the reader end this connection; what is not acknowledged comes again on the next."""
        if channel is self._channel:
            self._channel = None

    def _run(self):
        failures = 0
        while not self._stopping.ready():
            connected_at = time.monotonic()
            try:
                self._consume()
            except Exception as error:
                # Whatever it is, a message that py-amqp can't read included: only `stop` ends consuming.
                unexpected = not isinstance(error, CONNECTION_ERRORS)
                logger.warning("no connection to the broker, trying again: %r", error, exc_info=unexpected)
                failures = 0 if time.monotonic() - connected_at > 10 else failures
                with eventlet.Timeout(RECONNECT_SECONDS[min(failures, len(RECONNECT_SECONDS) - 1)], False):
                    self._stopping.wait()
                failures += 1

    def _consume(self):
        connection = connect(self._address)
        try:
            with no_answer_within(SETUP_SECONDS):
                channel = self._channel = connection.channel()
                channel.auto_decode = False
                declaring = connection.channel()
            self._declare_at = 0.0
            while not self._stopping.ready():
                if self._channel is not channel:
                    raise OSError("the connection was given up")
                if time.monotonic() >= self._declare_at:
                    self._declared_at = time.monotonic()
                    self._declare_at = self._declared_at + DECLARE_SECONDS
                    with no_answer_within(SETUP_SECONDS):
                        self._declare_and_consume(channel, declaring)
                    if not self._ready.ready():
                        self._ready.send()
                drain(connection, idle_seconds=0.5)
            connection.close()
        finally:
            self._channel = None
            self._queues.clear()
            self._tags.clear()
            self._refused.clear()
            connection.collect()
            for provider in self._providers:
                provider.disconnected()

    def _declare_and_consume(self, channel, declaring):
        """Only in the reader, which dispatches other frames while it waits for the broker's answers."""
        refusals = {}
        # Replies first: who gets a message may make a call at once.
        for provider in sorted(self._providers, key=lambda provider: provider.prefetch is not None):
            with self._declaring:
                # Not one that was unregistered meanwhile.
                if provider in self._providers:
                    if provider not in self._queues:
                        self._queues[provider] = provider.queue()
                    entities = (*provider.declare, self._queues[provider])
                    # Handlers share their delay queues.
                    for entity in entities:
                        if entity not in refusals:
                            refusals[entity] = declare(declaring, entity)
                    if provider not in self._tags and not any(refusals[entity] for entity in entities):
                        self._tags[provider] = self._start_consuming(channel, provider)
        refused = {entity.name: refusal for entity, refusal in refusals.items() if refusal}
        for name in refused.keys() - self._refused.keys():
            logger.critical("the broker refuses %s: %s", name, refused[name])
        self._refused = refused

    def _start_consuming(self, channel, provider):
        inline = provider.prefetch is None
        if not inline:
            channel.basic_qos(0, provider.prefetch, False)
        return channel.basic_consume(
            self._queues[provider].name,
            no_ack=inline,
            callback=provider.handle if inline else lambda message: self._spawn(provider, message),
            on_cancel=lambda tag: self._cancelled(provider),
        )

    def _cancelled(self, provider):
        """The broker has deleted the queue."""
        logger.warning("%s was deleted", self._queues[provider].name)
        del self._tags[provider]
        self._declare_at = 0.0

    def _spawn(self, provider, message):
        self.container.spawn_managed_thread(lambda: self._handle(provider, message), identifier=type(provider).__name__)

    def _handle(self, provider, message):
        try:
            provider.handle(message)
        except Exception:
            # Swallowed, it would keep one of the provider's places for ever.
            logger.exception("a message was not taken, it will come again")
            self._give_up(message.channel)
