"""Gauges whose values have to be asked for, when they are looked at: of the database, of the broker.

    OLDEST_CAKE = Gauge("oldest_cake_age_seconds", "…", ["service"])

    class Bakery:
        name = "bakery"
        metrics = Metrics(prefix="bakery")
        oldest_cake = QueryGauge(OLDEST_CAKE, text("SELECT …"))

Every replica tells what stands in the database that all of them share: take the maximum, not the sum.
While the answer fails to come its gauge has no value, and `inquiry_success` is 0.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import eventlet
from amqp.exceptions import NotFound
from nameko.extensions import DependencyProvider, SharedExtension
from prometheus_client import Gauge
from sqlalchemy import Executable

from nameko_reliable.amqp.broker import CONNECTION_ERRORS, BrokerUnavailable, connect, no_answer_within
from nameko_reliable.database import Engine
from nameko_reliable.errors import ServiceUnavailable
from nameko_reliable.settings import amqp_address
from nameko_reliable.telemetry.registry import KIT

logger = logging.getLogger(__name__)

# The gauge, and its labels but the service.
Series: TypeAlias = tuple[Any, ...]
ReadValues: TypeAlias = Callable[[], Mapping[Series, float]]

ANSWER_SECONDS = 1.5
# Longer, so that who looks is told at once what gave no answer.
SCRAPE_SECONDS = 2
# For what takes longer, and is asked less often.
SLOW_ANSWER_SECONDS = 25
# Each time on a new connection: those that are kept have a reader of their own.
DEPTHS_INTERVAL_SECONDS = 30

INQUIRY_SUCCESS = Gauge(
    "inquiry_success",
    "1 if the database or the broker answered when it was last asked for a gauge, else 0.",
    ["service", "inquiry"],
    registry=KIT,
)


QUEUE_MESSAGES = Gauge(
    "queue_messages",
    "Messages that wait in a queue of the service, without those being handled.",
    ["service", "queue"],
    registry=KIT,
)


class Inquiries(SharedExtension):
    """What has to be asked before the service's metrics are told."""

    def __init__(self) -> None:
        self._inquiries: list[_Inquiry] = []

    def add(self, name: str, read: ReadValues, every_seconds: float = 0) -> None:
        """To be called in an extension's `setup`.

        read: returns {(gauge, *labels but the service): value}. every_seconds: 0 for each time that somebody looks.
        """
        self._inquiries.append(_Inquiry(self.container, name, read, every_seconds))

    def refresh(self) -> None:
        """Read all that is due, at once. What needs longer than SCRAPE_SECONDS is there when somebody looks again."""
        threads = [inquiry.start() for inquiry in self._inquiries if inquiry.is_due()]
        with eventlet.Timeout(SCRAPE_SECONDS, False):
            for thread in threads:
                thread.wait()


class _Inquiry:
    def __init__(self, container: Any, name: str, read: ReadValues, every_seconds: float) -> None:
        self._container, self._name, self._read, self._every_seconds = container, name, read, every_seconds
        self._timeout_seconds = SLOW_ANSWER_SECONDS if every_seconds else ANSWER_SECONDS
        self._due_at = 0.0
        self._thread: Any = None
        self._series: set[Series] = set()

    def is_due(self) -> bool:
        return self._thread is not None or time.monotonic() >= self._due_at

    def start(self) -> Any:
        """The greenlet that asks; who looks meanwhile gets the same one."""
        if self._thread is None:
            self._thread = self._container.spawn_managed_thread(self._run, identifier=self._name)
        return self._thread

    def _run(self) -> None:
        success = 0
        try:
            # As it is no Exception, SQLAlchemy throws the connection away that it interrupts.
            with eventlet.Timeout(self._timeout_seconds):
                values = self._read()
            self._update(values)
            success = 1
        except (Exception, eventlet.Timeout) as error:
            # Whatever it is, the other metrics are told all the same.
            self._update({})
            is_outage = isinstance(error, (ServiceUnavailable, BrokerUnavailable, eventlet.Timeout))
            logger.warning("%s could not be asked for: %r", self._name, error, exc_info=not is_outage)
        finally:
            self._thread, self._due_at = None, time.monotonic() + self._every_seconds
        INQUIRY_SUCCESS.labels(self._container.service_name, self._name).set(success)

    def _update(self, values: Mapping[Series, float]) -> None:
        for gauge, *labels in self._series - values.keys():
            gauge.remove(self._container.service_name, *labels)
        self._series &= values.keys()
        for (gauge, *labels), value in values.items():
            # What is no number raises before there is a series for it.
            number = float(value)
            gauge.labels(self._container.service_name, *labels).set(number)
            self._series.add((gauge, *labels))


class QueryGauge(DependencyProvider):
    """A gauge by a query of the service's own database.

    gauge: of prometheus_client, its first label `service`. statement: SQLAlchemy's; its rows are the other labels,
    then the value. every_seconds: for a query that takes long; each replica asks.
    """

    inquiries = Inquiries()
    engine = Engine()

    def __init__(self, gauge: Gauge, statement: Executable, every_seconds: float = 0) -> None:
        self.gauge, self.statement, self.every_seconds = gauge, statement, every_seconds

    def setup(self) -> None:
        [metric] = self.gauge.describe()
        self.inquiries.add(metric.name, self._read, self.every_seconds)

    def _read(self) -> dict[Series, float]:
        with self.engine.session() as session:
            return {(self.gauge, *labels): value for *labels, value in session.execute(self.statement)}


class QueueDepths(SharedExtension):
    """How many messages wait in the queues of the service."""

    inquiries = Inquiries()

    def __init__(self) -> None:
        self._watched: dict[str, Series] = {}

    def setup(self) -> None:
        self._address = amqp_address(self.container.config)
        self.inquiries.add("queues", self._read, DEPTHS_INTERVAL_SECONDS)

    def watch(self, queue_name: str, gauge: Gauge, *labels: str) -> None:
        """To be called in an extension's `setup`. labels: all but the service."""
        self._watched[queue_name] = gauge, *labels

    def _read(self) -> dict[Series, float]:
        connection = None
        try:
            connection = connect(self._address)
            with no_answer_within(ANSWER_SECONDS):
                depths = {}
                for queue_name, key in self._watched.items():
                    try:
                        with connection.channel() as channel:
                            depths[key] = channel.queue_declare(queue_name, passive=True).message_count
                    except NotFound:
                        pass  # It comes with its first consumer, and an automatically deleted one goes with its last.
                connection.close()
                return depths
        except CONNECTION_ERRORS as error:
            raise BrokerUnavailable(str(error)) from error
        finally:
            if connection is not None:
                connection.collect()
